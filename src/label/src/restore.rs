//! Giving a label back: what would be done, and doing it, from one judgement.
//!
//! Trust: the file was identified by the caller; everything on it is judged again. Called by `undo` (end, failure,
//! repair, dry run) and by a dropped `Transaction`.
//!
//! Order of sources: the label remembered in the record, else in the journal; else what file_contexts names; else it is
//! left and told. A label that somebody changed meanwhile is theirs and stays.

use std::os::fd::BorrowedFd;
use std::path::Path;

use serde::Serialize;

use crate::context::Context;
use crate::guard::{self, RecordLock};
use crate::owner::Owner;
use crate::record::{self, OwnersRecord, Standing};
use crate::relabel::{RelabelError, Relabeler, Restored, io_error};
use crate::store::{LIBVIRT, LabelStore, OWNERS};

/// Where a restored label comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The label that the file had before.
    Remembered,
    /// The original is lost; the policy names this one.
    FileContexts,
}

/// What is to be done with a file that a dead sandbox held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The label now.
    pub from: Option<Context>,
    pub next: Next,
    /// What becomes of the owner record.
    record: Record,
}

impl Verdict {
    /// Is there an owner record that goes, or changes?
    pub(crate) fn has_record(&self) -> bool {
        self.record != Record::Absent
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    Restore(Context, Source),
    /// It has the label already that it is to have.
    Already(Context),
    StillHeldBy(Vec<String>),
    Leave(String),
    /// Not now; the intent is kept, and a later repair tries again.
    Wait(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Record {
    Absent,
    Replace(Box<OwnersRecord>),
    Remove,
}

impl<S: LabelStore> Relabeler<S> {
    /// What giving `owner`'s hold on the file back comes to. Changes nothing. `before` and `ours` are what the journal
    /// remembers, for files that keep no record; `ours` absent: only the record counts.
    pub fn judge_release(
        &self,
        fd: BorrowedFd<'_>,
        path: &Path,
        owner: &Owner,
        journal: Option<(Option<&Context>, &Context)>,
    ) -> Result<Verdict, RelabelError> {
        let from = self.label_of(fd, path)?;
        let verdict = |next, record| Ok(Verdict { from: from.clone(), next, record });
        let found = self.record_of(fd, path)?;
        let file = record::id_of(fd, path)?;
        let standing = found.as_ref().map(|r| self.standing(r, path, &file)).transpose()?;
        let record = match (found, standing) {
            (Some(_), Some(Standing::OtherHost(host))) => {
                return verdict(Next::Leave(format!("another host ({host}) holds it")), Record::Absent);
            }
            (Some(record), Some(Standing::Good)) => Some(record),
            (Some(_), _) => {
                let next = match journal {
                    Some((before, ours)) => self.judge_label(fd, path, from.as_ref(), before, ours)?,
                    None => Next::Leave("its owner record was copied from another file".into()),
                };
                return verdict(next, Record::Remove);
            }
            (None, _) => None,
        };
        let Some(record) = record else {
            let next = match journal {
                Some((before, ours)) => self.judge_label(fd, path, from.as_ref(), before, ours)?,
                None => Next::Leave("it carries no owner record".into()),
            };
            return verdict(next, Record::Absent);
        };
        let gen_ = record.gen_.saturating_add(1);
        let owners = record.living_but(owner);
        if !owners.is_empty() {
            let who = owners.iter().map(ToString::to_string).collect();
            return verdict(Next::StillHeldBy(who), Record::Replace(Box::new(OwnersRecord { owners, gen_, ..record })));
        }
        if self.has_libvirts(fd, path)? {
            // The original stays on the file: libvirt remembers our label, and will set it again when it ends.
            let why = "libvirt took it meanwhile (its xattrs are on it); once its guest has ended, repair again";
            return verdict(
                Next::Wait(why.into()),
                Record::Replace(Box::new(OwnersRecord { owners: Vec::new(), gen_, ..record })),
            );
        }
        let next = self.judge_label(fd, path, from.as_ref(), record.orig.as_ref(), &record.label)?;
        verdict(next, Record::Remove)
    }

    fn judge_label(
        &self,
        fd: BorrowedFd<'_>,
        path: &Path,
        now: Option<&Context>,
        orig: Option<&Context>,
        ours: &Context,
    ) -> Result<Next, RelabelError> {
        match (now, orig) {
            (None, _) => return Ok(Next::Leave("its file system keeps no labels".into())),
            (Some(n), Some(o)) if n == o => return Ok(Next::Already(o.clone())),
            (Some(n), _) if n != ours => return Ok(Next::Leave(format!("its label was changed to {n} meanwhile"))),
            _ => {}
        }
        if let Some(orig) = orig {
            return Ok(Next::Restore(orig.clone(), Source::Remembered));
        }
        let place = guard::place_of(fd).unwrap_or_else(|| path.to_owned());
        let mode = rustix::fs::fstat(fd).map_err(|e| io_error(path, "read", "status", e.into()))?.st_mode;
        Ok(match (self.fallback)(&place, mode) {
            Some(goal) => Next::Restore(goal, Source::FileContexts),
            None => Next::Leave("its original label is unknown and file_contexts names none".into()),
        })
    }

    /// Does what `verdict` says: the label first, then the record, so that a crash between leaves the record.
    fn carry_out(&self, fd: BorrowedFd<'_>, path: &Path, verdict: &Verdict) -> Result<(), RelabelError> {
        if let Next::Restore(goal, _) = &verdict.next {
            self.write_label(fd, path, goal)?;
        }
        match &verdict.record {
            Record::Absent => Ok(()),
            Record::Replace(record) => self.write_record(fd, path, record).map(drop),
            Record::Remove => self.store.remove(fd, OWNERS).map_err(|e| io_error(path, "remove", "owner record", e)),
        }
    }

    /// Takes `owner` off the file; the last owner to leave restores the label. The process that used it must be dead
    /// and reaped: open fds outlive a label. Judged and done under the record's lock.
    pub fn give_back(
        &self,
        fd: BorrowedFd<'_>,
        path: &Path,
        owner: &Owner,
        journal: Option<(Option<&Context>, &Context)>,
    ) -> Result<Verdict, RelabelError> {
        let _ours = RecordLock::take(fd, path)?;
        let verdict = self.judge_release(fd, path, owner, journal)?;
        self.carry_out(fd, path, &verdict)?;
        Ok(verdict)
    }

    /// The same by the record alone.
    pub fn release(&self, fd: BorrowedFd<'_>, path: &Path, owner: &Owner) -> Result<Restored, RelabelError> {
        self.give_back(fd, path, owner, None).map(Restored::from)
    }

    /// Restores to `orig`, else to what file_contexts says, unless the label is not the one that we set.
    pub fn restore_to(
        &self,
        fd: BorrowedFd<'_>,
        path: &Path,
        orig: Option<&Context>,
        ours: &Context,
    ) -> Result<Restored, RelabelError> {
        let from = self.label_of(fd, path)?;
        let next = self.judge_label(fd, path, from.as_ref(), orig, ours)?;
        let verdict = Verdict { from, next, record: Record::Absent };
        self.carry_out(fd, path, &verdict)?;
        Ok(verdict.into())
    }

    pub(crate) fn has_libvirts(&self, fd: BorrowedFd<'_>, path: &Path) -> Result<bool, RelabelError> {
        for name in LIBVIRT {
            if self.get(fd, path, name, "libvirt xattr")?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl From<Verdict> for Restored {
    fn from(verdict: Verdict) -> Self {
        match verdict.next {
            Next::Restore(label, _) | Next::Already(label) => Self::To(label),
            Next::StillHeldBy(who) => Self::StillHeldBy(who),
            Next::Leave(why) | Next::Wait(why) => Self::Left(why),
        }
    }
}
