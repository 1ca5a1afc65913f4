//! From vCPU exits to devices: the two buses, and the bell that wakes the io thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use casemate_devices::{Action, Bus};
use casemate_sys::rustix::event::{EventfdFlags, eventfd};
use casemate_sys::rustix::io::{read, write};
use casemate_vm::ExitHandler;

use crate::error::{Error, Step};

/// Wakes the io thread and says for which devices.
#[derive(Debug)]
pub struct Bell {
    devices: AtomicU32,
    event: OwnedFd,
}

impl Bell {
    pub fn new() -> Result<Self, Error> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).step("make the io thread's event")?;
        Ok(Self { devices: AtomicU32::new(0), event })
    }

    /// Device `index` has work. Devices coalesce: one ring per device and turn.
    pub fn ring(&self, index: u32) {
        self.devices.fetch_or(1u32.checked_shl(index).unwrap_or(0), Ordering::SeqCst);
        self.wake();
    }

    /// Wakes the io thread without naming a device.
    pub fn wake(&self) {
        // A full counter means it is awake already.
        let _ = write(&self.event, &1u64.to_ne_bytes());
    }

    /// One bit per device that rang since the last call.
    pub fn answer(&self) -> u32 {
        let mut counter = [0u8; 8];
        let _ = read(&self.event, &mut counter);
        self.devices.swap(0, Ordering::SeqCst)
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Both address spaces. Read-only once the VM runs.
pub struct Exits {
    pub pio: Bus,
    pub mmio: Bus,
    pub bell: std::sync::Arc<Bell>,
}

impl Exits {
    fn act(&self, action: Action) {
        // Power, reset and panic ports are the vm room's own; the buses carry none.
        if let Action::Kick(index) = action {
            self.bell.ring(index);
        }
    }
}

impl ExitHandler for Exits {
    /// All port devices have byte registers: string I/O and wide accesses reach one port byte by byte.
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        data.chunks_mut(1).for_each(|byte| self.pio.read(port.into(), byte));
    }

    fn pio_write(&self, port: u16, data: &[u8]) {
        data.chunks(1).for_each(|byte| self.act(self.pio.write(port.into(), byte)));
    }

    fn mmio_read(&self, addr: u64, data: &mut [u8]) {
        self.mmio.read(addr, data);
    }

    fn mmio_write(&self, addr: u64, data: &[u8]) {
        self.act(self.mmio.write(addr, data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_coalesce_and_are_answered_once() {
        let bell = Bell::new().unwrap();
        bell.ring(3);
        bell.ring(3);
        bell.ring(0);
        bell.ring(77);
        assert_eq!(bell.answer(), 0b1001);
        assert_eq!(bell.answer(), 0);
    }
}
