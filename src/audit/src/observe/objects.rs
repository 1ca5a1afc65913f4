//! Files that a VM uses: what they are, and who besides root may write or replace them.

use std::path::{Component, Path, PathBuf};

use casemate_sys::path::{self, FileType, Identity, OFlags};
use casemate_sys::process::errno;

use super::{Observer, known};
use crate::subject::{Inode, Known, Object};

/// A directory on the way to a file: who may put another in its place.
#[derive(Debug, Clone)]
pub(super) struct Directory(Vec<String>);

/// A file by its name.
pub(super) struct File<'a> {
    pub name: &'a str,
    pub path: &'a Path,
    pub read_only: bool,
    pub wanted: Option<String>,
    /// Device and inode that the VM has open.
    pub opened: Option<(u64, u64)>,
}

impl Observer {
    /// A file by its name, that nothing has open: as a plan names it. Its digest is read only when it is asked for.
    pub fn file(&self, name: &str, path: &Path, read_only: bool, digest: bool) -> Object {
        let mut object = self.object(&File { name, path, read_only, wanted: None, opened: None });
        if digest {
            object.sha256 = self::digest(path).into();
        }
        object
    }

    pub(super) fn object(&self, file: &File<'_>) -> Object {
        let File { name, path, read_only, ref wanted, opened } = *file;
        let fd = path::open_no_symlinks(path, OFlags::PATH);
        let (identity, label) = match &fd {
            Ok(fd) => {
                (known(path::identity(fd)), if self.selinux { label(path::label(fd)) } else { Known::Seen(None) })
            }
            Err(error) => (Known::Unseen(error.report()), Known::Unseen(error.report())),
        };
        let unchanged = opened.map(|opened| identity.clone().map(|is| (is.dev, is.ino) == opened));
        let writable_by = match &identity {
            Known::Seen(is) => self.writable_by(path, is),
            Known::Unseen(why) => Known::Unseen(why.clone()),
        };
        Object {
            name: name.into(),
            path: path.display().to_string(),
            read_only,
            label,
            wanted: wanted.clone(),
            inode: identity.map(|is| Inode { uid: is.uid, gid: is.gid, mode: is.mode, links: is.nlink }),
            unchanged,
            writable_by,
            sha256: Known::unseen("a live audit does not read images; `casemate evidence` does"),
        }
    }

    fn writable_by(&self, path: &Path, is: &Identity) -> Known<Vec<String>> {
        let mut who = writers(is, "may write it");
        for dir in path.ancestors().skip(1) {
            match self.directory(dir) {
                Known::Seen(Directory(more)) => who.extend(more),
                Known::Unseen(why) => return Known::Unseen(why),
            }
        }
        Known::Seen(who)
    }

    fn directory(&self, dir: &Path) -> Known<Directory> {
        if let Some(known) = self.directories.borrow().get(dir) {
            return known.clone();
        }
        let read = || -> casemate_sys::Result<Directory> {
            let fd = path::open_no_symlinks(dir, OFlags::PATH | OFlags::DIRECTORY)?;
            let mut is = path::identity(fd)?;
            // In a sticky directory a name is its owner's, who is looked at on its own.
            if is.mode & 0o1000 != 0 {
                is.mode &= !0o022;
            }
            Ok(Directory(writers(&is, &format!("may replace what is in {}", dir.display()))))
        };
        let found = known(read());
        self.directories.borrow_mut().insert(dir.to_owned(), found.clone());
        found
    }
}

/// SHA-256 of a regular file's content, hexadecimal.
fn digest(path: &Path) -> Result<String, String> {
    use sha2::{Digest as _, Sha256};
    let failed = |error: std::io::Error| format!("reading {}: {error}", path.display());
    // Non-blocking: a FIFO that is put in its place is not waited for.
    let fd = path::open_no_symlinks(path, OFlags::RDONLY | OFlags::NONBLOCK).map_err(|error| error.report())?;
    let mut file = std::fs::File::from(fd);
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(format!("{} is no regular file", path.display()));
    }
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match std::io::Read::read(&mut file, &mut buffer).map_err(failed)? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// By owner and mode. An access control list stands behind the group's bits, which are its mask (acl(5)).
fn writers(is: &Identity, what: &str) -> Vec<String> {
    let mut who = Vec::new();
    if is.uid != 0 {
        // An owner without the bit sets it.
        who.push(format!("uid {}, its owner, {what}", is.uid));
    }
    if is.mode & 0o020 != 0 && is.kind != FileType::Symlink {
        who.push(format!("group {}, or whom its access control list names, {what}", is.gid));
    }
    if is.mode & 0o002 != 0 && is.kind != FileType::Symlink {
        who.push(format!("everybody {what}"));
    }
    who
}

fn label(read: casemate_sys::Result<String>) -> Known<Option<String>> {
    match read {
        Ok(label) => Known::Seen(Some(label)),
        Err(error) if matches!(error.errno(), Some(errno::ENODATA | errno::EOPNOTSUPP)) => Known::Seen(None),
        Err(error) => Known::Unseen(error.report()),
    }
}

/// Absolute, without `.` and `..`: what a record names.
pub(super) fn plain(path: &str) -> Option<PathBuf> {
    let path = PathBuf::from(path);
    let mut parts = path.components();
    let plain = parts.next() == Some(Component::RootDir) && parts.all(|part| matches!(part, Component::Normal(_)));
    plain.then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    fn object(path: &Path, opened: Option<(u64, u64)>) -> Object {
        Observer::new().unwrap().object(&File { name: "kernel", path, read_only: true, wanted: None, opened })
    }

    /// Words for who may write `path` itself or its directory `dir`, not what lies above (a test's own /tmp).
    fn who(path: &Path, dir: &Path) -> String {
        let above = |line: &&String| line.ends_with("write it") || line.contains(&*dir.to_string_lossy());
        object(path, None).writable_by.seen().unwrap().iter().filter(above).cloned().collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn who_may_write_or_replace_a_file_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        std::fs::write(&path, "x").unwrap();
        let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(&path, 0o644);
        if casemate_sys::cred::is_root() {
            assert_eq!(who(&path, dir.path()), "");
            chown(&path, Some(1234), None).unwrap();
            assert!(who(&path, dir.path()).contains("uid 1234, its owner, may write it"));
            chown(&path, Some(0), None).unwrap();
        }
        mode(&path, 0o664);
        assert!(who(&path, dir.path()).contains("group"));
        mode(&path, 0o646);
        assert!(who(&path, dir.path()).contains("everybody may write it"));
        mode(&path, 0o644);
        mode(dir.path(), 0o777);
        assert!(who(&path, dir.path()).contains("everybody may replace what is in"));
        mode(dir.path(), 0o1777);
        assert!(!who(&path, dir.path()).contains("everybody"), "sticky");
    }

    #[test]
    fn a_file_in_the_place_of_the_opened_one_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, "x").unwrap();
        let is = path::identity(std::fs::File::open(&path).unwrap()).unwrap();
        assert_eq!(object(&path, Some((is.dev, is.ino))).unchanged, Some(Known::Seen(true)));
        assert_eq!(object(&path, Some((is.dev, is.ino + 1))).unchanged, Some(Known::Seen(false)));
        assert_eq!(object(&path, None).unchanged, None);
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(object(&link, None).inode.seen().is_none(), "a link is not followed");
        std::fs::remove_file(&path).unwrap();
        assert!(object(&path, Some((1, 1))).unchanged.unwrap().seen().is_none());
    }
}
