//! Is /dev/kvm there, may we use it, and does it answer as KVM?

use crate::error::check;
use crate::path::{self, OFlags};
use crate::{Attempt, Error, Result};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// The API version that is frozen since Linux 2.6.22.
const API_VERSION: i64 = 12;
const KVM_GET_API_VERSION: libc::c_ulong = 0xae00;

/// What there is.
#[derive(Debug)]
pub enum Kvm {
    /// No device node, or no driver behind it.
    Absent,
    /// It is there, but we may not open it, or it is not KVM; the reason in one sentence.
    Unusable(String),
    /// Open, and it answered. Whether it can run a given guest only a probe guest can tell.
    Usable(OwnedFd),
}

/// Opens /dev/kvm (no symlink, a character device) and asks for its API version.
pub fn open() -> Kvm {
    match try_open() {
        Ok(fd) => Kvm::Usable(fd),
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)) => Kvm::Absent,
        Err(error) => Kvm::Unusable(error.report()),
    }
}

fn try_open() -> Result<OwnedFd> {
    let fd = path::open_no_symlinks(Path::new("/dev/kvm"), OFlags::RDWR)?;
    let kind = path::identity(&fd)?.kind;
    if kind != path::FileType::CharacterDevice {
        return Err(Error::because("use /dev/kvm", "it is not a character device"));
    }
    // SAFETY: KVM_GET_API_VERSION takes no argument; another driver answers ENOTTY.
    let version = unsafe { libc::ioctl(fd.as_raw_fd(), KVM_GET_API_VERSION as _, 0) };
    let version = check(version.into()).attempt("ask /dev/kvm for its API version")?;
    if version != API_VERSION {
        let why = format!("its API version is {version}, not {API_VERSION}");
        return Err(Error::because("use /dev/kvm", why));
    }
    Ok(fd)
}
