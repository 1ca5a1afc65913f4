//! Labels on the files a sandbox owns: set, remembered, given back.
//!
//! Trust: works on an fd that the caller opened (openat2, no symlinks, no magic links) and
//! never on a name; what the fd is (type, link count, place) is judged here before anything
//! is written. The record in the file's xattr is parsed as hostile text.
//! Called by the jailer through `Transaction`, and by `journal::undo` for repair.
//!
//! One xattr, `trusted.casemate.owners`, holds the original label and the owners, so it is
//! replaced atomically and says *who* still holds a file. libvirt's three xattrs with a bare
//! count can do neither. Order: journal, record, label on the way in; label, record on the
//! way out. A crash anywhere between leaves a record from which the label can be restored.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::context::{Context, Level, Range};
use crate::guard::{self, LibvirtLock, RecordLock};
use crate::owner::Owner;
use crate::profile::Profile;
use crate::store::{LABEL, LIBVIRT, LabelStore, OWNERS, XattrStore};

/// A record longer than this is refused unread: 64 owners fit.
const MAX_RECORD: usize = 16 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum RelabelError {
    #[error("{path} is {found}; only regular files and block devices are labelled")]
    Kind { path: PathBuf, found: &'static str },
    #[error("{path} has {links} hard links; another name may be someone else's: copy the file")]
    Links { path: PathBuf, links: u64 },
    #[error("{path} lies under {root}, where labels belong to the system; move the file to an image directory")]
    Denied { path: PathBuf, root: PathBuf },
    #[error("{path} is in use by libvirt (its xattrs are on the file); stop that guest first")]
    Libvirt { path: PathBuf },
    #[error("{path} is locked by another manager that is changing its label; try again")]
    Locked { path: PathBuf },
    #[error("{path} is in use by {owner}, as {label}")]
    InUse { path: PathBuf, owner: Owner, label: String },
    #[error("{path} carries {label}, another manager's private label; if nobody uses it: restorecon -F {path}")]
    Foreign { path: PathBuf, label: String },
    #[error("{path} has an unreadable owner record ({why}); inspect trusted.casemate.owners, then remove it")]
    Record { path: PathBuf, why: String },
    #[error("cannot {verb} the {what} of {path}: {source}")]
    Io { path: PathBuf, verb: &'static str, what: &'static str, source: io::Error },
    #[error("{path} reads {found:?} after {wanted} was set")]
    ReadBack { path: PathBuf, wanted: String, found: String },
    #[error("cannot write the journal before labelling {path}: {source}")]
    Journal { path: PathBuf, source: io::Error },
}

/// What a file is to its sandbox, which decides its type and level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelClass {
    /// Writable by one sandbox alone: image type with its level (its pair).
    Exclusive,
    /// Writable by several sandboxes: image type without categories, which every runner (of that sensitivity) can write.
    SharedWritable,
    /// Kernel, initrd, read-only disk: content type at s0, which every runner can read.
    Content,
}

impl From<casemate_plan::step::ImageClass> for LabelClass {
    fn from(class: casemate_plan::step::ImageClass) -> Self {
        use casemate_plan::step::ImageClass;
        match class {
            ImageClass::Exclusive => Self::Exclusive,
            ImageClass::Shared => Self::SharedWritable,
            ImageClass::Content => Self::Content,
        }
    }
}

impl LabelClass {
    /// The label for an object of this class; the level's categories count only for `Exclusive`.
    pub fn target(self, profile: &Profile, level: impl Into<Level>) -> Context {
        let level = level.into();
        let (type_, level) = match self {
            Self::Exclusive => (&profile.image, level),
            Self::SharedWritable => (&profile.image, level.plain()),
            // read from above, also by a runner of a higher sensitivity
            Self::Content => (&profile.content, Level::S0),
        };
        profile.object(type_, Range::single(level))
    }
}

/// What labelling one object came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub path: PathBuf,
    pub dev: u64,
    pub ino: u64,
    pub before: Option<Context>,
    pub label: Context,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Relabelled,
    /// It had the label already; nothing was changed and nothing will be restored.
    AlreadyRight,
    /// No per-VM separation on this object: its file system keeps no labels, or is read-only.
    NoSeparation(String),
}

