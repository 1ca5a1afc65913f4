//! The auditor's room: judges a SELinux policy, a plan, a live VM or any process with the same rules.
//!
//! Trust: runs with the rights of whoever calls it and changes nothing. A policy file is read by libsepol, behind the one
//! binding in [`sepol`], the only unsafe code of this room.
#![deny(unsafe_code)]

pub mod crowd;
mod judge;
pub mod observe;
pub mod planned;
pub mod policy;
pub mod profile;
pub mod report;
pub mod rule;
pub mod rules;
pub mod seccomp;
mod sepol;
pub mod subject;
pub mod why;

pub use judge::{Around, judge};
pub use policy::{Policy, PolicyError};
