//! Evidence: what was seen of a sandbox, as an in-toto statement in a DSSE envelope, signed with the host's Ed25519 key, and
//! a link in the host's chain of them. docs/evidence.md describes the forms.
//!
//! ```text
//! CLI: Evidence --canonical JSON--> jailer: seal + position in the chain --> Statement --sign--> Envelope (the bundle)
//!                                      \--> Record, appended to the chain
//! anybody: bundle(s), chain --open--> strict form, signature, then what the parts say of each other
//! ```
//! Trust: bytes that are opened here are hostile. There is one spelling of each form (see [`canonical`]): a bundle in which a
//! single byte is another is refused, also where it would mean the same. No I/O, no clock, no randomness.
#![forbid(unsafe_code)]

pub mod canonical;
pub mod chain;
pub mod digest;
pub mod dsse;
pub mod key;
pub mod parts;
pub mod statement;

pub use chain::{Chain, Link, Record};
pub use digest::Digest;
pub use dsse::{Bundle, Envelope};
pub use key::{KeyPair, PublicKey};
pub use parts::{Evidence, Part};
pub use statement::{Seal, Statement};

/// Most bytes of evidence that are sealed, and of a bundle that is opened.
pub const MAX_EVIDENCE: usize = 24 << 20;
pub const MAX_BUNDLE: usize = 48 << 20;

/// Why something is not taken for evidence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("{what} is not of its form: {why}")]
    Form { what: &'static str, why: String },
    #[error("{0} is not in its one spelling: something in it was changed, or written by another version")]
    Spelling(&'static str),
    #[error("{what} is larger than {most} bytes")]
    Size { what: &'static str, most: usize },
    #[error("{what} is {seen}; this program knows {known}")]
    Kind { what: &'static str, seen: String, known: String },
    #[error("the signature is not of key {0} over these bytes")]
    Signature(Digest),
    #[error("it is signed by key {seen}, not by {wanted}")]
    Key { seen: Digest, wanted: Digest },
    #[error("the subjects are not the objects that the evidence digests")]
    Subjects,
}

#[cfg(test)]
mod tests;