/// What giving a label back came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restored {
    To(Context),
    StillHeldBy(Vec<String>),
    /// The label was left as it is, and why.
    Left(String),
}

/// The value of `trusted.casemate.owners`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnersRecord {
    pub v: u32,
    /// The label before Casemate; none when it was lost (a leaked private label).
    pub orig: Option<Context>,
    /// The label that Casemate set.
    pub label: Context,
    pub owners: Vec<Owner>,
    /// Counts replacements of this record, so that a reader sees that it changed.
    #[serde(rename = "gen")]
    pub gen_: u64,
}

/// Which label a path would get from the policy's file_contexts.
pub type Fallback = dyn Fn(&Path, u32) -> Option<Context>;

/// Sets and restores labels. `S` is the xattr store, the kernel's unless in a unit test.
pub struct Relabeler<S = XattrStore> {
    pub(crate) store: S,
    profile: Profile,
    fallback: Box<Fallback>,
}

impl Relabeler<XattrStore> {
    /// On the kernel's xattrs, with the policy's file_contexts as the fallback of restore.
    pub fn new(profile: Profile) -> Self {
        Self::with_store(XattrStore, profile, Box::new(crate::fallback::lookup))
    }
}

impl<S: LabelStore> Relabeler<S> {
    pub fn with_store(store: S, profile: Profile, fallback: Box<Fallback>) -> Self {
        Self { store, profile, fallback }
    }

    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Judges the object: what it is, where it is, who has it. Changes nothing.
    pub fn check(&self, fd: BorrowedFd<'_>, path: &Path) -> Result<(u64, u64), RelabelError> {
        let identity = guard::judge(fd, path)?;
        for name in LIBVIRT {
            if self.get(fd, path, name, "libvirt xattr")?.is_some() {
                return Err(RelabelError::Libvirt { path: path.into() });
            }
        }
        Ok(identity)
    }

    /// The label now on the object; `None` where the file system keeps none.
    pub fn label_of(&self, fd: BorrowedFd<'_>, path: &Path) -> Result<Option<Context>, RelabelError> {
        match self.get(fd, path, LABEL, "label")? {
            None => Ok(None),
            Some(raw) => Context::from_bytes(&raw)
                .map(Some)
                .map_err(|e| io_error(path, "parse", "label", io::Error::new(io::ErrorKind::InvalidData, e))),
        }
    }

