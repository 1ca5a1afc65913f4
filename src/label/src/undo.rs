//! Takes a journal's intents back, newest first. The jailer's own failure path and its
//! `repair` verb are this one function, so the path after a crash is the one always used.
//!
//! Trust: the journal is root's, but the host moved on since it was written. Each undo
//! asks whether the thing is still the thing that was made, and leaves it otherwise.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use serde::Serialize;

use crate::context::Context;
use crate::journal::{Entry, Intent, Journal, JournalError, Mark};
use crate::ledger::{LeaseKey, Ledger, LedgerError};
use crate::owner::{self, Owner};
use crate::relabel::{Relabeler, Restored};
use crate::store::{LabelStore, XattrStore};

/// How long a killed process or an emptying cgroup may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What taking one intent back came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UndoReport {
    pub n: u64,
    pub what: String,
    pub outcome: UndoOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "outcome", content = "detail")]
pub enum UndoOutcome {
    /// Taken back now, and how.
    Undone(String),
    /// It was not there: never made, or gone already.
    Absent,
    /// Left as it is on purpose, and why.
    Left(String),
    /// Could not be taken back; a later repair tries again.
    Failed(String),
}

/// The rooms an undo works in. `S` is the xattr store.
pub struct Undoer<'a, S = XattrStore> {
    pub ledger: &'a Ledger,
    pub relabeler: &'a Relabeler<S>,
}

impl<S: LabelStore> Undoer<'_, S> {
    /// Takes back everything pending in `journal`. Stops at nothing: a failed undo is
    /// reported and the rest goes on. But leases stay while a process lives or a label is
    /// not restored, because the pair is still on something.
    pub fn undo(&self, journal: &mut Journal) -> Result<Vec<UndoReport>, JournalError> {
        let owner = journal.owner().clone();
        let mut reports = Vec::new();
        let mut pair_in_use = false;
        for entry in journal.pending() {
            let outcome = match &entry.intent {
                Intent::Lease { lease } if pair_in_use => {
                    UndoOutcome::Failed(format!("{lease} is kept: a process or a label above still uses it"))
                }
                intent => self.one(intent, &entry, &owner),
            };
            let uses_pair =
                matches!(entry.intent, Intent::Process { .. } | Intent::Relabel { .. } | Intent::Cgroup { .. });
            let failed = matches!(outcome, UndoOutcome::Failed(_));
            pair_in_use |= failed && uses_pair;
            if !failed {
                journal.undone(entry.n)?;
            }
            reports.push(UndoReport { n: entry.n, what: entry.intent.to_string(), outcome });
        }
        Ok(reports)
    }

    fn one(&self, intent: &Intent, entry: &Entry, owner: &Owner) -> UndoOutcome {
        let result = match intent {
            Intent::Dir { path } => remove(path, entry, &[FileType::Directory], AtFlags::REMOVEDIR),
            Intent::File { path } => remove(path, entry, &[FileType::RegularFile, FileType::Fifo], AtFlags::empty()),
            Intent::Socket { path } => remove(path, entry, &[FileType::Socket], AtFlags::empty()),
            Intent::Cgroup { path } => remove_cgroup(path),
            Intent::Mount { path } => unmount(path),
            Intent::Lease { lease } => self.release(lease, owner),
            Intent::Relabel { path, dev, ino, before, label, .. } => {
                self.restore(path, (*dev, *ino), before.as_ref(), label, owner)
            }
            Intent::Process { pid, start, .. } => kill(*pid, *start),
        };
        result.unwrap_or_else(|why| UndoOutcome::Failed(why.to_string()))
    }

    fn release(&self, key: &LeaseKey, owner: &Owner) -> io::Result<UndoOutcome> {
        match self.ledger.release(key, owner) {
            Ok(true) => Ok(UndoOutcome::Undone("released".into())),
            Ok(false) => Ok(UndoOutcome::Absent),
            Err(LedgerError::NotOwner { by, .. }) => Ok(UndoOutcome::Left(format!("it belongs to {by} now"))),
            Err(e) => Err(io::Error::other(e)),
        }
    }

    fn restore(
        &self,
        path: &Path,
        identity: (u64, u64),
        before: Option<&Context>,
        label: &Context,
        owner: &Owner,
    ) -> io::Result<UndoOutcome> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = match open(path, flags) {
            Ok(fd) => fd,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(UndoOutcome::Left("the file is no longer there".into()));
            }
            Err(e) => return Err(e),
        };
        let stat = rustix::fs::fstat(&fd)?;
        if (stat.st_dev, stat.st_ino) != identity {
            return Ok(UndoOutcome::Left("another file has its name now".into()));
        }
        let recorded = self.relabeler.record_of(fd.as_fd(), path).map_err(io::Error::other)?;
        let restored = if recorded.is_some() {
            self.relabeler.release(fd.as_fd(), path, owner)
        } else {
            self.relabeler.restore_to(fd.as_fd(), path, before, label)
        };
        Ok(match restored.map_err(io::Error::other)? {
            Restored::To(c) => UndoOutcome::Undone(format!("restored to {c}")),
            Restored::StillHeldBy(who) => UndoOutcome::Left(format!("still held by {}", who.join(", "))),
            Restored::Left(why) => UndoOutcome::Left(why),
        })
    }
}

