//! Which images lie below a qcow2 one: read from the headers here, with the caller's rights, and declared in the
//! specification. Nobody with more rights follows a name that stands in an image.
//!
//! Trust: an image is hostile bytes; a guest that wrote it may have put any name into its header. What is found is shown
//! (`casemate plan`), opened by the jailer by path without symlinks, and labelled as content only where the policy and
//! the jailer's own rules let it. Formats come from the header's extension; one that is missing is an error.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use casemate_spec::DiskFormat;
use casemate_spec::wire::{LayerFile, SpecFile};
use casemate_storage::CHAIN_MAX;
use casemate_storage::qcow2::{Header, HeaderError};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

/// Why a chain cannot be found out. The remedy that always helps is to declare it.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    #[error("cannot open {path}: {}; its chain can also be declared (`backing`)", .source.kind())]
    Open { path: PathBuf, source: std::io::Error },
    #[error("{path} is, or leads through, a symbolic link; give images by their real paths (`qemu-img rebase -u`)")]
    Symlink { path: PathBuf },
    #[error("{path} is neither a regular file nor a block device")]
    Kind { path: PathBuf },
    #[error("{path}")]
    Header { path: PathBuf, source: HeaderError },
    #[error(
        "{path} does not say which format its backing file {name} has, and formats are never guessed; \
         `qemu-img rebase -u -b {name} -F FORMAT {path}`"
    )]
    NoFormat { path: PathBuf, name: String },
    #[error("{path} has a backing file of format {format:?}; only raw and qcow2 are known: convert it")]
    Format { path: PathBuf, format: String },
    #[error(
        "{path} has the backing file {name:?}, which is no plain path; convert it, or declare the chain (`backing`)"
    )]
    Name { path: PathBuf, name: String },
    #[error("the chain comes back to {path}")]
    Loop { path: PathBuf },
    #[error("the chain of {path} is longer than {CHAIN_MAX} images; shorten it with `qemu-img rebase`")]
    Long { path: PathBuf },
}

/// Declares the chain of every qcow2 image that does not declare its own.
pub fn declare(spec: &mut SpecFile) -> Result<(), ChainError> {
    let root = spec.root.as_mut().filter(|root| root.format == Some(DiskFormat::Qcow2) && root.backing.is_none());
    if let Some(root) = root
        && let Some(image) = &root.image
    {
        root.backing = Some(below(Path::new(image))?);
    }
    for disk in spec.disks.iter_mut().filter(|disk| disk.format == DiskFormat::Qcow2 && disk.backing.is_none()) {
        disk.backing = Some(below(Path::new(&disk.path))?);
    }
    Ok(())
}

/// The images below the qcow2 image at `top`, from the next one down to the base.
pub fn below(top: &Path) -> Result<Vec<LayerFile>, ChainError> {
    let mut layers: Vec<LayerFile> = Vec::new();
    let mut seen = BTreeSet::new();
    let (mut path, mut format) = (top.to_path_buf(), DiskFormat::Qcow2);
    loop {
        // A raw image is only looked at: its bytes say nothing about a chain.
        let flags =
            if format == DiskFormat::Raw { OFlags::PATH } else { OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY };
        let file = open(&path, flags)?;
        if !seen.insert(identity(&file, &path)?) {
            return Err(ChainError::Loop { path });
        }
        if seen.len() > CHAIN_MAX {
            return Err(ChainError::Long { path: top.into() });
        }
        if format == DiskFormat::Raw {
            return Ok(layers);
        }
        let header = Header::read(&file).map_err(|source| ChainError::Header { path: path.clone(), source })?;
        let Some(name) = header.backing else { return Ok(layers) };
        format = match header.backing_format.as_deref() {
            Some("raw") => DiskFormat::Raw,
            Some("qcow2") => DiskFormat::Qcow2,
            Some(other) => return Err(ChainError::Format { path, format: other.into() }),
            None => return Err(ChainError::NoFormat { path, name }),
        };
        path = beside(&path, &name)?;
        let text = path.to_str().map(str::to_owned);
        let text = text.ok_or_else(|| ChainError::Name { path: path.clone(), name: name.clone() })?;
        layers.push(LayerFile { path: text, format });
    }
}

/// The path that `name`, in the header of `image`, stands for: relative to the image's directory.
fn beside(image: &Path, name: &str) -> Result<PathBuf, ChainError> {
    let refused = || ChainError::Name { path: image.into(), name: name.into() };
    // QEMU's path_has_protocol(): a colon before any slash, as in json:, nbd:, file:, http://.
    if name.split('/').next().is_some_and(|first| first.contains(':')) {
        return Err(refused());
    }
    let mut path = PathBuf::new();
    // No component is a symlink, which opening makes sure of, so `..` is the directory before it.
    for component in image.parent().unwrap_or(Path::new("/")).join(name).components() {
        match component {
            Component::ParentDir => path = path.parent().ok_or_else(refused)?.into(),
            Component::CurDir => {}
            other => path.push(other),
        }
    }
    let real = image.parent().unwrap_or(Path::new("/")).join(name);
    open(&real, OFlags::PATH)?;
    Ok(path)
}

fn open(path: &Path, flags: OFlags) -> Result<File, ChainError> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(CWD, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Ok(fd) => Ok(File::from(fd)),
        Err(rustix::io::Errno::LOOP) => Err(ChainError::Symlink { path: path.into() }),
        Err(e) => Err(ChainError::Open { path: path.into(), source: e.into() }),
    }
}

fn identity(file: &File, path: &Path) -> Result<(u64, u64), ChainError> {
    let is = fstat(file).map_err(|e| ChainError::Open { path: path.into(), source: e.into() })?;
    match FileType::from_raw_mode(is.st_mode) {
        FileType::RegularFile | FileType::BlockDevice => Ok((is.st_dev, is.st_ino)),
        _ => Err(ChainError::Kind { path: path.into() }),
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