    pub fn record_of(&self, fd: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnersRecord>, RelabelError> {
        let Some(raw) = self.get(fd, path, OWNERS, "owner record")? else { return Ok(None) };
        let bad = |why: String| RelabelError::Record { path: path.into(), why };
        if raw.len() > MAX_RECORD {
            return Err(bad(format!("{} bytes", raw.len())));
        }
        let record: OwnersRecord = serde_json::from_slice(&raw).map_err(|e| bad(e.to_string()))?;
        if record.v != 1 { Err(bad(format!("version {}", record.v))) } else { Ok(Some(record)) }
    }

    /// Gives the object the label of its class for `owner`. `before_change` runs after all
    /// checks and before the first write; that is where the journal entry is made.
    pub fn acquire(
        &self,
        fd: BorrowedFd<'_>,
        path: &Path,
        class: LabelClass,
        level: impl Into<Level>,
        owner: &Owner,
        before_change: &mut dyn FnMut(&Held) -> io::Result<()>,
    ) -> Result<Held, RelabelError> {
        let (dev, ino) = self.check(fd, path)?;
        let _ours = RecordLock::take(fd, path)?;
        let _libvirts = LibvirtLock::take(fd, path, class)?;
        let label = class.target(&self.profile, level);
        let current = self.label_of(fd, path)?;
        let held =
            |outcome| Held { path: path.into(), dev, ino, before: current.clone(), label: label.clone(), outcome };
        let Some(now) = &current else {
            return Ok(held(Outcome::NoSeparation("its file system keeps no labels".into())));
        };
        let old_record = self.record_of(fd, path)?;
        // the user of a label separates nothing: content that its maker's user labelled is content
        if old_record.is_none() && class != LabelClass::Exclusive && same_but_for_user(now, &label) {
            return Ok(held(Outcome::AlreadyRight));
        }
        let record = self.next_record(path, old_record.as_ref(), now, &label, class, owner)?;
        let mut result = held(Outcome::Relabelled);
        result.before = record.orig.clone();
        before_change(&result).map_err(|source| RelabelError::Journal { path: path.into(), source })?;
        let remembered = self.write_record(fd, path, &record)?;
        match self.write_label(fd, path, &label) {
            Ok(()) => Ok(result),
            Err(e) => {
                if remembered {
                    // best effort: the journal entry covers what this cannot
                    let _ = match &old_record {
                        Some(old) => self.write_record(fd, path, old).map(|_| ()),
                        None => self.store.remove(fd, OWNERS).map_err(|e| io_error(path, "remove", "owner record", e)),
                    };
                }
                self.excuse(path, class, e, held)
            }
        }
    }

    /// Labels a file that the jailer has just made and will remove itself (a log): no
    /// record, no lock, nothing to give back.
    pub fn label_new(
        &self,
        fd: BorrowedFd<'_>,
        path: &Path,
        class: LabelClass,
        level: impl Into<Level>,
    ) -> Result<(), RelabelError> {
        self.write_label(fd, path, &class.target(&self.profile, level))
    }

    /// A file system that cannot take the label is no failure, but it is said aloud.
    fn excuse(
        &self,
        path: &Path,
        class: LabelClass,
        e: RelabelError,
        held: impl Fn(Outcome) -> Held,
    ) -> Result<Held, RelabelError> {
        let RelabelError::Io { source, .. } = &e else { return Err(e) };
        match source.raw_os_error() {
            Some(nix::libc::EOPNOTSUPP) => {
                Ok(held(Outcome::NoSeparation(format!("the file system of {} keeps no labels", path.display()))))
            }
            Some(nix::libc::EROFS) if class == LabelClass::Content => {
                Ok(held(Outcome::NoSeparation(format!("{} is on a read-only file system", path.display()))))
            }
            _ => Err(e),
        }
    }

    /// The record that names `owner` beside those who still hold the object, or a refusal.
    fn next_record(
        &self,
        path: &Path,
        old: Option<&OwnersRecord>,
        now: &Context,
        label: &Context,
        class: LabelClass,
        owner: &Owner,
    ) -> Result<OwnersRecord, RelabelError> {
        let Some(old) = old else {
            let private = now.range().is_some_and(|r| !r.high().categories.is_empty());
            let ours = now.type_() == self.profile.image || now.type_() == self.profile.content;
            if private && !ours {
                return Err(RelabelError::Foreign { path: path.into(), label: now.to_string() });
            }
            // our own private label without a record: the original is lost, file_contexts must tell
            let orig = (!(ours && private)).then(|| now.clone());
            return Ok(OwnersRecord { v: 1, orig, label: label.clone(), owners: vec![owner.clone()], gen_: 1 });
        };
        let mut owners: Vec<Owner> = old.owners.iter().filter(|o| *o != owner && o.is_alive()).cloned().collect();
        if let Some(other) = owners.first()
            && (class == LabelClass::Exclusive || old.label != *label)
        {
            let (owner, label) = (other.clone(), old.label.to_string());
            return Err(RelabelError::InUse { path: path.into(), owner, label });
        }
        owners.push(owner.clone());
        // the administrator changed the label since a dead owner left it: that is the original now
        let orig =
            if now == &old.label || Some(now) == old.orig.as_ref() { old.orig.clone() } else { Some(now.clone()) };
        Ok(OwnersRecord { v: 1, orig, label: label.clone(), owners, gen_: old.gen_.saturating_add(1) })
    }

    /// Takes `owner` off the object; the last owner to leave restores the label.
    /// The process that used the object must be dead and reaped: open fds outlive a label.
    pub fn release(&self, fd: BorrowedFd<'_>, path: &Path, owner: &Owner) -> Result<Restored, RelabelError> {
        let _ours = RecordLock::take(fd, path)?;
        let Some(mut record) = self.record_of(fd, path)? else {
            return Ok(Restored::Left("it carries no owner record".into()));
        };
        record.owners.retain(|o| o != owner && o.is_alive());
        if !record.owners.is_empty() {
            record.gen_ = record.gen_.saturating_add(1);
            self.write_record(fd, path, &record)?;
            return Ok(Restored::StillHeldBy(record.owners.iter().map(ToString::to_string).collect()));
        }
        let restored = self.restore_to(fd, path, record.orig.as_ref(), &record.label)?;
        self.store.remove(fd, OWNERS).map_err(|e| io_error(path, "remove", "owner record", e))?;
        Ok(restored)
    }

    /// Restores to `orig`, else to what file_contexts says, unless the label is not the one
    /// that we set: then an administrator chose it, and it stays.
    pub fn restore_to(
        &self,
        fd: BorrowedFd<'_>,
        path: &Path,
        orig: Option<&Context>,
        ours: &Context,
    ) -> Result<Restored, RelabelError> {
        let now = self.label_of(fd, path)?;
        match (&now, orig) {
            (None, _) => return Ok(Restored::Left("its file system keeps no labels".into())),
            (Some(n), Some(o)) if n == o => return Ok(Restored::To(o.clone())),
            (Some(n), _) if n != ours => {
                return Ok(Restored::Left(format!("its label was changed to {n} meanwhile")));
            }
            _ => {}
        }
        let place = guard::place_of(fd).unwrap_or_else(|| path.to_owned());
        let mode = rustix::fs::fstat(fd).map_err(|e| io_error(path, "read", "status", e.into()))?.st_mode;
        let Some(goal) = orig.cloned().or_else(|| (self.fallback)(&place, mode)) else {
            return Ok(Restored::Left("its original label is unknown and file_contexts names none".into()));
        };
        self.write_label(fd, path, &goal)?;
        Ok(Restored::To(goal))
    }

    /// True when the record was stored; false where `trusted.*` is not kept (the journal is).
    fn write_record(&self, fd: BorrowedFd<'_>, path: &Path, record: &OwnersRecord) -> Result<bool, RelabelError> {
        let bytes = serde_json::to_vec(record).expect("a record of strings and numbers is JSON");
        match self.store.set(fd, OWNERS, &bytes) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => Ok(false),
            Err(e) => Err(io_error(path, "write", "owner record", e)),
        }
    }

