//! The qcow2 header: parsed as hostile bytes, refused unless this driver can do all that it asks for.
//!
//! Source: docs/interop/qcow2.rst of QEMU. Numbers in the file are big-endian. Used by the driver, and by the client
//! to learn which backing files an image names; nobody else follows what stands here.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use thiserror::Error;

const MAGIC: u32 = 0x5146_49fb;
const V2_LENGTH: usize = 72;
const V3_LENGTH: usize = 104;
/// Longest name of a backing file (qcow2.rst).
const NAME_MAX: u32 = 1023;
/// Bytes of an L1 or a refcount table, at most: 128 TiB of disk with clusters of 64 KiB. QEMU allows 32 and 8 MiB; a
/// runner holds them in memory, for each image of a chain, so that a hostile header costs little.
pub const TABLE_MAX: u64 = 2 << 20;
/// Host offsets are below this (bits 9 to 55 of an entry).
pub const OFFSET_END: u64 = 1 << 56;

const INCOMPATIBLE_DIRTY: u64 = 1;
pub const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_SUBCLUSTERS: u64 = 1 << 4;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;
const EXTENSION_ENCRYPTION: u32 = 0x0537_be77;

/// Where fields that are changed stand in the file.
pub const AT_TABLE: u64 = 48;
pub const AT_INCOMPATIBLE: u64 = 72;
pub const AT_AUTOCLEAR: u64 = 88;

#[derive(Debug, Error)]
pub enum HeaderError {
    #[error("cannot read the image's header")]
    Read(#[source] io::Error),
    #[error("this is no qcow2 image; name its real format")]
    Magic,
    #[error("the qcow2 header is damaged: {0}; see `qemu-img check`")]
    Damaged(&'static str),
    #[error("the image {0}")]
    Refused(&'static str),
    #[error(
        "the image uses qcow2 features this version does not know (bits {0:#x}); convert it with `qemu-img convert`"
    )]
    Unknown(u64),
}

/// A header that was checked on its own; offsets are aligned and below [`OFFSET_END`], not yet compared with the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// 9 to 21.
    pub cluster_bits: u32,
    /// Of the virtual disk, in bytes; whole sectors.
    pub size: u64,
    pub l1_offset: u64,
    /// Entries of the L1 table; enough for `size`.
    pub l1_entries: u32,
    pub refcount_table: u64,
    pub refcount_table_clusters: u32,
    /// Bits of a refcount are `1 << refcount_order`; 0 to 6.
    pub refcount_order: u32,
    pub snapshots: u32,
    /// The backing file as the image names it. Never opened because of that.
    pub backing: Option<String>,
    pub backing_format: Option<String>,
    /// Refcounts may be wrong after a crash (lazy refcounts).
    pub dirty: bool,
    pub incompatible: u64,
    /// Features that a writer who does not know them must clear.
    pub autoclear: u64,
    pub bitmaps: bool,
}

impl Header {
    /// Reads and checks the header of an open image.
    pub fn read(file: &File) -> Result<Self, HeaderError> {
        let mut start = [0; V3_LENGTH];
        let n = read_up_to(file, &mut start).map_err(HeaderError::Read)?;
        let bits = cluster_bits(&start[..n])?;
        let mut cluster = vec![0; 1 << bits];
        let n = read_up_to(file, &mut cluster).map_err(HeaderError::Read)?;
        Self::parse(&cluster[..n])
    }

