//! A reboot where the plan wants one: the same process, the same confinement, a guest from the start.
//!
//! Trust: the guest decides when. Each round ends all vCPU loops, resets all devices, gives all memory back and loads
//! the image again under the main thread's filter; nothing of the guest's first life reaches its second.
//!
//! ```text
//! vCPU: Reset -> mail -> main: recall all vCPUs -> each rewinds and arrives
//!     -> main: reset devices -> reload -> next turn -> boot processor to the entry -> resume
//! ```

use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use casemate_devices::VirtioMmio;
use casemate_vm::{Gate, Image, Platform, Reloader};

use crate::error::{Error, Step};
use crate::exits::Bell;
use crate::io::Device;
use crate::reports::Again;

const STEP: &str = "restart the guest";
/// vCPUs leave the guest within this time.
const LIMIT: Duration = Duration::from_secs(5);
/// A guest that does nothing but reboot does so at most ten times a second.
const PAUSE: Duration = Duration::from_millis(100);
/// Offset of the virtio-mmio status register; writing zero resets the device.
const STATUS: u64 = 0x70;

/// Counts the guest's lives; vCPU threads meet here between two of them.
#[derive(Debug, Default)]
pub struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    turn: u64,
    arrived: usize,
}

impl Turns {
    /// A rewound vCPU waits for the turn after `seen`.
    pub fn arrive(&self, seen: u64) -> u64 {
        let mut state = self.lock();
        state.arrived += 1;
        self.changed.notify_all();
        while state.turn <= seen {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.turn
    }

    /// Waits until all vCPUs have arrived. `false` when one does not within `limit`.
    fn gathered(&self, vcpus: usize, limit: Duration) -> bool {
        let waiting = |state: &mut State| state.arrived < vcpus;
        let outcome = self.changed.wait_timeout_while(self.lock(), limit, waiting);
        !outcome.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn next(&self) {
        let mut state = self.lock();
        (state.turn, state.arrived) = (state.turn + 1, 0);
        drop(state);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a reset needs; kept only where the plan wants reboots.
pub struct Restart {
    pub turns: Arc<Turns>,
    pub vcpus: usize,
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
    /// The next life, held at the gate: it begins when the gate is opened.
    pub fn prepare(&mut self, gate: &Gate, bell: &Bell) -> Result<(), Error> {
        if !gate.recall(LIMIT) || !self.turns.gathered(self.vcpus, LIMIT) {
            return Err(Error::because(STEP, "a vCPU did not leave the guest"));
        }
        std::thread::sleep(PAUSE);
        for (index, device) in self.devices.iter().enumerate() {
            match device {
                Device::Virtio(device) => reset(device),
                // What the first life wrote last, a line without an end perhaps, goes to the log now.
                Device::Serial(_) => bell.ring(index as u32),
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
        // Held, not recalled, before anybody goes on: a vCPU that is quicker than this thread waits at the gate.
        gate.pause(LIMIT);
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
    fn nobody_goes_on_before_all_have_arrived() {
        let turns = Arc::new(Turns::default());
        assert!(!turns.gathered(1, Duration::from_millis(1)));
        let theirs = Arc::clone(&turns);
        let vcpu = std::thread::spawn(move || (theirs.arrive(0), theirs.arrive(1)));
        for _ in 0..2 {
            assert!(turns.gathered(1, Duration::from_secs(5)));
            turns.next();
        }
        assert_eq!(vcpu.join().unwrap(), (1, 2));
    }
}
