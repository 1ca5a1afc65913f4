//! Clients to a warden, over `control.sock`. One request, one response.

use serde::{Deserialize, Serialize};

use crate::record::{ExitReport, Finding, Phase, SandboxRecord};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The record as it stands.
    Inspect,
    /// Attest again, now.
    Attest,
    Pause,
    Resume,
    /// Resume although SELinux does not separate the sandbox any more; the reason is recorded.
    ResumeReduced(String),
    /// End the VM at once.
    Kill,
    /// Answer when the sandbox is gone.
    Wait,
}

impl Request {
    /// The request table: what is allowed in which phase.
    pub fn allowed_in(&self, phase: Phase) -> bool {
        match self {
            Request::Inspect | Request::Wait | Request::Kill => true,
            Request::Attest => matches!(phase, Phase::Running | Phase::Paused),
            Request::Pause => phase == Phase::Running,
            Request::Resume | Request::ResumeReduced(_) => phase == Phase::Paused,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Response {
    Done,
    Record(Box<SandboxRecord>),
    Findings(Vec<Finding>),
    Exited(ExitReport),
    /// A sentence: why not.
    Refused(String),
}
