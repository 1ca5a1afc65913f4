//! What a root file system source contains (its digest), and a cheap sign that it has not changed since (its stamp).
//!
//! The stamp is made of stat data (device, inode, size, mtime, ctime of every entry): ctime cannot be set back by
//! ordinary means, so the same stamp means the same content, and a start need not read all of it again.
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::progress::{Phase, Progress};
use std::collections::HashMap;
use std::fs::Metadata;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const MAX_ENTRIES: usize = 2_000_000;
const MAX_DEPTH: usize = 256;

/// One entry of a tree, relative to its root ("" is the root itself).
#[derive(Debug)]
pub(crate) struct Entry {
    pub relative: PathBuf,
    pub meta: Metadata,
}

/// All entries in a fixed order, without following links and without leaving the file system's tree.
pub(crate) fn walk(root: &Path) -> Result<Vec<Entry>> {
    let meta = std::fs::symlink_metadata(root).map_err(Error::io("looking at", root))?;
    if !meta.is_dir() {
        return Err(Error::WrongKind { path: root.to_owned(), wanted: "a directory" });
    }
    let mut entries = vec![Entry { relative: PathBuf::new(), meta }];
    let mut next = 0;
    while next < entries.len() {
        if entries[next].meta.is_dir() {
            let relative = entries[next].relative.clone();
            let directory = root.join(&relative);
            let read = std::fs::read_dir(&directory).map_err(Error::io("reading the directory", &directory))?;
            let mut children = Vec::new();
            for child in read {
                let child = child.map_err(Error::io("reading the directory", &directory))?;
                let meta = child.metadata().map_err(Error::io("looking at", &child.path()))?;
                children.push(Entry { relative: relative.join(child.file_name()), meta });
            }
            children.sort_by(|a, b| a.relative.cmp(&b.relative));
            entries.append(&mut children);
        }
        next += 1;
        if entries.len() > MAX_ENTRIES || entries[next - 1].relative.components().count() > MAX_DEPTH {
            let problem = format!("more than {MAX_ENTRIES} entries, or deeper than {MAX_DEPTH}");
            return Err(Error::TooLarge { path: root.to_owned(), problem });
        }
    }
    Ok(entries)
}

fn stamp_entry(hasher: &mut Hasher, name: &[u8], meta: &Metadata) {
    hasher.field(name);
    for number in [meta.dev(), meta.ino(), u64::from(meta.mode()), meta.nlink(), meta.size(), meta.rdev()] {
        hasher.number(number);
    }
    for time in [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()] {
        hasher.number(time.cast_unsigned());
    }
    hasher.number(u64::from(meta.uid()) << 32 | u64::from(meta.gid()));
}

/// The cheap sign, of a tree or of one file.
pub(crate) fn stamp_tree(entries: &[Entry], root: &Path) -> Digest {
    let mut hasher = Hasher::default();
    hasher.field(root.as_os_str().as_bytes());
    for entry in entries {
        stamp_entry(&mut hasher, entry.relative.as_os_str().as_bytes(), &entry.meta);
    }
    hasher.finish()
}

pub(crate) fn stamp_file(path: &Path, meta: &Metadata) -> Digest {
    let mut hasher = Hasher::default();
    stamp_entry(&mut hasher, path.as_os_str().as_bytes(), meta);
    hasher.finish()
}

/// The digest of all that ends up in the image: names, kinds, modes, owners, contents, links, devices, xattrs.
/// Times do not: the image has one fixed time for all.
pub(crate) fn digest_tree(root: &Path, entries: &[Entry], progress: &mut dyn FnMut(Progress)) -> Result<Digest> {
    let total = entries.iter().filter(|e| e.meta.is_file()).map(|e| e.meta.size()).sum();
    let mut done = 0;
    let mut hasher = Hasher::default();
    let mut hard_links: HashMap<(u64, u64), usize> = HashMap::new();
    for (number, entry) in entries.iter().enumerate() {
        let path = root.join(&entry.relative);
        hasher.field(entry.relative.as_os_str().as_bytes());
        hasher.number(u64::from(entry.meta.mode()));
        hasher.number(u64::from(entry.meta.uid()) << 32 | u64::from(entry.meta.gid()));
        let kind = entry.meta.file_type();
        if kind.is_file() {
            let first = *hard_links.entry((entry.meta.dev(), entry.meta.ino())).or_insert(number);
            hasher.number(first as u64);
            if first == number {
                hash_content(&mut hasher, &path, &entry.meta)?;
            }
            done += entry.meta.size();
            progress(Progress { phase: Phase::ReadingSource, done, total });
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&path).map_err(Error::io("reading the link", &path))?;
            hasher.field(target.as_os_str().as_bytes());
        } else {
            hasher.number(entry.meta.rdev());
        }
        if !kind.is_symlink() {
            hash_xattrs(&mut hasher, &path);
        }
    }
    Ok(hasher.finish())
}

fn hash_content(hasher: &mut Hasher, path: &Path, meta: &Metadata) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    // No waiting on what has become a FIFO, no following of what has become a link.
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits().cast_signed();
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(Error::io("opening", path))?;
    hasher.number(meta.size());
    let mut limited = file.take(meta.size() + 1);
    let read = hasher.read_all(&mut limited).map_err(Error::io("reading", path))?;
    if read != meta.size() {
        return Err(Error::Changed { path: path.to_owned() });
    }
    Ok(())
}

/// In name order. A file system without xattrs has none.
fn hash_xattrs(hasher: &mut Hasher, path: &Path) {
    let mut names = vec![0u8; 65_536];
    let Ok(len) = rustix::fs::llistxattr(path, &mut names) else { return };
    let mut names: Vec<&[u8]> = names[..len].split(|&b| b == 0).filter(|n| !n.is_empty()).collect();
    names.sort_unstable();
    hasher.number(names.len() as u64);
    let mut value = vec![0u8; 65_536];
    for name in names {
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap_or(0);
        hasher.field(name);
        hasher.field(&value[..len]);
    }
}
