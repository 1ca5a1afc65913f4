//! Takes a journal's intents back, newest first. The jailer's own failure path and its
//! `repair` verb are this one function, so the path after a crash is the one always used.
//!
//! Trust: the journal is root's, but the host moved on since it was written. Each undo
//! asks whether the thing is still the thing that was made, and leaves it otherwise.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags};
use serde::Serialize;

use crate::journal::{Entry, Intent, Journal, JournalError, Mark};
use crate::ledger::{LeaseKey, Ledger, LedgerError};
use crate::owner::{self, Owner};
use crate::relabel::Relabeler;
use crate::store::{LabelStore, XattrStore};
use crate::undo_label::{LabelIntent, open};

/// How long a killed process or an emptying cgroup may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What taking one intent back came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UndoReport {
    pub n: u64,
    pub what: String,
    /// For a label: from what to what.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<Change>,
    pub outcome: UndoOutcome,
}

/// A label that is set, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    pub from: Option<String>,
    pub to: String,
    /// Where the new one comes from.
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "outcome", content = "detail")]
pub enum UndoOutcome {
    /// Taken back now, and how.
    Undone(String),
    /// A dry run's: this is what taking it back would be.
    Would(String),
    /// It was not there: never made, or gone already.
    Absent,
    /// Left as it is on purpose, and why.
    Left(String),
    /// Not possible yet, and nobody's fault; a later repair tries again.
    Waiting(String),
    /// Could not be taken back; a later repair tries again.
    Failed(String),
}

impl UndoOutcome {
    pub(crate) fn acted(act: bool, how: impl Into<String>) -> Self {
        if act { Self::Undone(how.into()) } else { Self::Would(how.into()) }
    }

    /// Does the intent stay in the journal?
    pub fn is_pending(&self) -> bool {
        matches!(self, Self::Waiting(_) | Self::Failed(_))
    }
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
        each(journal.pending(), |entry| self.one(entry, &owner, true), |n| journal.undone(n))
    }

    /// What `undo` would come to now. Changes nothing.
    pub fn foresee(&self, journal: &Journal) -> Vec<UndoReport> {
        let owner = journal.owner();
        each(journal.pending(), |entry| self.one(entry, owner, false), |_| Ok(())).unwrap_or_default()
    }

    fn one(&self, entry: &Entry, owner: &Owner, act: bool) -> io::Result<(UndoOutcome, Option<Change>)> {
        const FILES: &[FileType] = &[FileType::RegularFile, FileType::Fifo];
        let outcome = match &entry.intent {
            Intent::Dir { path } => remove(path, entry, &[FileType::Directory], AtFlags::REMOVEDIR, act),
            Intent::File { path } => remove(path, entry, FILES, AtFlags::empty(), act),
            Intent::Socket { path } => remove(path, entry, &[FileType::Socket], AtFlags::empty(), act),
            Intent::Cgroup { path } if act => remove_cgroup(path),
            Intent::Cgroup { path } => Ok(would(path.exists(), "removed")),
            Intent::Mount { path } if act => unmount(path),
            Intent::Mount { path } => is_mounted(path).map(|is| would(is, "unmounted")),
            Intent::Lease { lease } => self.release(lease, owner, act),
            Intent::Relabel { .. } => return give_back(self.relabeler, entry, owner, act),
            Intent::Process { pid, start, .. } => kill(*pid, *start, act),
        };
        outcome.map(|outcome| (outcome, None))
    }

    fn release(&self, key: &LeaseKey, owner: &Owner, act: bool) -> io::Result<UndoOutcome> {
        const RELEASED: &str = "released";
        if !act {
            let leases = self.ledger.list().map_err(io::Error::other)?;
            return Ok(match leases.into_iter().find(|lease| lease.key == *key) {
                None => UndoOutcome::Absent,
                Some(lease) if lease.owner == *owner => UndoOutcome::Would(RELEASED.into()),
                Some(lease) => UndoOutcome::Left(format!("it belongs to {} now", lease.owner)),
            });
        }
        match self.ledger.release(key, owner) {
            Ok(true) => Ok(UndoOutcome::Undone(RELEASED.into())),
            Ok(false) => Ok(UndoOutcome::Absent),
            Err(LedgerError::NotOwner { by, .. }) => Ok(UndoOutcome::Left(format!("it belongs to {by} now"))),
            Err(e) => Err(io::Error::other(e)),
        }
    }
}

