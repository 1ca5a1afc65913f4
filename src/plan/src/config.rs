//! What the host's owner decides once: `/etc/casemate/casemate.toml`, read by the jailer, root-owned.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The host's settings, with the defaults that hold when there is no file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostConfig {
    /// First and last uid (and gid) leased to runners; no account may have one of them.
    pub uid_first: u32,
    pub uid_last: u32,
    /// Volatile state: sandboxes, leases.
    pub run_dir: PathBuf,
    /// Kernels, images, caches.
    pub state_dir: PathBuf,
    /// Directories where images lie, of whichever manager: no pair is leased that a file there carries.
    pub image_dirs: Vec<PathBuf>,
    /// The least Landlock ABI that counts as a layer.
    pub landlock_floor: u32,
    /// Name of the parent cgroup, below each hierarchy's root.
    pub cgroup_parent: String,
}

impl Default for HostConfig {
    fn default() -> Self {
        HostConfig {
            uid_first: 10_000_000,
            uid_last: 10_065_535,
            run_dir: "/run/casemate".into(),
            state_dir: "/var/lib/casemate".into(),
            image_dirs: vec!["/var/lib/libvirt/images".into()],
            landlock_floor: 1,
            cgroup_parent: "casemate".into(),
        }
    }
}
