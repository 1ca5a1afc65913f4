//! An open image: where the bytes of a guest's offset are.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use rustix::fs::{OFlags, fcntl_getfl};
use thiserror::Error;

use super::header::{AT_AUTOCLEAR, AT_INCOMPATIBLE, Header, HeaderError, INCOMPATIBLE_CORRUPT};
use super::medium::Medium;
use super::pages::Pages;
use super::refcounts::Refcounts;

pub(super) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
pub(super) const ZERO: u64 = 1;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

#[derive(Debug, Error)]
pub enum OpenError {
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error("cannot read the image")]
    Read(#[source] io::Error),
    #[error("the image is neither a regular file nor a block device")]
    FileType,
    #[error("the disk is to be writable but its descriptor is read-only")]
    NotWritable,
    #[error("the image {0}")]
    Refused(&'static str),
    #[error("the image is damaged: {0}; see `qemu-img check`, and restore a backup if it cannot repair it")]
    Damaged(&'static str),
}

/// What stands for a run of guest bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// This image says nothing: the next one of the chain does.
    Hole,
    /// Zeroes; with a cluster that is kept for the next write.
    Zero { host: Option<u64>, copied: bool },
    /// At this offset of the file.
    Data { host: u64, copied: bool },
    /// At this offset, within this many bytes.
    Compressed { host: u64, len: usize },
}

/// What only a writable image has.
#[derive(Debug)]
pub(super) struct Writer {
    pub refcounts: Refcounts,
    /// Clusters of the header and all tables: guest data never goes there.
    pub tables: HashSet<u64>,
    /// L1 entries that are newer than those of the file.
    pub l1_changed: BTreeSet<usize>,
    /// Host clusters that lose a reference once the tables without it are stable.
    pub released: Vec<u64>,
    /// A whole cluster, for copy on write.
    pub buffer: Vec<u8>,
    /// After a failure that leaves file and memory apart, or a damaged table, nothing is written any more.
    pub failed: bool,
}

#[derive(Debug)]
struct Inflated {
    host: u64,
    bytes: Box<[u8]>,
    packed: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Image {
    pub(super) header: Header,
    pub(super) medium: Medium,
    pub(super) l1: Vec<u64>,
    pub(super) l2: Pages,
    pub(super) writer: Option<Box<Writer>>,
    inflated: Option<Inflated>,
}

impl Image {
    /// Takes the descriptor as it is; checks header, tables and access mode.
    pub fn open(file: File, header: Header, writable: bool) -> Result<Self, OpenError> {
        let meta = file.metadata().map_err(OpenError::Read)?;
        let kind = meta.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::FileType);
        }
        let fixed = kind.is_block_device();
        let len = if fixed { (&file).seek(SeekFrom::End(0)).map_err(OpenError::Read)? } else { meta.len() };
        let flags = fcntl_getfl(&file).map_err(|e| OpenError::Read(e.into()))?;
        if writable && flags & OFlags::ACCMODE != OFlags::RDWR {
            return Err(OpenError::NotWritable);
        }
        let medium = Medium::new(file, len, fixed);
        let l1 = read_table(&medium, header.l1_offset, header.l1_needed(), "its L1 table is not in the file")?;
        let l2 = Pages::new(1 << header.cluster_bits);
        let mut image = Self { header, medium, l1, l2, writer: None, inflated: None };
        image.l1.iter().try_for_each(|entry| image.check_l1(*entry))?;
        if writable {
            image.make_writable()?;
        }
        Ok(image)
    }

    pub fn size(&self) -> u64 {
        self.header.size
    }

    pub(super) fn cluster(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    /// Entries of an L2 table.
    pub(super) fn l2_entries(&self) -> u64 {
        self.cluster() / 8
    }

    fn check_l1(&self, entry: u64) -> Result<(), OpenError> {
        let at = entry & OFFSET;
        let inside = at.checked_add(self.cluster()).is_some_and(|end| end <= self.medium.len());
        if entry & !(OFFSET | COPIED) != 0 || !at.is_multiple_of(self.cluster()) || (at != 0 && !inside) {
            return Err(OpenError::Damaged("an L1 entry points outside the file"));
        }
        Ok(())
    }

    fn make_writable(&mut self) -> Result<(), OpenError> {
        use OpenError::{Damaged, Refused};
        let Header { snapshots, dirty, bitmaps, version, autoclear, .. } = self.header;
        if snapshots > 0 {
            return Err(Refused("holds internal snapshots and cannot be written; make an overlay over it, read-only"));
        }
        if dirty {
            return Err(Refused("was not closed (lazy refcounts); repair it with `qemu-img check -r all`"));
        }
        if bitmaps {
            return Err(Refused(
                "holds dirty bitmaps, which writing would make wrong; remove them (`qemu-img bitmap`)",
            ));
        }
        let mut tables = HashSet::from([0]);
        let mut add = |at: u64, count: u64| {
            (0..count).all(|n| tables.insert((at >> self.header.cluster_bits) + n)).then_some(()).ok_or(())
        };
        let overlap = |()| Damaged("two of its tables overlap");
        let l1_clusters = (u64::from(self.header.l1_entries) * 8).div_ceil(self.cluster());
        add(self.header.l1_offset, l1_clusters).map_err(overlap)?;
        let refcounts = Refcounts::open(&self.header, &self.medium)?;
        add(self.header.refcount_table, self.header.refcount_table_clusters.into()).map_err(overlap)?;
        refcounts.blocks().try_for_each(|at| add(at, 1)).map_err(overlap)?;
        for entry in self.l1.iter().filter(|entry| **entry & OFFSET != 0) {
            add(entry & OFFSET, 1).map_err(overlap)?;
            if entry & COPIED == 0 {
                return Err(Damaged("an L2 table is shared though there is no snapshot"));
            }
        }
        if version == 3 && autoclear != 0 {
            self.medium.write(AT_AUTOCLEAR, &[0; 8]).map_err(OpenError::Read)?;
        }
        self.writer = Some(Box::new(Writer {
            refcounts,
            tables,
            l1_changed: BTreeSet::new(),
            released: Vec::new(),
            buffer: Vec::new(),
            failed: false,
        }));
        Ok(())
    }

    /// The L2 table of a guest cluster, and the place of its entry in it.
    pub(super) fn l2_place(&self, cluster: u64) -> (usize, u64) {
        ((cluster / self.l2_entries()) as usize, cluster % self.l2_entries() * 8)
    }

    pub(super) fn l2_table(&self, l1_index: usize) -> Option<u64> {
        self.l1.get(l1_index).map(|entry| entry & OFFSET).filter(|at| *at != 0)
    }

    /// What stands for the bytes from `offset`, and for how many of at most `want`. `offset` is inside the disk.
    pub fn extent(&mut self, offset: u64, want: u64) -> io::Result<(Extent, u64)> {
        let bits = self.header.cluster_bits;
        let within = offset & (self.cluster() - 1);
        let (l1_index, entry_at) = self.l2_place(offset >> bits);
        let Some(table) = self.l2_table(l1_index) else {
            let left = (self.l2_entries() - entry_at / 8) << bits;
            return Ok((Extent::Hole, want.min(left - within)));
        };
        let page_size = self.l2.size() as u64;
        let page = self.l2.get(&self.medium, table + entry_at / page_size * page_size)?;
        let mut entries = page[(entry_at % page_size) as usize..].chunks_exact(8).map(big_endian);
        let parse = Entry { version: self.header.version, bits, len: self.medium.len() };
        let first = parse.parse(entries.next().unwrap_or(0))?;
        let mut run = (1 << bits) - within;
        let mut clusters = 1;
        while run < want {
            // A damaged entry further on is met when it is read for its own sake.
            let Some(Ok(next)) = entries.next().map(|raw| parse.parse(raw)) else { break };
            if !continues(first, next, clusters << bits) {
                break;
            }
            clusters += 1;
            run += 1 << bits;
        }
        let extent = match first {
            Extent::Data { host, copied } => Extent::Data { host: host + within, copied },
            other => other,
        };
        Ok((extent, run.min(want)))
    }

    /// Bytes of a data extent.
    pub fn read_data(&self, host: u64, buf: &mut [u8]) -> io::Result<()> {
        self.medium.read_tail(host, buf)
    }

    /// Bytes of a compressed cluster, from `within` it on.
    pub fn read_compressed(&mut self, host: u64, len: usize, within: u64, buf: &mut [u8]) -> io::Result<()> {
        let cluster = self.cluster() as usize;
        let mut held = self.inflated.take().unwrap_or_else(|| Inflated {
            host: 0,
            bytes: vec![0; cluster].into_boxed_slice(),
            packed: Vec::new(),
        });
        if held.host != host {
            held.host = 0;
            held.packed.resize(len, 0);
            let outcome =
                self.medium.read_tail(host, &mut held.packed).and_then(|()| inflate(&held.packed, &mut held.bytes));
            if let Err(error) = outcome {
                self.inflated = Some(held);
                return Err(error);
            }
            held.host = host;
        }
        let within = within as usize;
        let bytes = held.bytes.get(within..within + buf.len()).ok_or(ErrorKind::InvalidInput);
        let done = bytes.map(|bytes| buf.copy_from_slice(bytes));
        self.inflated = Some(held);
        Ok(done?)
    }

    /// The compressed cluster at `host` is no longer what was read.
    pub(super) fn forget_inflated(&mut self) {
        self.inflated = None;
    }

    /// A table says what cannot be: no more writes, and whoever opens the image next is told.
    pub(super) fn corrupt(&mut self) -> io::Error {
        if let Some(writer) = &mut self.writer
            && !std::mem::replace(&mut writer.failed, true)
            && self.header.version == 3
        {
            let bits = self.header.incompatible | INCOMPATIBLE_CORRUPT;
            // Best effort: the guest gets its error in any case.
            let _ = self.medium.write(AT_INCOMPATIBLE, &bits.to_be_bytes());
        }
        ErrorKind::InvalidData.into()
    }
}

#[cfg(test)]
impl Image {
    pub fn start_trace(&mut self) {
        self.medium.trace = Some(Vec::new());
    }

    pub fn take_trace(&mut self) -> Vec<super::medium::Event> {
        self.medium.trace.take().unwrap_or_default()
    }
}

/// Does `next`, `bytes` after `first`, belong to the same run?
fn continues(first: Extent, next: Extent, bytes: u64) -> bool {
    match (first, next) {
        (Extent::Hole, Extent::Hole) | (Extent::Zero { .. }, Extent::Zero { .. }) => true,
        (Extent::Data { host, copied }, Extent::Data { host: there, copied: also }) => {
            host.checked_add(bytes) == Some(there) && copied == also
        }
        _ => false,
    }
}

/// What an L2 entry is judged by.
struct Entry {
    version: u32,
    bits: u32,
    len: u64,
}

impl Entry {
    fn parse(&self, raw: u64) -> io::Result<Extent> {
        let damaged = || Err(ErrorKind::InvalidData.into());
        let cluster = 1u64 << self.bits;
        if raw & COMPRESSED != 0 {
            // Offset in the low bits, then the number of further sectors (qcow2.rst, compressed clusters).
            let offset_bits = 62 - (self.bits - 8);
            let host = raw & ((1 << offset_bits) - 1);
            let sectors = ((raw & (COMPRESSED - 1)) >> offset_bits) + 1;
            let len = sectors * crate::SECTOR - host % crate::SECTOR;
            if raw & COPIED != 0 || host < cluster || host >= self.len || len > cluster + 2 * crate::SECTOR {
                return damaged();
            }
            return Ok(Extent::Compressed { host, len: len as usize });
        }
        let (host, copied, zero) = (raw & OFFSET, raw & COPIED != 0, raw & ZERO != 0);
        let reserved = raw & !(OFFSET | COPIED | ZERO) != 0 || (zero && self.version == 2);
        // What begins past the end was never written, or was cut off: an error, never silent zeroes.
        if reserved || !host.is_multiple_of(cluster) || host >= self.len {
            return damaged();
        }
        Ok(match (host, zero) {
            (0, true) => Extent::Zero { host: None, copied: false },
            (0, false) => Extent::Hole,
            (_, true) => Extent::Zero { host: Some(host), copied },
            (_, false) => Extent::Data { host, copied },
        })
    }
}

fn inflate(packed: &[u8], cluster: &mut [u8]) -> io::Result<()> {
    let mut state = DecompressorOxide::new();
    let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (status, _, written) = decompress(&mut state, packed, cluster, 0, flags);
    // Sectors are whole, so something may follow the stream; a full cluster is all that counts.
    let ended = matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput);
    if ended && written == cluster.len() { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}

/// A table of 64-bit entries; its length was bounded by the header's checks.
pub(super) fn read_table(medium: &Medium, at: u64, entries: u64, absent: &'static str) -> Result<Vec<u64>, OpenError> {
    let bytes = entries * 8;
    if at.checked_add(bytes).is_none_or(|end| end > medium.len()) {
        return Err(OpenError::Damaged(absent));
    }
    let mut raw = vec![0; bytes as usize];
    medium.read(at, &mut raw).map_err(OpenError::Read)?;
    Ok(raw.chunks_exact(8).map(big_endian).collect())
}

pub(super) fn big_endian(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_be_bytes)
}
