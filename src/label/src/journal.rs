//! The intent journal of one sandbox: every host change, written down before it happens.
//!
//! Trust: RUN/vms/<id>/journal, root's alone. One JSON record per line, appended with one
//! write; a torn last line is what a crash leaves and is ignored. The writer holds a flock
//! as long as it lives, so `repair` can tell a living sandbox from a dead one.
//! Called by the jailer (write) and by `undo` (read).
//!
//! ```text
//! intend(I) -> n     {"n":1,"at":…,"intent":{…}}     before the change
//! done(n)            {"n":1,"mark":"done"}           after it
//! undone(n)          {"n":1,"mark":"undone"}         after it was taken back
//! ```
//!
//! An intent without a mark may or may not have happened; its undo must hold for both.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::durable::Durable;
use crate::ledger::LeaseKey;
use crate::owner::Owner;
use crate::record::FileId;

pub const JOURNAL: &str = "journal";
/// A start writes some thirty records; more than this is not ours.
const MAX_JOURNAL: u64 = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("cannot {verb} the journal {path}: {source}")]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
    #[error("the journal {0} is held by its warden: the sandbox is alive; stop it first")]
    Held(PathBuf),
    #[error("cannot keep the record of labels in {dir}, which is to outlive a reboot: {source}")]
    Durable { dir: PathBuf, source: io::Error },
    #[error("the journal {path} has no valid first line: {why}")]
    Header { path: PathBuf, why: String },
}

/// One host change, with all that its undo needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Intent {
    /// A directory that the jailer makes. Undo: rmdir.
    Dir { path: PathBuf },
    /// A file that the jailer makes. Undo: unlink.
    File { path: PathBuf },
    /// A listening socket's name. Undo: unlink.
    Socket { path: PathBuf },
    /// A cgroup, v1 or v2. Undo: kill what is left in it, rmdir.
    Cgroup { path: PathBuf },
    /// A mount in the host's namespace. Undo: lazy unmount.
    Mount { path: PathBuf },
    /// A lease in the ledger. Undo: release.
    Lease { lease: LeaseKey },
    /// A label. Undo: take this sandbox off the owners, the last one restores `before`.
    Relabel {
        path: PathBuf,
        dev: u64,
        ino: u64,
        /// The file as another boot finds it; absent in journals of older versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file: Option<Box<FileId>>,
        before: Option<Context>,
        label: Context,
    },
    /// A process of the sandbox, recorded once its pid is known. Undo: SIGKILL, wait.
    Process { role: String, pid: u32, start: u64 },
}

impl std::fmt::Display for Intent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dir { path } => write!(f, "directory {}", path.display()),
            Self::File { path } => write!(f, "file {}", path.display()),
            Self::Socket { path } => write!(f, "socket {}", path.display()),
            Self::Cgroup { path } => write!(f, "cgroup {}", path.display()),
            Self::Mount { path } => write!(f, "mount {}", path.display()),
            Self::Lease { lease } => write!(f, "lease {lease}"),
            Self::Relabel { path, label, .. } => write!(f, "label {label} on {}", path.display()),
            Self::Process { role, pid, .. } => write!(f, "{role} process {pid}"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    Done,
    Undone,
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    casemate_journal: u32,
    owner: Owner,
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    n: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    intent: Option<Intent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mark: Option<Mark>,
}

/// An intent and how far it got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub n: u64,
    /// Nanoseconds since the epoch when it was written.
    pub at: u64,
    pub intent: Intent,
    pub mark: Option<Mark>,
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    owner: Owner,
    entries: Vec<Entry>,
    /// Whole lines that did not parse: told by repair, never acted upon.
    pub unreadable: usize,
    durable: Option<Durable>,
}

impl Journal {
    /// Makes the journal in the sandbox's own directory; an existing one is an error.
    pub fn create(dir: BorrowedFd<'_>, shown: &Path, owner: Owner) -> Result<Self, JournalError> {
        let path = shown.join(JOURNAL);
        let io = |verb, source| JournalError::Io { verb, path: path.clone(), source };
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(dir, JOURNAL, flags, Mode::from(0o600)).map_err(|e| io("create", e.into()))?;
        lock(&fd, &path)?;
        let mut journal =
            Self { file: fd.into(), path, owner: owner.clone(), entries: Vec::new(), unreadable: 0, durable: None };
        journal.append(&Header { casemate_journal: 1, owner })?;
        Ok(journal)
    }

