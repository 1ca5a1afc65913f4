//! Jailer (then warden) to the client that started it.

use serde::{Deserialize, Serialize};

use crate::record::{ExitReport, PolicyNews, SandboxRecord};
use crate::runner::GuestNews;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The guest runs. The record tells its name, posture and proof.
    Started(Box<SandboxRecord>),
    /// The start failed, everything was undone (or `left` says what was not).
    Failed(Failure),
    /// What the guest's agent reports; after `Ready` it can be connected to.
    Guest(GuestNews),
    /// SELinux stopped, or started again, to separate the sandbox.
    Policy(PolicyNews),
    /// The sandbox is gone and cleaned up.
    Exited(ExitReport),
}

/// A failed start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The step of the plan, or the stage before there was one.
    pub step: String,
    pub layer: String,
    /// One sentence with its causes.
    pub error: String,
    /// Last lines of the console, where there was one.
    pub console: Option<String>,
    /// What could not be undone; `casemate repair` tries again.
    pub left: Vec<String>,
}