    /// Parses the first cluster of an image, or as much of it as the file has.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let cluster_bits = cluster_bits(bytes)?;
        let cluster = 1usize << cluster_bits;
        let bytes = &bytes[..bytes.len().min(cluster)];
        let version = word(bytes, 4)?;
        let (mut length, mut incompatible, mut autoclear, mut refcount_order) = (V2_LENGTH, 0, 0, 4);
        if version == 3 {
            incompatible = long(bytes, 72)?;
            autoclear = long(bytes, AT_AUTOCLEAR as usize)?;
            refcount_order = word(bytes, 96)?;
            length = word(bytes, 100)? as usize;
            if length < V3_LENGTH || !length.is_multiple_of(8) || length > cluster {
                return Err(HeaderError::Damaged("its length is impossible"));
            }
            // Byte 104 exists only in a longer header; 0 is deflate.
            let compression = if length > V3_LENGTH { bytes.get(V3_LENGTH).copied().unwrap_or(0) } else { 0 };
            features(incompatible, compression)?;
        }
        let mut header = Header {
            version,
            cluster_bits,
            size: long(bytes, 24)?,
            l1_offset: long(bytes, 40)?,
            l1_entries: word(bytes, 36)?,
            refcount_table: long(bytes, AT_TABLE as usize)?,
            refcount_table_clusters: word(bytes, 56)?,
            refcount_order,
            snapshots: word(bytes, 60)?,
            backing: None,
            backing_format: None,
            dirty: incompatible & INCOMPATIBLE_DIRTY != 0,
            incompatible,
            autoclear,
            bitmaps: false,
        };
        if word(bytes, 32)? != 0 {
            return Err(HeaderError::Refused(
                "is encrypted, which is not supported; convert it with `qemu-img convert`",
            ));
        }
        header.check_tables()?;
        let end = header.backing_name(bytes)?.unwrap_or(bytes.len());
        header.extensions(bytes, length, end)?;
        Ok(header)
    }

    /// Entries of the L1 table that the disk's size needs.
    pub fn l1_needed(&self) -> u64 {
        self.size.div_ceil(1 << (2 * self.cluster_bits - 3))
    }

    fn check_tables(&self) -> Result<(), HeaderError> {
        use HeaderError::{Damaged, Refused};
        let cluster = 1u64 << self.cluster_bits;
        if self.refcount_order > 6 {
            return Err(Damaged("its refcounts are wider than 64 bits"));
        }
        if self.size == 0 {
            return Err(Refused("has a virtual size of 0; give it one with `qemu-img resize`"));
        }
        if !self.size.is_multiple_of(crate::SECTOR) || self.size >= OFFSET_END {
            return Err(Damaged("its virtual size is impossible"));
        }
        if self.l1_needed() * 8 > TABLE_MAX {
            return Err(Refused("has clusters too small for its size; convert it with `-o cluster_size=64k` or more"));
        }
        if u64::from(self.l1_entries) < self.l1_needed() {
            return Err(Damaged("its L1 table is too short for its virtual size"));
        }
        if u64::from(self.l1_entries) * 8 > 16 * TABLE_MAX {
            return Err(Damaged("its L1 table is impossibly long"));
        }
        let placed = |at: u64| at.is_multiple_of(cluster) && (cluster..OFFSET_END).contains(&at);
        if !placed(self.l1_offset) {
            return Err(Damaged("its L1 table is at an impossible place"));
        }
        if !placed(self.refcount_table) || self.refcount_table_clusters == 0 {
            return Err(Damaged("its refcount table is at an impossible place"));
        }
        if u64::from(self.refcount_table_clusters) * cluster > TABLE_MAX.max(cluster) {
            return Err(Refused("has a refcount table larger than 2 MiB; convert it with larger clusters"));
        }
        Ok(())
    }

    /// Takes the name of the backing file; answers where it begins, which is where extensions end.
    fn backing_name(&mut self, bytes: &[u8]) -> Result<Option<usize>, HeaderError> {
        let (at, length) = (long(bytes, 8)?, word(bytes, 16)?);
        if at == 0 || length == 0 {
            return Ok(None);
        }
        let bad = HeaderError::Damaged("the name of its backing file is not inside its first cluster");
        if length > NAME_MAX {
            return Err(bad);
        }
        let Some(name) = usize::try_from(at).ok().and_then(|at| bytes.get(at..at.checked_add(length as usize)?)) else {
            return Err(bad);
        };
        self.backing = Some(text(name)?);
        Ok(Some(at as usize))
    }

    fn extensions(&mut self, bytes: &[u8], start: usize, end: usize) -> Result<(), HeaderError> {
        let mut rest = bytes.get(start..end.max(start)).unwrap_or_default();
        while rest.len() >= 8 {
            let (kind, length) = (word(rest, 0)?, word(rest, 4)? as usize);
            if kind == EXTENSION_END {
                break;
            }
            let padded = length.checked_next_multiple_of(8).and_then(|n| n.checked_add(8));
            let data = rest.get(8..).and_then(|data| data.get(..length));
            let (Some(data), Some(padded)) = (data, padded) else {
                return Err(HeaderError::Damaged("a header extension is longer than its room"));
            };
            match kind {
                EXTENSION_BACKING_FORMAT => self.backing_format = Some(text(data)?),
                EXTENSION_BITMAPS => self.bitmaps = true,
                EXTENSION_ENCRYPTION => return Err(HeaderError::Refused("is encrypted, which is not supported")),
                // Extensions are optional by definition; what must be known is an incompatible feature bit.
                _ => {}
            }
            rest = rest.get(padded..).unwrap_or_default();
        }
        Ok(())
    }
}

