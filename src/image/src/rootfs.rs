//! Root file systems: a directory or a tar archive becomes a read-only EROFS image, cached by content; an image file is
//! taken as it is.
use crate::compress;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fingerprint::{self, Entry};
use crate::progress::{Phase, Progress};
use crate::store::{Scratch, Store, write_atomically};
use crate::unpack::{Limits, unpack_tar};
use casemate_agent_protocol::FsType;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Of every image, so that the same content gives the same bytes.
const UUID: &str = "ca5e3a7e-0000-4000-8000-000000000001";
/// Counts as input: other options of mkfs.erofs make new files.
const LAYOUT: &str = "erofs-1";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TarCompression {
    None,
    Gzip,
    Zstd,
    Xz,
}

impl TarCompression {
    /// By the name's ending.
    #[must_use]
    pub fn from_path(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let ends = |suffixes: &[&str]| suffixes.iter().any(|s| name.ends_with(s));
        Some(match () {
            () if ends(&[".tar"]) => TarCompression::None,
            () if ends(&[".tar.gz", ".tgz"]) => TarCompression::Gzip,
            () if ends(&[".tar.zst", ".tzst"]) => TarCompression::Zstd,
            () if ends(&[".tar.xz", ".txz"]) => TarCompression::Xz,
            () => return None,
        })
    }
}

/// What a guest's root is made from.
#[derive(Debug, Clone)]
pub enum RootSource {
    Directory {
        path: PathBuf,
    },
    Tar {
        path: PathBuf,
        compression: TarCompression,
    },
    /// A file system image of a named type, used in place.
    Image {
        path: PathBuf,
        fstype: FsType,
    },
}

/// An image that a guest can mount.
#[derive(Debug, Clone)]
pub struct RootfsImage {
    pub path: PathBuf,
    pub fstype: FsType,
    /// Of the source's content; none for an image that is used in place.
    pub digest: Option<Digest>,
    pub size: u64,
    /// Nothing had to be built.
    pub cached: bool,
    /// What could not be kept, in sentences for the user.
    pub notes: Vec<String>,
}

impl Store {
    /// The image of a source, built if the cache has none of this content.
    pub fn rootfs(&self, source: &RootSource, progress: &mut dyn FnMut(Progress)) -> Result<RootfsImage> {
        match source {
            RootSource::Image { path, fstype } => in_place(path, *fstype),
            RootSource::Directory { path } => self.root_of_directory(path, progress),
            RootSource::Tar { path, compression } => self.root_of_tar(path, *compression, progress),
        }
    }

    fn root_of_directory(&self, path: &Path, progress: &mut dyn FnMut(Progress)) -> Result<RootfsImage> {
        let path = &std::fs::canonicalize(path).map_err(Error::io("finding", path))?;
        let entries = fingerprint::walk(path)?;
        let stamp = fingerprint::stamp_tree(&entries, path);
        if let Some(image) = self.seen(&stamp)? {
            return Ok(image);
        }
        let digest = fingerprint::digest_tree(path, &entries, progress)?;
        let lock = self.lock(&format!("rootfs-{digest}"))?;
        let image = match self.cached(&digest)? {
            Some(image) => image,
            None => {
                let scratch = self.scratch()?;
                let size = tree_size(&entries);
                let mut image = self.build(path, path, &digest, size, &scratch, progress)?;
                // What was hashed must be what was packed.
                if fingerprint::stamp_tree(&fingerprint::walk(path)?, path) != stamp {
                    return Err(Error::Changed { path: path.clone() });
                }
                self.publish(&scratch, &mut image)?;
                image
            }
        };
        drop(lock);
        self.remember(&stamp, &digest)?;
        Ok(image)
    }

