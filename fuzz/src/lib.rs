//! What the targets share: the lying driver of the device tests, and a reader that turns fuzz input into steps.

// The driver is compiled from the devices room's own tests and finds its neighbours by these names.
pub use casemate_devices::{device, memory, mmio, traits};

#[path = "../../src/devices/src/testing.rs"]
pub mod testing;

use testing::{BUF, Driver, MEM};

/// Fuzz input as a sequence of numbers; zeroes after its end.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (now, later) = self.0.split_at(n.min(self.0.len()));
        self.0 = later;
        now
    }

    pub fn u8(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    pub fn u16(&mut self) -> u16 {
        u16::from(self.u8()) | (u16::from(self.u8()) << 8)
    }

    pub fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | (u32::from(self.u16()) << 16)
    }

    /// Mostly an address in the buffer area, sometimes at an edge or anywhere.
    pub fn address(&mut self) -> u64 {
        match self.u8() {
            0 => MEM as u64 - u64::from(self.u8()),
            1 => u64::MAX - u64::from(self.u8()),
            2 => u64::from(self.u32()) << 16,
            3 => Driver::desc(0) + u64::from(self.u16()),
            page => BUF + u64::from(page) * 0x1000,
        }
    }

    /// Mostly a small length.
    pub fn len(&mut self) -> u32 {
        match self.u8() {
            0 => 0,
            1 => u32::MAX - u32::from(self.u8()),
            2 => self.u32(),
            n if n < 64 => u32::from(n),
            n => u32::from(n) * 64,
        }
    }
}

/// One step that any virtio device may meet: registers, memory, descriptors, rings.
pub fn step(driver: &mut Driver, input: &mut Input<'_>, queues: u8) {
    let queue = usize::from(input.u8() % queues);
    match input.u8() % 8 {
        0 => {
            let _ = driver.w(u64::from(input.u16() % 0x140), input.u32());
        }
        1 => {
            let mut data = [0; 8];
            let n = usize::from(input.u8() % 9);
            driver.dev.read(u64::from(input.u16() % 0x1000), &mut data[..n]);
        }
        2 => {
            let n = usize::from(input.u8() % 32);
            let at = BUF + u64::from(input.u8()) * 0x1000 + u64::from(input.u8());
            let bytes = input.bytes(n);
            driver.put(at, bytes);
        }
        3 => {
            let (index, addr, len) = (input.u16() % 300, input.address(), input.len());
            driver.write_desc(Driver::desc(queue), index, addr, len, input.u16() % 8, input.u16() % 300);
        }
        4 => driver.offer(queue, input.u16() % 300),
        5 => {
            let parts: Vec<_> = (0..input.u8() % 5)
                .map(|_| (input.address(), input.len(), u16::from(input.u8() % 2) * testing::WRITE))
                .collect();
            if !parts.is_empty() {
                driver.submit(queue, &parts);
            }
        }
        6 => driver.start(u64::from(input.u32()) << 8 | 0xff | 1 << 32),
        _ => {
            driver.kick(queue);
        }
    }
}
