//! Messages between the roles: framed (one SOCK_SEQPACKET datagram each), size-capped, typed per direction.
//!
//! | channel | from | to |
//! |---|---|---|
//! | client | [`jailer::Event`] (jailer, then warden) | the client that started it, fd 3 |
//! | control | [`control::Request`] / [`control::Response`] | any client of root's, `control.sock` |
//! | runner | [`runner::ToRunner`] / [`runner::FromRunner`] | warden and runner, fd `warden` |
//!
//! The runner may be in the guest's hands: what it sends is untrusted, bounded here and checked against
//! the phase by the warden. Records ([`record`]) are JSON files in the run directory.
#![forbid(unsafe_code)]

pub mod channel;
pub mod codec;
pub mod control;
pub mod jailer;
pub mod record;
pub mod runner;

pub use channel::{Channel, ChannelError};
pub use codec::{CodecError, MAX_MESSAGE};
