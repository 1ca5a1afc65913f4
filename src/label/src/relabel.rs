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

use crate::choice::{Ask, Choice, Found};
use crate::context::{Context, Level, Range};
use crate::guard::{self, LibvirtLock, Object, RecordLock};
use crate::judge::{LoadedPolicy, Policy};
use crate::owner::Owner;
use crate::profile::Profile;
use crate::record::{self, FileId, OwnersRecord, Standing};
pub use crate::relabel_error::RelabelError;
pub(crate) use crate::relabel_error::{excuse, explain, io_error};
use crate::store::{LABEL, LabelStore, OWNERS, XattrStore};

/// The type of guest memory in a file. Only our own module has one (plan: `foreign_memory`).
const MEMORY_TYPE: &str = "casemate_memory_t";

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
    /// It keeps the label that it carries: nothing may be set, or nothing can be, and the policy says that it fits.
    Kept,
    /// No per-VM separation on this object: its label cannot be changed, and every runner may use what carries it.
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
    pub(crate) policy: Box<dyn Policy>,
    /// For whom objects are judged.
    pub(crate) runner: Option<Context>,
}

impl Relabeler<XattrStore> {
    /// On the kernel's xattrs, with the policy's file_contexts as the fallback of restore.
    pub fn new(profile: Profile) -> Self {
        Self::with_store(XattrStore, profile, Box::new(crate::fallback::lookup))
    }
}

impl<S: LabelStore> Relabeler<S> {
    pub fn with_store(store: S, profile: Profile, fallback: Box<Fallback>) -> Self {
        Self { store, profile, fallback, host: None, policy: Box::new(LoadedPolicy), runner: None }
    }

    /// From here on labels are judged for a runner with this label.
    pub fn judge_for(&mut self, runner: Context) {
        self.runner = Some(runner);
    }

    #[cfg(test)]
    pub(crate) fn with_policy(mut self, policy: impl Policy + 'static, runner: &str) -> Self {
        self.policy = Box::new(policy);
        self.runner = Some(runner.parse().expect("a label"));
        self
    }

    /// Names this host in records, and lets records of other hosts be known for what they are.
    pub fn on_host(mut self, id: String) -> Self {
        self.set_host(id);
        self
    }

    pub fn set_host(&mut self, id: String) {
        self.host = Some(id);
    }

    pub(crate) fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Judges the object: what it is, where it is, who has it. Changes nothing.
    pub fn check(&self, fd: BorrowedFd<'_>, path: &Path) -> Result<Object, RelabelError> {
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
        match self.standing(&record, path, file)? {
            Standing::Good => Ok(Some(record)),
            Standing::Copied => Ok(None),
            Standing::OtherHost(host) => Err(RelabelError::OtherHost { path: path.into(), host }),
        }
    }

    /// What a record is worth on this file and host.
    pub(crate) fn standing(&self, record: &OwnersRecord, path: &Path, file: &FileId) -> Result<Standing, RelabelError> {
        let unknown = |e| io_error(path, "tell this boot from that", "owner record", e);
        record.standing(file, self.host()).map_err(unknown)
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
        let ask = Ask { class, choice: &Choice::Class, level: level.into() };
        self.acquire_as(fd, path, &ask, owner, before_change)
    }

    /// [`Self::acquire`], with the label that was chosen.
    pub fn acquire_as(
        &self,
        fd: BorrowedFd<'_>,
        path: &Path,
        ask: &Ask<'_>,
        owner: &Owner,
        before_change: &mut dyn FnMut(&Held) -> io::Result<()>,
    ) -> Result<Held, RelabelError> {
        let class = ask.class;
        let object = self.check(fd, path)?;
        let _ours = RecordLock::take(fd, path)?;
        let _libvirts = LibvirtLock::take(fd, path, class)?;
        let (current, file) = (self.label_of(fd, path)?, record::id_of(fd, path)?);
        let of_class = self.goal(class, ask.level, current.as_ref());
        let found = Found { fd, path, object, file, class, current, of_class };
        let label = match ask.choice {
            Choice::Class => &found.of_class,
            Choice::Given { label, field } => {
                self.judge_given(&found, label, field)?;
                label
            }
            Choice::Keep { field } => {
                let outcome = self.judge_kept(&found, field)?;
                return Ok(found.held(found.current.as_ref().unwrap_or(&found.of_class), outcome));
            }
        };
        let Some(now) = &found.current else {
            let outcome = self.judge_labelless(&found, "its file system keeps no labels")?;
            return Ok(found.held(label, outcome));
        };
        match self.change(&found, now, label, owner, before_change) {
            Ok((outcome, before)) => {
                if outcome != Outcome::Relabelled {
                    // the label that it really has, which may differ from the class's by its user
                    return Ok(found.held(now, outcome));
                }
                // a lost original is `None`, whatever the object carries now
                Ok(Held { before, ..found.held(label, outcome) })
            }
            // what a user names is set, or the start fails
            Err(e) => match excuse(&e).filter(|_| *ask.choice == Choice::Class) {
                Some(why) => self.judge_labelless(&found, why).map(|outcome| found.held(now, outcome)),
                None => Err(explain(e, path, now, label)),
            },
        }
    }

