//! Why an object could not be labelled, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::context::Context;
use crate::owner::Owner;

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
    #[error("{field}: the loaded policy does not know {label}; `seinfo -t` lists its types")]
    Unknown { field: String, label: String },
    #[error("{field}: {path} would be used with {label}, but {why}; {remedy}")]
    Unfit { path: PathBuf, label: String, field: String, why: &'static str, remedy: String },
    #[error("{path}: {why}; {remedy}")]
    Labelless { path: PathBuf, why: String, remedy: String },
    #[error("{path} keeps its label, and no runner is known for whom it could be judged")]
    NoJudge { path: PathBuf },
    #[error(
        "the policy does not let the jailer turn {path} from {from} into {to}; move the file, or add its type to \
         casemate_relabelable (policies/README.md)"
    )]
    NotRelabelable { path: PathBuf, from: String, to: String },
    #[error("{path} is immutable or append-only: chattr -i -a it")]
    Immutable { path: PathBuf },
    #[error("cannot write the journal before labelling {path}: {source}")]
    Journal { path: PathBuf, source: io::Error },
}

pub(crate) fn io_error(path: &Path, verb: &'static str, what: &'static str, source: io::Error) -> RelabelError {
    RelabelError::Io { path: path.into(), verb, what, source }
}

/// Why a label cannot be set where that is the file system's doing; such an object is judged as it is.
pub(crate) fn excuse(e: &RelabelError) -> Option<&'static str> {
    let RelabelError::Io { source, .. } = e else { return None };
    match source.raw_os_error() {
        Some(nix::libc::EOPNOTSUPP) => Some("its file system keeps no labels"),
        Some(nix::libc::EROFS) => Some("its file system is mounted read-only"),
        _ => None,
    }
}

/// A refused label, with what to do about it.
pub(crate) fn explain(e: RelabelError, path: &Path, from: &Context, to: &Context) -> RelabelError {
    let errno = if let RelabelError::Io { source, .. } = &e { source.raw_os_error() } else { None };
    match errno {
        Some(nix::libc::EACCES) => {
            RelabelError::NotRelabelable { path: path.into(), from: from.to_string(), to: to.to_string() }
        }
        Some(nix::libc::EPERM) => RelabelError::Immutable { path: path.into() },
        _ => e,
    }
}
