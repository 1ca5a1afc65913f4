//! Which label an object is to have: its class's, one that the user names, or the one that it carries.
//! The last two, and every label that cannot be changed, are judged by the loaded policy before they are used.
//!
//! ```text
//! disks[].relabel = false, selinux.relabel = false   Keep    nothing is written; must fit
//! disks[].label                                      Given   must be known, reach the runner and separate
//! else                                               Class   set; where none can be set, the carried one must fit
//! ```
//! Called by `relabel`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::context::{Context, Level};
use crate::guard::Object;
use crate::judge::{self, Verdict};
use crate::record::FileId;
use crate::relabel::{Held, LabelClass, Outcome, RelabelError, Relabeler, io_error};
use crate::store::{LABEL, LabelStore};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Choice {
    /// The label that follows from the object's class.
    #[default]
    Class,
    /// This one; `field` names it to the user.
    Given { label: Context, field: String },
    /// None is set; `field` is what asked for that.
    Keep { field: String },
}

/// What is asked for one object.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    pub class: LabelClass,
    pub choice: &'a Choice,
    /// The sandbox's.
    pub level: Level,
}

/// An object before anything is done to it.
pub(crate) struct Found<'a> {
    pub(crate) fd: BorrowedFd<'a>,
    pub(crate) path: &'a Path,
    pub(crate) object: Object,
    pub(crate) file: FileId,
    pub(crate) class: LabelClass,
    /// What the kernel says that it carries.
    pub(crate) current: Option<Context>,
    /// What its class would give it.
    pub(crate) of_class: Context,
}

impl Found<'_> {
    pub(crate) fn held(&self, label: &Context, outcome: Outcome) -> Held {
        let Object { dev, ino, .. } = self.object;
        let (path, file) = (self.path.into(), Some(self.file.clone()));
        Held { path, dev, ino, file, before: self.current.clone(), label: label.clone(), outcome }
    }
}

impl<S: LabelStore> Relabeler<S> {
    fn verdict(&self, found: &Found<'_>, label: &Context) -> Result<Verdict, RelabelError> {
        let Some(runner) = &self.runner else {
            return Err(RelabelError::NoJudge { path: found.path.into() });
        };
        judge::judge(&*self.policy, runner, label, found.object.kind, found.class)
            .map_err(|e| io_error(found.path, "ask the policy about", "label", e))
    }

    /// A label that the user names: one the policy knows, the runner may use, and others may not.
    pub(crate) fn judge_given(&self, found: &Found<'_>, label: &Context, field: &str) -> Result<(), RelabelError> {
        let known = self.policy.knows(label);
        if !known.map_err(|e| io_error(found.path, "ask the policy about", "label", e))? {
            return Err(RelabelError::Unknown { field: field.into(), label: label.to_string() });
        }
        let remedy = format!("leave {field} out for {}", found.of_class);
        match self.verdict(found, label)? {
            Verdict::Fits => Ok(()),
            verdict => Err(unfit(found, label, field, verdict, remedy)),
        }
    }

    /// `relabel = no`: the label that is there must be one that could have been set.
    pub(crate) fn judge_kept(&self, found: &Found<'_>, field: &str) -> Result<Outcome, RelabelError> {
        let Some(now) = &found.current else {
            return Err(RelabelError::Labelless {
                path: found.path.into(),
                why: "the kernel tells no label of it".into(),
                remedy: "copy it to a file system with labels".into(),
            });
        };
        match self.verdict(found, now)? {
            Verdict::Fits => Ok(Outcome::Kept),
            verdict => {
                let remedy = format!("chcon {} {}", found.of_class, quoted(found.path));
                Err(unfit(found, now, field, verdict, remedy))
            }
        }
    }

    /// The file system takes no label (`why`): the one that the kernel reports must let the runner in. Where it lets
    /// every runner in, that is said, and the caller decides what it does to the posture.
    pub(crate) fn judge_labelless(&self, found: &Found<'_>, why: &str) -> Result<Outcome, RelabelError> {
        let refused = |why: String| {
            Err(RelabelError::Labelless { path: found.path.into(), why, remedy: self.labelless_remedy(found) })
        };
        let Some(now) = &found.current else { return refused(format!("{why}, and the kernel tells none of it")) };
        match self.verdict(found, now)? {
            Verdict::Fits => Ok(Outcome::Kept),
            Verdict::Unseparated => Ok(Outcome::NoSeparation(format!("{why}; every runner may use what is {now}"))),
            Verdict::ForeignLevel | Verdict::ForeignType => {
                refused(format!("{why}, and the policy does not let this runner use what is {now}"))
            }
        }
    }

    fn labelless_remedy(&self, found: &Found<'_>) -> String {
        let level = match (found.class, found.of_class.range()) {
            (LabelClass::Exclusive, Some(range)) => format!(" and fix selinux.level to {}", range.high()),
            _ => String::new(),
        };
        let boolean = file_system_boolean(found.fd)
            .map_or(String::new(), |name| format!(", or let every runner in (`setsebool {name} on`)"));
        let context = &found.of_class;
        format!("copy it to a file system with labels, mount this one with context=\"{context}\"{level}{boolean}")
    }
}

fn unfit(found: &Found<'_>, label: &Context, field: &str, verdict: Verdict, remedy: String) -> RelabelError {
    let why = match verdict {
        Verdict::Fits => "it fits",
        Verdict::Unseparated if found.class == LabelClass::Content => "every other runner may write to it",
        Verdict::Unseparated => "every other runner may use it too (shared = true if that is meant)",
        Verdict::ForeignLevel => "its level is not this sandbox's (selinux.level fixes one)",
        Verdict::ForeignType => "the policy does not let a runner use that type so",
    };
    RelabelError::Unfit { path: found.path.into(), label: label.to_string(), field: field.into(), why, remedy }
}

/// The boolean of `policies/casemate_labelless.cil` for the file system of `fd` (statfs(2), linux/magic.h).
fn file_system_boolean(fd: BorrowedFd<'_>) -> Option<&'static str> {
    let magic = rustix::fs::fstatfs(fd).ok()?.f_type as u64 & 0xffff_ffff;
    match magic {
        0x6969 => Some("casemate_use_nfs"),
        0xff53_4d42 | 0xfe53_4d42 => Some("casemate_use_samba"),
        0x6573_5546 => Some("casemate_use_fusefs"),
        0x4d44 | 0x2011_bab0 => Some("casemate_use_dosfs"),
        _ => None,
    }
}

/// For the refusal of an object that may not even be opened: the label in its way, and what to do.
pub fn unopened(path: &Path) -> Option<String> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let fd = rustix::fs::openat2(rustix::fs::CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve).ok()?;
    let mut raw = vec![0; 4096];
    // fgetxattr(2) refuses an O_PATH fd; its entry in /proc does not
    let n = rustix::fs::getxattr(format!("/proc/self/fd/{}", fd.as_raw_fd()), LABEL, &mut raw[..]).ok()?;
    let label = Context::from_bytes(&raw[..n]).ok()?;
    let mount = file_system_boolean(fd.as_fd()).map_or(String::new(), |name| {
        format!(", mount its file system with context=…, or let every runner in (`setsebool {name} on`)")
    });
    Some(format!(
        "it carries {label}, which the policy does not let the jailer open; copy it to an image directory{mount}"
    ))
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
#[path = "choice_tests.rs"]
mod tests;
