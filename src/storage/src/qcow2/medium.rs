//! The image file under the driver: every byte that is read or written passes here, with its bounds.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// An open image and how long it is. The length is known, not asked for: the io thread may not even stat.
#[derive(Debug)]
pub struct Medium {
    file: File,
    len: u64,
    /// A block device has an end that no write moves.
    fixed: bool,
    no_punch: bool,
    #[cfg(test)]
    pub trace: Option<Vec<Event>>,
}

/// What a test replays in part.
#[cfg(test)]
#[derive(Debug, Clone)]
pub enum Event {
    Write(u64, Vec<u8>),
    Sync,
}

impl Medium {
    pub fn new(file: File, len: u64, fixed: bool) -> Self {
        Self {
            file,
            len,
            fixed,
            no_punch: false,
            #[cfg(test)]
            trace: None,
        }
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_fixed(&self) -> bool {
        self.fixed
    }

    /// No cluster may end after this.
    pub fn limit(&self) -> u64 {
        if self.fixed { self.len } else { i64::MAX as u64 }
    }

    /// Fills `buf`; the range lies in the file or the read fails.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, at)
    }

    /// Fills `buf` from a cluster that begins in the file; what it lacks at the end of the file are zeroes. QEMU
    /// leaves the last cluster of an image as short as what was written to it.
    pub fn read_tail(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let inside = self.len.saturating_sub(at).min(buf.len() as u64) as usize;
        let (inside, after) = buf.split_at_mut(inside);
        after.fill(0);
        self.file.read_exact_at(inside, at)
    }

    pub fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let end = at.checked_add(bytes.len() as u64).filter(|end| *end <= self.limit());
        let end = end.ok_or(ErrorKind::StorageFull)?;
        #[cfg(test)]
        if let Some(trace) = &mut self.trace {
            trace.push(Event::Write(at, bytes.to_vec()));
        }
        self.file.write_all_at(bytes, at)?;
        self.len = self.len.max(end);
        Ok(())
    }

    pub fn write_zeroes(&mut self, at: u64, len: u64) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let n = (len - done).min(ZEROES.len() as u64);
            self.write(at + done, &ZEROES[..n as usize])?;
            done += n;
        }
        Ok(())
    }

    pub fn sync(&mut self) -> io::Result<()> {
        #[cfg(test)]
        if let Some(trace) = &mut self.trace {
            trace.push(Event::Sync);
        }
        self.file.sync_data()
    }

    /// Gives the space of a range back, where the file system can. What is read there afterwards does not count.
    pub fn punch(&mut self, at: u64, len: u64) -> io::Result<()> {
        let len = len.min(self.len.saturating_sub(at));
        if self.no_punch || len == 0 {
            return Ok(());
        }
        #[cfg(test)]
        if let Some(trace) = &mut self.trace {
            trace.push(Event::Write(at, vec![0; len as usize]));
        }
        self.no_punch = !crate::raw::punch(&self.file, at, len)?;
        Ok(())
    }
}
