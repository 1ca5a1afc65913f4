//! File handles: what names a file whatever it is called now, across reboots too.
//!
//! name_to_handle_at(2), open_by_handle_at(2). A handle holds the inode's number and its generation, so a number that
//! was used again for another file does not fit. It is good on one file system only: the caller compares that.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::str::FromStr;

use rustix::fs::OFlags;

use crate::error::check;
use crate::{Error, Result};

/// MAX_HANDLE_SZ of linux/exportfs.h, in bytes.
const MAX: usize = 128;

/// Written as `TYPE:HEX`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FileHandle {
    kind: i32,
    bytes: Vec<u8>,
}

/// struct file_handle with room for the largest handle.
#[repr(C)]
struct Raw {
    length: u32,
    kind: i32,
    bytes: [u8; MAX],
}

impl FileHandle {
    /// The handle of an open file; `None` where its file system has none (FUSE, overlay without nfs_export).
    pub fn of(fd: impl AsFd) -> Result<Option<Self>> {
        let mut raw = Raw { length: MAX as u32, kind: 0, bytes: [0; MAX] };
        let mut mount = 0;
        // SAFETY: the name is a NUL-terminated string, `raw` is a file_handle with room for the length that it states,
        // and all outlive the call.
        let result = unsafe {
            libc::name_to_handle_at(
                fd.as_fd().as_raw_fd(),
                c"".as_ptr(),
                (&raw mut raw).cast(),
                &mut mount,
                libc::AT_EMPTY_PATH,
            )
        };
        match check(result.into()) {
            Ok(_) => {
                let bytes = raw.bytes.get(..raw.length as usize).unwrap_or_default().to_vec();
                Ok(Some(Self { kind: raw.kind, bytes }))
            }
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EOVERFLOW | libc::ENOSYS)) => Ok(None),
            Err(e) => Err(Error::new("name a file by its handle", e)),
        }
    }

    /// Opens the file, wherever it is now, on the file system that `mount` lies on. ESTALE when it was deleted. Needs
    /// CAP_DAC_READ_SEARCH: no directory on the way is asked.
    pub fn open(&self, mount: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
        let mut raw = Raw { length: self.bytes.len() as u32, kind: self.kind, bytes: [0; MAX] };
        raw.bytes[..self.bytes.len()].copy_from_slice(&self.bytes);
        let flags = (flags | OFlags::CLOEXEC).bits() as i32;
        // SAFETY: `raw` is a file_handle whose length is that of its bytes, and outlives the call.
        let result = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut raw).cast(), flags) };
        let fd = check(result.into()).map_err(|e| Error::new("open a file by its handle", e))?;
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
}

impl fmt::Display for FileHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.kind)?;
        self.bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl FromStr for FileHandle {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        const BAD: &str = "a file handle is TYPE:HEX";
        let (kind, hex) = text.split_once(':').ok_or(BAD)?;
        if hex.len() % 2 != 0 || hex.len() > 2 * MAX || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(BAD);
        }
        let byte = |i| u8::from_str_radix(&hex[i..i + 2], 16).map_err(|_| BAD);
        let bytes = (0..hex.len()).step_by(2).map(byte).collect::<std::result::Result<_, _>>()?;
        Ok(Self { kind: kind.parse().map_err(|_| BAD)?, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::Read;

    #[test]
    fn a_handle_survives_a_rename_and_not_a_replacement() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "here").unwrap();
        let Some(handle) = FileHandle::of(File::open(&a).unwrap()).unwrap() else { return };
        fs::rename(&a, &b).unwrap();
        fs::write(&a, "another").unwrap();
        assert_eq!(FileHandle::of(File::open(&b).unwrap()).unwrap(), Some(handle.clone()));
        assert_ne!(FileHandle::of(File::open(&a).unwrap()).unwrap(), Some(handle.clone()));
        let parsed: FileHandle = handle.to_string().parse().unwrap();
        assert_eq!(parsed, handle);
        let place = File::open(dir.path()).unwrap();
        match parsed.open(place.as_fd(), OFlags::RDONLY) {
            Ok(fd) => {
                let mut text = String::new();
                File::from(fd).read_to_string(&mut text).unwrap();
                assert_eq!(text, "here");
                fs::remove_file(&b).unwrap();
                assert_eq!(parsed.open(place.as_fd(), OFlags::RDONLY).unwrap_err().errno(), Some(libc::ESTALE));
            }
            Err(e) => assert_eq!(e.errno(), Some(libc::EPERM), "only root may"),
        }
    }

    #[test]
    fn text_that_is_no_handle_is_refused() {
        for bad in ["", "1", "x:00", "1:0", "1:zz", "1:é0", &format!("1:{}", "00".repeat(MAX + 1))] {
            assert!(bad.parse::<FileHandle>().is_err(), "{bad}");
        }
    }
}
