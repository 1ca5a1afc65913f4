//! [`RolePlan`]: what the runner is told, in a sealed memfd at descriptor 3, and what both attestations compare with.
//! Encoded with postcard (see `wire::codec`).

use casemate_spec::DiskFormat;
use serde::{Deserialize, Serialize};

use crate::fds::{FdAccess, FdKind};
use crate::step::Rlimit;

/// Version of the encoding; the runner refuses any other.
pub const VERSION: u16 = 2;

/// A runner's plan with all values bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolePlan {
    pub version: u16,
    pub sandbox: String,
    pub fds: Vec<BoundFd>,
    pub uid: u32,
    pub gid: u32,
    /// Full SELinux context of the runner, `None` where the host has no SELinux.
    pub label: Option<String>,
    /// Landlock ABI that the jailer applied; 0 only in a reduced posture.
    pub landlock_abi: u32,
    /// Seccomp filters are required (false only in a reduced posture).
    pub seccomp: bool,
    pub rlimits: Vec<Rlimit>,
    pub vm: VmPlan,
}

/// A descriptor as opened: number, name, and the identity that fstat(2) must show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundFd {
    pub number: i32,
    pub name: String,
    pub kind: FdKind,
    pub access: FdAccess,
    pub dev: u64,
    pub ino: u64,
}

/// The virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmPlan {
    pub cpus: u8,
    /// Guest memory in bytes.
    pub memory: u64,
    /// Size in bytes of the huge pages that descriptor `memory` is made of; `None` for anonymous memory.
    pub hugepage: Option<u64>,
    pub cmdline: String,
    pub disks: Vec<DiskPlan>,
    /// Guest context id of the vsock device; `None` for no device.
    pub vsock_cid: Option<u32>,
    /// virtio console (hvc0) and entropy device.
    pub console: bool,
    pub rng: bool,
    /// The guest runs our agent: without its Ready in `boot_timeout_ms`, the start has failed.
    pub agent: bool,
    pub boot_timeout_ms: u64,
    /// Bytes kept of each log (two files of half of it).
    pub log_bytes: u64,
    pub restart_on_reboot: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskPlan {
    /// Name of its descriptor, `disk.<id>`.
    pub fd: String,
    /// virtio-blk serial.
    pub serial: String,
    pub read_only: bool,
    /// Never probed.
    pub format: DiskFormat,
    /// The images below, top to bottom; always read-only.
    pub backing: Vec<LayerPlan>,
}

/// An image below a disk's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerPlan {
    /// Name of its descriptor, `disk.<id>.<depth>`.
    pub fd: String,
    pub format: DiskFormat,
}

impl RolePlan {
    /// The descriptor of that name.
    pub fn fd(&self, name: &str) -> Option<&BoundFd> {
        self.fds.iter().find(|fd| fd.name == name)
    }
}
