//! Refcounts: which clusters of the file are free, and how the file grows.

use std::io::{self, ErrorKind};

use super::header::{AT_TABLE, Header, TABLE_MAX};
use super::image::{OpenError, read_table};
use super::medium::Medium;
use super::pages::Pages;

#[derive(Debug)]
pub struct Refcounts {
    /// File offsets of refcount blocks, 0 where there is none yet.
    table: Vec<u64>,
    table_at: u64,
    table_clusters: u64,
    order: u32,
    cluster_bits: u32,
    pub pages: Pages,
    /// Every cluster below is in use, as far as is known.
    next: u64,
}

/// What an allocation did besides.
#[derive(Debug, Default)]
pub struct Grown {
    /// Clusters that are tables now.
    pub tables: Vec<u64>,
    /// Clusters of a table that is no longer used.
    pub released: Vec<u64>,
}

impl Refcounts {
    pub fn open(header: &Header, medium: &Medium) -> Result<Self, OpenError> {
        let cluster = 1u64 << header.cluster_bits;
        let table_clusters = u64::from(header.refcount_table_clusters);
        let entries = table_clusters * cluster / 8;
        let table = read_table(medium, header.refcount_table, entries, "its refcount table is not in the file")?;
        let inside = |at: &u64| at.checked_add(cluster).is_some_and(|end| end <= medium.len());
        if table.iter().any(|at| *at != 0 && !(at.is_multiple_of(cluster) && inside(at))) {
            return Err(OpenError::Damaged("a refcount block is not in the file"));
        }
        Ok(Self {
            table,
            table_at: header.refcount_table,
            table_clusters,
            order: header.refcount_order,
            cluster_bits: header.cluster_bits,
            pages: Pages::new(cluster),
            next: 1,
        })
    }

    pub fn blocks(&self) -> impl Iterator<Item = u64> {
        self.table.iter().copied().filter(|at| *at != 0)
    }

    /// Clusters that one block counts.
    fn per_block(&self) -> u64 {
        1 << (self.cluster_bits + 3 - self.order)
    }

    /// Page and place of a cluster's refcount, if there is a block for it.
    fn place(&self, cluster: u64) -> Option<(u64, u64)> {
        let block = usize::try_from(cluster / self.per_block()).ok()?;
        let at = self.table.get(block).copied().filter(|at| *at != 0)?;
        let per_page = (self.pages.size() as u64 * 8) >> self.order;
        let within = cluster % self.per_block();
        Some((at + within / per_page * self.pages.size() as u64, within % per_page))
    }

    pub fn get(&mut self, medium: &Medium, cluster: u64) -> io::Result<u64> {
        match self.place(cluster) {
            Some((page, index)) => Ok(count(self.pages.get(medium, page)?, index, self.order)),
            None => Ok(0),
        }
    }

    /// Sets a refcount where there is a block for it.
    pub fn set(&mut self, medium: &Medium, cluster: u64, value: u64) -> io::Result<()> {
        let (page, index) = self.place(cluster).ok_or(ErrorKind::InvalidData)?;
        set_count(self.pages.change(medium, page)?, index, self.order, value);
        if value == 0 {
            self.next = self.next.min(cluster);
        }
        Ok(())
    }

    /// A cluster that nobody uses, with a refcount of 1. New blocks and tables are in the file, and stable, before
    /// anything points at them.
    pub fn allocate(&mut self, medium: &mut Medium, grown: &mut Grown) -> io::Result<u64> {
        loop {
            let cluster = self.next;
            self.fits(medium, cluster + 1)?;
            match self.table.get((cluster / self.per_block()) as usize).copied() {
                None => self.grow_table(medium, grown)?,
                Some(0) => self.new_block(medium, cluster, grown)?,
                Some(_) => {
                    if let Some(found) = self.take_from_page(medium, cluster)? {
                        return Ok(found);
                    }
                }
            }
        }
    }

    /// Looks through the rest of the page that counts `cluster`.
    fn take_from_page(&mut self, medium: &Medium, cluster: u64) -> io::Result<Option<u64>> {
        let (page, index) = self.place(cluster).ok_or(ErrorKind::InvalidData)?;
        let order = self.order;
        let per_page = (self.pages.size() as u64 * 8) >> order;
        let bytes = self.pages.get(medium, page)?;
        let Some(free) = (index..per_page).find(|index| count(bytes, *index, order) == 0) else {
            self.next = cluster - index + per_page;
            return Ok(None);
        };
        let found = cluster - index + free;
        self.fits(medium, found + 1)?;
        set_count(self.pages.change(medium, page)?, free, order, 1);
        self.next = found + 1;
        Ok(Some(found))
    }

    fn fits(&self, medium: &Medium, clusters: u64) -> io::Result<()> {
        let end = clusters.checked_mul(1 << self.cluster_bits).filter(|end| *end <= medium.limit());
        end.map(drop).ok_or_else(|| ErrorKind::StorageFull.into())
    }

