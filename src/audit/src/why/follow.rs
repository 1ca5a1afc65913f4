//! Denials as they happen: the same sources, read on from where the history ended.
//!
//! ```text
//! start: sources are open ─> history ─> look ─> look ─> …
//! ```
//!
//! What was written while the history was read is in both; an event counts once. Its records come one by one, and from two
//! sources at two times: it is told once it has been quiet for [`SETTLE`]. All that is kept is bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use casemate_sys::rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::event::{Event, Events};
use super::lines::{Lines, More};
use super::record::{MAX_LINE, Stamp};
use super::sources::{self, Account, MAX_FILES, Sources};
use super::{Denial, Known, denials_of};
use crate::policy::Policy;

/// How long nothing of an event must have come.
pub const SETTLE: Duration = Duration::from_millis(300);
/// Events that are remembered as told: another source may bring them later.
const MAX_TOLD: usize = 20_000;
/// Bytes of one source in one look.
const MAX_LOOK: u64 = 16 << 20;
/// Different notes that are remembered as said.
const MAX_SAID: usize = 64;

pub struct Follower {
    sources: Sources,
    /// Seconds since the epoch: what has happened since then may come again from a source that was just opened.
    from: u64,
    auditd: Option<Auditd>,
    journal: Option<Journal>,
    ring: Option<File>,
    /// Not told yet; and who made which Landlock domain.
    events: Events,
    /// When the last record of each came.
    arrived: BTreeMap<Stamp, Instant>,
    told: BTreeSet<Stamp>,
    said: BTreeSet<String>,
    notes: Vec<String>,
}

impl Follower {
    /// Opens the sources. Nothing that is recorded from here on is missed; `until` does not count.
    pub fn start(sources: &Sources) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let mut follower = Follower {
            sources: Sources { until: u64::MAX, ..sources.clone() },
            from: now.saturating_sub(1),
            auditd: None,
            journal: None,
            ring: None,
            events: Events::default(),
            arrived: BTreeMap::new(),
            told: BTreeSet::new(),
            said: BTreeSet::new(),
            notes: Vec::new(),
        };
        follower.auditd = sources.auditd.as_deref().map(Auditd::start);
        if let Some(program) = &sources.journalctl {
            match Journal::start(program, follower.from) {
                Ok(journal) => follower.journal = Some(journal),
                Err(error) => follower.say(sources::no_journal(program, &error)),
            }
        }
        if let Some(path) = &sources.kmsg {
            match sources::ring(path).and_then(|mut ring| ring.seek(SeekFrom::End(0)).map(|_| ring)) {
                Ok(ring) => follower.ring = Some(ring),
                Err(error) => follower.say(format!("{}: {}", path.display(), sources::no_ring(&error))),
            }
        }
        follower
    }

    /// Is there a source that can tell anything?
    pub fn can_see(&self) -> bool {
        self.journal.is_some()
            || self.ring.is_some()
            || self.auditd.as_ref().is_some_and(|auditd| auditd.file.is_some())
    }

    /// What was recorded until now, but for what has only just happened, of which more records may come: that is told by
    /// the next looks.
    pub fn history(&mut self) -> (Events, Vec<Account>) {
        let (mut history, read) = sources::gather(&self.sources);
        self.begin(&mut history);
        (history, read)
    }

    fn begin(&mut self, history: &mut Events) {
        let recent = history.split_off(self.from);
        self.events.learn_from(history);
        self.told = history.iter().map(|(stamp, _)| *stamp).collect();
        self.forget();
        self.add(recent);
    }

    /// Reads what has come; the events of which nothing more is to be expected, in their order.
    pub fn look(&mut self) -> BTreeMap<Stamp, Event> {
        let mut fresh = Events::default();
        let mut read = Account::default();
        if let Some(auditd) = &mut self.auditd
            && let Err(error) = auditd.read(&self.sources, &mut fresh, &mut read)
        {
            read.notes.push(format!("{}: {error}", auditd.path(0).display()));
        }
        if let Some(journal) = &mut self.journal
            && let Some(end) = journal.read(&self.sources, &mut fresh, &mut read)
        {
            read.notes.push(format!("the journal is not followed any more: journalctl {end}"));
            self.journal = None;
        }
        if let Some(ring) = &mut self.ring
            && sources::ring_records(ring, &self.sources, &mut fresh, &mut read).overtaken
        {
            read.notes.push("the kernel's log was written faster than it was read; some of it is lost".into());
        }
        if read.suppressed > 0 {
            self.notes.push(format!("the kernel says that it left {} lines out of its log", read.suppressed));
        }
        if fresh.dropped > 0 {
            self.notes.push(format!("too many records at once: {} events were left out", fresh.dropped));
        }
        read.notes.into_iter().for_each(|note| self.say(note));
        self.events.learn_from(&fresh);
        self.add(fresh.split_off(0));
        self.settled()
    }

    /// What such events tell.
    pub fn denials(&self, events: &BTreeMap<Stamp, Event>, known: &Known, policy: Option<&Policy>) -> Vec<Denial> {
        denials_of(events.iter(), &self.events, known, policy)
    }

    /// What went wrong since this was last asked.
    pub fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// A fault that stays is told once.
    fn say(&mut self, note: String) {
        if self.said.len() >= MAX_SAID {
            self.said.clear();
        }
        if self.said.insert(note.clone()) {
            self.notes.push(note);
        }
    }

    fn add(&mut self, fresh: BTreeMap<Stamp, Event>) {
        for (stamp, event) in fresh.into_iter().filter(|(stamp, _)| !self.told.contains(stamp)) {
            for record in event.records {
                if self.events.add(record) {
                    self.arrived.insert(stamp, Instant::now());
                }
            }
        }
    }

    fn settled(&mut self) -> BTreeMap<Stamp, Event> {
        let quiet: Vec<Stamp> =
            self.arrived.iter().filter(|(_, at)| at.elapsed() >= SETTLE).map(|(stamp, _)| *stamp).collect();
        let mut settled = BTreeMap::new();
        for stamp in quiet {
            self.arrived.remove(&stamp);
            settled.extend(self.events.remove(&stamp).map(|event| (stamp, event)));
            self.told.insert(stamp);
        }
        self.forget();
        settled
    }

    fn forget(&mut self) {
        while self.told.len() > MAX_TOLD {
            self.told.pop_first();
        }
    }
}

