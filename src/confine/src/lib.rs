//! One file per confinement layer: probe, apply, attest.
//!
//! Purpose: takes the numbers and descriptors of a plan and makes the kernel enforce them, then reads
//! back what the kernel says. Trust: part of the trusted base. Callers: the jailer's child applies
//! (before exec), the runner applies a second time and attests from inside, the warden attests from
//! outside. Every `apply` returns [`Confined`], which only this room can make: whoever holds one for a
//! layer knows that the layer was applied *and* read back. See README.md for the order.
#![forbid(unsafe_code)]

pub mod attest_inside;
pub mod attest_outside;
pub mod capabilities;
pub mod cgroup;
mod confined;
#[cfg(feature = "trial")]
pub mod controls;
pub mod fds;
pub mod landlock;
pub mod mounts;
pub mod namespaces;
#[cfg(feature = "trial")]
pub mod objects;
pub mod rlimits;
pub mod seccomp;
#[cfg(feature = "trial")]
pub mod trial;
pub mod uid;

pub use confined::{Confined, Error, Finding, Jail, Result};
