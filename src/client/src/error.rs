//! The client's one error: what was attempted on which object, the cause chained, and what the user can do.

use std::io;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{attempt}")]
    Io {
        attempt: String,
        #[source]
        source: io::Error,
    },
    #[error("{program} is not beside this program and not in {fallback}")]
    NoProgram { program: String, fallback: String },
    #[error("there is no sandbox '{0}'")]
    NoSandbox(String),
    #[error("'{0}' is not a sandbox name")]
    BadName(String),
    #[error("sandbox '{0}' is not running")]
    NotRunning(String),
    #[error("sandbox '{0}' is still running")]
    StillRunning(String),
    #[error("the record of sandbox '{name}' is not usable: {problem}")]
    Record { name: String, problem: String },
    #[error("the warden of '{name}' refused to {request}: {reason}")]
    Refused { name: String, request: &'static str, reason: String },
    #[error("the warden of '{name}' did not answer: {reason}")]
    Warden { name: String, reason: String },
    #[error("the jailer {0}")]
    Jailer(String),
    #[error("the jailer speaks another version of the protocol: {0}")]
    Version(String),
    #[error("'{verb}' failed: {said}")]
    Verb { verb: String, said: String },
    #[error("the session with the guest's agent failed")]
    Session(#[from] casemate_agent_protocol::SessionError),
    /// What the agent says is the guest's claim; already made harmless for terminals.
    #[error("the guest's agent: {message}")]
    Agent { kind: casemate_agent_protocol::ErrorKind, message: String },
    #[error("the guest's agent cannot be reached: {0}")]
    AgentUnreachable(String),
    #[error("{0}")]
    Copy(String),
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// What the user can do about it.
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run it as root: Casemate's run directory is root's alone".into()
            }
            Error::NoProgram { .. } => "build it (`make build`) or install Casemate's programs in one directory".into(),
            Error::NoSandbox(_) | Error::BadName(_) => "`casemate ps -a` lists the sandboxes".into(),
            Error::NotRunning(name) => format!("`casemate inspect {name}` tells how it ended"),
            Error::StillRunning(name) => format!("`casemate stop {name}` first, or `casemate rm -f {name}`"),
            Error::Record { .. } | Error::Warden { .. } => {
                "`casemate repair` cleans up after a warden that died".into()
            }
            Error::Version(_) => "install all of Casemate's programs from one build".into(),
            Error::AgentUnreachable(_) => "`casemate logs --console NAME` shows what the guest's kernel said".into(),
            _ => return None,
        })
    }

    /// Exit status for this error, as podman uses them.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Agent { kind, .. } => kind.exit_code(),
            Error::Interrupted => 130,
            _ => 125,
        }
    }
}

/// Names the attempt of a failed call.
pub trait Attempt<T> {
    fn attempt(self, attempt: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Attempt<T> for std::result::Result<T, E> {
    fn attempt(self, attempt: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::Io { attempt: attempt(), source: error.into() })
    }
}