    fn root_of_tar(
        &self,
        path: &Path,
        compression: TarCompression,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<RootfsImage> {
        let file = File::open(path).map_err(Error::io("opening", path))?;
        let meta = file.metadata().map_err(Error::io("looking at", path))?;
        if !meta.is_file() {
            return Err(Error::WrongKind { path: path.to_owned(), wanted: "a regular file" });
        }
        let full = std::fs::canonicalize(path).map_err(Error::io("finding", path))?;
        let stamp = fingerprint::stamp_file(&full, &meta);
        if let Some(image) = self.seen(&stamp)? {
            return Ok(image);
        }
        progress(Progress { phase: Phase::ReadingSource, done: 0, total: meta.len() });
        // With the named packing: what one name unpacks, another must not be given.
        let digest = Digest::of(format!("{compression:?} {}", Digest::of_file(path)?).as_bytes());
        let lock = self.lock(&format!("rootfs-{digest}"))?;
        let image = match self.cached(&digest)? {
            Some(image) => image,
            None => self.build_from_tar(&file, path, compression, &digest, progress)?,
        };
        drop(lock);
        let now = std::fs::metadata(path).map_err(Error::io("looking at", path))?;
        if fingerprint::stamp_file(&full, &now) != stamp {
            return Err(Error::Changed { path: path.to_owned() });
        }
        self.remember(&stamp, &digest)?;
        Ok(image)
    }

    fn build_from_tar(
        &self,
        file: &File,
        path: &Path,
        compression: TarCompression,
        digest: &Digest,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<RootfsImage> {
        let scratch = self.scratch()?;
        let tree = scratch.path().join("tree");
        std::fs::create_dir(&tree).map_err(Error::io("making the directory", &tree))?;
        let buffered = BufReader::with_capacity(256 * 1024, file);
        let reader: Box<dyn Read> = match compression {
            TarCompression::None => Box::new(buffered),
            TarCompression::Gzip => compress::gzip(buffered),
            TarCompression::Zstd => compress::zstd(buffered).map_err(|e| Error::archive(path, e))?,
            TarCompression::Xz => compress::xz(buffered),
        };
        // A tar that is not one, or packed otherwise than its name says, shows as an empty or broken archive.
        let unpacked = unpack_tar(reader, path, &tree, Limits::default(), &mut |done| {
            progress(Progress { phase: Phase::Unpacking, done: done.bytes, total: 0 });
        })?;
        if unpacked.entries == 0 {
            return Err(Error::archive(path, "it is empty"));
        }
        let mut image = self.build(&tree, path, digest, unpacked.bytes, &scratch, progress)?;
        if unpacked.owners_dropped {
            image.notes.push("not root: all files in the image belong to root".into());
        }
        if unpacked.skipped_devices > 0 {
            image.notes.push(format!("not root: {} device nodes were left out", unpacked.skipped_devices));
        }
        self.publish(&scratch, &mut image)?;
        Ok(image)
    }

    fn image_path(&self, digest: &Digest) -> PathBuf {
        self.cache("rootfs").join(format!("{digest}-{LAYOUT}.erofs"))
    }

    fn cached(&self, digest: &Digest) -> Result<Option<RootfsImage>> {
        let path = self.image_path(digest);
        match std::fs::metadata(&path) {
            Ok(meta) if meta.is_file() && meta.len() > 0 => Ok(Some(RootfsImage {
                path,
                fstype: FsType::Erofs,
                digest: Some(digest.clone()),
                size: meta.len(),
                cached: true,
                notes: Vec::new(),
            })),
            Ok(_) => Err(Error::WrongKind { path, wanted: "an image: remove it" }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("looking at", &path)(e)),
        }
    }

    /// The image of a source whose stamp is known.
    fn seen(&self, stamp: &Digest) -> Result<Option<RootfsImage>> {
        let text = std::fs::read_to_string(self.cache("seen").join(stamp.as_str())).unwrap_or_default();
        match Digest::try_from(text) {
            Ok(digest) => self.cached(&digest),
            Err(_) => Ok(None),
        }
    }

    fn remember(&self, stamp: &Digest, digest: &Digest) -> Result<()> {
        write_atomically(&self.cache("seen").join(stamp.as_str()), digest.as_str().as_bytes())
    }

    /// Runs mkfs.erofs into the scratch place.
    fn build(
        &self,
        tree: &Path,
        source: &Path,
        digest: &Digest,
        size: u64,
        scratch: &Scratch,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<RootfsImage> {
        progress(Progress { phase: Phase::Image, done: 0, total: size });
        let target = scratch.path().join("image");
        let mut command = Command::new("mkfs.erofs");
        command.args(["--quiet", "-T0", "-U", UUID]);
        if !rustix::process::geteuid().is_root() {
            command.arg("--all-root");
        }
        command.arg(&target).arg(tree).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // No time zone, no language: its messages and its result must not depend on the caller.
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
        let mut child = command.spawn().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::MkfsMissing,
            _ => Error::io("starting mkfs.erofs for", source)(e),
        })?;
        let mut message = Vec::new();
        if let Some(stderr) = child.stderr.take() {
            let _ = stderr.take(64 * 1024).read_to_end(&mut message);
        }
        let status = child.wait().map_err(Error::io("waiting for mkfs.erofs on", source))?;
        let message = String::from_utf8_lossy(&message).into_owned();
        if !status.success() {
            if message.contains("No space left") {
                return Err(Error::DiskFull { path: scratch.path().to_owned() });
            }
            let last = message.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("no message").to_owned();
            return Err(Error::MkfsFailed { path: source.to_owned(), message: format!("{last} ({status})") });
        }
        progress(Progress { phase: Phase::Image, done: size, total: size });
        let size = std::fs::metadata(&target).map_err(Error::io("looking at", &target))?.len();
        let path = self.image_path(digest);
        let digest = Some(digest.clone());
        Ok(RootfsImage { path, fstype: FsType::Erofs, digest, size, cached: false, notes: Vec::new() })
    }

    fn publish(&self, scratch: &Scratch, image: &mut RootfsImage) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let built = scratch.path().join("image");
        let read_only = std::fs::Permissions::from_mode(0o444);
        std::fs::set_permissions(&built, read_only).map_err(Error::io("protecting", &built))?;
        scratch.publish("image", &image.path)
    }
}

