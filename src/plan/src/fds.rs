//! The runner's file descriptors: every one is named, typed and expected; nothing else is open.

use serde::{Deserialize, Serialize};

/// The number of the first inherited descriptor; 0, 1 and 2 are /dev/null, read-only and write-only.
pub const FIRST: i32 = 3;

/// Names of descriptors. A disk's is [`disk`].
pub mod names {
    pub const PLAN: &str = "plan";
    pub const WARDEN: &str = "warden";
    pub const KVM: &str = "kvm";
    pub const KERNEL: &str = "kernel";
    pub const INITRD: &str = "initrd";
    pub const GUEST_CONFIG: &str = "guest-config";
    pub const CONSOLE_LOG: [&str; 2] = ["console-log.0", "console-log.1"];
    pub const OUTPUT_LOG: [&str; 2] = ["output-log.0", "output-log.1"];
    pub const VSOCK: &str = "vsock";
    pub const MEMORY: &str = "memory";

    /// The name of a disk's descriptor.
    pub fn disk(id: &str) -> String {
        format!("disk.{id}")
    }

    /// The name of the descriptor of the image `depth` below a disk's own, from 1. A disk's id holds no dot.
    pub fn layer(id: &str, depth: usize) -> String {
        format!("disk.{id}.{depth}")
    }
}

/// What a descriptor must be, checked with fstat(2) on both sides of the exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FdKind {
    RegularFile,
    BlockDevice,
    /// A regular file or a block device, decided by what is opened.
    Image,
    CharDevice,
    /// A memfd with all seals.
    SealedMemfd,
    /// A memfd that can be written to, and whose size and seals are sealed.
    SizedMemfd,
    SeqpacketSocket,
    StreamListener,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FdAccess {
    ReadOnly,
    ReadWrite,
    WriteOnly,
}

/// Where the jailer gets it from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FdSource {
    /// Opened without following symlinks.
    Path(String),
    /// Made by the jailer (socket pair, memfd, listener, log in the run directory).
    Made,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdSlot {
    pub number: i32,
    pub name: String,
    pub kind: FdKind,
    pub access: FdAccess,
    pub source: FdSource,
}

/// Descriptors in order of their numbers, from [`FIRST`] without a gap.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdTable(Vec<FdSlot>);

impl FdTable {
    pub fn push(&mut self, name: impl Into<String>, kind: FdKind, access: FdAccess, source: FdSource) {
        let number = FIRST + self.0.len() as i32;
        self.0.push(FdSlot { number, name: name.into(), kind, access, source });
    }

    pub fn get(&self, name: &str) -> Option<&FdSlot> {
        self.0.iter().find(|slot| slot.name == name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &FdSlot> {
        self.0.iter()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
