//! Address-range dispatch for port I/O and MMIO exits.
//!
//! Built once before the first vCPU runs, then read-only and shared by all vCPU threads. The guest chooses address and
//! width; an access that no device owns completely reads as all ones and writes nothing.

use thiserror::Error;

use crate::mmio::VirtioMmio;
use crate::traits::Action;

/// Anything that answers register accesses. Called from any vCPU thread.
pub trait BusDevice: Send + Sync {
    /// `offset + data.len()` lies inside the range the device was added with.
    fn read(&self, offset: u64, data: &mut [u8]);
    fn write(&self, offset: u64, data: &[u8]) -> Action;
}

impl BusDevice for VirtioMmio {
    fn read(&self, offset: u64, data: &mut [u8]) {
        VirtioMmio::read(self, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        VirtioMmio::write(self, offset, data)
    }
}

impl<T: BusDevice + ?Sized> BusDevice for std::sync::Arc<T> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        (**self).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        (**self).write(offset, data)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BusError {
    #[error("the range {start:#x}+{len:#x} is empty or wraps the address space")]
    BadRange { start: u64, len: u64 },
    #[error("the range {start:#x}+{len:#x} overlaps another device")]
    Overlap { start: u64, len: u64 },
}

struct Entry {
    start: u64,
    last: u64,
    device: Box<dyn BusDevice>,
}

/// One address space: ports or MMIO.
#[derive(Default)]
pub struct Bus {
    /// Sorted by start, disjoint.
    entries: Vec<Entry>,
}

impl Bus {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn add(&mut self, start: u64, len: u64, device: Box<dyn BusDevice>) -> Result<(), BusError> {
        let last = len.checked_sub(1).and_then(|l| start.checked_add(l));
        let last = last.ok_or(BusError::BadRange { start, len })?;
        let at = self.entries.partition_point(|e| e.last < start);
        if self.entries.get(at).is_some_and(|e| e.start <= last) {
            return Err(BusError::Overlap { start, len });
        }
        self.entries.insert(at, Entry { start, last, device });
        Ok(())
    }

    fn find(&self, addr: u64, len: usize) -> Option<(&dyn BusDevice, u64)> {
        let at = self.entries.partition_point(|e| e.last < addr);
        let entry = self.entries.get(at).filter(|e| e.start <= addr)?;
        let last = addr.checked_add((len as u64).checked_sub(1)?)?;
        (last <= entry.last).then_some((&*entry.device, addr - entry.start))
    }

    pub fn read(&self, addr: u64, data: &mut [u8]) {
        match self.find(addr, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    pub fn write(&self, addr: u64, data: &[u8]) -> Action {
        self.find(addr, data.len()).map_or(Action::None, |(device, offset)| device.write(offset, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);
    impl BusDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&self, _: u64, _: &[u8]) -> Action {
            Action::Kick(u32::from(self.0))
        }
    }

    fn bus() -> Bus {
        let mut bus = Bus::new();
        bus.add(0x100, 0x10, Box::new(Echo(1))).unwrap();
        bus.add(0x40, 8, Box::new(Echo(2))).unwrap();
        bus
    }

    #[test]
    fn accesses_reach_the_owner_only() {
        let bus = bus();
        let mut byte = [0];
        bus.read(0x10f, &mut byte);
        assert_eq!(byte, [16]);
        bus.read(0x110, &mut byte);
        assert_eq!(byte, [0xff]);
        bus.read(0x3f, &mut byte);
        assert_eq!(byte, [0xff]);
        assert_eq!(bus.write(0x47, &[0]), Action::Kick(2));
        assert_eq!(bus.write(0x48, &[0]), Action::None);
    }

    #[test]
    fn an_access_that_straddles_the_end_touches_nothing() {
        let bus = bus();
        let mut word = [0; 4];
        bus.read(0x10e, &mut word);
        assert_eq!(word, [0xff; 4]);
        assert_eq!(bus.write(0x46, &[0; 4]), Action::None);
        assert_eq!(bus.write(u64::MAX, &[0; 8]), Action::None);
        assert_eq!(bus.write(0x100, &[]), Action::None);
    }

    #[test]
    fn overlaps_and_empty_ranges_are_refused() {
        let mut bus = bus();
        for (start, len) in [(0x10f, 1), (0xff, 2), (0x0, 0x1000), (0x44, 1)] {
            assert_eq!(bus.add(start, len, Box::new(Echo(0))), Err(BusError::Overlap { start, len }));
        }
        assert!(bus.add(5, 0, Box::new(Echo(0))).is_err());
        assert!(bus.add(u64::MAX, 2, Box::new(Echo(0))).is_err());
        assert!(bus.add(0x48, 0xb8, Box::new(Echo(0))).is_ok());
    }
}
