//! Reading and writing a procfs that is known to be one (CVE-2025-52881: a fake or redirected /proc
//! silently swallows label writes). Used by jailer, warden and the attestation from outside.

use crate::path::{self, Mode, OFlags, ResolveFlags};
use crate::{Attempt, Error, Result, mount, process};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// The inode number of a procfs root (PROC_ROOT_INO).
const ROOT_INO: u64 = 1;
/// More than any file that we read here holds.
const MAX: usize = 1 << 20;

/// A verified procfs root.
#[derive(Debug)]
pub struct Proc {
    root: OwnedFd,
}

/// When and what a pid was: the start time tells a reused pid apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    pub pid: i32,
    /// Clock ticks since boot (field 22 of /proc/PID/stat).
    pub ticks: u64,
}

impl Proc {
    /// A private procfs where we may make one, else the one at /proc, verified.
    pub fn open() -> Result<Self> {
        match mount::private_procfs() {
            Ok(root) => Self::verified(root),
            Err(_) => Self::host(),
        }
    }

    /// The procfs mounted at /proc, after a check that it is one and that we hold its root.
    pub fn host() -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        Self::verified(path::open_no_symlinks(Path::new("/proc"), flags)?)
    }

    fn verified(root: OwnedFd) -> Result<Self> {
        const ATTEMPT: &str = "verify the procfs";
        if path::fs_magic(&root)? != path::PROC_MAGIC {
            return Err(Error::because(ATTEMPT, "it is another file system"));
        }
        if path::identity(&root)?.ino != ROOT_INO {
            return Err(Error::because(ATTEMPT, "it is not the root of a procfs"));
        }
        Ok(Self { root })
    }

    /// Opens a file below the root: no other mount, no magic link on the way. `self` and
    /// `thread-self` are ordinary links and allowed.
    pub fn open_file(&self, path: &str, flags: OFlags) -> Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        let fd = path::open_resolved(self.root.as_fd(), Path::new(path), flags, Mode::empty(), resolve)?;
        if path::fs_magic(&fd)? != path::PROC_MAGIC {
            return Err(Error::because(format!("open {path}"), "it does not lie on procfs"));
        }
        Ok(fd)
    }

    /// Reads a file, without trailing newline and NUL.
    pub fn read(&self, path: &str) -> Result<String> {
        self.read_at_most(path, MAX)
    }

    /// The same of a file that may be long, as the mappings of a foreign process.
    pub fn read_at_most(&self, path: &str, most: usize) -> Result<String> {
        let fd = self.open_file(path, OFlags::RDONLY)?;
        let bytes = path::read_to_end(&fd, most).attempt_with(|| format!("read /proc/{path}"))?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.trim_end_matches(['\n', '\0']).to_owned())
    }

    /// Writes a file with one call.
    pub fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let fd = self.open_file(path, OFlags::WRONLY)?;
        let written = rustix::io::write(&fd, bytes).attempt_with(|| format!("write /proc/{path}"))?;
        if written == bytes.len() {
            return Ok(());
        }
        Err(Error::because(format!("write /proc/{path}"), "short write"))
    }

    /// What a link says (for `ns/…`, `fd/…`, `exe`); the link itself is not followed.
    pub fn read_link(&self, path: &str) -> Result<String> {
        let target = rustix::fs::readlinkat(&self.root, path, Vec::new())
            .attempt_with(|| format!("read the link /proc/{path}"))?;
        Ok(target.to_string_lossy().into_owned())
    }

    /// Follows a magic link on purpose: another opening of the file behind `self/fd/N`, with
    /// flags of our choice (a read-only view of a sealed memfd).
    pub fn reopen(&self, fd: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
        use std::os::fd::AsRawFd as _;
        let path = format!("thread-self/fd/{}", fd.as_raw_fd());
        let resolve = ResolveFlags::empty();
        path::open_resolved(self.root.as_fd(), Path::new(&path), flags, Mode::empty(), resolve)
    }

    /// The names in a directory, without `.` and `..`.
    pub fn list(&self, path: &str) -> Result<Vec<String>> {
        let attempt = || format!("list /proc/{path}");
        let fd = self.open_file(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(fd).attempt_with(attempt)? {
            let entry = entry.attempt_with(attempt)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Pid and start time.
    pub fn start_of(&self, pid: i32) -> Result<Start> {
        let stat = self.read(&format!("{pid}/stat"))?;
        // The command name may hold spaces and parentheses: fields count from the last ')'.
        let ticks = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(19))
            .and_then(|field| field.parse().ok())
            .ok_or_else(|| Error::because(format!("read the start time of {pid}"), "no field 22"))?;
        Ok(Start { pid, ticks })
    }
}

/// One process in a [`Proc`], guarded by its pidfd: what is read is that process's or an error.
#[derive(Debug)]
pub struct ProcessView<'a> {
    proc: &'a Proc,
    pid: i32,
    pidfd: BorrowedFd<'a>,
}

