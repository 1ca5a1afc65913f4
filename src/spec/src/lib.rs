//! What was asked: untrusted bytes (argv, TOML, JSON) become a [`SandboxSpec`] here and nowhere else.
//!
//! Trust: the input is the caller's and may be hostile. [`wire::SpecFile`] is the versioned wire form
//! (unknown and repeated fields rejected); [`SandboxSpec`] has private fields and is made only by
//! `TryFrom<SpecFile>`, so a value of it is a checked one. No I/O: whether a path exists is the
//! jailer's question, asked on an open file descriptor.
#![forbid(unsafe_code)]

pub mod chain;
pub mod error;
#[cfg(feature = "text")]
pub mod parse;
pub mod sandbox;
pub mod selinux;
pub mod values;
pub mod wire;

pub use chain::ImageLayer;
pub use error::SpecError;
pub use sandbox::{Boot, Disk, Limits, Process, RebootPolicy, Root, RootSource, SandboxSpec};
pub use selinux::{DiskLabel, Selinux};
pub use values::{
    ByteSize, CpuCount, DiskFormat, DiskId, GuestPath, HostPath, HugePageSize, Label, LevelText, PolicyChange, Posture,
    SandboxId, SelinuxProfile,
};
