//! What can go wrong with images, each with what to do about it.
use std::io;
use std::path::{Path, PathBuf};

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{attempt} {} failed", path.display())]
    Io { attempt: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is full: free some space, or choose another state directory (CASEMATE_STATE_DIR)", path.display())]
    DiskFull { path: PathBuf },
    #[error("mkfs.erofs is not installed: install the package erofs-utils (apt-get install erofs-utils)")]
    MkfsMissing,
    #[error("mkfs.erofs failed on {}: {message}", path.display())]
    MkfsFailed { path: PathBuf, message: String },
    #[error("{} is not a kernel: {problem}; give a Debian linux-image .deb, a bzImage, or an ELF vmlinux", path.display())]
    NotAKernel { path: PathBuf, problem: String },
    #[error("{} is not a valid archive: {problem}", path.display())]
    BadArchive { path: PathBuf, problem: String },
    #[error("{} exceeds a limit: {problem}", path.display())]
    TooLarge { path: PathBuf, problem: String },
    #[error("no kernel '{name}' in the store: see 'casemate kernel list', or import one with 'casemate kernel import'")]
    NoSuchKernel { name: String },
    #[error("no kernel in the store: import one with 'casemate kernel import PACKAGE.deb' (or --host)")]
    NoKernels,
    #[error("several kernels and no default: choose one with 'casemate kernel default NAME'")]
    NoDefault,
    #[error("a kernel '{name}' is already in the store: remove it first, or import under another name")]
    KernelExists { name: String },
    #[error(
        "'{name}' is not a valid kernel name: 1 to 64 letters, digits, '.', '_', '+', '-', beginning with a letter or digit"
    )]
    BadName { name: String },
    #[error("the kernel has no driver for {}: give its modules too (--modules /lib/modules/RELEASE), or choose a kernel that has it, e.g. Debian's linux-image-cloud-amd64", drivers.join(", "))]
    MissingDrivers { drivers: Vec<String> },
    #[error("{} changed while its image was built: try again when nothing writes to it", path.display())]
    Changed { path: PathBuf },
    #[error("{} is not {wanted}", path.display())]
    WrongKind { path: PathBuf, wanted: &'static str },
}

impl Error {
    /// For `map_err`: the attempt and its object; a full disk becomes its own error.
    pub(crate) fn io(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| match source.raw_os_error() {
            Some(code) if code == rustix::io::Errno::NOSPC.raw_os_error() => Error::DiskFull { path },
            Some(code) if code == rustix::io::Errno::DQUOT.raw_os_error() => Error::DiskFull { path },
            _ => Error::Io { attempt, path, source },
        }
    }

    pub(crate) fn archive(path: &Path, problem: impl ToString) -> Error {
        Error::BadArchive { path: path.to_owned(), problem: problem.to_string() }
    }
}
