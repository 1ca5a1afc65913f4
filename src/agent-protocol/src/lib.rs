//! What host and guest agent say to each other: the guest configuration, the session messages, the boot reports.
//!
//! Trust: everything that comes *from* the agent is written by an attacker (the guest). Every decoder here is bounded
//! in size and in work, refuses trailing bytes, and [`ClientSession`] refuses replies that nobody asked for. The agent
//! trusts its host, yet decodes with the same bounds. No I/O beyond `Read`/`Write` framing.
//!
//! | carrier | direction | what |
//! |---|---|---|
//! | initrd segment [`CONFIG_PATH`] | host -> guest | [`GuestConfig`] as JSON |
//! | vsock port [`AGENT_PORT`] | both | one connection per session: frames of [`ToAgent`] / [`FromAgent`] |
//! | vsock host port [`REPORT_PORT`] | guest -> host | [`Report`], [`REPORT_LEN`] bytes each |
//!
//! Called by: agent (guest side), runner (reports), client and cli (sessions), image and jailer (configuration).
#![forbid(unsafe_code)]

mod config;
mod frame;
mod message;
mod report;
mod session;

pub use config::{
    Attach, ConfigError, DeviceRef, FsType, GuestConfig, MAX_CONFIG, Mount, Overlay, Rlimit, RlimitKind, RootFs, User,
};
pub use frame::{FRAME_HEADER, FrameDecoder, FrameError, MAX_PAYLOAD, decode_payload, encode};
pub use message::{
    Bytes, CopyFormat, ErrorKind, ExecRequest, ExitStatus, FromAgent, MAX_CHUNK, MAX_MESSAGE, STDIN_WINDOW, Stats,
    ToAgent, WinSize,
};
pub use report::{EndCause, REPORT_LEN, Report, ReportError, ReportSequence, Stage, Stamped};
pub use session::{ClientSession, SessionError};

/// Version of the session messages and of [`GuestConfig`]; both ends refuse another.
pub const PROTOCOL_VERSION: u32 = 1;
/// The vsock port on which the agent listens in the guest.
pub const AGENT_PORT: u32 = 1024;
/// The vsock port of the host (CID 2) that takes [`Report`]s.
pub const REPORT_PORT: u32 = 1;
/// Where the runner puts the configuration: path of the initrd segment's only file (no leading slash in the archive).
pub const CONFIG_PATH: &str = "/casemate/config.json";
/// Names of the modules that the agent loads, one file name of `/casemate/modules/` per line, in load order.
pub const MODULES_LIST_PATH: &str = "/casemate/modules.list";
/// Directory of the (decompressed) modules in the initramfs.
pub const MODULES_DIR: &str = "/casemate/modules";
/// Serial number that the runner gives to the virtio-blk device of the root file system.
pub const ROOT_SERIAL: &str = "root";
