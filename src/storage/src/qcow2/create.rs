//! Makes an empty image, for overlays and for tests.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What a new image is.
#[derive(Debug, Clone)]
pub struct NewImage<'a> {
    /// Of the virtual disk, in bytes; rounded up to whole sectors.
    pub size: u64,
    /// 9 to 21; 16 is usual.
    pub cluster_bits: u32,
    /// 2 or 3; 3 is usual.
    pub version: u32,
    /// Bits of a refcount are `1 << refcount_order`; 4 is usual, and all that version 2 has.
    pub refcount_order: u32,
    /// Name and format of the backing file, as they are to stand in the header.
    pub backing: Option<(&'a str, &'a str)>,
}

impl Default for NewImage<'_> {
    fn default() -> Self {
        Self { size: 0, cluster_bits: 16, version: 3, refcount_order: 4, backing: None }
    }
}

/// Writes an empty image to an empty file. Not for hostile numbers: the caller has chosen them.
pub fn create(file: &File, new: &NewImage<'_>) -> io::Result<()> {
    let size = new.size.next_multiple_of(crate::SECTOR);
    let cluster = 1u64 << new.cluster_bits;
    let l1_entries = size.div_ceil(1 << (2 * new.cluster_bits - 3));
    let l1_clusters = (l1_entries * 8).div_ceil(cluster).max(1);
    let per_block = (cluster * 8) >> new.refcount_order;
    let (mut table, mut blocks) = (1, 1);
    let mut used;
    loop {
        used = 1 + table + blocks + l1_clusters;
        let need = used.div_ceil(per_block);
        if need <= blocks && (blocks * 8).div_ceil(cluster) <= table {
            break;
        }
        blocks = blocks.max(need);
        table = table.max((blocks * 8).div_ceil(cluster));
    }
    let mut bytes = vec![0; (used * cluster) as usize];
    let (table_at, first_block) = (cluster, 1 + table);
    for n in 0..blocks {
        let at = (table_at + n * 8) as usize;
        bytes[at..at + 8].copy_from_slice(&((first_block + n) * cluster).to_be_bytes());
        let block = (first_block + n) * cluster;
        let counted = used.saturating_sub(n * per_block).min(per_block);
        let page = &mut bytes[block as usize..(block + cluster) as usize];
        (0..counted).for_each(|index| super::refcounts::set_count(page, index, new.refcount_order, 1));
    }
    header(&mut bytes, new, size, (table_at, table), ((first_block + blocks) * cluster, l1_entries))?;
    file.write_all_at(&bytes, 0)
}

fn header(
    bytes: &mut [u8],
    new: &NewImage<'_>,
    size: u64,
    (table_at, table): (u64, u64),
    (l1_at, l1_entries): (u64, u64),
) -> io::Result<()> {
    let mut head = Vec::with_capacity(512);
    let length: u32 = if new.version == 2 { 72 } else { 104 };
    head.extend(*b"QFI\xfb");
    head.extend(new.version.to_be_bytes());
    head.extend([0; 12]);
    head.extend(new.cluster_bits.to_be_bytes());
    head.extend(size.to_be_bytes());
    head.extend(0u32.to_be_bytes());
    head.extend((l1_entries as u32).to_be_bytes());
    head.extend(l1_at.to_be_bytes());
    head.extend(table_at.to_be_bytes());
    head.extend((table as u32).to_be_bytes());
    head.extend([0; 12]);
    if new.version == 3 {
        head.extend([0; 24]);
        head.extend(new.refcount_order.to_be_bytes());
        head.extend(length.to_be_bytes());
    }
    if let Some((name, format)) = new.backing {
        head.extend(0xe279_2acau32.to_be_bytes());
        head.extend((format.len() as u32).to_be_bytes());
        head.extend(format.as_bytes());
        head.resize(head.len().next_multiple_of(8), 0);
        head.extend([0; 8]);
        let at = head.len() as u64;
        head[8..16].copy_from_slice(&at.to_be_bytes());
        head[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
        head.extend(name.as_bytes());
    }
    let room = bytes.get_mut(..head.len().min(1 << new.cluster_bits)).filter(|room| room.len() == head.len());
    room.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(&head);
    Ok(())
}
