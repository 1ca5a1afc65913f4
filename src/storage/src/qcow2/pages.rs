//! A bounded cache of table pages (L2 tables, refcount blocks), written back by their owner in the order that matters.

use std::collections::HashMap;
use std::io;

use super::medium::Medium;

/// Bytes that one cache holds, at most.
const CACHE: usize = 1 << 20;
/// A page, at most; also a cluster, if that is smaller.
const PAGE: usize = 4096;

#[derive(Debug)]
struct Slot {
    at: u64,
    bytes: Box<[u8]>,
    dirty: bool,
    /// Used since the hand passed last (clock replacement).
    used: bool,
}

#[derive(Debug)]
pub struct Pages {
    page: usize,
    limit: usize,
    index: HashMap<u64, usize>,
    slots: Vec<Slot>,
    hand: usize,
    dirty: usize,
}

impl Pages {
    pub fn new(cluster: u64) -> Self {
        let page = PAGE.min(cluster as usize);
        Self { page, limit: CACHE / page, index: HashMap::new(), slots: Vec::new(), hand: 0, dirty: 0 }
    }

    /// Bytes of a page; file offsets of pages are multiples of it.
    pub fn size(&self) -> usize {
        self.page
    }

    /// So many pages wait to be written that an operation might find no room.
    pub fn crowded(&self) -> bool {
        self.dirty >= self.limit / 2
    }

    pub fn is_dirty(&self) -> bool {
        self.dirty > 0
    }

    /// The page at `at`, read if need be.
    pub fn get(&mut self, medium: &Medium, at: u64) -> io::Result<&[u8]> {
        let slot = self.find(medium, at)?;
        Ok(&self.slots[slot].bytes)
    }

    /// The page at `at`, to be changed.
    pub fn change(&mut self, medium: &Medium, at: u64) -> io::Result<&mut [u8]> {
        let slot = self.find(medium, at)?;
        let slot = &mut self.slots[slot];
        self.dirty += usize::from(!slot.dirty);
        slot.dirty = true;
        Ok(&mut slot.bytes)
    }

    /// Writes what is dirty, in the order of the file. A page that cannot be written stays dirty.
    pub fn write_back(&mut self, medium: &mut Medium) -> io::Result<()> {
        if self.dirty == 0 {
            return Ok(());
        }
        let mut dirty: Vec<usize> = (0..self.slots.len()).filter(|i| self.slots[*i].dirty).collect();
        dirty.sort_unstable_by_key(|i| self.slots[*i].at);
        for i in dirty {
            let slot = &mut self.slots[i];
            medium.write(slot.at, &slot.bytes)?;
            slot.dirty = false;
            self.dirty -= 1;
        }
        Ok(())
    }

    fn find(&mut self, medium: &Medium, at: u64) -> io::Result<usize> {
        if let Some(slot) = self.index.get(&at).copied() {
            self.slots[slot].used = true;
            return Ok(slot);
        }
        let mut bytes = vec![0; self.page].into_boxed_slice();
        medium.read(at, &mut bytes)?;
        let new = Slot { at, bytes, dirty: false, used: true };
        let place = if self.slots.len() < self.limit {
            self.slots.push(new);
            self.slots.len() - 1
        } else {
            let place = self.victim().ok_or(io::ErrorKind::ResourceBusy)?;
            self.index.remove(&self.slots[place].at);
            self.slots[place] = new;
            place
        };
        self.index.insert(at, place);
        Ok(place)
    }

    /// A clean page that was not used lately. Two rounds: the first takes the marks away.
    fn victim(&mut self) -> Option<usize> {
        for _ in 0..2 * self.slots.len() {
            let place = self.hand;
            self.hand = (place + 1) % self.slots.len();
            let slot = &mut self.slots[place];
            if !slot.dirty && !std::mem::take(&mut slot.used) {
                return Some(place);
            }
        }
        None
    }
}
