//! Private labels at rest: on files in directories where images lie, whoever put them there.
//!
//! A guest that is stopped, a file that a dead sandbox left, a disk that an administrator labelled by hand: no process
//! has such a level, and yet a new sandbox with it could read the file. Bounded in number and depth, because this is
//! done at every start; `image_dirs` in casemate.toml says where. Links and other file systems are not followed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};

use crate::context::Context;
use crate::in_use::{Holder, InUse};
use crate::store::LABEL;

/// Files and directories looked at in one survey.
const MAX_ENTRIES: usize = 8192;
/// A context is much shorter.
const MAX_LABEL: usize = 4096;

pub(crate) fn scan(dirs: &[(PathBuf, u32)], in_use: &mut InUse) {
    let mut left = MAX_ENTRIES;
    for (path, depth) in dirs {
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(rustix::fs::CWD, path, OPEN, Mode::empty(), resolve) {
            Ok(fd) => walk(&fd, path, *depth, &mut left, in_use),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {}
            Err(e) => in_use.warn(format!("{}: {e}: labels on its files are not known", path.display())),
        }
    }
    if left == 0 {
        in_use.warn(format!("labels on files: only {MAX_ENTRIES} files were looked at; narrow 'image_dirs'"));
    }
}

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

fn walk(dir: &OwnedFd, path: &Path, depth: u32, left: &mut usize, in_use: &mut InUse) {
    let Ok(entries) = Dir::read_from(dir) else {
        return in_use.warn(format!("{}: it cannot be listed: labels on its files are not known", path.display()));
    };
    let mut value = [0; MAX_LABEL];
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().to_str() else { continue };
        if name == "." || name == ".." {
            continue;
        }
        if *left == 0 {
            return;
        }
        *left -= 1;
        match entry.file_type() {
            FileType::Directory if depth > 0 => {
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
                match rustix::fs::openat2(dir, name, OPEN, Mode::empty(), resolve) {
                    Ok(fd) => walk(&fd, &path.join(name), depth - 1, left, in_use),
                    Err(rustix::io::Errno::NOENT | rustix::io::Errno::XDEV) => {}
                    Err(e) => in_use.warn(format!("{}: {e}", path.join(name).display())),
                }
            }
            FileType::RegularFile | FileType::BlockDevice => {
                // through the directory's fd, so that nobody can exchange it meanwhile; the last link is not followed
                let at = format!("/proc/self/fd/{}/{name}", dir.as_fd().as_raw_fd());
                match rustix::fs::lgetxattr(at, LABEL, &mut value[..]) {
                    Ok(n) => note(&value[..n], || path.join(name), in_use),
                    Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOENT) => {}
                    Err(e) => {
                        in_use.warn(format!("the label of {}: {}", path.join(name).display(), io::Error::from(e)));
                    }
                }
            }
            _ => {}
        }
    }
}

fn note(raw: &[u8], path: impl Fn() -> PathBuf, in_use: &mut InUse) {
    // most files of a host carry no category
    if raw.iter().filter(|b| **b == b':').count() < 4 {
        return;
    }
    match Context::from_bytes(raw) {
        Ok(label) => in_use.add(label, Holder::File { path: path() }),
        Err(e) => in_use.warn(format!("the label of {}: {e}", path().display())),
    }
}