fn cluster_bits(bytes: &[u8]) -> Result<u32, HeaderError> {
    if bytes.len() < V2_LENGTH || word(bytes, 0)? != MAGIC {
        return Err(HeaderError::Magic);
    }
    match word(bytes, 4)? {
        2 | 3 => {}
        _ => return Err(HeaderError::Refused("has a qcow version other than 2 and 3; convert it")),
    }
    let bits = word(bytes, 20)?;
    if (9..=21).contains(&bits) { Ok(bits) } else { Err(HeaderError::Damaged("its cluster size is impossible")) }
}

fn features(incompatible: u64, compression: u8) -> Result<(), HeaderError> {
    use HeaderError::Refused;
    let has = |bit| incompatible & bit != 0;
    if has(INCOMPATIBLE_CORRUPT) {
        return Err(Refused("is marked corrupt; repair it with `qemu-img check -r all`, or restore a backup"));
    }
    if has(INCOMPATIBLE_DATA_FILE) {
        return Err(Refused("keeps its data in another file, which is not supported; convert it"));
    }
    if has(INCOMPATIBLE_SUBCLUSTERS) {
        return Err(Refused("has extended L2 entries (subclusters), which are not supported; convert it"));
    }
    if has(INCOMPATIBLE_COMPRESSION) || compression != 0 {
        return Err(Refused("is compressed with zstd, which is not supported; convert it with compression_type=zlib"));
    }
    let known = INCOMPATIBLE_DIRTY
        | INCOMPATIBLE_CORRUPT
        | INCOMPATIBLE_DATA_FILE
        | INCOMPATIBLE_COMPRESSION
        | INCOMPATIBLE_SUBCLUSTERS;
    if incompatible & !known != 0 { Err(HeaderError::Unknown(incompatible & !known)) } else { Ok(()) }
}

fn text(bytes: &[u8]) -> Result<String, HeaderError> {
    let text = std::str::from_utf8(bytes).map_err(|_| HeaderError::Damaged("a name in it is not UTF-8"))?;
    if text.chars().any(char::is_control) {
        return Err(HeaderError::Damaged("a name in it holds control characters"));
    }
    Ok(text.to_owned())
}

fn read_up_to(file: &File, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

fn word(bytes: &[u8], at: usize) -> Result<u32, HeaderError> {
    let raw = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    raw.map(u32::from_be_bytes).ok_or(HeaderError::Damaged("it is cut short"))
}

fn long(bytes: &[u8], at: usize) -> Result<u64, HeaderError> {
    let raw = bytes.get(at..at + 8).and_then(|b| b.try_into().ok());
    raw.map(u64::from_be_bytes).ok_or(HeaderError::Damaged("it is cut short"))
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
