//! Several labels, all or none, each in the journal before it is set.
//!
//! Called by the jailer at start. Dropped before `commit`, it takes back what it did, in
//! reverse; what even that cannot take back stays pending in the journal for `repair`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::choice::{Ask, Choice};
use crate::context::Level;
use crate::journal::{Intent, Journal};
use crate::relabel::{Held, LabelClass, Outcome, RelabelError, Relabeler};
use crate::restore::Next;
use crate::store::{LabelStore, XattrStore};

pub struct Transaction<'a, S: LabelStore = XattrStore> {
    relabeler: &'a Relabeler<S>,
    journal: &'a mut Journal,
    level: Level,
    applied: Vec<(Option<u64>, OwnedFd, Held)>,
    committed: bool,
}

impl<'a, S: LabelStore> Transaction<'a, S> {
    pub fn new(relabeler: &'a Relabeler<S>, journal: &'a mut Journal, level: impl Into<Level>) -> Self {
        Self { relabeler, journal, level: level.into(), applied: Vec::new(), committed: false }
    }

    /// Labels one object. `fd` was opened for reading (and writing, for a writable image)
    /// without following links; `path` is shown, and is where repair looks for it.
    pub fn label(&mut self, fd: BorrowedFd<'_>, path: &Path, class: LabelClass) -> Result<Held, RelabelError> {
        self.label_as(fd, path, class, &Choice::Class)
    }

    /// [`Self::label`], with the label that was chosen.
    pub fn label_as(
        &mut self,
        fd: BorrowedFd<'_>,
        path: &Path,
        class: LabelClass,
        choice: &Choice,
    ) -> Result<Held, RelabelError> {
        let keep = fd.try_clone_to_owned().map_err(|source| RelabelError::Io {
            path: path.into(),
            verb: "duplicate",
            what: "handle",
            source,
        })?;
        let owner = self.journal.owner().clone();
        let mut number = None;
        let journal = &mut *self.journal;
        let mut write = |held: &Held| {
            let intent = Intent::Relabel {
                path: held.path.clone(),
                dev: held.dev,
                ino: held.ino,
                file: held.file.clone().map(Box::new),
                before: held.before.clone(),
                label: held.label.clone(),
            };
            number = Some(journal.intend(intent).map_err(io::Error::other)?);
            Ok(())
        };
        let result = self.relabeler.acquire_as(fd, path, &Ask { class, choice, level: self.level }, &owner, &mut write);
        let journal_error = |e| RelabelError::Journal { path: path.into(), source: io::Error::other(e) };
        match (&result, number) {
            (Ok(held), Some(n)) if held.outcome == Outcome::Relabelled => {
                self.journal.done(n).map_err(journal_error)?
            }
            // it was refused by the kernel and put back: nothing to undo later
            (_, Some(n)) => self.journal.undone(n).map_err(journal_error)?,
            (_, None) => {}
        }
        let held = result?;
        self.applied.push((number, keep, held.clone()));
        Ok(held)
    }

    /// Keeps the labels; from here the journal's undo gives them back.
    pub fn commit(mut self) -> Vec<Held> {
        self.committed = true;
        std::mem::take(&mut self.applied).into_iter().map(|(_, _, held)| held).collect()
    }
}

impl<S: LabelStore> Drop for Transaction<'_, S> {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        let owner = self.journal.owner().clone();
        for (number, fd, held) in std::mem::take(&mut self.applied).into_iter().rev() {
            if held.outcome != Outcome::Relabelled {
                continue;
            }
            let remembered = Some((held.before.as_ref(), &held.label));
            let restored = self.relabeler.give_back(fd.as_fd(), &held.path, &owner, remembered);
            if let (Ok(verdict), Some(n)) = (restored, number)
                && !matches!(verdict.next, Next::Wait(_))
            {
                // a mark that cannot be written leaves the intent pending, which is safe
                let _ = self.journal.undone(n);
            }
        }
    }
}
