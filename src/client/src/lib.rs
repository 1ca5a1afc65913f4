//! The caller's side of a sandbox: starts the jailer, follows the VM, speaks to its warden and to the agent in it.
//!
//! Trust: runs with the caller's privilege and holds none of its own. The jailer and the warden are trusted; the
//! records in the run directory are root's, yet read with bounds and checked again; the agent is part of the attacker:
//! its messages pass a state machine ([`agent`]), its bytes reach a terminal only through [`sanitize`] unless the user
//! asked for a terminal, its archives are unpacked by [`unpack`], which leaves out whatever leads elsewhere.
//!
//! ```text
//! launch --Event--> Started -> Guest(Ready) -> pump (stdio <-> agent) -> Exited
//! ```
//! Called by: cli (later oci and shim).
#![forbid(unsafe_code)]

pub mod agent;
pub mod avc;
pub mod chain;
pub mod control;
pub mod copy;
pub mod dirs;
pub mod error;
pub mod jailer;
pub mod label;
pub mod outbox;
pub mod pump;
pub mod ring;
pub mod sanitize;
pub mod signals;
pub mod store;
pub mod terminal;
pub mod unpack;
pub mod wait;

pub use dirs::Dirs;
pub use error::{Error, Result};
