//! Opening without trusting names: openat2 with resolve flags, then questions to the descriptor.

use crate::{Attempt, Error, Result};
use rustix::buffer::spare_capacity;
use rustix::fs::{CWD, fstat, fstatfs, openat2};
pub use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

/// tmpfs, cgroup v2 and v1, procfs, selinuxfs, sysfs (linux/magic.h).
pub const TMPFS_MAGIC: u64 = 0x0102_1994;
pub const CGROUP2_MAGIC: u64 = 0x6367_7270;
pub const CGROUP_MAGIC: u64 = 0x0027_e0eb;
pub const PROC_MAGIC: u64 = 0x9fa0;
pub const SELINUX_MAGIC: u64 = 0xf97c_ff8c;
pub const SYSFS_MAGIC: u64 = 0x6265_6572;

/// Files are read in pieces of this size: more than nearly all of them hold.
const READ_CHUNK: usize = 4096;

/// What a descriptor is, whatever name led to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub kind: FileType,
    pub dev: u64,
    pub ino: u64,
    /// For device nodes: the device that the node stands for.
    pub rdev: u64,
    pub nlink: u64,
    pub uid: u32,
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    pub size: u64,
}

/// Reads the identity of an open descriptor (O_PATH included).
pub fn identity(fd: impl AsFd) -> Result<Identity> {
    let stat = fstat(fd).attempt("read what a descriptor is")?;
    Ok(Identity {
        kind: FileType::from_raw_mode(stat.st_mode),
        dev: stat.st_dev,
        ino: stat.st_ino,
        rdev: stat.st_rdev,
        nlink: stat.st_nlink as u64,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mode: stat.st_mode & 0o7777,
        size: u64::try_from(stat.st_size).unwrap_or(0),
    })
}

/// The SELinux label of the object behind a descriptor (O_PATH included), without its NUL.
///
/// # Errors
/// ENODATA or EOPNOTSUPP where there is none.
pub fn label(fd: impl AsFd) -> Result<String> {
    let mut raw = vec![0; 4096];
    // fgetxattr(2) refuses an O_PATH descriptor; its link in procfs does not.
    let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let n = rustix::fs::getxattr(link, "security.selinux", &mut raw[..]).attempt("read an object's label")?;
    raw.truncate(n);
    Ok(String::from_utf8_lossy(&raw).trim_end_matches('\0').to_owned())
}

/// The magic number of the file system that a descriptor lives on.
pub fn fs_magic(fd: impl AsFd) -> Result<u64> {
    let stat = fstatfs(fd).attempt("read a file system's type")?;
    // The magic is 32 bits wide; the field is signed on some architectures.
    Ok(stat.f_type as u64 & 0xffff_ffff)
}

/// Opens with explicit resolve flags, close-on-exec.
pub fn open_resolved(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> Result<OwnedFd> {
    rustix::io::retry_on_intr(|| openat2(dir, path, flags | OFlags::CLOEXEC, mode, resolve))
        .attempt_with(|| format!("open {}", path.display()))
}

/// Opens a path in which no component is a symbolic or magic link. ELOOP where one is.
pub fn open_no_symlinks(path: &Path, flags: OFlags) -> Result<OwnedFd> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    open_resolved(CWD, path, flags, Mode::empty(), resolve)
}

/// Opens (or with O_CREAT creates) beneath a directory: no `..` out, no absolute path, no symlink.
pub fn open_beneath(dir: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    open_resolved(dir, path, flags, mode, resolve)
}

/// Opens a directory and follows links in its path: for places of the administrator's choosing
/// (a cgroup mount may be reached through a symlink). The caller checks what it got.
pub fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    open_resolved(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
}

/// Creates a directory beneath `dir` and opens it. One that exists already is refused: it may be
/// somebody else's.
pub fn create_dir(dir: BorrowedFd<'_>, name: &str, mode: u32) -> Result<OwnedFd> {
    single_component(name)?;
    rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode))
        .attempt_with(|| format!("create the directory {name}"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    open_beneath(dir, Path::new(name), flags, Mode::empty())
}

/// Refuses names that are not one path component.
pub fn single_component(name: &str) -> Result<()> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        let attempt = format!("use {name:?} as a file name");
        return Err(Error::because(attempt, "it must be one path component"));
    }
    Ok(())
}

/// Reads a small file beneath a directory, at most `max` bytes. A FIFO in its place is not waited for: it is empty.
pub fn read_beneath(dir: BorrowedFd<'_>, path: &str, max: usize) -> Result<Vec<u8>> {
    let fd = open_beneath(dir, Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
    read_to_end(&fd, max).attempt_with(|| format!("read {path}"))
}

/// Writes a small file beneath a directory with one write call (as cgroupfs and procfs want it).
pub fn write_beneath(dir: BorrowedFd<'_>, path: &str, bytes: &[u8]) -> Result<()> {
    let fd = open_beneath(dir, Path::new(path), OFlags::WRONLY, Mode::empty())?;
    let attempt = || format!("write {} to {path}", String::from_utf8_lossy(bytes).trim_end());
    let written = rustix::io::retry_on_intr(|| rustix::io::write(&fd, bytes)).attempt_with(attempt)?;
    if written == bytes.len() { Ok(()) } else { Err(Error::because(attempt(), "short write")) }
}

pub(crate) fn read_to_end(fd: &OwnedFd, max: usize) -> std::io::Result<Vec<u8>> {
    // Spare room is read into without being zeroed before: a start reads some hundred small files.
    let mut bytes = Vec::with_capacity(READ_CHUNK);
    loop {
        if bytes.capacity() - bytes.len() < READ_CHUNK / 4 {
            bytes.reserve(READ_CHUNK);
        }
        if rustix::io::retry_on_intr(|| rustix::io::read(fd, spare_capacity(&mut bytes)))? == 0 {
            return Ok(bytes);
        }
        if bytes.len() > max {
            return Err(std::io::Error::other(format!("more than {max} bytes")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifo_in_the_place_of_a_file_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(CWD, dir.path().join("fifo"), fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let fd = open_dir(dir.path()).unwrap();
        assert_eq!(read_beneath(fd.as_fd(), "fifo", 10).unwrap(), b"");
    }

    #[test]
    fn a_symlink_on_the_way_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
        assert!(open_no_symlinks(&dir.path().join("file"), OFlags::RDONLY).is_ok());
        let error = open_no_symlinks(&dir.path().join("link"), OFlags::RDONLY).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ELOOP));
    }

    #[test]
    fn nothing_escapes_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let fd = open_dir(dir.path()).unwrap();
        for path in ["../x", "/etc/passwd", "a/../../x"] {
            assert!(open_beneath(fd.as_fd(), Path::new(path), OFlags::RDONLY, Mode::empty()).is_err());
        }
        for name in ["", ".", "..", "a/b"] {
            assert!(create_dir(fd.as_fd(), name, 0o700).is_err());
        }
        create_dir(fd.as_fd(), "once", 0o700).unwrap();
        assert!(create_dir(fd.as_fd(), "once", 0o700).is_err(), "a second time is refused");
    }
}
