//! Unpacks an attacker's tar archive below one directory, and nothing outside of it.
//!
//! Every path is resolved by the kernel beneath that directory without following symlinks; files are made new. Left out,
//! and counted: devices, FIFOs, symbolic links that could lead outside, whatever this program does not know. A link may only begin
//! with `..` (its directory is a real one, so those steps are real ones too), never go up later on, where another
//! link may have led it. Modes lose set-uid, set-gid and sticky bits. Owner is the caller.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, linkat, mkdirat, openat, openat2, symlinkat, unlinkat};
use rustix::io::Errno;
use tar::{Entry, EntryType};

use crate::error::{Attempt, Error, Result};

const MAX_NAME: u64 = 4096;
const MAX_DEPTH: usize = 128;
const MAX_ENTRIES: u64 = 10_000_000;
/// Most names of things left out that are kept.
const MAX_TOLD: usize = 10;
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// What was done.
#[derive(Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    pub files: u64,
    pub bytes: u64,
    pub left_out: u64,
    /// The first few of what was left out, and why.
    pub told: Vec<String>,
}

struct Unpacker<'a> {
    root: BorrowedFd<'a>,
    /// First component that all names must have, and what it becomes.
    rename: (&'a OsStr, &'a OsStr),
    summary: Summary,
    /// Directories with their final modes, set when nothing has to be made in them any more.
    directories: Vec<(PathBuf, u32)>,
}

/// Unpacks `archive`, whose names all begin with `from`, as `to` below `root`.
pub fn unpack(archive: impl Read, root: BorrowedFd<'_>, from: &OsStr, to: &OsStr) -> Result<Summary> {
    let mut unpacker = Unpacker { root, rename: (from, to), summary: Summary::default(), directories: Vec::new() };
    let mut archive = tar::Archive::new(archive);
    let reading = || "reading the guest's archive".to_owned();
    let (mut name, mut link) = (None, None);
    // Raw: the long names of GNU archives are read here, with a bound.
    for (at, entry) in archive.entries().attempt(reading)?.raw(true).enumerate() {
        if at as u64 > MAX_ENTRIES {
            return Err(Error::Copy(format!("the guest's archive has more than {MAX_ENTRIES} entries")));
        }
        let mut entry = entry.attempt(reading)?;
        match entry.header().entry_type() {
            EntryType::GNULongName => name = Some(long_name(&mut entry)?),
            EntryType::GNULongLink => link = Some(long_name(&mut entry)?),
            _ => {
                let given = name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
                let link = link.take().or_else(|| entry.link_name_bytes().map(|l| l.into_owned()));
                unpacker.entry(&mut entry, &given, link)?;
            }
        }
    }
    unpacker.finish()?;
    Ok(unpacker.summary)
}

fn long_name(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>> {
    let mut name = Vec::new();
    entry.take(MAX_NAME + 2).read_to_end(&mut name).attempt(|| "reading the guest's archive".into())?;
    if name.len() as u64 > MAX_NAME + 1 {
        return Err(Error::Copy("the guest's archive holds an overlong name".into()));
    }
    while name.last() == Some(&0) {
        name.pop();
    }
    Ok(name)
}

/// A relative path of plain components.
fn plain(bytes: &[u8]) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(bytes)).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            _ => return None,
        }
    }
    (path.components().count() <= MAX_DEPTH && !bytes.contains(&0)).then_some(path)
}

/// Whether a symbolic link in a directory `depth` levels down stays inside.
fn stays_inside(target: &[u8], depth: usize) -> bool {
    let (mut ups, mut down) = (0, false);
    for component in Path::new(OsStr::from_bytes(target)).components() {
        match component {
            Component::Normal(_) => down = true,
            Component::CurDir => {}
            Component::ParentDir if !down => ups += 1,
            _ => return false,
        }
    }
    !target.is_empty() && !target.contains(&0) && ups <= depth
}