    fn write_label(&self, fd: BorrowedFd<'_>, path: &Path, label: &Context) -> Result<(), RelabelError> {
        let mut raw = label.to_string().into_bytes();
        raw.push(0);
        self.store.set(fd, LABEL, &raw).map_err(|e| io_error(path, "set", "label", e))?;
        let found = self.label_of(fd, path)?;
        if found.as_ref() == Some(label) {
            Ok(())
        } else {
            let found = found.map(|c| c.to_string()).unwrap_or_default();
            Err(RelabelError::ReadBack { path: path.into(), wanted: label.to_string(), found })
        }
    }

    fn get(
        &self,
        fd: BorrowedFd<'_>,
        path: &Path,
        name: &str,
        what: &'static str,
    ) -> Result<Option<Vec<u8>>, RelabelError> {
        self.store.get(fd, name).map_err(|e| io_error(path, "read", what, e))
    }
}

pub(crate) fn io_error(path: &Path, verb: &'static str, what: &'static str, source: io::Error) -> RelabelError {
    RelabelError::Io { path: path.into(), verb, what, source }
}

fn same_but_for_user(a: &Context, b: &Context) -> bool {
    (a.role(), a.type_(), a.range()) == (b.role(), b.type_(), b.range())
}

#[cfg(test)]
#[path = "relabel_tests.rs"]
pub(crate) mod tests;
