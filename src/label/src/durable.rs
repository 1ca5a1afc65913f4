//! Labels outlive a reboot, RUN does not: what is on disk gets a record on disk.
//!
//! ```text
//! STATE/held/<sandbox>.<boot id>.<pid>.<start>     header and label intents, as in the journal
//! ```
//! Trust: root's alone, 0700. Made with a sandbox's first label, on stable storage *before* that label is set (fdatasync
//! of the file, fsync of the directory), removed when its last label was given back. Its lines are the journal's own, so
//! `repair` reads it with the journal's code. `done` is not written: an intent counts as perhaps done.
//! Called by `journal`; listed by `repair`.
//!
//! What power loss may take: the record's removal (a later repair finds the labels in order, and removes it) and marks
//! of labels given back (found in order too). Never a record whose label is on disk.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::in_use::{Holder, InUse};
use crate::journal::{Intent, Journal};
use crate::owner::Owner;

/// Below the state directory.
pub const HELD: &str = "held";
/// A record that is being made, before its rename.
const NEW: &str = ".new.";

/// The record of one sandbox.
#[derive(Debug)]
pub(crate) struct Durable {
    dir: PathBuf,
    name: String,
    file: Option<File>,
    pending: BTreeSet<u64>,
}

fn file_name(owner: &Owner) -> String {
    format!("{}.{}.{}.{}", owner.sandbox, owner.boot, owner.pid, owner.start)
}

/// Whose record a file name says it is.
fn owner_of(name: &str) -> Option<Owner> {
    let mut parts = name.rsplitn(4, '.');
    let (start, pid) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let (boot, sandbox) = (parts.next()?.to_owned(), parts.next()?.to_owned());
    (!sandbox.is_empty()).then_some(Owner { sandbox, boot, pid, start })
}

impl Durable {
    /// The record of `owner` in `dir`, with what is still pending in it if it is there.
    pub(crate) fn of(dir: &Path, owner: &Owner) -> io::Result<Self> {
        let mut durable = Self { dir: dir.to_owned(), name: file_name(owner), file: None, pending: BTreeSet::new() };
        let path = dir.join(&durable.name);
        match File::options().append(true).open(&path) {
            Ok(file) => {
                let journal = Journal::peek(&path).map_err(io::Error::other)?;
                durable.pending = journal.pending().iter().map(|e| e.n).collect();
                durable.file = Some(file);
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        Ok(durable)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Puts a line on stable storage; the first one with its header.
    pub(crate) fn intend(&mut self, n: u64, header: &[u8], line: &[u8]) -> io::Result<()> {
        match &mut self.file {
            Some(file) => {
                file.write_all(line)?;
                file.sync_data()?;
            }
            None => self.file = Some(self.create(&[header, line].concat())?),
        }
        self.pending.insert(n);
        Ok(())
    }

    fn create(&self, text: &[u8]) -> io::Result<File> {
        make_dir(&self.dir)?;
        let (new, path) = (self.dir.join(format!("{NEW}{}", self.name)), self.dir.join(&self.name));
        let mut file = File::options().append(true).create_new(true).mode(0o600).open(&new)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let made = file.write_all(text).and_then(|()| file.sync_data()).and_then(|()| fs::rename(&new, &path));
        if let Err(e) = made {
            let _ = fs::remove_file(&new);
            return Err(e);
        }
        File::open(&self.dir)?.sync_all()?;
        Ok(file)
    }

    /// The label was given back. The last one takes the record along.
    pub(crate) fn undone(&mut self, n: u64, line: &[u8]) -> io::Result<()> {
        if !self.pending.remove(&n) {
            return Ok(());
        }
        if !self.pending.is_empty() {
            return self.file.as_mut().map_or(Ok(()), |file| file.write_all(line));
        }
        self.file = None;
        absent_is_fine(fs::remove_file(self.dir.join(&self.name)))
    }
}

/// STATE and STATE/held, the latter root's alone.
fn make_dir(dir: &Path) -> io::Result<()> {
    if let Some(state) = dir.parent() {
        fs::create_dir_all(state)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A record that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub path: PathBuf,
    pub owner: Owner,
    /// Its making was interrupted before the first label was set: nothing but the file itself is to be removed.
    pub unfinished: bool,
}

/// The records of dead sandboxes, by name. Those of living ones are theirs.
pub fn of_the_dead(state: &Path) -> io::Result<Vec<Found>> {
    let mut found = all(state)?;
    found.retain(|record| !record.owner.is_alive());
    Ok(found)
}

fn all(state: &Path) -> io::Result<Vec<Found>> {
    let dir = state.join(HELD);
    let entries = match fs::read_dir(&dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let unfinished = name.starts_with(NEW);
        if let Some(owner) = owner_of(name.strip_prefix(NEW).unwrap_or(&name)) {
            found.push(Found { path: entry.path(), owner, unfinished });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Removes a record in which nothing is pending.
pub fn discard(record: &Found) -> io::Result<()> {
    absent_is_fine(fs::remove_file(&record.path))
}

/// The categories of labels that earlier sandboxes left on files. A pair may not be given out again while a file still
/// carries it, and after a reboot no lease says so.
pub fn add_held(state: &Path, in_use: &mut InUse) -> io::Result<()> {
    for record in all(state)?.iter().filter(|r| !r.unfinished) {
        // one that cannot be read is repair's to tell
        let Ok(journal) = Journal::peek(&record.path) else { continue };
        for entry in journal.pending() {
            if let Intent::Relabel { label, path, .. } = entry.intent {
                in_use.add(label, Holder::File { path });
            }
        }
    }
    Ok(())
}

/// Locks a record for its repair; `None`: somebody else is at it.
pub fn lock(record: &Found) -> io::Result<Option<OwnedFd>> {
    let file = File::open(&record.path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file.into())),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
#[path = "durable_tests.rs"]
mod tests;
