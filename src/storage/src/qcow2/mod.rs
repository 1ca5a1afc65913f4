//! qcow2, versions 2 and 3: read, and written as the top of a chain.
//!
//! Trust: an image is hostile bytes, and a guest may have chosen them. Every offset is checked against the file, tables
//! and caches are bounded, nothing named in an image is ever opened. What this driver cannot keep right it refuses.
//!
//! ```text
//! guest offset -> L1 entry -> L2 entry -> nothing here: the next image of the chain, or zeroes
//!                                      -> zeroes
//!                                      -> a cluster of this file
//!                                      -> a compressed cluster (deflate), never written to
//! ```
//!
//! Changed tables wait in memory until the guest flushes. What keeps an image sound wherever a crash comes (SIGKILL or
//! power) is the order in which they are written, each stage stable before the next:
//! refcounts that rise, with the data; L2 entries; L1 entries; and refcounts that fall only after all that. So at worst
//! a cluster is counted and not used: a leak, which `qemu-img check -r leaks` gives back.
//! Clusters that the guest discards keep their place in the file and give their space back, so refcounts fall only when
//! a compressed cluster is written over or the refcount table moves.

mod create;
mod header;
mod image;
mod medium;
mod pages;
mod refcounts;
mod write;

pub use create::{NewImage, create};
pub use header::{Header, HeaderError};
pub use image::OpenError;
pub(crate) use image::{Extent, Image};
pub(crate) use write::Emptied;

#[cfg(test)]
mod check;
#[cfg(test)]
pub(crate) use medium::Event;
#[cfg(test)]
mod tests;
