//! Label attributes of processes, through a procfs that was verified to be procfs.
//!
//! Trust: the caller's /proc may be forged (a tmpfs, or one proc file bound over another:
//! CVE-2019-16884, CVE-2025-52881). So the handle is a procfs by `fstatfs`, every path below
//! it is opened without crossing a mount, without magic links and beneath it, and the value
//! is read back after it was written.
//! Called by the jailer: `set_exec_label` in the child just before Landlock and exec,
//! `label_of` in the warden for the outside attestation.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::context::{Context, ContextError};

#[derive(Debug, thiserror::Error)]
pub enum ProcError {
    #[error("cannot make a private procfs mount: {0}; the jailer needs CAP_SYS_ADMIN")]
    Mount(#[source] io::Error),
    #[error(
        "what is mounted as /proc is not a procfs (file system type {0:#x}): labels written to it would be lost; umount it"
    )]
    NotProc(u64),
    #[error("something is mounted over /proc/{path}: a label written there would be lost (CVE-2025-52881); umount it")]
    Covered { path: String },
    #[error("cannot open {path} beneath the verified procfs: {source}")]
    Open { path: String, source: io::Error },
    #[error("cannot write {value:?} to {path}: {source}; {remedy}")]
    Write { path: String, value: String, source: io::Error, remedy: &'static str },
    #[error(
        "{path} reads {found:?} after {wanted:?} was written: the label did not take effect, so this /proc is forged"
    )]
    ReadBack { path: String, wanted: String, found: String },
    #[error("cannot read {path}: {source}")]
    Read { path: String, source: io::Error },
    #[error("{path} holds no context: {source}")]
    Context { path: String, source: ContextError },
}

impl ProcError {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            ProcError::Mount(_) => "run with CAP_SYS_ADMIN",
            ProcError::NotProc(_) | ProcError::Covered { .. } => {
                "umount what covers procfs, and find out who mounted it there"
            }
            ProcError::Open { .. } | ProcError::Read { .. } => "see the audit log (ausearch -m avc -ts recent)",
            ProcError::Write { remedy, .. } => remedy,
            ProcError::ReadBack { .. } => {
                "treat this /proc as forged: nothing that was labelled through it is labelled"
            }
            ProcError::Context { .. } => "load a policy: without one a process has no context",
        }
    }
}

/// An attribute of a thread that gives a label to what it makes (`proc_pid_attr(5)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribute {
    Exec,
    File,
    Key,
    Socket,
}

impl Attribute {
    pub const ALL: [Attribute; 4] = [Attribute::Exec, Attribute::File, Attribute::Key, Attribute::Socket];

    /// Its file's name in `attr/`.
    pub fn name(self) -> &'static str {
        self.path().rsplit('/').next().unwrap_or_default()
    }

    fn path(self) -> &'static str {
        match self {
            Attribute::Exec => "thread-self/attr/exec",
            Attribute::File => "thread-self/attr/fscreate",
            Attribute::Key => "thread-self/attr/keycreate",
            Attribute::Socket => "thread-self/attr/sockcreate",
        }
    }
}

/// While it lives, what this thread makes is labelled. Ends by [`Labelling::end`], which says whether the attribute was
/// cleared; on every other way out, an unwinding one included, it is cleared in passing.
#[derive(Debug)]
pub struct Labelling<'a> {
    proc: &'a VerifiedProc,
    attribute: Attribute,
    ended: bool,
}

impl Labelling<'_> {
    pub fn end(mut self) -> Result<(), ProcError> {
        self.ended = true;
        self.proc.set(self.attribute.path(), None)
    }
}

impl Drop for Labelling<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // The way out is a failure already, and is told.
            let _cleared = self.proc.set(self.attribute.path(), None);
        }
    }
}

/// A directory handle that is the root of a procfs.
#[derive(Debug)]
pub struct VerifiedProc(OwnedFd);

