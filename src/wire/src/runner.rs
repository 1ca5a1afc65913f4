//! Warden and runner.

use serde::{Deserialize, Serialize};

use crate::record::{ExitCause, Finding, Phase, Timing};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToRunner {
    /// Both attestations agree: run the vCPUs. Once.
    Go,
    Pause,
    Resume,
    /// Attest from inside again.
    Attest,
    /// End now.
    Quit,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromRunner {
    /// The start failed in the runner.
    Failed {
        step: String,
        error: String,
    },
    /// Narrowed and ready; what it sees of itself.
    Attested(Vec<Finding>),
    Paused,
    Resumed,
    /// What the agent reported.
    Guest(GuestNews),
    /// What its stages took, once, before the end is told.
    Timed(Vec<Timing>),
    /// The VM is gone; the process ends after this.
    Exited {
        cause: ExitCause,
        detail: Option<String>,
    },
}

/// What the guest's agent says, as claims of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestNews {
    Ready,
    Started,
    Exited { status: u8 },
    Failed { detail: String },
}

impl FromRunner {
    /// The message table: what the warden accepts in which phase. Anything else ends the VM.
    pub fn allowed_in(&self, phase: Phase) -> bool {
        match self {
            FromRunner::Failed { .. } => phase == Phase::Starting,
            FromRunner::Attested(_) => phase != Phase::Stopped,
            FromRunner::Paused => phase == Phase::Running,
            FromRunner::Resumed => phase == Phase::Paused,
            FromRunner::Guest(_) => matches!(phase, Phase::Running | Phase::Paused),
            FromRunner::Timed(_) | FromRunner::Exited { .. } => phase != Phase::Stopped,
        }
    }
}
