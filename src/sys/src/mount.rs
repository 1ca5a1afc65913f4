//! Mounts, through the descriptor-based API: an empty root to live in, and a private procfs.

use crate::{Attempt, Result};
use rustix::fs::CWD;
use rustix::mount as raw;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Stops every mount below `/` from propagating out of (and into) this mount namespace.
pub fn make_private() -> Result<()> {
    raw::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .attempt("make all mounts private")
}

/// A detached, empty, read-only tmpfs with nosuid, nodev, noexec: nothing can be created in it.
pub fn empty_root() -> Result<OwnedFd> {
    const ATTEMPT: &str = "make an empty root";
    let fs = raw::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).attempt(ATTEMPT)?;
    for (key, value) in [("source", "casemate-empty"), ("mode", "0555"), ("size", "4096"), ("nr_inodes", "2")] {
        raw::fsconfig_set_string(fs.as_fd(), key, value).attempt(ATTEMPT)?;
    }
    raw::fsconfig_set_flag(fs.as_fd(), "ro").attempt(ATTEMPT)?;
    raw::fsconfig_create(fs.as_fd()).attempt(ATTEMPT)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    raw::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).attempt(ATTEMPT)
}

/// A procfs of our own for the current pid namespace, mounted nowhere: nobody can mount over it.
/// Needs CAP_SYS_ADMIN.
pub fn private_procfs() -> Result<OwnedFd> {
    const ATTEMPT: &str = "make a private procfs";
    let fs = raw::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).attempt(ATTEMPT)?;
    raw::fsconfig_create(fs.as_fd()).attempt(ATTEMPT)?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    raw::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).attempt(ATTEMPT)
}

/// Attaches a detached mount on top of `/`, makes it the root and detaches the old root with
/// everything below it. Afterwards `/` and the working directory are the new root.
/// The caller must be in a mount namespace of its own with private propagation.
pub fn pivot_into(root: BorrowedFd<'_>) -> Result<()> {
    raw::move_mount(root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).attempt("attach the empty root")?;
    rustix::process::fchdir(root).attempt("enter the empty root")?;
    // Both "." : the old root ends up stacked on the new one, where "." then finds it (pivot_root(2)).
    rustix::process::pivot_root(".", ".").attempt("pivot into the empty root")?;
    raw::unmount(".", UnmountFlags::DETACH).attempt("detach the old root")?;
    rustix::process::chdir("/").attempt("enter the new root")
}
