//! PID 1 of the guest: brings the guest up, starts and reaps the workload, serves sessions.
//!
//! Trust: to the host this program is part of the attacker; inside the guest it is root and trusts its host. It has no
//! secrets. The session engine ([`Agent::serve`]) works on any stream fd and in any process, so that tests drive it
//! without a VM; only [`init`] and what it calls assume to be PID 1.
//!
//! ```text
//! init: mounts -> modules -> config -> devices -> root -> listen -> Ready -> (Attach) -> Started -> Exited -> power off
//! threads: main (the workload's relay), reaper (waits for all children), listener, one per session
//! ```
//! Children are started through a fresh copy of this program ([`helper`]), which sets session, terminal, limits and
//! user in its own single-threaded process and then executes: so nothing here needs `unsafe`.
#![forbid(unsafe_code)]

mod boot;
mod client;
mod copy;
mod engine;
pub mod helper;
pub mod init;
mod network;
mod reaper;
mod relay;
mod report;
mod rootfs;
mod session;
mod spawn;
mod stream;
mod users;
mod workload;

pub use engine::Agent;
pub use workload::{Ended, Workload};