impl VerifiedProc {
    /// A fresh procfs that is mounted nowhere, so nobody can have put anything over its
    /// files. Needs CAP_SYS_ADMIN. It shows the caller's pid namespace.
    pub fn mount_private() -> Result<Self, ProcError> {
        let mount = || -> io::Result<OwnedFd> {
            let fs = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
            rustix::mount::fsconfig_create(fs.as_fd())?;
            let attrs = MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            Ok(rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attrs)?)
        };
        Self::from_fd(mount().map_err(ProcError::Mount)?)
    }

    /// Takes a handle that the caller opened; refuses anything but a procfs.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, ProcError> {
        let fs = rustix::fs::fstatfs(&fd).map_err(|e| ProcError::Open { path: ".".into(), source: e.into() })?;
        let kind = fs.f_type as u64;
        if kind == rustix::fs::PROC_SUPER_MAGIC as u64 { Ok(Self(fd)) } else { Err(ProcError::NotProc(kind)) }
    }

    /// The host's own /proc, for callers without the right to mount.
    pub fn open_host() -> Result<Self, ProcError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::open("/proc", flags, Mode::empty())
            .map_err(|e| ProcError::Open { path: "/proc".into(), source: e.into() })?;
        Self::from_fd(fd)
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn open(&self, path: &str, flags: OFlags) -> Result<OwnedFd, ProcError> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        let fd =
            rustix::fs::openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve).map_err(
                |e| match e {
                    rustix::io::Errno::XDEV => ProcError::Covered { path: path.into() },
                    e => ProcError::Open { path: path.into(), source: e.into() },
                },
            )?;
        // NO_XDEV already promises it; an attribute on anything but procfs is worth this call
        let fs = rustix::fs::fstatfs(&fd).map_err(|e| ProcError::Open { path: path.into(), source: e.into() })?;
        if fs.f_type as u64 != rustix::fs::PROC_SUPER_MAGIC as u64 {
            return Err(ProcError::NotProc(fs.f_type as u64));
        }
        Ok(fd)
    }

    pub(crate) fn read(&self, path: &str) -> Result<Vec<u8>, ProcError> {
        let fd = self.open(path, OFlags::RDONLY)?;
        let mut buffer = vec![0; 4096];
        let n =
            rustix::io::read(&fd, &mut buffer).map_err(|e| ProcError::Read { path: path.into(), source: e.into() })?;
        buffer.truncate(n);
        Ok(buffer)
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.open(path, OFlags::PATH).is_ok()
    }

    fn context(&self, path: &str) -> Result<Option<Context>, ProcError> {
        let raw = self.read(path)?;
        if raw.iter().all(|b| matches!(b, 0 | b'\n')) {
            return Ok(None);
        }
        Context::from_bytes(&raw).map(Some).map_err(|source| ProcError::Context { path: path.into(), source })
    }

    fn write(&self, path: &str, value: &str) -> Result<(), ProcError> {
        let fd = self.open(path, OFlags::WRONLY)?;
        // an empty write is ignored by procfs: one newline clears the attribute
        let bytes = if value.is_empty() { b"\n" as &[u8] } else { value.as_bytes() };
        match rustix::io::write(&fd, bytes) {
            Ok(n) if n == bytes.len() => Ok(()),
            Ok(_) => Err(write_error(path, value, io::ErrorKind::WriteZero.into())),
            Err(e) => Err(write_error(path, value, e.into())),
        }
    }

    fn set(&self, path: &str, label: Option<&Context>) -> Result<(), ProcError> {
        let value = label.map(ToString::to_string).unwrap_or_default();
        self.write(path, &value)?;
        took_effect(path, label, self.context(path)?.as_ref())
    }

    /// Gives what this thread makes from now on the label, until the guard goes, whatever happens in between.
    pub fn labelling(&self, attribute: Attribute, label: &Context) -> Result<Labelling<'_>, ProcError> {
        // Made first: a value that was written but does not read back is taken back too.
        let guard = Labelling { proc: self, attribute, ended: false };
        self.set(attribute.path(), Some(label))?;
        Ok(guard)
    }

    /// The attributes of the calling thread that are set, and to what.
    pub fn attributes(&self) -> Result<Vec<(Attribute, Context)>, ProcError> {
        let mut set = Vec::new();
        for attribute in Attribute::ALL {
            set.extend(self.context(attribute.path())?.map(|context| (attribute, context)));
        }
        Ok(set)
    }

    /// Clears what an exec without a change of domain has left of the caller's attributes.
    pub fn clear_attributes(&self) -> Result<(), ProcError> {
        self.attributes()?.into_iter().try_for_each(|(attribute, _)| self.set(attribute.path(), None))
    }

    /// Sets the label that the calling thread's next exec will take, and reads it back.
    /// The thread that calls this must be the one that calls execve.
    pub fn set_exec_label(&self, label: &Context) -> Result<(), ProcError> {
        self.set("thread-self/attr/exec", Some(label))
    }

    /// Clears the exec label of the calling thread. For the parent's error paths.
    pub fn clear_exec_label(&self) -> Result<(), ProcError> {
        self.set("thread-self/attr/exec", None)
    }

    /// The label that sockets created by this thread get; `None` clears it. Prefer [`VerifiedProc::labelling`].
    pub fn set_socket_label(&self, label: Option<&Context>) -> Result<(), ProcError> {
        self.set("thread-self/attr/sockcreate", label)
    }

    /// The label that files created by this thread get (memfd, tmpfs); `None` clears it. Prefer
    /// [`VerifiedProc::labelling`].
    pub fn set_create_label(&self, label: Option<&Context>) -> Result<(), ProcError> {
        self.set("thread-self/attr/fscreate", label)
    }

    /// The label that keys created by this thread get; `None` clears it.
    pub fn set_key_label(&self, label: Option<&Context>) -> Result<(), ProcError> {
        self.set("thread-self/attr/keycreate", label)
    }

    /// The calling thread's own label.
    pub fn own_label(&self) -> Result<Context, ProcError> {
        self.required("thread-self/attr/current")
    }

    /// The label that the calling process had before its last exec: its caller's, in whose name it acts. The kernel
    /// writes it (`attr/prev`), so it is no claim.
    pub fn callers_label(&self) -> Result<Context, ProcError> {
        self.required("thread-self/attr/prev")
    }

    /// The label of process `pid`, as numbered in the pid namespace of this procfs. The
    /// caller holds a pidfd and checks it afterwards, so that the pid was not reused.
    pub fn label_of(&self, pid: u32) -> Result<Context, ProcError> {
        self.required(&format!("{pid}/attr/current"))
    }

    fn required(&self, path: &str) -> Result<Context, ProcError> {
        let missing = || ProcError::Read { path: path.into(), source: io::ErrorKind::InvalidData.into() };
        self.context(path)?.ok_or_else(missing)
    }
}

