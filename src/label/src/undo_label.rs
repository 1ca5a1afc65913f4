//! Finds the file that a label intent speaks of, perhaps boots and renames later, and gives its label back.
//!
//! Trust: the name is only where to look first. The file is known by its handle (inode and generation), or by device and
//! inode in journals without one; a file that merely has the name, or a copy of the attributes, is not touched.
//! Called by `undo`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use casemate_sys::handle::FileHandle;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::context::Context;
use crate::guard;
use crate::owner::Owner;
use crate::record::FileId;
use crate::relabel::Relabeler;
use crate::restore::{Next, Source, Verdict};
use crate::store::LabelStore;
use crate::undo::{Change, UndoOutcome};

/// A label intent, as the journal has it.
pub(crate) struct LabelIntent<'a> {
    pub path: &'a Path,
    pub dev: u64,
    pub ino: u64,
    pub file: Option<&'a FileId>,
    pub before: Option<&'a Context>,
    pub label: &'a Context,
}

enum Place {
    Here(OwnedFd),
    /// It has another name now; `None` if the kernel cannot tell which.
    Moved(OwnedFd, Option<PathBuf>),
    Gone(&'static str),
    Wait(String),
}

impl<S: LabelStore> Relabeler<S> {
    /// Gives one label back, or with `act` false says what that would come to.
    pub(crate) fn undo_label(
        &self,
        intent: &LabelIntent<'_>,
        owner: &Owner,
        act: bool,
    ) -> io::Result<(UndoOutcome, Option<Change>)> {
        let (fd, place) = match find(intent)? {
            Place::Here(fd) => (fd, None),
            Place::Moved(fd, place) => (fd, Some(place)),
            Place::Gone(why) => return Ok((UndoOutcome::Left(why.into()), None)),
            Place::Wait(why) => return Ok((UndoOutcome::Waiting(why), None)),
        };
        let shown = place.as_ref().and_then(Option::as_deref).unwrap_or(intent.path);
        let remembered = Some((intent.before, intent.label));
        let verdict = match act {
            true => self.give_back(fd.as_fd(), shown, owner, remembered),
            false => self.judge_release(fd.as_fd(), shown, owner, remembered),
        };
        let verdict = verdict.map_err(io::Error::other)?;
        let change = change(&verdict);
        let found = place.map(|place| match place {
            Some(place) => format!(" (it is {} now)", place.display()),
            None => " (it has another name now)".into(),
        });
        let found = found.unwrap_or_default();
        let outcome = match verdict.next {
            Next::Restore(goal, _) => UndoOutcome::acted(act, format!("restored to {goal}{found}")),
            Next::Already(_) if verdict.has_record() => {
                UndoOutcome::acted(act, format!("its label is as before, the owner record removed{found}"))
            }
            Next::Already(_) => UndoOutcome::Absent,
            Next::StillHeldBy(who) => UndoOutcome::Left(format!("still held by {}{found}", who.join(", "))),
            Next::Leave(why) => UndoOutcome::Left(format!("{why}{found}")),
            Next::Wait(why) => UndoOutcome::Waiting(format!("{why}{found}")),
        };
        Ok((outcome, change))
    }
}

fn change(verdict: &Verdict) -> Option<Change> {
    let Next::Restore(to, source) = &verdict.next else { return None };
    let why = match source {
        Source::Remembered => "remembered",
        Source::FileContexts => "file_contexts: the original is not known",
    };
    let from = verdict.from.as_ref().map(ToString::to_string);
    Some(Change { from, to: to.to_string(), why: why.into() })
}

fn find(intent: &LabelIntent<'_>) -> io::Result<Place> {
    // O_NONBLOCK: a FIFO may have the name now
    let fd = match open(intent.path, OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(fd) => Some(fd),
        Err(e) if is_absent(&e) => None,
        Err(e) => return Err(e),
    };
    let replaced = fd.is_some();
    let Some(file) = intent.file else {
        let Some(fd) = fd else { return Ok(Place::Gone("the file is no longer there")) };
        let stat = rustix::fs::fstat(&fd)?;
        return Ok(match (stat.st_dev, stat.st_ino) == (intent.dev, intent.ino) {
            true => Place::Here(fd),
            false => Place::Gone("another file has its name now"),
        });
    };
    if let Some(fd) = fd
        && FileId::of(&fd)?.is(file)
    {
        return Ok(Place::Here(fd));
    }
    elsewhere(intent.path, file, replaced)
}

/// Not at its name: on its file system under another one, deleted, or the file system is not there.
fn elsewhere(path: &Path, file: &FileId, replaced: bool) -> io::Result<Place> {
    let Some(mount) = file_system_of(path, file.fs) else {
        let why = format!("the file system that {} was on is not mounted", path.display());
        return Ok(Place::Wait(why));
    };
    let gone = match replaced {
        true => "it was deleted or moved away, and another file has its name now",
        false => "it was deleted, or moved to another file system",
    };
    let handle: Option<FileHandle> = file.handle.as_deref().and_then(|text| text.parse().ok());
    let Some(handle) = handle else { return Ok(Place::Gone(gone)) };
    match handle.open(mount.as_fd(), OFlags::RDONLY | OFlags::NONBLOCK) {
        // the last name is gone, and somebody still has it open
        Ok(fd) if rustix::fs::fstat(&fd)?.st_nlink == 0 => Ok(Place::Gone(gone)),
        Ok(fd) => {
            let place = guard::place_of(fd.as_fd()).filter(|p| open(p, OFlags::PATH).is_ok());
            Ok(Place::Moved(fd, place))
        }
        Err(e) if matches!(e.errno(), Some(nix::libc::ESTALE | nix::libc::ENOENT)) => Ok(Place::Gone(gone)),
        Err(e) => Err(e.into()),
    }
}

/// A descriptor on the file system `fs`, from the nearest directory of `path` that there is. A directory that may not be
/// opened is passed by: the next one may be on the same file system.
fn file_system_of(path: &Path, fs: u64) -> Option<File> {
    path.ancestors().skip(1).find_map(|dir| {
        let fd = open(dir, OFlags::RDONLY | OFlags::DIRECTORY).ok()?;
        (rustix::fs::fstatvfs(&fd).ok()?.f_fsid == fs).then(|| fd.into())
    })
}

fn is_absent(e: &io::Error) -> bool {
    // ELOOP: a symbolic link stands on the way now
    matches!(e.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ENOTDIR | nix::libc::ELOOP | nix::libc::ENXIO))
}

/// Resolution without symlinks, from the root.
pub(crate) fn open(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(rustix::fs::CWD, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}
