//! The jailer, and its parent half, the warden.
//!
//! ```text
//! run: input -> spec -> facts -> plan -> start (each step, journal first) -> clone3 -+-> child steps -> exec runner
//!                                                                                   |
//!      client <- Event::Started <- Go <- both attestations agree <- warden ---------+
//!      warden: serves control.sock, waits on the pidfd, undoes everything, writes exit.json
//! ```
//! Trust: the caller's spec is hostile until parsed; the host's files are hostile until opened and checked;
//! the runner is hostile from its first guest instruction on.
#![forbid(unsafe_code)]

mod attest;
mod census;
mod child;
mod clock;
mod config;
mod customizable;
mod error;
mod evidence;
mod facts;
mod guest;
mod hugepages;
mod input;
mod labels;
mod lease;
mod past;
mod policy;
mod policy_guard;
mod readopt;
mod repair;
mod run;
mod start;
mod store;
mod trial;
mod verb;
mod warden;

pub use verb::main;
