//! The messages of a session, one vsock connection each.
//!
//! ```text
//! client                                   agent
//! Hello ---------------------------------> Hello
//! Attach | Exec -------------------------> Started, then Stdout/Stderr/StdinAck/StdinClosed ..., Exited
//!   Stdin, StdinEof, Resize, Signal
//! CopyIn, Data ..., DataEof -------------> Done
//! CopyOut -------------------------------> Data ..., DataEof
//! Stop ----------------------------------> Done        (the workload has been told; the VM ends on its own)
//! Stats | Ping --------------------------> Stats | Pong  (any number of times)
//! at any time                              Error, after which the agent closes
//! ```
use crate::config::{ConfigError, User, check_command};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Most bytes in one [`ToAgent::Stdin`], [`ToAgent::Data`], [`FromAgent::Stdout`], ...
pub const MAX_CHUNK: usize = 32 * 1024;
/// Most bytes of stdin that a client may have sent and the agent not acknowledged: what waits for a workload that does
/// not read never blocks a signal or a resize behind it.
pub const STDIN_WINDOW: u64 = 256 * 1024;
/// Longest text in [`FromAgent::Error`].
pub const MAX_MESSAGE: usize = 1024;

/// A run of bytes, copied as one piece by the encoding.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes]", self.0.len())
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Bytes(bytes.to_vec())
    }
}

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                if bytes.len() > MAX_CHUNK {
                    return Err(E::invalid_length(bytes.len(), &"at most MAX_CHUNK bytes"));
                }
                Ok(Bytes(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

/// Terminal size in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WinSize {
    pub rows: u16,
    pub cols: u16,
}

/// A further process in the guest. Encoded it must fit one frame: about 60 KiB of arguments and environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    pub argv: Vec<String>,
    /// The whole environment; see [`crate::GuestConfig::env`].
    pub env: Vec<(String, String)>,
    pub cwd: String,
    pub user: User,
    pub groups: Vec<u32>,
    /// With a size: give it a pseudo-terminal.
    pub tty: Option<WinSize>,
    /// Keep stdin open; else it reads /dev/null.
    pub stdin: bool,
}

impl ExecRequest {
    /// `argv` as root in `/`, without tty and stdin.
    #[must_use]
    pub fn new(argv: Vec<String>) -> Self {
        ExecRequest {
            argv,
            env: Vec::new(),
            cwd: "/".into(),
            user: User::default(),
            groups: Vec::new(),
            tty: None,
            stdin: false,
        }
    }

    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.groups.len() > 256 {
            return Err(ConfigError::Invalid { field: "groups", problem: "has more than 256 entries" });
        }
        check_command(&self.argv, &self.env, &self.cwd)
    }
}

/// What a [`ToAgent::CopyIn`] stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CopyFormat {
    /// A tar archive, unpacked below `path` (a directory, made if it is missing).
    Tar,
    /// The content of the one file `path`; its directory must exist.
    File { mode: u32, uid: u32, gid: u32 },
}

/// Client to agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// Always first.
    Hello {
        version: u32,
    },
    /// To the workload: its output from now on, its stdin if it has one. One client at a time; a new one replaces it.
    Attach {
        size: Option<WinSize>,
    },
    Exec(ExecRequest),
    Stdin(Bytes),
    StdinEof,
    Resize(WinSize),
    /// To the process of this session (tty: its foreground process group).
    Signal {
        signal: i32,
    },
    CopyIn {
        path: String,
        format: CopyFormat,
    },
    /// A file or a directory tree, always answered as a tar archive whose names begin with the last part of `path`.
    CopyOut {
        path: String,
    },
    Data(Bytes),
    DataEof,
    /// Stop signal to the workload, SIGKILL after the grace (the configured one if none is given), then power off.
    Stop {
        grace_ms: Option<u64>,
    },
    Stats,
    Ping {
        token: u64,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    Code(u8),
    Signal(u8),
}

impl ExitStatus {
    /// As a shell shows it: 128 + signal.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal(signal) => signal.saturating_add(128),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The message does not fit the session, or is malformed.
    Protocol,
    /// The program or the path does not exist (exit status 127 by convention).
    NotFound,
    /// The program cannot be executed (exit status 126).
    NotExecutable,
    /// No such user or group in the guest.
    NoSuchUser,
    /// The working directory cannot be entered.
    WorkingDirectory,
    /// The workload has ended, or has not been started.
    NotRunning,
    /// The agent has too many sessions.
    Busy,
    Io,
}

impl ErrorKind {
    /// The exit status of a client whose workload or exec could not start, as podman has it.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::NotFound => 127,
            ErrorKind::NotExecutable => 126,
            _ => 125,
        }
    }
}

/// What the guest says of itself; claims of an attacker, for show only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    pub uptime_ms: u64,
    pub mem_total_kib: u64,
    pub mem_available_kib: u64,
    /// Load of the last minute times 100.
    pub load1_centi: u32,
    pub processes: u32,
    pub sessions: u32,
}

/// Agent to client. Every value is the claim of an attacker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromAgent {
    Hello {
        version: u32,
    },
    Started {
        pid: u32,
    },
    Stdout(Bytes),
    Stderr(Bytes),
    /// So many more bytes of stdin have left the agent's buffer.
    StdinAck {
        bytes: u32,
    },
    /// The process has closed its stdin, or has none; what is sent further is dropped (and acknowledged).
    StdinClosed,
    Exited(ExitStatus),
    Data(Bytes),
    DataEof,
    Done,
    Stats(Stats),
    Pong {
        token: u64,
    },
    Error {
        kind: ErrorKind,
        message: String,
    },
}
