//! May this object be labelled, and does nobody else change its label at this moment?
//!
//! Trust: judges what the fd *is* (kind, links, place), never what it was called. Called by `relabel`.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, FlockOperation};

use crate::judge::ObjectKind;
use crate::relabel::{LabelClass, RelabelError, io_error};

/// How long another sandbox's change of the same record may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Trees whose labels the system itself depends on. A relabelled /etc or $HOME locks people
/// out (podman#759, #8786), so no spec can ask for it; images live elsewhere.
pub const DENIED_ROOTS: &[&str] = &[
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/proc",
    "/root/.ssh",
    "/sbin",
    "/sys",
    "/usr",
    "/var/lib/dpkg",
    "/var/lib/libvirt/qemu",
    "/var/lib/rpm",
    "/var/lib/selinux",
    "/var/log",
];

/// The path the kernel has for an fd. Only ever used to judge and to report.
pub(crate) fn place_of(fd: BorrowedFd<'_>) -> Option<PathBuf> {
    let link = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new()).ok()?;
    let path = PathBuf::from(OsString::from_vec(link.into_bytes()));
    path.is_absolute().then_some(path)
}

fn kind_name(kind: FileType) -> &'static str {
    use FileType::*;
    match kind {
        Directory => "a directory",
        Symlink => "a symbolic link",
        Fifo => "a FIFO",
        Socket => "a socket",
        CharacterDevice => "a character device",
        _ => "of an unknown kind",
    }
}

/// What an fd is, of those that may be labelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object {
    pub dev: u64,
    pub ino: u64,
    pub kind: ObjectKind,
}

/// Refuses what must not be labelled; identifies the rest.
pub(crate) fn judge(fd: BorrowedFd<'_>, path: &Path) -> Result<Object, RelabelError> {
    let stat = rustix::fs::fstat(fd).map_err(|e| io_error(path, "read", "status", e.into()))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let object_kind = match kind {
        FileType::RegularFile if stat.st_nlink as u64 != 1 => {
            return Err(RelabelError::Links { path: path.into(), links: stat.st_nlink as u64 });
        }
        FileType::RegularFile => ObjectKind::File,
        FileType::BlockDevice => ObjectKind::BlockDevice,
        other => return Err(RelabelError::Kind { path: path.into(), found: kind_name(other) }),
    };
    let unknown = |e| io_error(path, "tell", "other names", e);
    let place = place_of(fd).ok_or_else(|| unknown(io::Error::other("the kernel has no path for it")))?;
    let others = crate::places::others(fd, &place).map_err(unknown)?;
    let names = [place.clone()].into_iter().chain(others);
    let denied = names.filter_map(|name| denied_root(&name, kind)).next();
    match denied {
        Some(root) => Err(RelabelError::Denied { path: place, root }),
        None => Ok(Object { dev: stat.st_dev, ino: stat.st_ino, kind: object_kind }),
    }
}

fn denied_root(place: &Path, kind: FileType) -> Option<PathBuf> {
    if kind == FileType::BlockDevice && place.starts_with("/dev") {
        return None;
    }
    let hidden =
        |c: Component<'_>| matches!(c.as_os_str().to_str(), Some(".ssh" | ".gnupg" | ".config" | ".local" | ".cache"));
    if let Some(home) = home_of_hidden(place) {
        return Some(home);
    }
    let personal = place.components().any(hidden).then(|| place.parent().unwrap_or(place).to_owned());
    personal.or_else(|| DENIED_ROOTS.iter().map(PathBuf::from).find(|root| place.starts_with(root)))
}

