//! SELinux as the kernel says it is: selinuxfs mounted, enforcing, and what the policy can do.
//! (Labels, types and transitions are the `label` room's.)

use crate::path::{self, OFlags};
use std::os::fd::AsFd as _;
use std::path::Path;

/// The state of the kernel's SELinux.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selinux {
    pub enforcing: bool,
    /// The policy has MLS/MCS levels.
    pub mls: bool,
    /// Policy capability nnp_nosuid_transition: an nnp_transition rule is honoured.
    pub nnp_nosuid_transition: bool,
}

/// None where no selinuxfs is mounted at /sys/fs/selinux (disabled, or hidden from us): checked by
/// the file system's magic, not by a name in a table.
pub fn selinux() -> Option<Selinux> {
    let dir = path::open_no_symlinks(Path::new("/sys/fs/selinux"), OFlags::RDONLY | OFlags::DIRECTORY).ok()?;
    if path::fs_magic(&dir).ok()? != path::SELINUX_MAGIC {
        return None;
    }
    let is_one = |name: &str| {
        let bytes = path::read_beneath(dir.as_fd(), name, 64).unwrap_or_default();
        bytes.first() == Some(&b'1')
    };
    Some(Selinux {
        enforcing: is_one("enforce"),
        mls: is_one("mls"),
        nnp_nosuid_transition: is_one("policy_capabilities/nnp_nosuid_transition"),
    })
}