/// What was written must be what is read: a redirected write leaves the attribute as it was.
fn took_effect(path: &str, wanted: Option<&Context>, found: Option<&Context>) -> Result<(), ProcError> {
    if found == wanted {
        return Ok(());
    }
    let text = |label: Option<&Context>| label.map(ToString::to_string).unwrap_or_default();
    Err(ProcError::ReadBack { path: path.into(), wanted: text(wanted), found: text(found) })
}

fn write_error(path: &str, value: &str, source: io::Error) -> ProcError {
    let remedy = match source.raw_os_error() {
        Some(nix::libc::EACCES) => {
            "the caller's domain lacks setexec, or the jailer did not start in casemate_jailer_t: check its file label"
        }
        Some(nix::libc::EINVAL) => {
            "the loaded policy does not know this context, or SELinux is off: install the casemate module"
        }
        Some(nix::libc::EPERM) => "the type is not reachable from the caller's domain",
        _ => "see the audit log",
    };
    ProcError::Write { path: path.into(), value: value.into(), source, remedy }
}

/// `SO_PEERSEC` is the way to one's own label in a jail without /proc; it lives in `sys`,
/// because the runner may not link this room. This parses what it returns.
pub fn parse_peersec(raw: &CStr) -> Result<Context, ContextError> {
    Context::from_bytes(raw.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn svirt_39_a_directory_that_is_not_procfs_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let fd = rustix::fs::open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        assert!(matches!(VerifiedProc::from_fd(fd), Err(ProcError::NotProc(_))));
    }

    #[test]
    fn the_hosts_procfs_is_accepted_and_reads_the_stat_of_self() {
        let proc = VerifiedProc::open_host().unwrap();
        assert!(!proc.read("thread-self/stat").unwrap().is_empty());
    }

    #[test]
    fn svirt_39_nothing_outside_the_handle_is_opened() {
        let proc = VerifiedProc::open_host().unwrap();
        assert!(matches!(proc.read("../etc/hostname"), Err(ProcError::Covered { .. })));
        assert!(matches!(proc.read("self/root/etc/hostname"), Err(ProcError::Open { .. })), "a magic link");
    }

    #[test]
    fn svirt_39_a_label_that_reads_back_as_another_is_an_error() {
        let label: Context = "u:r:casemate_runner_t:s0:c1,c2".parse().unwrap();
        let same: Context = "u:r:casemate_runner_t:s0:c2,c1".parse().unwrap();
        let path = Attribute::Exec.path();
        took_effect(path, Some(&label), Some(&same)).unwrap();
        took_effect(path, None, None).unwrap();
        for found in [None, Some("u:r:casemate_runner_t:s0:c1,c3".parse().unwrap())] {
            let error = took_effect(path, Some(&label), found.as_ref()).unwrap_err();
            assert!(matches!(error, ProcError::ReadBack { .. }) && error.to_string().contains("forged"), "{error}");
        }
        assert!(took_effect(path, None, Some(&label)).is_err(), "not cleared");
    }

    #[test]
    fn svirt_39_each_error_has_its_remedy() {
        let path = || "thread-self/attr/exec".to_owned();
        let io = || io::Error::from_raw_os_error(nix::libc::EACCES);
        let all = [
            ProcError::NotProc(0x0102_1994),
            ProcError::Covered { path: path() },
            ProcError::Open { path: path(), source: io() },
            write_error(&path(), "x", io()),
            write_error(&path(), "x", io::Error::from_raw_os_error(nix::libc::EINVAL)),
            ProcError::ReadBack { path: path(), wanted: "a".into(), found: "b".into() },
        ];
        let texts: std::collections::BTreeSet<String> = all.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), all.len());
        assert!(all.iter().all(|e| e.remedy().len() > 10));
    }

    #[test]
    fn svirt_39_without_selinux_a_label_write_fails_loudly() {
        if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
            eprintln!("skipped: this host has SELinux; the testbed tier covers it");
            return;
        }
        let proc = VerifiedProc::open_host().unwrap();
        let label = "system_u:system_r:casemate_runner_t:s0:c1,c2".parse().unwrap();
        assert!(proc.set_exec_label(&label).is_err());
    }
}
