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
use crate::record::{self, FileId, OwnersRecord, Standing};
use crate::store::{LABEL, LabelStore, OWNERS, XattrStore};

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
    #[error(
        "{path} is held by sandboxes of another host ({host}); if none runs there: setfattr -x trusted.casemate.owners {path}; restorecon -F {path}"
    )]
    OtherHost { path: PathBuf, host: String },
    #[error(
        "{path} is held by {owners} sandboxes, and there is no room for another name; for content that many read, keep it where it is labelled once: {path} into /var/lib/casemate/images"
    )]
    TooManyOwners { path: PathBuf, owners: usize },
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
    /// The file as a later boot finds it.
    #[serde(default)]
    pub file: Option<FileId>,
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

/// Which label a path would get from the policy's file_contexts.
pub type Fallback = dyn Fn(&Path, u32) -> Option<Context>;

/// Sets and restores labels. `S` is the xattr store, the kernel's unless in a unit test.
pub struct Relabeler<S = XattrStore> {
    pub(crate) store: S,
    profile: Profile,
    pub(crate) fallback: Box<Fallback>,
    host: Option<String>,
}

impl Relabeler<XattrStore> {
    /// On the kernel's xattrs, with the policy's file_contexts as the fallback of restore.
    pub fn new(profile: Profile) -> Self {
        Self::with_store(XattrStore, profile, Box::new(crate::fallback::lookup))
    }
}

impl<S: LabelStore> Relabeler<S> {
    pub fn with_store(store: S, profile: Profile, fallback: Box<Fallback>) -> Self {
        Self { store, profile, fallback, host: None }
    }

    /// Names this host in records, and lets records of other hosts be known for what they are.
    pub fn on_host(mut self, id: String) -> Self {
        self.host = Some(id);
        self
    }

    pub(crate) fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Judges the object: what it is, where it is, who has it. Changes nothing.
    pub fn check(&self, fd: BorrowedFd<'_>, path: &Path) -> Result<(u64, u64), RelabelError> {
        let identity = guard::judge(fd, path)?;
        match self.has_libvirts(fd, path)? {
            true => Err(RelabelError::Libvirt { path: path.into() }),
            false => Ok(identity),
        }
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
        OwnersRecord::parse(&raw).map(Some).map_err(|why| RelabelError::Record { path: path.into(), why })
    }

    /// The record if it was written for this file and by this host. One that came with a copy counts as none.
    fn own_record(&self, fd: BorrowedFd<'_>, path: &Path, file: &FileId) -> Result<Option<OwnersRecord>, RelabelError> {
        let Some(record) = self.record_of(fd, path)? else { return Ok(None) };
        match record.standing(file, self.host()) {
            Standing::Good => Ok(Some(record)),
            Standing::Copied => Ok(None),
            Standing::OtherHost(host) => Err(RelabelError::OtherHost { path: path.into(), host }),
        }
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
        let file = record::id_of(fd, path)?;
        let held = |outcome| Held {
            path: path.into(),
            dev,
            ino,
            file: Some(file.clone()),
            before: current.clone(),
            label: label.clone(),
            outcome,
        };
        let Some(now) = &current else {
            return Ok(held(Outcome::NoSeparation("its file system keeps no labels".into())));
        };
        let old_record = self.own_record(fd, path, &file)?;
        // the user of a label separates nothing: content that its maker's user labelled is content
        if old_record.is_none() && class != LabelClass::Exclusive && same_but_for_user(now, &label) {
            return Ok(held(Outcome::AlreadyRight));
        }
        let record = self.next_record(path, old_record.as_ref(), now, &label, class, owner)?;
        let record = OwnersRecord { file: Some(file.clone()), host: self.host.clone(), ..record };
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
            return Ok(OwnersRecord::new(orig, label.clone(), vec![owner.clone()], 1));
        };
        let mut owners = old.living_but(owner);
        if let Some(other) = owners.first()
            && (class == LabelClass::Exclusive || old.label != *label)
        {
            let (owner, label) = (other.clone(), old.label.to_string());
            return Err(RelabelError::InUse { path: path.into(), owner, label });
        }
        if owners.len() >= record::MAX_OWNERS {
            return Err(RelabelError::TooManyOwners { path: path.into(), owners: owners.len() });
        }
        owners.push(owner.clone());
        // the administrator changed the label since a dead owner left it: that is the original now
        let orig =
            if now == &old.label || Some(now) == old.orig.as_ref() { old.orig.clone() } else { Some(now.clone()) };
        Ok(OwnersRecord::new(orig, label.clone(), owners, old.gen_.saturating_add(1)))
    }

    /// True when the record was stored; false where `trusted.*` is not kept (the journal is).
    pub(crate) fn write_record(
        &self,
        fd: BorrowedFd<'_>,
        path: &Path,
        record: &OwnersRecord,
    ) -> Result<bool, RelabelError> {
        match self.store.set(fd, OWNERS, &record.bytes()) {
            Ok(()) => Ok(true),
            Err(e) if matches!(e.raw_os_error(), Some(nix::libc::ENOSPC | nix::libc::E2BIG)) => {
                Err(RelabelError::TooManyOwners { path: path.into(), owners: record.owners.len().saturating_sub(1) })
            }
            Err(e) if e.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => Ok(false),
            Err(e) => Err(io_error(path, "write", "owner record", e)),
        }
    }

    pub(crate) fn write_label(&self, fd: BorrowedFd<'_>, path: &Path, label: &Context) -> Result<(), RelabelError> {
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

    pub(crate) fn get(
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
