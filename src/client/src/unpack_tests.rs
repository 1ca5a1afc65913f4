//! Archives as an attacker writes them.

use super::*;
use std::os::unix::fs::MetadataExt;

struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Archive(tar::Builder::new(Vec::new()))
    }

    /// With the name as it is: the library would clean it.
    fn add(mut self, kind: EntryType, name: &str, link: &str, data: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o6755);
        header.set_size(data.len() as u64);
        let raw = header.as_gnu_mut().unwrap();
        raw.name[..name.len()].copy_from_slice(name.as_bytes());
        raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn unpack(self, dir: &Path) -> Result<Summary> {
        let bytes = self.0.into_inner().unwrap();
        let root = File::open(dir).unwrap();
        unpack(bytes.as_slice(), root.as_fd(), OsStr::new("top"), OsStr::new("new"))
    }
}

fn tree(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        found.push(path.file_name().unwrap().to_string_lossy().into_owned());
        if path.is_dir() && !path.is_symlink() {
            found.extend(tree(&path));
        }
    }
    found.sort();
    found
}

#[test]
fn an_honest_tree_comes_out_under_its_new_name() {
    let temp = tempfile::tempdir().unwrap();
    let summary = Archive::new()
        .add(EntryType::Directory, "top/", "", b"")
        .add(EntryType::Directory, "top/sub/", "", b"")
        .add(EntryType::Regular, "top/sub/file", "", b"hello")
        .add(EntryType::Symlink, "top/sub/link", "../other", b"")
        .add(EntryType::Link, "top/hard", "top/sub/file", b"")
        .unpack(temp.path())
        .unwrap();
    assert_eq!((summary.files, summary.bytes, summary.left_out), (3, 5, 0));
    assert_eq!(tree(temp.path()), ["file", "hard", "link", "new", "sub"]);
    let meta = std::fs::metadata(temp.path().join("new/sub/file")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.nlink()), (0o755, 2), "no set-uid bit");
    assert_eq!(std::fs::read_link(temp.path().join("new/sub/link")).unwrap(), Path::new("../other"));
}

#[test]
fn nothing_gets_out() {
    let temp = tempfile::tempdir().unwrap();
    let inner = temp.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let summary = Archive::new()
        .add(EntryType::Regular, "../escape", "", b"x")
        .add(EntryType::Regular, "/etc/casemate-test-escape", "", b"x")
        .add(EntryType::Regular, "top/../../escape", "", b"x")
        .add(EntryType::Regular, "other/file", "", b"x")
        .add(EntryType::Symlink, "top", "/", b"")
        .add(EntryType::Directory, "top", "", b"")
        .add(EntryType::Symlink, "top/a", "/etc", b"")
        .add(EntryType::Symlink, "top/b", "..", b"")
        .add(EntryType::Symlink, "top/c", "x/../../..", b"")
        .add(EntryType::Symlink, "top/d", "", b"")
        .add(EntryType::Link, "top/e", "../../../etc/passwd", b"")
        .add(EntryType::Link, "top/f", "/etc/passwd", b"")
        .add(EntryType::Block, "top/g", "", b"")
        .add(EntryType::Char, "top/h", "", b"")
        .add(EntryType::Fifo, "top/i", "", b"")
        .add(EntryType::XHeader, "top/j", "", b"12 path=/x\n")
        .unpack(&inner)
        .unwrap();
    assert_eq!(summary.left_out, 15, "{summary:?}");
    assert_eq!(summary.told.len(), MAX_TOLD);
    assert_eq!(tree(temp.path()), ["inner", "new"]);
}

#[test]
fn a_link_is_not_walked_through() {
    let temp = tempfile::tempdir().unwrap();
    let inner = temp.path().join("inner");
    std::fs::create_dir_all(inner.join("new")).unwrap();
    std::os::unix::fs::symlink(temp.path(), inner.join("new/planted")).unwrap();
    let through = Archive::new().add(EntryType::Regular, "top/planted/escape", "", b"x").unpack(&inner);
    assert!(through.is_err());
    let dir = Archive::new().add(EntryType::Directory, "top/planted", "", b"").unpack(&inner);
    assert!(dir.is_err());
    // A file of that name takes the link's place.
    Archive::new().add(EntryType::Regular, "top/planted", "", b"x").unpack(&inner).unwrap();
    assert!(!inner.join("new/planted").is_symlink());
    assert_eq!(tree(temp.path()), ["inner", "new", "planted"]);
}

#[test]
fn long_names_work_and_overlong_ones_do_not() {
    let temp = tempfile::tempdir().unwrap();
    let long = format!("top/{}", "n".repeat(200));
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o600);
    builder.append_data(&mut header, &long, b"x".as_slice()).unwrap();
    std::fs::create_dir(temp.path().join("new")).unwrap();
    assert_eq!(Archive(builder).unpack(temp.path()).unwrap().files, 1);
    assert!(temp.path().join("new").join("n".repeat(200)).is_file());
    let giant = vec![b'n'; 100_000];
    assert!(Archive::new().add(EntryType::GNULongName, "x", "", &giant).unpack(temp.path()).is_err());
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..2000)) {
        let temp = tempfile::tempdir().unwrap();
        let root = File::open(temp.path()).unwrap();
        let _ = unpack(bytes.as_slice(), root.as_fd(), OsStr::new("top"), OsStr::new("new"));
    }
}
