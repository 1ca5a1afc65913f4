//! The one door to guest memory.
//!
//! Every address a device uses comes from the guest and is hostile: it is carried as [`GuestAddr`], which cannot be
//! dereferenced, and becomes bytes only through [`Segment::checked`]. The returned slice is volatile (the guest may
//! write to it at the same time), lies inside one memory region, and lives no longer than the memory it points to.

use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

/// Guest RAM as every device sees it. Cloning shares the mapping.
pub type GuestMem = GuestMemoryMmap<()>;

/// A guest-physical address that the guest named and nobody has checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestAddr(pub u64);

/// A range of guest memory named by a descriptor, unchecked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub addr: GuestAddr,
    pub len: u32,
}

/// The guest named memory that it does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the guest named {len} bytes at {addr:#x}, which is not inside its memory")]
pub struct OutsideMemory {
    pub addr: u64,
    pub len: usize,
}

impl Segment {
    /// The only way from a guest address to bytes: `len` bytes at `offset` into the segment.
    ///
    /// A range that leaves the segment, wraps the address space or crosses the edge of a memory region is refused.
    /// (Regions are never adjacent in Casemate's memory map, so a legitimate buffer never spans two.)
    pub fn checked<'m>(&self, mem: &'m GuestMem, offset: u32, len: u32) -> Result<VolatileSlice<'m>, OutsideMemory> {
        let refused = OutsideMemory { addr: self.addr.0, len: len as usize };
        let end = offset.checked_add(len).ok_or(refused)?;
        if end > self.len {
            return Err(refused);
        }
        let start = self.addr.0.checked_add(u64::from(offset)).ok_or(refused)?;
        start.checked_add(u64::from(len)).ok_or(refused)?;
        mem.get_slice(GuestAddress(start), len as usize).map_err(|_| refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mem() -> GuestMem {
        GuestMem::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x10_0000), 0x1000)]).unwrap()
    }

    fn seg(addr: u64, len: u32) -> Segment {
        Segment { addr: GuestAddr(addr), len }
    }

    #[test]
    fn ranges_outside_memory_are_refused() {
        let mem = mem();
        assert!(seg(0, 0x1000).checked(&mem, 0, 0x1000).is_ok());
        assert!(seg(0, 0x1001).checked(&mem, 0, 0x1001).is_err());
        assert!(seg(0xfff, 2).checked(&mem, 0, 2).is_err());
        assert!(seg(0x1000, 1).checked(&mem, 0, 1).is_err());
        assert!(seg(0x8000, u32::MAX).checked(&mem, 0, u32::MAX).is_err());
        assert!(seg(u64::MAX, 2).checked(&mem, 0, 2).is_err());
        assert!(seg(u64::MAX - 1, 1).checked(&mem, 0, 1).is_err());
        assert!(seg(0x10_0fff, 1).checked(&mem, 0, 1).is_ok());
    }

    #[test]
    fn a_slice_never_leaves_its_segment() {
        let mem = mem();
        assert!(seg(0, 16).checked(&mem, 8, 8).is_ok());
        assert!(seg(0, 16).checked(&mem, 8, 9).is_err());
        assert!(seg(0, 16).checked(&mem, u32::MAX, 1).is_err());
        assert!(seg(0, 16).checked(&mem, 1, u32::MAX).is_err());
    }
}