impl Unpacker<'_> {
    fn leave_out(&mut self, name: &[u8], why: &str) {
        self.summary.left_out += 1;
        if self.summary.told.len() < MAX_TOLD {
            let name = crate::sanitize::line(&String::from_utf8_lossy(name), 120);
            self.summary.told.push(format!("{name}: {why}"));
        }
    }

    /// The path below the root, with the first component renamed. `Ok(None)`: not one of ours.
    fn place(&self, name: &[u8]) -> Option<PathBuf> {
        let path = plain(name)?;
        if self.rename.0 == "." {
            return Some(Path::new(self.rename.1).join(path));
        }
        let mut components = path.components();
        let first = components.next()?;
        (first.as_os_str() == self.rename.0).then(|| {
            let rest = components.as_path();
            let top = PathBuf::from(self.rename.1);
            if rest.as_os_str().is_empty() { top } else { top.join(rest) }
        })
    }

    fn entry(&mut self, entry: &mut Entry<'_, impl Read>, name: &[u8], link: Option<Vec<u8>>) -> Result<()> {
        let Some(path) = self.place(name) else {
            self.leave_out(name, "its name leads outside");
            return Ok(());
        };
        let kind = entry.header().entry_type();
        let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
        let what = || format!("writing {}", crate::sanitize::line(&path.to_string_lossy(), 200));
        match kind {
            EntryType::Regular | EntryType::Continuous => {
                let (parent, base) = self.parent(&path).attempt(what)?;
                let mut file = create(&parent, base, mode).attempt(what)?;
                self.summary.bytes += io::copy(entry, &mut file).attempt(what)?;
                file.set_permissions(Permissions::from_mode(mode)).attempt(what)?;
                self.summary.files += 1;
            }
            EntryType::Directory => {
                self.make_directory(&path).attempt(what)?;
                self.directories.push((path, mode));
            }
            EntryType::Symlink => {
                let target = link.unwrap_or_default();
                // One level less than components: the top is what was copied, and links may not leave that.
                let depth = path.components().count().saturating_sub(2);
                if path.components().count() < 2 || !stays_inside(&target, depth) {
                    self.leave_out(name, "a symbolic link that leads outside");
                    return Ok(());
                }
                let (parent, base) = self.parent(&path).attempt(what)?;
                clear(&parent, base).attempt(what)?;
                symlinkat(target.as_slice(), &parent, base).attempt(what)?;
                self.summary.files += 1;
            }
            EntryType::Link => match link.as_deref().and_then(|target| self.place(target)) {
                Some(target) => self.hard_link(&target, &path).attempt(what)?,
                None => self.leave_out(name, "a hard link that leads outside"),
            },
            _ => self.leave_out(name, "neither file, directory nor link"),
        }
        Ok(())
    }

    fn parent<'p>(&self, path: &'p Path) -> io::Result<(OwnedFd, &'p OsStr)> {
        let base = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = match path.parent().filter(|p| !p.as_os_str().is_empty()) {
            Some(parent) => parent,
            None => Path::new("."),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok((openat2(self.root, parent, flags, Mode::empty(), BENEATH)?, base))
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        let (parent, base) = self.parent(path)?;
        match mkdirat(&parent, base, Mode::from_raw_mode(0o700)) {
            Ok(()) => Ok(()),
            // Fine if it is one; openat2 refuses a symlink.
            Err(Errno::EXIST) => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                openat2(&parent, base, flags, Mode::empty(), BENEATH)?;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn hard_link(&mut self, target: &Path, path: &Path) -> io::Result<()> {
        let (from, from_base) = self.parent(target)?;
        let (to, to_base) = self.parent(path)?;
        clear(&to, to_base)?;
        linkat(&from, from_base, &to, to_base, AtFlags::empty())?;
        self.summary.files += 1;
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        for (path, mode) in self.directories.drain(..).rev() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let what = || format!("setting the mode of {}", path.display());
            let fd = openat2(self.root, &path, flags, Mode::empty(), BENEATH).attempt(what)?;
            File::from(fd).set_permissions(Permissions::from_mode(mode)).attempt(what)?;
        }
        Ok(())
    }
}

/// Takes away what stands in the way, if it is no directory.
fn clear(parent: &OwnedFd, base: &OsStr) -> io::Result<()> {
    match unlinkat(parent, base, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn create(parent: &OwnedFd, base: &OsStr, mode: u32) -> io::Result<File> {
    clear(parent, base)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(parent.as_fd(), base, flags, Mode::from_raw_mode(mode | 0o200))?.into())
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
