//! Sealed memfds: bytes that neither side can change once they are handed over.

use crate::{Attempt, Error, Result};
use rustix::fs::{MemfdFlags, OFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

fn full() -> SealFlags {
    SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE
}

/// A memfd that holds `bytes`, sealed against every change, never executable where the kernel knows
/// how (6.3). The name shows in /proc only.
pub fn sealed(name: &str, bytes: &[u8]) -> Result<OwnedFd> {
    seal(name, create(name)?, bytes)
}

/// An empty memfd for [`seal`]: for contents that name the memfd's own identity.
pub fn create(name: &str) -> Result<OwnedFd> {
    let attempt = || format!("make the sealed memfd {name}");
    let base = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match memfd_create(name, base | MemfdFlags::NOEXEC_SEAL) {
        Err(rustix::io::Errno::INVAL) => memfd_create(name, base),
        other => other,
    }
    .attempt_with(attempt)?;
    Ok(fd)
}

/// Writes `bytes` into a memfd of [`create`], seals it, and returns a read-only view: SELinux judges a
/// descriptor by the mode that it was opened with, seals or not, and the reader's domain may only read.
pub fn seal(name: &str, fd: OwnedFd, bytes: &[u8]) -> Result<OwnedFd> {
    let attempt = || format!("make the sealed memfd {name}");
    let mut file = File::from(fd);
    file.write_all(bytes).attempt_with(attempt)?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).attempt_with(attempt)?;
    fcntl_add_seals(&file, full()).attempt_with(attempt)?;
    crate::procfs::Proc::host()?.reopen(file.as_fd(), OFlags::RDONLY)
}

fn sized() -> SealFlags {
    SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW
}

/// A memfd of `bytes` on huge pages of `page` bytes (2 MiB or 1 GiB), for reading and writing; its size and its seals
/// are sealed. No page is taken before somebody maps it (memfd_create(2), MFD_HUGETLB).
pub fn huge(name: &str, bytes: u64, page: u64) -> Result<OwnedFd> {
    let attempt = || format!("make a memfd of {bytes} bytes on huge pages of {page}");
    // the logarithm of the page size stands from bit 26 (MFD_HUGE_SHIFT)
    let size = MemfdFlags::from_bits_retain(page.trailing_zeros() << 26);
    let base = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB | size;
    let fd = match memfd_create(name, base | MemfdFlags::NOEXEC_SEAL) {
        Err(rustix::io::Errno::INVAL) => memfd_create(name, base),
        other => other,
    }
    .attempt_with(attempt)?;
    rustix::fs::ftruncate(&fd, bytes).attempt_with(attempt)?;
    fcntl_add_seals(&fd, sized()).attempt_with(attempt)?;
    Ok(fd)
}

/// Is this a memfd whose size nobody can change any more?
pub fn is_sized(fd: impl AsFd) -> bool {
    fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(sized()))
}

/// Is this a memfd that nobody can change any more?
pub fn is_sealed(fd: impl AsFd) -> bool {
    fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(full()))
}

/// The bytes of a sealed memfd of at most `max` bytes.
///
/// # Errors
/// When it is not a memfd, lacks a seal, or is larger.
pub fn read_sealed(fd: impl AsFd, max: usize) -> Result<Vec<u8>> {
    const ATTEMPT: &str = "read a sealed memfd";
    let seals = fcntl_get_seals(&fd).attempt(ATTEMPT)?;
    if !seals.contains(full()) {
        return Err(Error::because(ATTEMPT, "it is not sealed against writing and resizing"));
    }
    let size = rustix::fs::fstat(&fd).attempt(ATTEMPT)?.st_size;
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if size > max {
        return Err(Error::because(ATTEMPT, format!("{size} bytes, at most {max} are taken")));
    }
    let file = File::from(rustix::io::fcntl_dupfd_cloexec(fd, 3).attempt(ATTEMPT)?);
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, 0).attempt(ATTEMPT)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_bytes_come_back_and_stay() {
        let fd = sealed("test", b"hello").unwrap();
        assert!(is_sealed(&fd));
        assert_eq!(read_sealed(&fd, 64).unwrap(), b"hello");
        assert!(read_sealed(&fd, 4).is_err(), "over the cap");
        assert!(rustix::io::write(&fd, b"x").is_err());
        assert!(rustix::fs::ftruncate(&fd, 0).is_err());
    }

    #[test]
    fn svirt_48_what_is_handed_over_is_a_read_only_view_of_sealed_bytes() {
        let fd = sealed("view", b"plan").unwrap();
        let mode = rustix::fs::fcntl_getfl(&fd).unwrap();
        assert!(
            !mode.intersects(OFlags::RDWR | OFlags::WRONLY),
            "SELinux judges a descriptor by its mode, sealed or not"
        );
        assert_eq!(rustix::io::write(&fd, b"x"), Err(rustix::io::Errno::BADF));
        // Opened anew for writing it is still sealed.
        let again = crate::procfs::Proc::host().unwrap().reopen(fd.as_fd(), OFlags::RDWR).unwrap();
        assert_eq!(rustix::io::write(&again, b"x"), Err(rustix::io::Errno::PERM));
    }

    #[test]
    fn an_unsealed_memfd_or_a_file_is_refused() {
        let fd = memfd_create("open", MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(!is_sealed(&fd));
        assert!(read_sealed(&fd, 64).is_err());
        let file = File::open("/proc/self/status").unwrap();
        assert!(read_sealed(&file, 64).is_err());
    }
}