    /// Opens a dead sandbox's journal to undo it. A living warden's lock refuses.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let io = |verb, source| JournalError::Io { verb, path: path.to_owned(), source };
        // Non-blocking: a FIFO in its place is not waited for.
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
            .map_err(|e| io("open", e.into()))?;
        lock(&fd, path)?;
        let mut file = File::from(fd);
        let text = read(&mut file, path)?;
        let whole = whole(&text);
        if whole != text.len() {
            // so that our own marks do not continue the torn line
            file.set_len(whole as u64).map_err(|e| io("cut the torn end of", e))?;
            file.seek(SeekFrom::End(0)).map_err(|e| io("seek in", e))?;
        }
        Self::parse(file, path, &text[..whole])
    }

    /// Reads a journal without locking or changing it: for dry runs and lists.
    pub fn peek(path: &Path) -> Result<Self, JournalError> {
        let io = |verb, source| JournalError::Io { verb, path: path.to_owned(), source };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
            .map_err(|e| io("open", e.into()))?;
        let mut file = File::from(fd);
        let text = read(&mut file, path)?;
        let whole = whole(&text);
        Self::parse(file, path, &text[..whole])
    }

    /// Is a journal's writer alive? It holds the lock.
    pub fn is_held(&self) -> bool {
        rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    }

    /// From here on, label intents are also kept in `dir` (see `durable`), where a reboot leaves them.
    pub fn keep_labels_in(&mut self, dir: &Path) -> Result<(), JournalError> {
        let durable = Durable::of(dir, &self.owner);
        self.durable = Some(durable.map_err(|source| JournalError::Durable { dir: dir.to_owned(), source })?);
        Ok(())
    }

    fn parse(file: File, path: &Path, text: &[u8]) -> Result<Self, JournalError> {
        let mut lines = text.split(|b| *b == b'\n').filter(|l| !l.is_empty());
        let bad = |why: String| JournalError::Header { path: path.to_owned(), why };
        let first = lines.next().ok_or_else(|| bad("it is empty".into()))?;
        let header: Header = serde_json::from_slice(first).map_err(|e| bad(e.to_string()))?;
        if header.casemate_journal != 1 {
            return Err(bad(format!("version {}", header.casemate_journal)));
        }
        let (path, owner) = (path.to_owned(), header.owner);
        let mut journal = Self { file, path, owner, entries: Vec::new(), unreadable: 0, durable: None };
        lines.for_each(|l| journal.replay(l));
        Ok(journal)
    }

    fn replay(&mut self, line: &[u8]) {
        match serde_json::from_slice::<Line>(line) {
            Ok(Line { n, at, intent: Some(intent), mark: None }) => {
                self.entries.push(Entry { n, at: at.unwrap_or(0), intent, mark: None });
            }
            Ok(Line { n, mark: Some(mark), intent: None, .. }) => self.set_mark(n, mark),
            _ => self.unreadable += 1,
        }
    }

    fn set_mark(&mut self, n: u64, mark: Mark) {
        if let Some(entry) = self.entries.iter_mut().rev().find(|e| e.n == n) {
            entry.mark = Some(mark);
        }
    }

    /// Writes an intent; returns its number. The change may begin when this has returned.
    pub fn intend(&mut self, intent: Intent) -> Result<u64, JournalError> {
        let n = self.entries.last().map_or(1, |e| e.n + 1);
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let line = Line { n, at: Some(at), intent: Some(intent.clone()), mark: None };
        if let (Some(durable), Intent::Relabel { .. }) = (&mut self.durable, &intent) {
            let header = Header { casemate_journal: 1, owner: self.owner.clone() };
            let written = bytes_of(&header).and_then(|h| durable.intend(n, &h, &bytes_of(&line)?));
            written.map_err(|source| JournalError::Durable { dir: durable.dir().to_owned(), source })?;
        }
        self.append(&line)?;
        self.entries.push(Entry { n, at, intent, mark: None });
        Ok(n)
    }

    /// The change happened.
    pub fn done(&mut self, n: u64) -> Result<(), JournalError> {
        self.mark(n, Mark::Done)
    }

    /// The change was taken back, or certainly never happened.
    pub fn undone(&mut self, n: u64) -> Result<(), JournalError> {
        self.mark(n, Mark::Undone)
    }

    fn mark(&mut self, n: u64, mark: Mark) -> Result<(), JournalError> {
        let line = Line { n, at: None, intent: None, mark: Some(mark) };
        self.append(&line)?;
        self.set_mark(n, mark);
        if let (Some(durable), Mark::Undone) = (&mut self.durable, mark) {
            let marked = bytes_of(&line).and_then(|line| durable.undone(n, &line));
            marked.map_err(|source| JournalError::Durable { dir: durable.dir().to_owned(), source })?;
        }
        Ok(())
    }

    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All entries, oldest first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What is still to be taken back, newest first.
    pub fn pending(&self) -> Vec<Entry> {
        self.entries.iter().rev().filter(|e| e.mark != Some(Mark::Undone)).cloned().collect()
    }

    /// Makes the records durable. Needed only where RUN is not a tmpfs.
    pub fn sync(&self) -> Result<(), JournalError> {
        self.file.sync_data().map_err(|source| self.io("sync", source))
    }

    fn append(&mut self, record: &impl Serialize) -> Result<(), JournalError> {
        let line = bytes_of(record).map_err(|e| self.io("encode a record of", e))?;
        self.file.write_all(&line).map_err(|source| self.io("append to", source))
    }

    fn io(&self, verb: &'static str, source: io::Error) -> JournalError {
        JournalError::Io { verb, path: self.path.clone(), source }
    }
}

impl AsFd for Journal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A record as its line.
fn bytes_of(record: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    Ok(line)
}

fn read(file: &mut File, path: &Path) -> Result<Vec<u8>, JournalError> {
    let mut text = Vec::new();
    let read = file.take(MAX_JOURNAL).read_to_end(&mut text);
    read.map_err(|source| JournalError::Io { verb: "read", path: path.to_owned(), source })?;
    Ok(text)
}

/// Length of the whole lines.
fn whole(text: &[u8]) -> usize {
    text.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1)
}

fn lock(fd: &OwnedFd, path: &Path) -> Result<(), JournalError> {
    match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(JournalError::Held(path.to_owned())),
        Err(e) => Err(JournalError::Io { verb: "lock", path: path.to_owned(), source: e.into() }),
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