/// Gives back the labels of a durable record, whose journal went with its boot.
pub fn undo_labels<S: LabelStore>(
    relabeler: &Relabeler<S>,
    journal: &mut Journal,
) -> Result<Vec<UndoReport>, JournalError> {
    let owner = journal.owner().clone();
    each(journal.pending(), |entry| give_back(relabeler, entry, &owner, true), |n| journal.undone(n))
}

/// What `undo_labels` would come to now. Changes nothing.
pub fn foresee_labels<S: LabelStore>(relabeler: &Relabeler<S>, journal: &Journal) -> Vec<UndoReport> {
    let owner = journal.owner();
    each(journal.pending(), |entry| give_back(relabeler, entry, owner, false), |_| Ok(())).unwrap_or_default()
}

fn give_back<S: LabelStore>(
    relabeler: &Relabeler<S>,
    entry: &Entry,
    owner: &Owner,
    act: bool,
) -> io::Result<(UndoOutcome, Option<Change>)> {
    let Intent::Relabel { path, dev, ino, file, before, label } = &entry.intent else {
        return Ok((UndoOutcome::Left("it is no label".into()), None));
    };
    let file = file.as_deref();
    let intent = LabelIntent { path, dev: *dev, ino: *ino, file, before: before.as_ref(), label };
    relabeler.undo_label(&intent, owner, act)
}

/// Goes through the entries as they come, newest first.
fn each(
    entries: Vec<Entry>,
    mut one: impl FnMut(&Entry) -> io::Result<(UndoOutcome, Option<Change>)>,
    mut undone: impl FnMut(u64) -> Result<(), JournalError>,
) -> Result<Vec<UndoReport>, JournalError> {
    let mut reports = Vec::new();
    let mut pair_in_use = false;
    for entry in entries {
        let (outcome, label) = match &entry.intent {
            Intent::Lease { lease } if pair_in_use => {
                (UndoOutcome::Waiting(format!("{lease} is kept: a process or a label above still uses it")), None)
            }
            _ => one(&entry).unwrap_or_else(|why| (UndoOutcome::Failed(why.to_string()), None)),
        };
        let uses_pair = matches!(entry.intent, Intent::Process { .. } | Intent::Relabel { .. } | Intent::Cgroup { .. });
        pair_in_use |= outcome.is_pending() && uses_pair;
        if !outcome.is_pending() {
            undone(entry.n)?;
        }
        reports.push(UndoReport { n: entry.n, what: entry.intent.to_string(), label, outcome });
    }
    Ok(reports)
}

fn would(is_there: bool, how: &str) -> UndoOutcome {
    if is_there { UndoOutcome::Would(how.into()) } else { UndoOutcome::Absent }
}

fn remove(path: &Path, entry: &Entry, kinds: &[FileType], how: AtFlags, act: bool) -> io::Result<UndoOutcome> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(UndoOutcome::Left("it is no path of a file".into()));
    };
    let dir = match open(parent, OFlags::PATH | OFlags::DIRECTORY) {
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
    if !act {
        return Ok(UndoOutcome::Would("removed".into()));
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
                    let _ = kill(pid, start, true);
                }
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Is a mount's root there?
fn is_mounted(path: &Path) -> io::Result<bool> {
    match rustix::fs::statx(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE) {
        Ok(stat) => Ok(stat.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT)),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(e) => Err(e.into()),
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
fn kill(pid: u32, start: u64, act: bool) -> io::Result<UndoOutcome> {
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
    if !act {
        return Ok(UndoOutcome::Would("killed".into()));
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
