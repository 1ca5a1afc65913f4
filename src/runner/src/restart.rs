//! A reboot where the plan wants one: the same process, the same confinement, a guest from the start.
//!
//! Trust: the guest decides when. Each round ends all vCPU loops, resets all devices, gives all memory back and loads
//! the image again under the main thread's filter; nothing of the guest's first life reaches its second.
//!
//! ```text
//! vCPU: Reset -> mail -> main: recall all vCPUs -> reset devices -> reload -> next turn -> vCPUs rewind -> resume
//! ```

use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use casemate_devices::VirtioMmio;
use casemate_vm::{Gate, Image, Platform, Reloader};

use crate::error::{Error, Step};
use crate::io::Device;
use crate::reports::Again;

const STEP: &str = "restart the guest";
/// vCPUs leave the guest within this time.
const LIMIT: Duration = Duration::from_secs(5);
/// A guest that does nothing but reboot does so at most ten times a second.
const PAUSE: Duration = Duration::from_millis(100);
/// Offset of the virtio-mmio status register; writing zero resets the device.
const STATUS: u64 = 0x70;

/// Counts the guest's lives; vCPU threads wait here for the next one.
#[derive(Debug, Default)]
pub struct Turns {
    turn: Mutex<u64>,
    changed: Condvar,
}

impl Turns {
    /// Waits for the turn after `seen`.
    pub fn wait(&self, seen: u64) -> u64 {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        while *turn <= seen {
            turn = self.changed.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
        *turn
    }

    fn next(&self) {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
    }
}

/// What a reset needs; kept only where the plan wants reboots.
pub struct Restart {
    pub turns: Arc<Turns>,
    pub reloader: Reloader,
    pub platform: Platform,
    pub kernel: File,
    pub initrd: Option<File>,
    pub initrd_tail: Vec<u8>,
    pub command_line: String,
    pub devices: Vec<Device>,
    pub again: Again,
}

impl Restart {
    /// The next life. The gate must be opened afterwards.
    pub fn prepare(&mut self, gate: &Gate) -> Result<(), Error> {
        if !gate.recall(LIMIT) {
            return Err(Error::because(STEP, "a vCPU did not leave the guest"));
        }
        std::thread::sleep(PAUSE);
        for device in &self.devices {
            if let Device::Virtio(device) = device {
                reset(device);
            }
        }
        self.again.announce();
        let mut image = Image {
            kernel: &mut self.kernel,
            initrd: self.initrd.as_mut(),
            initrd_tail: &self.initrd_tail,
            command_line: &self.command_line,
        };
        self.reloader.reload(&mut image, &self.platform).step(STEP)?;
        self.turns.next();
        Ok(())
    }
}

/// As a driver does it: no I/O of the device outlives the write.
fn reset(device: &VirtioMmio) {
    let _nothing_to_do = device.write(STATUS, &0u32.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_waited_for_once() {
        let turns = Arc::new(Turns::default());
        let theirs = Arc::clone(&turns);
        let waiter = std::thread::spawn(move || (theirs.wait(0), theirs.wait(1)));
        turns.next();
        turns.next();
        let (first, second) = waiter.join().unwrap();
        assert!(first >= 1 && second == 2);
    }
}
