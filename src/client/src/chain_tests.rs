use casemate_spec::wire::DiskFile;
use casemate_storage::qcow2::{NewImage, create};

use super::*;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        std::fs::write(place.path("base.img"), [0; 512]).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn image(&self, name: &str, backing: Option<(&str, &str)>) -> PathBuf {
        let file = File::options().write(true).create_new(true).open(self.path(name)).unwrap();
        create(&file, &NewImage { size: 1 << 20, backing, ..NewImage::default() }).unwrap();
        self.path(name)
    }

    fn below(&self, name: &str) -> Result<Vec<(PathBuf, DiskFormat)>, ChainError> {
        Ok(below(&self.path(name))?.into_iter().map(|l| (l.path.into(), l.format)).collect())
    }
}

#[test]
fn svirt_18_the_client_declares_what_the_headers_say() {
    let place = Place::new();
    std::fs::create_dir(place.path("sub")).unwrap();
    place.image("sub/top.qcow2", Some(("../mid.qcow2", "qcow2")));
    let base = place.path("base.img");
    let mid = place.image("mid.qcow2", Some((base.to_str().unwrap(), "raw")));
    let found = place.below("sub/top.qcow2").unwrap();
    assert_eq!(found, [(mid, DiskFormat::Qcow2), (base, DiskFormat::Raw)]);
    place.image("alone.qcow2", None);
    assert_eq!(place.below("alone.qcow2").unwrap(), []);
}

#[test]
fn svirt_18_what_is_declared_is_not_looked_for() {
    let place = Place::new();
    let top = place.image("top.qcow2", Some(("base.img", "raw")));
    let disk = |format, backing| DiskFile {
        id: "d".into(),
        path: top.to_str().unwrap().into(),
        format,
        backing,
        read_only: false,
        shared: false,
        mount: None,
        fstype: None,
        label: None,
        relabel: None,
    };
    let raw = disk(DiskFormat::Raw, None);
    let mut spec = SpecFile {
        disks: vec![disk(DiskFormat::Qcow2, None), disk(DiskFormat::Qcow2, Some(vec![])), raw],
        ..SpecFile::default()
    };
    declare(&mut spec).unwrap();
    let found: Vec<_> = spec.disks.iter().map(|d| d.backing.as_ref().map(Vec::len)).collect();
    assert_eq!(found, [Some(1), Some(0), None]);
}

#[test]
fn svirt_18_names_that_are_no_plain_path_are_refused() {
    let place = Place::new();
    for (n, name) in ["json:{\"driver\":\"file\"}", "nbd:localhost:1", "nbd://h/x", "file:base.img"].iter().enumerate()
    {
        let image = format!("t{n}");
        place.image(&image, Some((name, "raw")));
        assert!(matches!(place.below(&image), Err(ChainError::Name { .. })), "{name}");
    }
    place.image("missing.qcow2", Some(("absent.img", "raw")));
    assert!(matches!(place.below("missing.qcow2"), Err(ChainError::Open { .. })));
    place.image("dir.qcow2", Some((".", "raw")));
    assert!(matches!(place.below("dir.qcow2"), Err(ChainError::Kind { .. })));
    place.image("vmdk.qcow2", Some(("base.img", "vmdk")));
    assert!(matches!(place.below("vmdk.qcow2"), Err(ChainError::Format { .. })));
    // A raw base that begins with a header stays what its format says; as qcow2 it is not one.
    place.image("wrong.qcow2", Some(("base.img", "qcow2")));
    assert!(matches!(place.below("wrong.qcow2"), Err(ChainError::Header { .. })));
}

#[test]
fn svirt_18_a_format_that_is_not_named_is_not_guessed() {
    let place = Place::new();
    let path = place.image("top.qcow2", Some(("base.img", "raw")));
    // The extension's type becomes an unknown one, which is optional by definition.
    let file = File::options().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[1, 2, 3, 4], 104).unwrap();
    let error = place.below("top.qcow2").unwrap_err();
    assert!(error.to_string().contains("qemu-img rebase -u -b base.img -F FORMAT"), "{error}");
}

#[test]
fn svirt_18_loops_symlinks_and_long_chains_are_refused() {
    let place = Place::new();
    place.image("a", Some(("b", "qcow2")));
    place.image("b", Some(("a", "qcow2")));
    assert!(matches!(place.below("a"), Err(ChainError::Loop { .. })));
    std::fs::hard_link(place.path("a"), place.path("a2")).unwrap();
    assert!(matches!(place.below("a2"), Err(ChainError::Loop { .. })));
    std::os::unix::fs::symlink("base.img", place.path("link.img")).unwrap();
    place.image("over-link", Some(("link.img", "raw")));
    assert!(matches!(place.below("over-link"), Err(ChainError::Symlink { .. })));
    // `..` behind a symlink is somewhere else than it looks.
    std::os::unix::fs::symlink("/", place.path("up")).unwrap();
    place.image("over-up", Some(("up/../base.img", "raw")));
    assert!(matches!(place.below("over-up"), Err(ChainError::Symlink { .. })));
    for n in 0..17 {
        let backing = format!("l{}", n + 1);
        place.image(&format!("l{n}"), (n < 16).then_some((backing.as_str(), "qcow2")));
    }
    assert!(matches!(place.below("l0"), Err(ChainError::Long { .. })));
    assert_eq!(place.below("l1").unwrap().len(), 15);
}
