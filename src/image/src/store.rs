//! The store: where things lie, locks between concurrent callers, temporary places that clean themselves up.
use crate::error::{Error, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub const DEFAULT_STATE_DIR: &str = "/var/lib/casemate";

/// Kernels, initramfs and root images below one state directory.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// Unfinished work: a directory that is locked while its owner lives, and removed with it.
#[derive(Debug)]
pub(crate) struct Scratch {
    directory: tempfile::TempDir,
    _lock: File,
}

impl Scratch {
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Renames one finished entry out of here; atomic, as both lie in one store.
    pub fn publish(&self, name: &str, target: &Path) -> Result<()> {
        let from = self.path().join(name);
        sync(&from)?;
        std::fs::rename(&from, target).map_err(Error::io("moving into place", target))?;
        if let Some(parent) = target.parent() {
            sync(parent)?;
        }
        Ok(())
    }
}

/// On disk before it has its name: a power cut must not leave half an image under a good name.
fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(Error::io("syncing", path))
}

impl Store {
    /// Opens the store, making its directories where they are missing, and removes what dead owners left.
    pub fn open(state_dir: impl Into<PathBuf>) -> Result<Store> {
        let store = Store { root: state_dir.into() };
        for name in ["kernels", "cache/initramfs", "cache/rootfs", "cache/seen", "cache/tmp"] {
            let path = store.root.join(name);
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&path);
            made.map_err(Error::io("making the directory", &path))?;
        }
        store.remove_stale();
        Ok(store)
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn kernels_dir(&self) -> PathBuf {
        self.root.join("kernels")
    }

    pub(crate) fn cache(&self, kind: &str) -> PathBuf {
        self.root.join("cache").join(kind)
    }

    /// Below the cache, so that what is moved into place from here already has its SELinux type.
    pub(crate) fn scratch(&self) -> Result<Scratch> {
        let tmp = self.cache("tmp");
        // Mode 0700: what is unpacked here may hold set-uid files of a stranger.
        let directory = tempfile::Builder::new().prefix("work-").tempdir_in(&tmp);
        let directory = directory.map_err(Error::io("making a directory in", &tmp))?;
        let lock = File::open(directory.path()).map_err(Error::io("opening", directory.path()))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|e| Error::io("locking", directory.path())(e.into()))?;
        Ok(Scratch { directory, _lock: lock })
    }

    /// Waits for other builders of the same thing; released with the returned file.
    pub(crate) fn lock(&self, what: &str) -> Result<File> {
        let path = self.cache("tmp").join(format!("{what}.lock"));
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(Error::io("opening", &path))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|e| Error::io("locking", &path)(e.into()))?;
        Ok(file)
    }

    /// Best effort: what cannot be removed now (another user's, say) does no harm.
    fn remove_stale(&self) {
        for entry in std::fs::read_dir(self.cache("tmp")).into_iter().flatten().flatten() {
            let scratch = entry.file_name().to_str().is_some_and(|n| n.starts_with("work-"));
            // A directory younger than this may not be locked yet.
            let old =
                entry.metadata().and_then(|m| m.modified()).is_ok_and(|t| t.elapsed().is_ok_and(|e| e.as_secs() > 60));
            if !(scratch && old) {
                continue;
            }
            if let Ok(directory) = File::open(entry.path())
                && flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok()
            {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// Writes a small file atomically.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    use std::io::Write;
    let directory = path.parent().unwrap_or(Path::new("/"));
    // Readable by all: nothing in the store is a secret.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    let file = tempfile::Builder::new().permissions(mode).tempfile_in(directory);
    let mut file = file.map_err(Error::io("creating a file in", directory))?;
    file.write_all(content).map_err(Error::io("writing", path))?;
    file.as_file().sync_all().map_err(Error::io("syncing", path))?;
    file.persist(path).map_err(|e| Error::io("moving into place", path)(e.error))?;
    Ok(())
}