impl<'a> ProcessView<'a> {
    /// The pid must be the pidfd's, as seen in this procfs's pid namespace.
    pub fn new(proc: &'a Proc, pid: i32, pidfd: BorrowedFd<'a>) -> Self {
        Self { proc, pid, pidfd }
    }

    fn guarded<T>(&self, read: impl FnOnce(&str) -> Result<T>, path: &str) -> Result<T> {
        let value = read(&format!("{}/{path}", self.pid))?;
        // Alive after the read means the pid was not reused before it.
        if process::pidfd_ended(self.pidfd)? {
            return Err(Error::because(format!("read /proc/{}/{path}", self.pid), "the process ended"));
        }
        Ok(value)
    }

    pub fn read(&self, path: &str) -> Result<String> {
        self.guarded(|path| self.proc.read(path), path)
    }

    pub fn read_link(&self, path: &str) -> Result<String> {
        self.guarded(|path| self.proc.read_link(path), path)
    }

    pub fn list(&self, path: &str) -> Result<Vec<String>> {
        self.guarded(|path| self.proc.list(path), path)
    }

    /// See [`Proc::read_at_most`].
    pub fn read_at_most(&self, path: &str, most: usize) -> Result<String> {
        self.guarded(|path| self.proc.read_at_most(path, most), path)
    }

    /// Whose one of its entries is. All but the directory itself are root's for a process that is not dumpable
    /// (fs/proc/base.c, task_dump_owner).
    pub fn identity(&self, path: &str) -> Result<path::Identity> {
        self.guarded(|path| path::identity(self.proc.open_file(path, OFlags::PATH)?), path)
    }

    /// Another opening of what `link` leads to, as a name only: follows it on purpose, which takes ptrace rights.
    fn behind(&self, link: &str) -> Result<OwnedFd> {
        let root = self.proc.root.as_fd();
        path::open_resolved(root, Path::new(link), OFlags::PATH, Mode::empty(), ResolveFlags::empty())
    }

    /// The identity of one of its open descriptors: follows `fd/N`, which takes ptrace rights.
    pub fn fd_identity(&self, number: i32) -> Result<path::Identity> {
        self.guarded(|path| path::identity(self.behind(path)?), &format!("fd/{number}"))
    }

    /// The SELinux label of the object behind one of its open descriptors, whatever its name is now.
    pub fn fd_label(&self, number: i32) -> Result<String> {
        self.guarded(|path| path::label(self.behind(path)?), &format!("fd/{number}"))
    }

    /// Has it ended by now?
    pub fn ended(&self) -> bool {
        process::pidfd_ended(self.pidfd).unwrap_or(true)
    }

    pub fn start(&self) -> Result<Start> {
        self.guarded(|_| self.proc.start_of(self.pid), "stat")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_proc_is_one_and_reads() {
        let proc = Proc::host().unwrap();
        assert!(proc.read("self/status").unwrap().starts_with("Name:"));
        assert!(proc.read_link("self/ns/mnt").unwrap().starts_with("mnt:["));
        let start = proc.start_of(process::own_pid()).unwrap();
        assert!(start.ticks > 0);
        assert!(proc.list("self/fd").unwrap().contains(&"0".to_owned()));
        assert!(proc.read("self/root/etc/passwd").is_err(), "magic links are not followed");
    }

    #[test]
    fn another_directory_is_not_a_procfs() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Proc::verified(path::open_dir(dir.path()).unwrap()).is_err());
        let inner = path::open_dir(Path::new("/proc/self")).unwrap();
        assert!(Proc::verified(inner).is_err(), "not the root");
    }
}