/// auditd's file, and those that come after it when it is rotated.
struct Auditd {
    dir: PathBuf,
    file: Option<File>,
    lines: Lines,
}

impl Auditd {
    /// Begins a little before the end, so that a line that is being written is read whole.
    fn start(dir: &Path) -> Self {
        let mut auditd = Auditd { dir: dir.to_owned(), file: None, lines: Lines::default() };
        auditd.file = sources::open(&auditd.path(0)).ok().and_then(|mut file| {
            let end = file.metadata().ok()?.len();
            file.seek(SeekFrom::Start(end.saturating_sub(MAX_LINE as u64))).ok()?;
            Some(file)
        });
        auditd
    }

    /// The file that was written to `rotations` ago.
    fn path(&self, rotations: u32) -> PathBuf {
        match rotations {
            0 => self.dir.join("audit.log"),
            n => self.dir.join(format!("audit.log.{n}")),
        }
    }

    fn read(&mut self, sources: &Sources, events: &mut Events, read: &mut Account) -> io::Result<()> {
        loop {
            // Asked before reading: once there is a next file, nothing is added to this one.
            let next = self.next(read)?;
            if let Some(file) = &mut self.file {
                if file.metadata()?.len() < file.stream_position()? {
                    read.notes.push(format!("{} was cut off; what had not been read is lost", self.dir.display()));
                    file.rewind()?;
                    self.lines = Lines::default();
                }
                let each = |line: &[u8]| sources::auditd_line(line, sources, events, read);
                if self.lines.read(file, MAX_LOOK, each)? == More::Rest {
                    return Ok(());
                }
            }
            let Some(next) = next else { return Ok(()) };
            self.lines = Lines::default();
            self.file = Some(next);
        }
    }

    /// The file after the one that is open, if it was rotated away.
    fn next(&self, read: &mut Account) -> io::Result<Option<File>> {
        let Some(file) = &self.file else { return found(sources::open(&self.path(0))) };
        let rotations = self.rotations(file)?;
        match rotations {
            Some(0) => Ok(None),
            Some(n) => {
                let next = found(sources::open(&self.path(n - 1)))?;
                // Rotated once more at this moment: the name was another file's. There is a next look.
                Ok(next.filter(|_| self.rotations(file).is_ok_and(|still| still == rotations)))
            }
            None => {
                let next = found(sources::open(&self.path(0)))?;
                if next.is_some() {
                    read.notes.push(format!("{}: the file that was read is gone", self.path(0).display()));
                }
                Ok(next)
            }
        }
    }

    /// How often the open file was rotated; `None` if it has no name any more.
    fn rotations(&self, file: &File) -> io::Result<Option<u32>> {
        let own = file.metadata()?;
        for n in 0..=MAX_FILES {
            match std::fs::symlink_metadata(self.path(n)) {
                Ok(is) if (is.dev(), is.ino()) == (own.dev(), own.ino()) => return Ok(Some(n)),
                Ok(_) => {}
                // Between two names there is none for a moment.
                Err(e) if e.kind() == ErrorKind::NotFound && n < 2 => {}
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }
}

fn found(file: io::Result<File>) -> io::Result<Option<File>> {
    match file {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// `journalctl --follow`, which knows the journal's own rotation.
struct Journal {
    child: Child,
    out: ChildStdout,
    lines: Lines,
}

impl Journal {
    fn start(program: &Path, since: u64) -> io::Result<Self> {
        let mut child = sources::journalctl(program, since).args(["--follow", "--no-tail"]).spawn()?;
        let out = child.stdout.take().ok_or_else(|| io::Error::other("journalctl has no output"))?;
        let journal = Journal { child, out, lines: Lines::default() };
        fcntl_setfl(&journal.out, fcntl_getfl(&journal.out)? | OFlags::NONBLOCK)?;
        Ok(journal)
    }

    /// Why it ended, if it did.
    fn read(&mut self, sources: &Sources, events: &mut Events, read: &mut Account) -> Option<String> {
        // Asked before reading: what it wrote last is there when it is seen to have ended.
        let ended = self.child.try_wait();
        let each = |line: &[u8]| sources::journal_line(line, sources, events, read);
        match (self.lines.read(&mut self.out, MAX_LOOK, each), ended) {
            (Err(error), _) | (_, Err(error)) => Some(error.to_string()),
            (Ok(More::End), Ok(Some(status))) => Some(format!("ended with {status}")),
            _ => None,
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