    /// Record, then label. Returns what it came to, and the label to go back to.
    fn change(
        &self,
        found: &Found<'_>,
        now: &Context,
        label: &Context,
        owner: &Owner,
        before_change: &mut dyn FnMut(&Held) -> io::Result<()>,
    ) -> Result<(Outcome, Option<Context>), RelabelError> {
        let Found { fd, path, class, .. } = *found;
        let old_record = self.own_record(fd, path, &found.file)?;
        // the user of a label separates nothing: content that its maker's user labelled is content
        if old_record.is_none() && class != LabelClass::Exclusive && same_but_for_user(now, label) {
            return Ok((Outcome::AlreadyRight, None));
        }
        let record = self.next_record(path, old_record.as_ref(), now, label, class, owner)?;
        let record = OwnersRecord { file: Some(found.file.clone()), host: self.host.clone(), ..record };
        let mut intended = found.held(label, Outcome::Relabelled);
        intended.before = record.orig.clone();
        before_change(&intended).map_err(|source| RelabelError::Journal { path: path.into(), source })?;
        let remembered = self.write_record(fd, path, &record)?;
        let set = self.write_label(fd, path, label);
        if set.is_err() && remembered {
            // best effort: the journal entry covers what this cannot
            let _ = match &old_record {
                Some(old) => self.write_record(fd, path, old).map(|_| ()),
                None => self.store.remove(fd, OWNERS).map_err(|e| io_error(path, "remove", "owner record", e)),
            };
        }
        set.map(|()| (Outcome::Relabelled, intended.before))
    }

    /// The label of the class, but content keeps a type that the runner may read and not write as well: relabelling
    /// it would take it away from the sandboxes of another family that read it now.
    fn goal(&self, class: LabelClass, level: Level, now: Option<&Context>) -> Context {
        let also = |now: &&Context| {
            let plain = now.range().is_some_and(|r| *r.high() == Level::S0);
            class == LabelClass::Content && plain && self.profile.content_also.iter().any(|t| t == now.type_())
        };
        now.filter(also).cloned().unwrap_or_else(|| class.target(&self.profile, level))
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

    /// Labels guest memory, a memfd that the jailer has just made. hugetlbfs takes no label at its making but the one
    /// of a transition rule, which has no category, so the pair is set here, before anybody else has the fd.
    pub fn label_memory(&self, fd: BorrowedFd<'_>, path: &Path, level: impl Into<Level>) -> Result<(), RelabelError> {
        let label = self.profile.object(MEMORY_TYPE, Range::single(level.into()));
        self.write_label(fd, path, &label)
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
            // in another manager's family a private label is that manager's, running or not
            let ours = self.profile.own && (now.type_() == self.profile.image || now.type_() == self.profile.content);
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
            // a read-only mount: whether the label it shows is good enough is seen when that cannot be set either
            Err(e) if matches!(e.raw_os_error(), Some(nix::libc::EOPNOTSUPP | nix::libc::EROFS)) => Ok(false),
            Err(e) if e.raw_os_error() == Some(nix::libc::EPERM) => Err(RelabelError::Immutable { path: path.into() }),
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

fn same_but_for_user(a: &Context, b: &Context) -> bool {
    (a.role(), a.type_(), a.range()) == (b.role(), b.type_(), b.range())
}

#[cfg(test)]
#[path = "relabel_tests.rs"]
pub(crate) mod tests;
