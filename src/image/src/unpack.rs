//! Unpacks a hostile tar beneath one directory.
//!
//! Each name is resolved by the kernel with the directory as its root (openat2, RESOLVE_IN_ROOT): `..`, absolute names
//! and symbolic links lead nowhere else, and there is no second look-up to race with. Existing entries are replaced, never
//! written through. With root's rights owners and devices are kept; without, they are dropped and counted.
use crate::error::{Error, Result};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, XattrFlags, chmodat, chownat, fchmod, fchown, fsetxattr,
    linkat, mkdirat, mknodat, openat, openat2, symlinkat, unlinkat,
};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// What an archive may unpack to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub bytes: u64,
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { bytes: 64 << 30, entries: 2_000_000 }
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    pub entries: u64,
    pub bytes: u64,
    /// Device nodes left out, and whether owners were dropped: both only without root's rights.
    pub skipped_devices: u64,
    pub owners_dropped: bool,
}

struct Unpacker<'a> {
    archive: &'a Path,
    root: OwnedFd,
    privileged: bool,
    limits: Limits,
    done: Unpacked,
    /// Set at the end, when nothing more is written below them.
    directories: Vec<(PathBuf, Meta)>,
}

#[derive(Debug, Clone)]
struct Meta {
    mode: u32,
    uid: u32,
    gid: u32,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

/// Unpacks the (uncompressed) archive `reader` below `target`, an empty directory of ours. `name` is for messages.
pub(crate) fn unpack_tar(
    reader: impl Read,
    name: &Path,
    target: &Path,
    limits: Limits,
    tick: &mut dyn FnMut(&Unpacked),
) -> Result<Unpacked> {
    let root = rustix::fs::open(target, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let root = root.map_err(|e| Error::io("opening", target)(e.into()))?;
    let privileged = rustix::process::geteuid().is_root();
    let done = Unpacked { owners_dropped: !privileged, ..Unpacked::default() };
    let mut unpacker = Unpacker { archive: name, root, privileged, limits, done, directories: Vec::new() };
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries().map_err(|e| unpacker.bad("", &e))? {
        let mut entry = entry.map_err(|e| unpacker.bad("", &e))?;
        let path = PathBuf::from(OsString::from_vec(entry.path_bytes().into_owned()));
        unpacker.count(&entry)?;
        unpacker.one(&mut entry, &path).map_err(|e| unpacker.bad(&path.to_string_lossy(), &e))?;
        tick(&unpacker.done);
    }
    for (path, meta) in std::mem::take(&mut unpacker.directories).into_iter().rev() {
        unpacker.finish_directory(&path, &meta).map_err(|e| unpacker.bad(&path.to_string_lossy(), &e))?;
    }
    Ok(unpacker.done)
}

impl Unpacker<'_> {
    fn bad(&self, entry: &str, error: &io::Error) -> Error {
        let full = [Errno::NOSPC, Errno::DQUOT].map(|e| Some(e.raw_os_error()));
        if full.contains(&error.raw_os_error()) {
            return Error::DiskFull { path: self.archive.to_owned() };
        }
        Error::archive(self.archive, format!("{entry}: {error}").trim_start_matches(": "))
    }

    fn count(&mut self, entry: &tar::Entry<'_, impl Read>) -> Result<()> {
        self.done.entries += 1;
        let size = if entry.header().entry_type().is_file() { entry.size() } else { 0 };
        self.done.bytes = self.done.bytes.saturating_add(size);
        let Limits { bytes, entries } = self.limits;
        if self.done.entries > entries || self.done.bytes > bytes {
            let problem = format!("more than {bytes} bytes or {entries} entries");
            return Err(Error::TooLarge { path: self.archive.to_owned(), problem });
        }
        Ok(())
    }

    fn one(&mut self, entry: &mut tar::Entry<'_, impl Read>, path: &Path) -> io::Result<()> {
        let meta = meta_of(entry)?;
        let kind = entry.header().entry_type();
        let Some((parent, name)) = self.parent_of(path)? else {
            // The root itself: only its metadata count.
            self.directories.push((PathBuf::from("."), meta));
            return Ok(());
        };
        let parent = parent.as_fd();
        if kind.is_dir() {
            match mkdirat(parent, &name, Mode::from_raw_mode(0o700)) {
                Ok(()) => {}
                Err(Errno::EXIST) if is_directory(parent, &name) => {}
                Err(Errno::EXIST) => {
                    unlinkat(parent, &name, AtFlags::empty())?;
                    mkdirat(parent, &name, Mode::from_raw_mode(0o700))?;
                }
                Err(e) => return Err(e.into()),
            }
            self.directories.push((path.to_owned(), meta));
            return Ok(());
        }
        match unlinkat(parent, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => unlinkat(parent, &name, AtFlags::REMOVEDIR)?,
            Err(e) => return Err(e.into()),
        }
        if kind.is_symlink() {
            symlinkat(link_name(entry)?, parent, &name)?;
            self.own_by_name(parent, &name, &meta)
        } else if kind.is_hard_link() {
            self.hard_link(&link_name(entry)?, parent, &name)
        } else if kind.is_character_special() || kind.is_block_special() || kind.is_fifo() {
            self.special(entry, parent, &name, &meta)
        } else {
            self.file(entry, parent, &name, &meta)
        }
    }

    /// The directory an entry goes into, made where the archive forgot it, and the entry's own name.
    fn parent_of(&self, path: &Path) -> io::Result<Option<(OwnedFd, OsString)>> {
        let mut parts = Vec::new();
        for component in path.components() {
            match component {
                Component::Normal(part) => parts.push(part),
                Component::CurDir | Component::RootDir => {}
                Component::ParentDir => return Err(io::Error::other("a name with '..'")),
                Component::Prefix(_) => return Err(io::Error::other("a name with a prefix")),
            }
        }
        if parts.len() > 256 {
            return Err(io::Error::other("a name with more than 256 parts"));
        }
        let Some(name) = parts.pop() else { return Ok(None) };
        let mut walked = PathBuf::from(".");
        let mut directory = self.open_directory(&walked)?;
        for part in parts {
            walked.push(part);
            directory = match self.open_directory(&walked) {
                Err(e) if e.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {
                    mkdirat(&directory, part, Mode::from_raw_mode(0o755))?;
                    self.open_directory(&walked)?
                }
                other => other?,
            };
        }
        Ok(Some((directory, name.to_owned())))
    }

    fn open_directory(&self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(openat2(&self.root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)?)
    }

    fn file(
        &self,
        entry: &mut tar::Entry<'_, impl Read>,
        parent: BorrowedFd<'_>,
        name: &OsString,
        meta: &Meta,
    ) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(parent, name, flags, Mode::from_raw_mode(0o600))?);
        io::copy(entry, &mut file)?;
        self.finish(file.as_fd(), meta)
    }

    fn hard_link(&self, target: &Path, parent: BorrowedFd<'_>, name: &OsString) -> io::Result<()> {
        let Some((directory, target)) = self.parent_of(target)? else {
            return Err(io::Error::other("a hard link to the root"));
        };
        // Without AT_SYMLINK_FOLLOW: a link to a symbolic link is one, and leads nowhere.
        linkat(&directory, &target, parent, name, AtFlags::empty())?;
        Ok(())
    }

    fn special(
        &mut self,
        entry: &tar::Entry<'_, impl Read>,
        parent: BorrowedFd<'_>,
        name: &OsString,
        meta: &Meta,
    ) -> io::Result<()> {
        let kind = entry.header().entry_type();
        let (file_type, device) = if kind.is_fifo() {
            (FileType::Fifo, 0)
        } else {
            if !self.privileged {
                self.done.skipped_devices += 1;
                return Ok(());
            }
            let major = entry.header().device_major()?.unwrap_or(0);
            let minor = entry.header().device_minor()?.unwrap_or(0);
            let file_type = if kind.is_block_special() { FileType::BlockDevice } else { FileType::CharacterDevice };
            (file_type, rustix::fs::makedev(major, minor))
        };
        mknodat(parent, name, file_type, Mode::from_raw_mode(0o600), device)?;
        self.own_by_name(parent, name, meta)?;
        // Just made by us in a directory of ours: nobody can have replaced it by a link.
        chmodat(parent, name, Mode::from_raw_mode(meta.mode), AtFlags::empty())?;
        Ok(())
    }

    fn finish_directory(&self, path: &Path, meta: &Meta) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match openat2(&self.root, path, flags, Mode::empty(), resolve) {
            Ok(directory) => self.finish(directory.as_fd(), meta),
            // A later entry has replaced it.
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Owner first: changing it clears set-uid bits and capabilities.
    fn finish(&self, file: BorrowedFd<'_>, meta: &Meta) -> io::Result<()> {
        if self.privileged {
            fchown(file, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))?;
        }
        for (name, value) in &meta.xattrs {
            match fsetxattr(file, name.as_os_str(), value, XattrFlags::empty()) {
                Ok(()) | Err(Errno::NOTSUP) => {}
                Err(Errno::PERM) if !self.privileged => {}
                Err(e) => return Err(e.into()),
            }
        }
        fchmod(file, Mode::from_raw_mode(meta.mode))?;
        Ok(())
    }

    fn own_by_name(&self, parent: BorrowedFd<'_>, name: &OsString, meta: &Meta) -> io::Result<()> {
        if self.privileged {
            let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
            chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }
}