/// Resolution without symlinks, from the root.
fn open(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), resolve)?)
}

fn remove(path: &Path, entry: &Entry, kinds: &[FileType], how: AtFlags) -> io::Result<UndoOutcome> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(UndoOutcome::Left("it is no path of a file".into()));
    };
    let dir = match open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(UndoOutcome::Absent),
        other => other?,
    };
    let wanted = StatxFlags::TYPE | StatxFlags::BTIME;
    let stat = match rustix::fs::statx(&dir, name, AtFlags::SYMLINK_NOFOLLOW, wanted) {
        Err(rustix::io::Errno::NOENT) => return Ok(UndoOutcome::Absent),
        other => other?,
    };
    if !kinds.contains(&FileType::from_raw_mode(stat.stx_mode.into())) {
        return Ok(UndoOutcome::Left("something of another kind has its name".into()));
    }
    // without a done mark, the change may have failed because the name was taken already
    let born = stat.stx_btime.tv_sec as i128 * 1_000_000_000 + i128::from(stat.stx_btime.tv_nsec);
    let known = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
    // file times tick with the kernel's coarse clock, up to 10 ms behind
    if entry.mark != Some(Mark::Done) && known && born + 20_000_000 < i128::from(entry.at) {
        return Ok(UndoOutcome::Left("it was there before".into()));
    }
    match rustix::fs::unlinkat(&dir, name, how) {
        Ok(()) => Ok(UndoOutcome::Undone("removed".into())),
        Err(rustix::io::Errno::NOENT) => Ok(UndoOutcome::Absent),
        Err(e) => Err(e.into()),
    }
}

/// Kills what is left in a cgroup and removes it. v2 has one file for that, v1 has none.
fn remove_cgroup(path: &Path) -> io::Result<UndoOutcome> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match rustix::fs::unlinkat(rustix::fs::CWD, path, AtFlags::REMOVEDIR) {
            Ok(()) => return Ok(UndoOutcome::Undone("removed".into())),
            Err(rustix::io::Errno::NOENT) => return Ok(UndoOutcome::Absent),
            Err(rustix::io::Errno::BUSY) if Instant::now() < deadline => {}
            Err(e) => return Err(e.into()),
        }
        if std::fs::write(path.join("cgroup.kill"), "1").is_err() {
            let members = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            for pid in members.lines().filter_map(|l| l.parse::<u32>().ok()) {
                if let Ok(start) = owner::start_time(pid) {
                    let _ = kill(pid, start);
                }
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn unmount(path: &Path) -> io::Result<UndoOutcome> {
    let flags = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
    match rustix::mount::unmount(path, flags) {
        Ok(()) => Ok(UndoOutcome::Undone("unmounted".into())),
        // EINVAL: nothing is mounted there
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(UndoOutcome::Absent),
        Err(e) => Err(e.into()),
    }
}

/// SIGKILL by pidfd, after the start time was compared, and wait until it is gone.
fn kill(pid: u32, start: u64) -> io::Result<UndoOutcome> {
    let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let Some(target) = raw else { return Ok(UndoOutcome::Absent) };
    let pidfd = match rustix::process::pidfd_open(target, rustix::process::PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(UndoOutcome::Absent),
        other => other?,
    };
    // the pidfd pins the process: if the start time fits now, it is the one recorded
    let gone = || owner::start_time(pid).map_or_else(|e| e.kind() == io::ErrorKind::NotFound, |s| s != start);
    if gone() {
        return Ok(UndoOutcome::Absent);
    }
    match rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(e) => return Err(e.into()),
    }
    let deadline = Instant::now() + PATIENCE;
    while !gone() {
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("process {pid} did not die in {PATIENCE:?}")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(UndoOutcome::Undone("killed".into()))
}

#[cfg(test)]
#[path = "undo_tests.rs"]
mod tests;
