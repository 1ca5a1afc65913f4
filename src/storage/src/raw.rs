//! Raw images: a regular file or a block device, byte for byte.
//!
//! pread and pwrite only. Never mmap: an image truncated by somebody else is an I/O error for the guest, not a SIGBUS
//! for the runner. A regular file is never extended: what lies past the size found at the start is refused.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};

use rustix::fs::{FallocateFlags, OFlags, fallocate, fcntl_getfl};
use rustix::io::Errno;
use thiserror::Error;

use crate::{BlockBackend, SECTOR, check_read, check_write};

/// Zeroes for file systems that cannot make them by themselves.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

#[derive(Debug, Error)]
pub enum OpenError {
    #[error("cannot examine the image")]
    Examine(#[source] io::Error),
    #[error("the image is neither a regular file nor a block device")]
    FileType,
    #[error("the image is empty")]
    Empty,
    #[error("the image is {0} bytes long, which is not a multiple of 512; pad it, for example with `truncate -s %512`")]
    NotSectors(u64),
    #[error("the disk is to be writable but its descriptor is read-only")]
    NotWritable,
}

/// A raw image behind an inherited descriptor.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    size: u64,
    read_only: bool,
    /// The file system does not punch holes or make zeroes; asked once.
    no_punch: bool,
    no_zero_range: bool,
}

impl RawDisk {
    /// Takes the descriptor as it is and checks type, size and access mode.
    pub fn new(file: File, read_only: bool) -> Result<Self, OpenError> {
        let meta = file.metadata().map_err(OpenError::Examine)?;
        let kind = meta.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::FileType);
        }
        let size =
            if kind.is_file() { meta.len() } else { (&file).seek(SeekFrom::End(0)).map_err(OpenError::Examine)? };
        if size == 0 {
            return Err(OpenError::Empty);
        }
        if !size.is_multiple_of(SECTOR) {
            return Err(OpenError::NotSectors(size));
        }
        let flags = fcntl_getfl(&file).map_err(|e| OpenError::Examine(e.into()))?;
        if !read_only && flags & OFlags::ACCMODE != OFlags::RDWR {
            return Err(OpenError::NotWritable);
        }
        Ok(Self { file, size, read_only, no_punch: false, no_zero_range: false })
    }

    /// KEEP_SIZE: an image truncated under us must not grow back, full of holes.
    fn punch(&mut self, offset: u64, len: u64) -> io::Result<bool> {
        if self.no_punch || len == 0 {
            return Ok(len == 0);
        }
        let done = punch(&self.file, offset, len)?;
        self.no_punch = !done;
        Ok(done)
    }

    fn zero_range(&mut self, offset: u64, len: u64) -> io::Result<bool> {
        if self.no_zero_range || len == 0 {
            return Ok(len == 0);
        }
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        let done = try_fallocate(&self.file, flags, offset, len)?;
        self.no_zero_range = !done;
        Ok(done)
    }
}

/// Gives the space of a range back and keeps the file's size; `false` when the file system cannot.
pub(crate) fn punch(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    try_fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
}