/// The home directory, if the object is a hidden file of it or lies in a hidden directory: configuration and keys, by
/// which people log in (podman#759). The layout decides and no environment variable, which a caller can set.
fn home_of_hidden(place: &Path) -> Option<PathBuf> {
    let parts: Vec<&std::ffi::OsStr> = place.iter().collect();
    let depth = match parts.get(1)?.to_str()? {
        "root" => 2,
        "home" => 3,
        "var" if parts.get(2)?.to_str()? == "home" => 4,
        _ => return None,
    };
    let hidden = parts.get(depth)?.as_encoded_bytes().starts_with(b".");
    hidden.then(|| parts[..depth].iter().collect())
}

/// Our own readers and writers of the owner record, one at a time, in every process. flock(2) works on a read-only fd;
/// image locks are OFD locks and do not meet it.
pub(crate) struct RecordLock<'a>(BorrowedFd<'a>);

impl<'a> RecordLock<'a> {
    pub(crate) fn take(fd: BorrowedFd<'a>, path: &Path) -> Result<Self, RelabelError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self(fd)),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(RelabelError::Locked { path: path.into() }),
                Err(e) => return Err(io_error(path, "lock", "owner record", io::Error::from(e))),
            }
        }
    }
}

impl Drop for RecordLock<'_> {
    fn drop(&mut self) {
        let _ = rustix::fs::flock(self.0, FlockOperation::Unlock);
    }
}

/// libvirt locks byte 1 of a file while it changes metadata; so do we, for that moment.
pub(crate) struct LibvirtLock<'a>(BorrowedFd<'a>);

impl<'a> LibvirtLock<'a> {
    pub(crate) fn take(fd: BorrowedFd<'a>, path: &Path, class: LabelClass) -> Result<Self, RelabelError> {
        // a read lock needs no write access to the file, and conflicts with libvirt's write lock
        let kind = if class == LabelClass::Content { nix::libc::F_RDLCK } else { nix::libc::F_WRLCK };
        let set = |kind| nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_OFD_SETLK(&lock_byte(kind)));
        match set(kind) {
            // EBADF: the fd is open for the other direction only
            Err(nix::errno::Errno::EBADF) => match set(nix::libc::F_RDLCK) {
                Err(nix::errno::Errno::EAGAIN) => Err(RelabelError::Locked { path: path.into() }),
                _ => Ok(Self(fd)),
            },
            Err(nix::errno::Errno::EAGAIN) => Err(RelabelError::Locked { path: path.into() }),
            // a file system without locks: the owner record still guards
            _ => Ok(Self(fd)),
        }
    }
}

impl Drop for LibvirtLock<'_> {
    fn drop(&mut self) {
        let unlock = lock_byte(nix::libc::F_UNLCK);
        let _ = nix::fcntl::fcntl(self.0.as_fd(), nix::fcntl::FcntlArg::F_OFD_SETLK(&unlock));
    }
}

fn lock_byte(kind: i32) -> nix::libc::flock {
    nix::libc::flock { l_type: kind as _, l_whence: nix::libc::SEEK_SET as _, l_start: 1, l_len: 1, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn svirt_29_hidden_files_of_homes_and_system_trees_are_refused_and_images_are_not() {
        let root = |place: &str| denied_root(Path::new(place), FileType::RegularFile);
        for (place, want) in [
            ("/home/u/.yubico/challenge", "/home/u"),
            ("/home/u/.bashrc", "/home/u"),
            ("/root/.bash_history", "/root"),
            ("/var/home/u/.config/x", "/var/home/u"),
            ("/etc/passwd", "/etc"),
            ("/usr/share/x.img", "/usr"),
            ("/var/log/x.img", "/var/log"),
            ("/srv/backup/.ssh/id", "/srv/backup/.ssh"),
        ] {
            assert_eq!(root(place), Some(PathBuf::from(want)), "{place}");
        }
        for place in ["/home/u/vm/d.img", "/root/d.img", "/srv/.images/d.img", "/var/lib/x/d.img"] {
            assert_eq!(root(place), None, "{place}");
        }
        assert_eq!(denied_root(Path::new("/dev/loop0"), FileType::BlockDevice), None);
    }
}