    /// A cluster that no block counts becomes the block that counts it.
    fn new_block(&mut self, medium: &mut Medium, cluster: u64, grown: &mut Grown) -> io::Result<()> {
        let at = cluster << self.cluster_bits;
        self.write_block(medium, at, cluster - cluster % self.per_block(), cluster..cluster + 1)?;
        medium.sync()?;
        let block = cluster / self.per_block();
        medium.write(self.table_at + block * 8, &at.to_be_bytes())?;
        self.table[block as usize] = at;
        grown.tables.push(cluster);
        self.next = cluster + 1;
        Ok(())
    }

    /// Writes a block at `at` for the clusters from `first`; those in `used` are counted once.
    fn write_block(&self, medium: &mut Medium, at: u64, first: u64, used: std::ops::Range<u64>) -> io::Result<()> {
        let mut bytes = vec![0; 1 << self.cluster_bits];
        let last = used.end.min(first + self.per_block());
        for cluster in used.start.max(first)..last {
            set_count(&mut bytes, cluster - first, self.order, 1);
        }
        medium.write(at, &bytes)
    }

    /// The table counts no further: a longer one goes where nothing is yet, with the blocks that count it.
    fn grow_table(&mut self, medium: &mut Medium, grown: &mut Grown) -> io::Result<()> {
        let cluster = 1u64 << self.cluster_bits;
        let (per_block, old) = (self.per_block(), self.table.len() as u64);
        // Behind what an unclean end may have left there; a block device has no such end.
        let file_end = if medium.is_fixed() { 0 } else { medium.len().div_ceil(cluster) };
        let start = (old * per_block).max(file_end);
        let first_block = start / per_block;
        let (mut tables, mut blocks) = (self.table_clusters + 1, 1);
        loop {
            let end_block = (start + blocks + tables).div_ceil(per_block);
            let entries = (end_block + 1).max(old + old / 2);
            let need = ((entries * 8).div_ceil(cluster), end_block - first_block);
            if need.0 <= tables && need.1 <= blocks {
                break;
            }
            (tables, blocks) = (tables.max(need.0), blocks.max(need.1));
        }
        if tables * cluster > TABLE_MAX.max(cluster) {
            return Err(ErrorKind::StorageFull.into());
        }
        let used = start..start + blocks + tables;
        self.fits(medium, used.end)?;
        let mut table = self.table.clone();
        table.resize((tables * cluster / 8) as usize, 0);
        for n in 0..blocks {
            let (block, at) = (first_block + n, (start + n) << self.cluster_bits);
            self.write_block(medium, at, block * per_block, used.clone())?;
            table[block as usize] = at;
        }
        let table_at = (start + blocks) << self.cluster_bits;
        let bytes: Vec<u8> = table.iter().flat_map(|at| at.to_be_bytes()).collect();
        medium.write(table_at, &bytes)?;
        medium.sync()?;
        // Place and length stand side by side and change in one write.
        let mut field = [0; 12];
        field[..8].copy_from_slice(&table_at.to_be_bytes());
        field[8..].copy_from_slice(&(tables as u32).to_be_bytes());
        medium.write(AT_TABLE, &field)?;
        medium.sync()?;
        let old_at = self.table_at >> self.cluster_bits;
        grown.released.extend(old_at..old_at + self.table_clusters);
        grown.tables.extend(used);
        (self.table, self.table_at, self.table_clusters) = (table, table_at, tables);
        Ok(())
    }
}

/// Refcount number `index` of a page. Less than a byte wide: the lowest bits come first (qcow2.rst).
fn count(bytes: &[u8], index: u64, order: u32) -> u64 {
    let index = index as usize;
    if order < 3 {
        let (width, bit) = (1usize << order, index << order);
        return u64::from(bytes[bit / 8] >> (bit % 8)) & ((1 << width) - 1);
    }
    let width = 1usize << (order - 3);
    bytes[index * width..][..width].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

pub(super) fn set_count(bytes: &mut [u8], index: u64, order: u32, value: u64) {
    let index = index as usize;
    if order < 3 {
        let (width, bit) = (1usize << order, index << order);
        let mask = (((1u16 << width) - 1) << (bit % 8)) as u8;
        let byte = &mut bytes[bit / 8];
        *byte = (*byte & !mask) | (((value as u8) << (bit % 8)) & mask);
        return;
    }
    let width = 1usize << (order - 3);
    bytes[index * width..][..width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_of_a_refcount_keeps_to_its_place() {
        for order in 0..=6 {
            let mut bytes = [0u8; 64];
            let most = if order == 6 { u64::MAX } else { (1 << (1u32 << order)) - 1 };
            let all = (bytes.len() as u64 * 8) >> order;
            set_count(&mut bytes, 3, order, most);
            set_count(&mut bytes, all - 1, order, 1);
            for index in 0..all {
                let wanted = if index == 3 { most } else { u64::from(index == all - 1) };
                assert_eq!(count(&bytes, index, order), wanted, "{order} {index}");
            }
            set_count(&mut bytes, 3, order, 0);
            assert_eq!(bytes.iter().filter(|b| **b != 0).count(), 1);
        }
    }
}
