//! Block back ends and image locks.
//!
//! A back end works on a file descriptor that somebody else opened, checked and labelled; nothing here knows a path.
//! The format of an image is named by the plan and never probed: a guest that writes a qcow2 header to the first
//! sector of its raw disk changes its data, not what the host makes of it.
//!
//! Used by the runner (disks, locks on inherited fds) and the jailer (locks before it relabels).

#![forbid(unsafe_code)]

mod chain;
mod lock;
pub mod qcow2;
mod raw;

pub use chain::{CHAIN_MAX, ChainDisk, ChainError, Format};
pub use lock::{LockError, LockMode, foreign_lock, lock_image, lock_metadata, unlock_metadata};
pub use raw::{OpenError, RawDisk};

use std::io::{self, ErrorKind};

/// The unit of the virtio block protocol and of every size here.
pub const SECTOR: u64 = 512;

/// What a block device asks of its image. Offsets and lengths are bytes, multiples of [`SECTOR`], and checked by the
/// caller against [`BlockBackend::size`]; a back end checks again and answers with an error, never with a panic.
pub trait BlockBackend: Send {
    /// Size of the disk in bytes, a multiple of [`SECTOR`]; fixed for the back end's life.
    fn size(&self) -> u64;
    fn is_read_only(&self) -> bool;
    /// Fills `buf`; an image that became shorter than [`Self::size`] is an error.
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()>;
    /// All completed writes are on stable storage when this returns.
    fn flush(&mut self) -> io::Result<()>;
    /// The content of the range no longer matters. May do nothing.
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()>;
    /// The range reads as zeroes afterwards; `unmap` allows giving its space back.
    fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
    /// The last call: what is still in memory goes to the image. A crash comes without it.
    fn close(&mut self) -> io::Result<()> {
        if self.is_read_only() { Ok(()) } else { self.flush() }
    }
}

/// The range lies within the disk.
fn check_read(disk: &impl BlockBackend, offset: u64, len: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= disk.size() => Ok(()),
        _ => Err(ErrorKind::InvalidInput.into()),
    }
}

/// The range lies within the disk, and the disk may be written.
fn check_write(disk: &impl BlockBackend, offset: u64, len: u64) -> io::Result<()> {
    if disk.is_read_only() {
        return Err(ErrorKind::ReadOnlyFilesystem.into());
    }
    check_read(disk, offset, len)
}