fn tree_size(entries: &[Entry]) -> u64 {
    entries.iter().filter(|e| e.meta.is_file()).map(|e| e.meta.len()).sum()
}

fn in_place(path: &Path, fstype: FsType) -> Result<RootfsImage> {
    let meta = std::fs::symlink_metadata(path).map_err(Error::io("looking at", path))?;
    if !meta.is_file() {
        return Err(Error::WrongKind { path: path.to_owned(), wanted: "a regular file (a link is not followed)" });
    }
    if meta.len() == 0 || meta.len() % 512 != 0 {
        return Err(Error::WrongKind {
            path: path.to_owned(),
            wanted: "an image: its size is no multiple of 512 bytes",
        });
    }
    let path = std::fs::canonicalize(path).map_err(Error::io("finding", path))?;
    Ok(RootfsImage { path, fstype, digest: None, size: meta.len(), cached: true, notes: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::silent;
    use std::os::unix::fs::symlink;

    /// The tool is a run-time dependency; a machine that only builds may lack it.
    fn have_mkfs() -> bool {
        let found =
            ["/usr/bin/mkfs.erofs", "/usr/sbin/mkfs.erofs", "/bin/mkfs.erofs"].iter().any(|p| Path::new(p).exists());
        if !found {
            eprintln!("skipped: mkfs.erofs (package erofs-utils) is not installed");
        }
        found
    }

    fn tree(at: &Path) {
        std::fs::create_dir_all(at.join("bin")).unwrap();
        std::fs::write(at.join("bin/x"), vec![1u8; 10_000]).unwrap();
        std::fs::write(at.join("empty"), b"").unwrap();
        symlink("bin/x", at.join("link")).unwrap();
    }

    #[test]
    fn the_same_content_gives_the_same_image_once() {
        if !have_mkfs() {
            return;
        }
        let outer = tempfile::tempdir().unwrap();
        let (one, two) = (outer.path().join("one"), outer.path().join("two"));
        tree(&one);
        tree(&two);
        let store = Store::open(outer.path().join("state")).unwrap();
        let image = |path: &Path| store.rootfs(&RootSource::Directory { path: path.to_owned() }, &mut silent).unwrap();
        let first = image(&one);
        assert!(!first.cached && first.size >= 4096);
        let bytes = std::fs::read(&first.path).unwrap();
        assert_eq!(bytes[1024..1028], 0xE0F5_E1E2u32.to_le_bytes());
        assert!(image(&one).cached);
        let again = image(&two);
        assert!(again.cached);
        assert_eq!(first.path, again.path);

        // Built again elsewhere, it is the same to the byte.
        let other = Store::open(outer.path().join("other")).unwrap();
        let rebuilt = other.rootfs(&RootSource::Directory { path: two.clone() }, &mut silent).unwrap();
        assert_eq!(std::fs::read(rebuilt.path).unwrap(), bytes);

        std::fs::write(two.join("empty"), b"no more").unwrap();
        let changed = image(&two);
        assert!(!changed.cached && changed.digest != first.digest);
    }

    #[test]
    fn a_tar_in_every_packing() {
        if !have_mkfs() {
            return;
        }
        let outer = tempfile::tempdir().unwrap();
        tree(&outer.path().join("tree"));
        let mut builder = tar::Builder::new(Vec::new());
        builder.follow_symlinks(false);
        builder.append_dir_all(".", outer.path().join("tree")).unwrap();
        let plain = builder.into_inner().unwrap();
        let mut gz = flate2::read::GzEncoder::new(&plain[..], flate2::Compression::fast());
        let mut packed = Vec::new();
        gz.read_to_end(&mut packed).unwrap();
        let zst = zstd::encode_all(&plain[..], 1).unwrap();
        let store = Store::open(outer.path().join("state")).unwrap();
        for (name, content) in [("r.tar", &plain), ("r.tar.gz", &packed), ("r.tar.zst", &zst)] {
            let path = outer.path().join(name);
            std::fs::write(&path, content).unwrap();
            let compression = TarCompression::from_path(&path).unwrap();
            let source = RootSource::Tar { path, compression };
            assert!(!store.rootfs(&source, &mut silent).unwrap().cached, "{name}");
            assert!(store.rootfs(&source, &mut silent).unwrap().cached, "{name}");
        }
        let lying = outer.path().join("lie.tar.gz");
        std::fs::write(&lying, &plain).unwrap();
        let source = RootSource::Tar { path: lying, compression: TarCompression::Gzip };
        assert!(matches!(store.rootfs(&source, &mut silent), Err(Error::BadArchive { .. })));
        // Nothing unfinished stays behind.
        let left = std::fs::read_dir(outer.path().join("state/cache/tmp")).unwrap();
        assert!(left.flatten().all(|e| e.file_name().to_string_lossy().ends_with(".lock")));
    }

    #[test]
    fn what_is_no_source_says_so() {
        let outer = tempfile::tempdir().unwrap();
        let store = Store::open(outer.path().join("state")).unwrap();
        let file = outer.path().join("file");
        std::fs::write(&file, b"odd").unwrap();
        let link = outer.path().join("link");
        symlink(&file, &link).unwrap();
        let fail = |source: RootSource| store.rootfs(&source, &mut silent).unwrap_err();
        assert!(matches!(fail(RootSource::Directory { path: file.clone() }), Error::WrongKind { .. }));
        assert!(matches!(fail(RootSource::Directory { path: outer.path().join("none") }), Error::Io { .. }));
        let image = |path: &Path| RootSource::Image { path: path.to_owned(), fstype: FsType::Erofs };
        assert!(matches!(fail(image(&file)), Error::WrongKind { .. }));
        assert!(matches!(fail(image(&link)), Error::WrongKind { .. }));
        assert!(matches!(fail(image(outer.path())), Error::WrongKind { .. }));
        let tar = RootSource::Tar { path: outer.path().to_owned(), compression: TarCompression::None };
        assert!(matches!(fail(tar), Error::WrongKind { .. }));
        assert_eq!(TarCompression::from_path(Path::new("x.zip")), None);
    }
}
