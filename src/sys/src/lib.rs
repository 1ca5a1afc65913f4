//! Thin safe wrappers over Linux system calls, and the host facts.
//!
//! Purpose: every system call that Casemate's trusted roles make and that std or rustix does not
//! offer safely goes through here; no policy lives in this room. Trust: part of the trusted base of
//! jailer, warden and runner. Called by every other room; uses none. Errors name the attempt
//! ([`Error`]); the errno is in the chained source.
//!
//! One of the two rooms that may hold `unsafe` (the other is `vm`): one call per block.
#![deny(unsafe_op_in_unsafe_fn)]
#![warn(clippy::undocumented_unsafe_blocks, clippy::multiple_unsafe_ops_per_block)]

pub mod cred;
mod error;
pub mod exec;
pub mod facts;
pub mod fds;
pub mod handle;
pub mod installed;
pub mod memfd;
pub mod memory;
pub mod mount;
pub mod objects;
pub mod path;
pub mod prctl;
pub mod process;
pub mod procfs;
pub mod provoke;
pub mod rlimit;
pub mod seccomp;
pub mod seqpacket;
pub mod signal;

pub use error::{Attempt, Error, Result};
/// The one rustix of the tree, for calls that are safe there already.
pub use rustix;
