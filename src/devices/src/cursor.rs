//! Reading and writing across the segments of a chain, one bounded copy at a time.

use vm_memory::Bytes;

use crate::memory::{GuestMem, Segment};
use crate::queue::Fault;

/// Total bytes of a chain's part. Cannot overflow: at most 32768 segments of less than 4 GiB.
pub fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|s| u64::from(s.len)).sum()
}

/// A position in a list of segments.
struct Cursor<'a> {
    mem: &'a GuestMem,
    segments: &'a [Segment],
    offset: u32,
    left: u64,
}

impl<'a> Cursor<'a> {
    fn new(mem: &'a GuestMem, segments: &'a [Segment]) -> Self {
        Self { mem, segments, offset: 0, left: total(segments) }
    }

    /// The next piece of at most `want` bytes that lies in one segment; `None` at the end.
    fn next(&mut self, want: usize) -> Option<(Segment, u32, u32)> {
        while let Some((segment, rest)) = self.segments.split_first() {
            let here = segment.len - self.offset;
            if here == 0 {
                self.segments = rest;
                self.offset = 0;
                continue;
            }
            let take = here.min(u32::try_from(want).unwrap_or(u32::MAX));
            let piece = (*segment, self.offset, take);
            self.offset += take;
            self.left -= u64::from(take);
            return Some(piece);
        }
        None
    }
}

/// Reads a chain's readable part from its start.
pub struct ChainReader<'a>(Cursor<'a>);

impl<'a> ChainReader<'a> {
    pub fn new(mem: &'a GuestMem, segments: &'a [Segment]) -> Self {
        Self(Cursor::new(mem, segments))
    }

    pub fn left(&self) -> u64 {
        self.0.left
    }

    /// Fills `buf`, or faults when the chain is shorter.
    pub fn read_exact(&mut self, mut buf: &mut [u8]) -> Result<(), Fault> {
        while !buf.is_empty() {
            let (segment, offset, len) = self.0.next(buf.len()).ok_or(Fault::ChainTooShort)?;
            let slice = segment.checked(self.0.mem, offset, len)?;
            let (now, later) = buf.split_at_mut(len as usize);
            slice.copy_to(now);
            buf = later;
        }
        Ok(())
    }
}

/// Writes a chain's writable part from its start.
pub struct ChainWriter<'a> {
    cursor: Cursor<'a>,
    written: u32,
}

impl<'a> ChainWriter<'a> {
    pub fn new(mem: &'a GuestMem, segments: &'a [Segment]) -> Self {
        Self { cursor: Cursor::new(mem, segments), written: 0 }
    }

    /// Bytes written so far, as the used ring wants them.
    pub fn written(&self) -> u32 {
        self.written
    }

    /// Writes all of `buf`, or faults when the chain is shorter.
    pub fn write_all(&mut self, mut buf: &[u8]) -> Result<(), Fault> {
        while !buf.is_empty() {
            let (segment, offset, len) = self.cursor.next(buf.len()).ok_or(Fault::ChainTooShort)?;
            let slice = segment.checked(self.cursor.mem, offset, len)?;
            let (now, later) = buf.split_at(len as usize);
            slice.copy_from(now);
            self.written = self.written.saturating_add(len);
            buf = later;
        }
        Ok(())
    }
}

/// Writes one byte at the very end of the writable part: where virtio-blk wants its status.
pub fn write_last_byte(mem: &GuestMem, segments: &[Segment], value: u8) -> Result<(), Fault> {
    let last = segments.iter().rev().find(|s| s.len > 0).ok_or(Fault::ChainTooShort)?;
    let slice = last.checked(mem, last.len - 1, 1)?;
    slice.write_obj(value, 0).map_err(|_| Fault::ChainTooShort)
}