/// `false` when the file system cannot; other failures are failures.
fn try_fallocate(file: &File, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<bool> {
    loop {
        match fallocate(file, flags, offset, len) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
    }
}

impl BlockBackend for RawDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_read(self, offset, buf.len() as u64)?;
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        check_write(self, offset, buf.len() as u64)?;
        self.file.write_all_at(buf, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.file.sync_data() }
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        check_write(self, offset, len)?;
        self.punch(offset, len).map(drop)
    }

    fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        check_write(self, offset, len)?;
        if (unmap && self.punch(offset, len)?) || self.zero_range(offset, len)? {
            return Ok(());
        }
        let mut done = 0;
        while done < len {
            let n = (len - done).min(ZEROES.len() as u64);
            self.file.write_all_at(&ZEROES[..n as usize], offset + done)?;
            done += n;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::fd::AsFd;

    fn image(size: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file
    }

    #[test]
    fn odd_sizes_and_other_file_types_are_refused() {
        assert!(matches!(RawDisk::new(image(0), false), Err(OpenError::Empty)));
        assert!(matches!(RawDisk::new(image(513), false), Err(OpenError::NotSectors(513))));
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        assert!(matches!(RawDisk::new(null, false), Err(OpenError::FileType)));
        let (fifo, _w) = rustix_pipe();
        assert!(matches!(RawDisk::new(fifo, true), Err(OpenError::FileType)));
    }

    fn rustix_pipe() -> (File, File) {
        let (r, w) = std::io::pipe().unwrap();
        let own = |fd: std::os::fd::BorrowedFd<'_>| File::from(fd.try_clone_to_owned().unwrap());
        (own(r.as_fd()), own(w.as_fd()))
    }

    #[test]
    fn a_writable_disk_needs_a_writable_descriptor() {
        let named = tempfile::NamedTempFile::new().unwrap();
        named.as_file().set_len(1024).unwrap();
        let read_only = File::open(named.path()).unwrap();
        assert!(matches!(RawDisk::new(read_only.try_clone().unwrap(), false), Err(OpenError::NotWritable)));
        assert!(RawDisk::new(read_only, true).is_ok());
    }

    #[test]
    fn a_read_only_disk_refuses_every_change() {
        let mut disk = RawDisk::new(image(4096), true).unwrap();
        assert!(disk.write_at(0, &[0; 512]).is_err());
        assert!(disk.discard(0, 512).is_err());
        assert!(disk.write_zeroes(0, 512, true).is_err());
        assert!(disk.flush().is_ok());
    }

    #[test]
    fn the_end_of_the_disk_is_the_end() {
        let mut disk = RawDisk::new(image(4096), false).unwrap();
        assert!(disk.write_at(4096 - 512, &[1; 1024]).is_err());
        assert!(disk.read_at(u64::MAX, &mut [0; 512]).is_err());
        assert!(disk.discard(u64::MAX - 511, 512).is_err());
        assert!(disk.write_zeroes(0, 8192, false).is_err());
        assert_eq!(disk.file.metadata().unwrap().len(), 4096);
    }

    #[test]
    fn an_image_truncated_under_us_is_an_error_and_does_not_grow_back() {
        let file = image(8192);
        let mut disk = RawDisk::new(file.try_clone().unwrap(), false).unwrap();
        file.set_len(512).unwrap();
        assert!(disk.read_at(4096, &mut [0; 512]).is_err());
        disk.discard(0, 8192).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 512);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever the file system can do by itself, the disk holds what a plain array would hold.
        #[test]
        fn it_behaves_as_an_array(
            ops in proptest::collection::vec((0u8..4, 0u64..16, 1u64..8, any::<u8>()), 1..30),
            no_punch: bool,
            no_zero_range: bool,
        ) {
            let mut disk = RawDisk::new(image(16 * 512), false).unwrap();
            (disk.no_punch, disk.no_zero_range) = (no_punch, no_zero_range);
            let mut model = vec![0u8; 16 * 512];
            for (op, sector, count, value) in ops {
                let (offset, len) = (sector * 512, count * 512);
                let range = offset as usize..(offset + len) as usize;
                let fits = range.end <= model.len();
                let done = match op {
                    0 => disk.write_at(offset, &vec![value; len as usize]).is_ok(),
                    1 => disk.write_zeroes(offset, len, value & 1 == 1).is_ok(),
                    2 => disk.flush().is_ok() && fits,
                    _ => disk.read_at(offset, &mut vec![0; len as usize]).is_ok(),
                };
                prop_assert_eq!(done, fits);
                if fits && op < 2 {
                    model[range].fill(if op == 0 { value } else { 0 });
                }
            }
            let mut content = vec![0; model.len()];
            disk.read_at(0, &mut content).unwrap();
            prop_assert_eq!(content, model);
        }
    }
}