fn is_directory(parent: BorrowedFd<'_>, name: &OsString) -> bool {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn link_name(entry: &tar::Entry<'_, impl Read>) -> io::Result<PathBuf> {
    let bytes = entry.link_name_bytes().ok_or_else(|| io::Error::other("a link without a target"))?;
    Ok(PathBuf::from(OsString::from_vec(bytes.into_owned())))
}

fn meta_of(entry: &mut tar::Entry<'_, impl Read>) -> io::Result<Meta> {
    let mode = entry.header().mode()? & 0o7777;
    let id = |n: u64| u32::try_from(n).map_err(|_| io::Error::other("an owner beyond 32 bits"));
    let (uid, gid) = (id(entry.header().uid()?)?, id(entry.header().gid()?)?);
    let mut xattrs = Vec::new();
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        if let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") {
            // Labels of the machine the archive was made on mean nothing here.
            if name != b"security.selinux" && xattrs.len() < 64 {
                xattrs.push((std::ffi::OsStr::from_bytes(name).to_owned(), extension.value_bytes().to_vec()));
            }
        }
    }
    Ok(Meta { mode, uid, gid, xattrs })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use tar::{Builder, EntryType, Header};

    fn header(kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(u64::from(rustix::process::geteuid().as_raw()));
        header.set_gid(u64::from(rustix::process::getegid().as_raw()));
        header.set_size(size);
        header
    }

    /// Writes the name as it is: the library refuses to write hostile ones.
    fn add(tar: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, link: &str, content: &[u8]) {
        let mut header = header(kind, content.len() as u64);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        tar.append(&header, content).unwrap();
    }

    /// Kind, name, link target, content.
    type Item<'a> = (EntryType, &'a str, &'a str, &'a [u8]);

    fn unpack(entries: &[Item<'_>], limits: Limits) -> (tempfile::TempDir, Result<Unpacked>) {
        let mut tar = Builder::new(Vec::new());
        for (kind, name, link, content) in entries {
            add(&mut tar, *kind, name, link, content);
        }
        let bytes = tar.into_inner().unwrap();
        let outer = tempfile::tempdir().unwrap();
        let target = outer.path().join("target");
        std::fs::create_dir(&target).unwrap();
        let result = unpack_tar(&bytes[..], Path::new("test.tar"), &target, limits, &mut |_| {});
        (outer, result)
    }

    const FILE: EntryType = EntryType::Regular;
    const DIR: EntryType = EntryType::Directory;
    const SYM: EntryType = EntryType::Symlink;
    const HARD: EntryType = EntryType::Link;

    #[test]
    fn a_plain_tree_and_later_entries_win() {
        let (outer, result) = unpack(
            &[
                (DIR, "./", "", b""),
                (DIR, "a/", "", b""),
                (FILE, "a/x", "", b"old"),
                (FILE, "a/x", "", b"new"),
                (HARD, "a/y", "a/x", b""),
                (SYM, "l", "a", b""),
                (FILE, "l/through", "", b"t"),
                (FILE, "deep/er/z", "", b"z"),
                (DIR, "a/", "", b""),
            ],
            Limits::default(),
        );
        assert_eq!(result.unwrap().entries, 9);
        let read = |p: &str| std::fs::read(outer.path().join("target").join(p)).unwrap();
        assert_eq!((read("a/x"), read("a/y")), (b"new".to_vec(), b"new".to_vec()));
        assert_eq!((read("a/through"), read("deep/er/z")), (b"t".to_vec(), b"z".to_vec()));
    }

    #[test]
    fn nothing_leaves_the_directory() {
        let hostile: &[&[Item<'_>]] = &[
            &[(FILE, "../evil", "", b"x")],
            &[(FILE, "a/../../evil", "", b"x")],
            &[(SYM, "up", "..", b""), (FILE, "up/evil", "", b"x")],
            &[(SYM, "up", "../../../../../..", b""), (FILE, "up/tmp/evil", "", b"x")],
            &[(SYM, "a", "../evil", b""), (FILE, "a", "", b"x")],
            &[(HARD, "h", "../outside", b""), (FILE, "h", "", b"x")],
            &[(SYM, "s", "../outside", b""), (HARD, "h", "s", b""), (FILE, "h", "", b"x")],
            &[(FILE, "/evil", "", b"x")],
            &[(SYM, "proc", "/proc/self/cwd", b""), (FILE, "proc/evil", "", b"x")],
            &[(DIR, "d", "", b""), (SYM, "d", "..", b""), (FILE, "d/evil", "", b"x")],
        ];
        for entries in hostile {
            let (outer, _) = unpack(entries, Limits::default());
            let mut names: Vec<_> = std::fs::read_dir(outer.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            assert_eq!(names, ["target"], "{entries:?}");
            assert!(!Path::new("/evil").exists() && !Path::new("/tmp/evil").exists());
        }
    }

    #[test]
    fn limits_hold() {
        let many: Vec<Item<'_>> = vec![(FILE, "f", "", b"12345"); 10];
        assert!(unpack(&many, Limits { bytes: 50, entries: 10 }).1.is_ok());
        assert!(matches!(unpack(&many, Limits { bytes: 49, entries: 10 }).1, Err(Error::TooLarge { .. })));
        assert!(matches!(unpack(&many, Limits { bytes: 50, entries: 9 }).1, Err(Error::TooLarge { .. })));
    }

    #[test]
    fn garbage_is_an_error() {
        let target = tempfile::tempdir().unwrap();
        let noise = vec![0x41u8; 2048];
        let result = unpack_tar(&noise[..], Path::new("x"), target.path(), Limits::default(), &mut |_| {});
        assert!(matches!(result, Err(Error::BadArchive { .. })));
    }
}
