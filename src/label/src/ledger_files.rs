//! The files behind the ledger: lock, list, read, write whole, remove. Only `ledger` calls it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags};

use crate::ledger::{Lease, LedgerError};
use crate::random;

/// Where leases are put together before they get their name.
const UNFINISHED: &str = "tmp";
const MAX_LEASE: u64 = 65_536;

#[derive(Debug)]
pub(crate) struct Files {
    dir: OwnedFd,
    path: PathBuf,
}

/// The ledger's lock, held while this lives; a killed holder's is the kernel's to free.
pub(crate) struct Locked(#[allow(dead_code)] OwnedFd);

impl Files {
    pub(crate) fn open(run_dir: &Path, kinds: &[&str]) -> Result<Self, LedgerError> {
        let path = run_dir.join("leases");
        let run = open_dir(rustix::fs::CWD, run_dir, run_dir)?;
        let dir = make_dir(run.as_fd(), "leases", &path)?;
        for kind in kinds.iter().chain([&UNFINISHED]) {
            make_dir(dir.as_fd(), kind, &path.join(kind))?;
        }
        Ok(Self { dir, path })
    }

    /// Are all directories there that [`Files::open`] would make?
    pub(crate) fn is_whole(run_dir: &Path, kinds: &[&str]) -> bool {
        let leases = run_dir.join("leases");
        kinds.iter().chain([&UNFINISHED]).all(|kind| leases.join(kind).exists())
    }

    pub(crate) fn lock(&self) -> Result<Locked, LedgerError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd =
            rustix::fs::openat(&self.dir, "lock", flags, Mode::from(0o600)).map_err(|e| self.io("open", "lock", e))?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&fd, FlockOperation::LockExclusive))
            .map_err(|e| self.io("lock", "lock", e))?;
        Ok(Locked(fd))
    }

    pub(crate) fn exists(&self, file: &str) -> bool {
        rustix::fs::statat(&self.dir, file, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// The names in one of the directories.
    pub(crate) fn names(&self, kind: &str) -> Result<Vec<String>, LedgerError> {
        let fd = open_dir(self.dir.as_fd(), Path::new(kind), &self.path.join(kind))?;
        let dir = rustix::fs::Dir::new(fd).map_err(|e| self.io("list", kind, e))?;
        let mut all = Vec::new();
        for entry in dir {
            let entry = entry.map_err(|e| self.io("list", kind, e))?;
            let name = entry.file_name().to_string_lossy();
            if !name.starts_with('.') {
                all.push(name.into_owned());
            }
        }
        Ok(all)
    }

    /// Contents first, then the name: nobody ever reads half a lease.
    pub(crate) fn write(&self, file: &str, lease: &Lease, how: RenameFlags) -> Result<(), LedgerError> {
        let temporary = format!("{UNFINISHED}/{}.{}", std::process::id(), random::below(u32::MAX));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.dir, &temporary, flags, Mode::from(0o600))
            .map_err(|e| self.io("create", &temporary, e))?;
        let mut out = File::from(fd);
        let bytes = serde_json::to_vec(lease).expect("a lease of strings and numbers is JSON");
        let done = out
            .write_all(&bytes)
            .and_then(|()| out.sync_all())
            .map_err(|source| self.io_std("write", &temporary, source))
            .and_then(|()| {
                rustix::fs::renameat_with(&self.dir, &temporary, &self.dir, file, how)
                    .map_err(|e| self.io("rename to", file, e))
            });
        if done.is_err() {
            let _ = rustix::fs::unlinkat(&self.dir, &temporary, AtFlags::empty());
        }
        done
    }

    pub(crate) fn read(&self, file: &str) -> Result<Option<Lease>, LedgerError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let fd = match rustix::fs::openat(&self.dir, file, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(e) => return Err(self.io("open", file, e)),
        };
        let mut bytes = Vec::new();
        File::from(fd).take(MAX_LEASE).read_to_end(&mut bytes).map_err(|e| self.io_std("read", file, e))?;
        let lease: Lease =
            serde_json::from_slice(&bytes).map_err(|e| self.io_std("parse", file, io::Error::other(e)))?;
        // the name is what conflicts are judged by
        let named = lease.key.file() == file;
        if named {
            Ok(Some(lease))
        } else {
            Err(self.io_std("parse", file, io::Error::other("it names another lease")))
        }
    }

    pub(crate) fn remove(&self, file: &str) -> Result<bool, LedgerError> {
        match rustix::fs::unlinkat(&self.dir, file, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(e) => Err(self.io("remove", file, e)),
        }
    }

    /// Removes what is unfinished. The caller has the lock, and whoever writes has it too: so nobody is writing.
    pub(crate) fn sweep(&self) -> Result<(), LedgerError> {
        for name in self.names(UNFINISHED)? {
            self.remove(&format!("{UNFINISHED}/{name}"))?;
        }
        Ok(())
    }

    fn io(&self, verb: &'static str, what: &str, e: rustix::io::Errno) -> LedgerError {
        self.io_std(verb, what, e.into())
    }

    fn io_std(&self, verb: &'static str, what: &str, source: io::Error) -> LedgerError {
        LedgerError::Io { verb, path: self.path.join(what), source }
    }
}

fn open_dir(at: impl AsFd, name: &Path, shown: &Path) -> Result<OwnedFd, LedgerError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(at, name, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS)
        .map_err(|e| LedgerError::Io { verb: "open", path: shown.into(), source: e.into() })
}

/// A directory that only its owner, who is us, can enter.
fn make_dir(at: impl AsFd, name: &str, shown: &Path) -> Result<OwnedFd, LedgerError> {
    match rustix::fs::mkdirat(&at, name, Mode::from(0o700)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(e) => return Err(LedgerError::Io { verb: "make", path: shown.into(), source: e.into() }),
    }
    let fd = open_dir(at, Path::new(name), shown)?;
    let stat = rustix::fs::fstat(&fd).map_err(|e| LedgerError::Io {
        verb: "look at",
        path: shown.into(),
        source: e.into(),
    })?;
    let mine = stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_mode & 0o077 == 0;
    if mine { Ok(fd) } else { Err(LedgerError::Untrusted(shown.into())) }
}
