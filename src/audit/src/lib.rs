//! The auditor's room: judges a SELinux policy (here), later also plans and running VMs, with the same rules.
//!
//! Trust: runs with the rights of whoever calls it and changes nothing. A policy file is read by libsepol, behind the one
//! binding in [`sepol`], the only unsafe code of this room.
#![deny(unsafe_code)]

pub mod policy;
mod sepol;

pub use policy::{Policy, PolicyError};
