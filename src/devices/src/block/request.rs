//! One virtio-blk request: parse, check, do (virtio 1.2, 5.2.6).

use std::io;

use casemate_storage::{BlockBackend, SECTOR};

use super::config::{DISCARD_SECTORS_MAX, RANGES_MAX, REQUEST_MAX, ZEROES_SECTORS_MAX};
use crate::cursor::{ChainReader, ChainWriter, total, write_last_byte};
use crate::device::Served;
use crate::memory::GuestMem;
use crate::queue::{Chain, Fault};

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

const S_OK: u8 = 0;
const S_IOERR: u8 = 1;
const S_UNSUPP: u8 = 2;

const HEADER: u64 = 16;
const RANGE: u64 = 16;
const FLAG_UNMAP: u32 = 1;
/// What a request costs of a turn beyond its data.
const REQUEST_COST: u32 = 16 << 10;
/// What a flush costs: it may wait for the disk.
const FLUSH_COST: u32 = 1 << 20;

/// The buffer between image and guest memory. Safe code cannot hand guest memory, which changes under it, to a system
/// call at an offset; one copy through a cache-sized buffer is the price.
pub struct Bounce(Box<[u8]>);

impl Bounce {
    const LEN: usize = 128 << 10;

    pub fn new() -> Self {
        Self(vec![0; Self::LEN].into_boxed_slice())
    }
}

/// Why a well-formed request was not done.
enum Refusal {
    Io,
    Unsupported,
    /// The driver broke the protocol; not answered but stopped.
    Broken(Fault),
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::Broken(fault)
    }
}

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Self {
        Self::Io
    }
}

/// The disk as one request sees it.
pub struct Disk<'a> {
    pub backend: &'a mut dyn BlockBackend,
    pub id: &'a [u8; 20],
    pub bounce: &'a mut Bounce,
    pub write_through: bool,
}

impl Disk<'_> {
    pub fn handle(&mut self, chain: &Chain, mem: &GuestMem) -> Result<Served, Fault> {
        let mut reader = ChainReader::new(mem, chain.readable());
        let mut header = [0; HEADER as usize];
        reader.read_exact(&mut header)?;
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = u64::from_le_bytes(header[8..16].try_into().unwrap_or_default());
        // The last writable byte is the status; what comes before it is for data.
        let room = total(chain.writable()).checked_sub(1).ok_or(Fault::ChainTooShort)?;
        let mut writer = ChainWriter::new(mem, chain.writable());
        let done = match kind {
            T_IN => self.read(sector, room, &mut writer),
            T_OUT => self.write(sector, &mut reader),
            T_FLUSH => self.backend.flush().map_err(Refusal::from),
            T_GET_ID => self.get_id(room, &mut writer),
            T_DISCARD | T_WRITE_ZEROES => self.ranges(kind, &mut reader),
            _ => Err(Refusal::Unsupported),
        };
        let status = match done {
            Ok(()) => S_OK,
            Err(Refusal::Io) => S_IOERR,
            Err(Refusal::Unsupported) => S_UNSUPP,
            Err(Refusal::Broken(fault)) => return Err(fault),
        };
        write_last_byte(mem, chain.writable(), status)?;
        let moved = room.max(total(chain.readable()) - HEADER).min(REQUEST_MAX) as u32;
        let extra = if kind == T_IN || kind == T_OUT { 0 } else { FLUSH_COST };
        Ok(Served { written: writer.written().saturating_add(1), cost: REQUEST_COST + extra + moved })
    }

    /// The byte range of a request, if it is whole sectors inside the disk and not too much at once.
    fn range(&self, sector: u64, len: u64) -> Result<u64, Refusal> {
        let offset = sector.checked_mul(SECTOR).ok_or(Refusal::Io)?;
        let end = offset.checked_add(len).ok_or(Refusal::Io)?;
        if !len.is_multiple_of(SECTOR) || end > self.backend.size() {
            return Err(Refusal::Io);
        }
        Ok(offset)
    }

    fn read(&mut self, sector: u64, len: u64, writer: &mut ChainWriter<'_>) -> Result<(), Refusal> {
        let mut offset = self.range(sector, len)?;
        if len > REQUEST_MAX {
            return Err(Refusal::Io);
        }
        let mut left = len;
        while left > 0 {
            let n = left.min(Bounce::LEN as u64) as usize;
            self.backend.read_at(offset, &mut self.bounce.0[..n])?;
            writer.write_all(&self.bounce.0[..n])?;
            offset += n as u64;
            left -= n as u64;
        }
        Ok(())
    }

    fn write(&mut self, sector: u64, reader: &mut ChainReader<'_>) -> Result<(), Refusal> {
        let len = reader.left();
        let mut offset = self.range(sector, len)?;
        if self.backend.is_read_only() || len > REQUEST_MAX {
            return Err(Refusal::Io);
        }
        while reader.left() > 0 {
            let n = reader.left().min(Bounce::LEN as u64) as usize;
            reader.read_exact(&mut self.bounce.0[..n])?;
            self.backend.write_at(offset, &self.bounce.0[..n])?;
            offset += n as u64;
        }
        if self.write_through {
            self.backend.flush()?;
        }
        Ok(())
    }

    fn get_id(&mut self, room: u64, writer: &mut ChainWriter<'_>) -> Result<(), Refusal> {
        if room < self.id.len() as u64 {
            return Err(Refusal::Io);
        }
        Ok(writer.write_all(self.id)?)
    }

    /// Discard and write-zeroes: a list of ranges, all checked before the first is touched.
    fn ranges(&mut self, kind: u32, reader: &mut ChainReader<'_>) -> Result<(), Refusal> {
        let bytes = reader.left();
        if self.backend.is_read_only() {
            return Err(Refusal::Io);
        }
        if bytes == 0 || !bytes.is_multiple_of(RANGE) || bytes / RANGE > u64::from(RANGES_MAX) {
            return Err(Refusal::Io);
        }
        let mut list = [(0, 0, false); RANGES_MAX as usize];
        let list = &mut list[..(bytes / RANGE) as usize];
        for entry in list.iter_mut() {
            let mut raw = [0; RANGE as usize];
            reader.read_exact(&mut raw)?;
            *entry = self.parse_range(kind, &raw)?;
        }
        for &(offset, len, unmap) in list.iter() {
            match kind {
                T_DISCARD => self.backend.discard(offset, len)?,
                _ => self.backend.write_zeroes(offset, len, unmap)?,
            }
        }
        if self.write_through {
            self.backend.flush()?;
        }
        Ok(())
    }

    fn parse_range(&self, kind: u32, raw: &[u8; RANGE as usize]) -> Result<(u64, u64, bool), Refusal> {
        let word = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        let sector = u64::from(word(0)) | (u64::from(word(4)) << 32);
        let (sectors, flags) = (word(8), word(12));
        let (max, known) = match kind {
            T_DISCARD => (DISCARD_SECTORS_MAX, 0),
            _ => (ZEROES_SECTORS_MAX, FLAG_UNMAP),
        };
        if flags & !known != 0 {
            return Err(Refusal::Unsupported);
        }
        if sectors > max {
            return Err(Refusal::Io);
        }
        let len = u64::from(sectors) * SECTOR;
        Ok((self.range(sector, len)?, len, flags & FLAG_UNMAP != 0))
    }
}
