//! virtio-mmio version 2 (virtio 1.2, 4.2.2): a register file in front of a [`DeviceCore`].
//!
//! vCPU threads call [`VirtioMmio::read`] and [`VirtioMmio::write`]; the guest chooses every offset, width and value.
//! The status register only moves forward, one step at a time; anything else is ignored and the driver reads back what
//! really holds. Queue registers can be written between FEATURES_OK and DRIVER_OK and never again until a reset.
//!
//! ```text
//!   0 --ACKNOWLEDGE--> --DRIVER--> --FEATURES_OK--> (queues) --DRIVER_OK--> live
//!   FAILED from anywhere; writing 0 resets from anywhere
//! ```

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::core::DeviceCore;
use crate::device::{DeviceKind, DeviceState, RestoreError, VERSION_1, VirtioDevice};
use crate::memory::GuestMem;
use crate::queue::{Fault, QueueSetup};
use crate::traits::{Action, MigrationStatus, Progress, Readiness, Trigger};

/// Size of the register window, configuration space included.
pub const MMIO_WINDOW: u64 = 0x1000;

const MAGIC: u32 = 0x7472_6976;
const VENDOR: u32 = u32::from_le_bytes(*b"CSMT");
const CONFIG_SPACE: u64 = 0x100;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

/// Register offsets, named as in the specification.
mod reg {
    pub const MAGIC_VALUE: u64 = 0x00;
    pub const VERSION: u64 = 0x04;
    pub const DEVICE_ID: u64 = 0x08;
    pub const VENDOR_ID: u64 = 0x0c;
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub const QUEUE_SEL: u64 = 0x30;
    pub const QUEUE_NUM_MAX: u64 = 0x34;
    pub const QUEUE_NUM: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const QUEUE_NOTIFY: u64 = 0x50;
    pub const INTERRUPT_STATUS: u64 = 0x60;
    pub const INTERRUPT_ACK: u64 = 0x64;
    pub const STATUS: u64 = 0x70;
    pub const QUEUE_DESC_LOW: u64 = 0x80;
    pub const QUEUE_DESC_HIGH: u64 = 0x84;
    pub const QUEUE_DRIVER_LOW: u64 = 0x90;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x94;
    pub const QUEUE_DEVICE_LOW: u64 = 0xa0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0xa4;
    pub const SHM_LEN_LOW: u64 = 0xb0;
    pub const SHM_BASE_HIGH: u64 = 0xbc;
    pub const CONFIG_GENERATION: u64 = 0xfc;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Regs {
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<QueueSetup>,
}

impl Regs {
    fn new(sizes: &[u16]) -> Self {
        let queues = sizes.iter().map(|&s| QueueSetup { size: u32::from(s), ..Default::default() }).collect();
        Self { status: 0, device_features_sel: 0, driver_features_sel: 0, driver_features: 0, queue_sel: 0, queues }
    }

    fn selected(&self) -> Option<&QueueSetup> {
        self.queues.get(self.queue_sel as usize)
    }
}

/// Saved registers and device. Untrusted when it comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioState {
    pub version: u32,
    pub kind: DeviceKind,
    regs: Regs,
    interrupt_status: u32,
    pub device: DeviceState,
}

impl MmioState {
    pub const VERSION: u32 = 1;
}

/// A virtio device at a window of guest-physical addresses.
pub struct VirtioMmio {
    regs: Mutex<Regs>,
    core: DeviceCore,
}

impl VirtioMmio {
    /// `index` is the caller's name for the device; [`Action::Kick`] carries it.
    pub fn new(
        index: u32,
        device: Box<dyn VirtioDevice>,
        mem: GuestMem,
        line: Box<dyn Trigger>,
    ) -> Result<Self, Fault> {
        let core = DeviceCore::new(index, device, mem, line)?;
        Ok(Self { regs: Mutex::new(Regs::new(core.queue_sizes())), core })
    }

    fn regs(&self) -> MutexGuard<'_, Regs> {
        self.regs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A guest read at `offset` into the window. Everything unknown reads as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= CONFIG_SPACE {
            self.core.read_config(offset - CONFIG_SPACE, data);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        // The interrupt handler reads this one: no lock.
        if offset == reg::INTERRUPT_STATUS {
            return self.core.interrupt().status();
        }
        let regs = self.regs();
        match offset {
            reg::MAGIC_VALUE => MAGIC,
            reg::VERSION => 2,
            reg::DEVICE_ID => self.core.kind().virtio_id(),
            reg::VENDOR_ID => VENDOR,
            reg::DEVICE_FEATURES => half(self.core.features(), regs.device_features_sel),
            reg::QUEUE_NUM_MAX => self.core.queue_sizes().get(regs.queue_sel as usize).map_or(0, |&s| u32::from(s)),
            reg::QUEUE_READY => regs.selected().map_or(0, |q| u32::from(q.ready)),
            reg::STATUS => self.status(&regs),
            // No shared memory regions: length and base read as all ones (4.2.2).
            reg::SHM_LEN_LOW..=reg::SHM_BASE_HIGH => u32::MAX,
            reg::CONFIG_GENERATION => 0,
            _ => 0,
        }
    }

    fn status(&self, regs: &Regs) -> u32 {
        regs.status | if self.core.needs_reset() { NEEDS_RESET } else { 0 }
    }

    /// A guest write at `offset` into the window.
    pub fn write(&self, offset: u64, data: &[u8]) -> Action {
        if offset >= CONFIG_SPACE {
            self.core.write_config(offset - CONFIG_SPACE, data);
            return Action::None;
        }
        let Ok(word) = <[u8; 4]>::try_from(data) else { return Action::None };
        let value = u32::from_le_bytes(word);
        match offset {
            // The two of the fast path take no lock.
            reg::QUEUE_NOTIFY => return self.core.notify(value),
            reg::INTERRUPT_ACK => self.core.interrupt().acknowledge(value),
            reg::STATUS => return self.write_status(value),
            reg::DEVICE_FEATURES_SEL => self.regs().device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => self.regs().driver_features_sel = value,
            reg::DRIVER_FEATURES => self.write_features(value),
            reg::QUEUE_SEL => self.regs().queue_sel = value,
            reg::QUEUE_READY => self.write_queue_ready(value),
            reg::QUEUE_NUM..=reg::QUEUE_DEVICE_HIGH => self.write_queue(offset, value),
            _ => {}
        }
        Action::None
    }

    fn write_status(&self, value: u32) -> Action {
        let mut regs = self.regs();
        if value == 0 {
            // Waits for the io thread's turn, then nothing of this driver is left in the device.
            self.core.reset();
            *regs = Regs::new(self.core.queue_sizes());
            return Action::None;
        }
        let old = regs.status;
        if value & FAILED != 0 {
            regs.status |= FAILED;
            return Action::None;
        }
        // Drivers write back what they read plus one bit; NEEDS_RESET is the device's alone.
        let value = value & !NEEDS_RESET;
        if old & FAILED != 0 || value & old != old {
            return Action::None;
        }
        match (old, value & !old) {
            (0, ACKNOWLEDGE) => regs.status |= ACKNOWLEDGE,
            (ACKNOWLEDGE, DRIVER) => regs.status |= DRIVER,
            (0, added) if added == ACKNOWLEDGE | DRIVER => regs.status |= added,
            (old, FEATURES_OK) if old == ACKNOWLEDGE | DRIVER => {
                let wanted = regs.driver_features;
                if wanted & !self.core.features() == 0 && wanted & VERSION_1 != 0 {
                    regs.status |= FEATURES_OK;
                }
            }
            (old, DRIVER_OK) if old == ACKNOWLEDGE | DRIVER | FEATURES_OK => {
                regs.status |= DRIVER_OK;
                return self.core.activate(regs.driver_features, &regs.queues);
            }
            _ => {}
        }
        Action::None
    }

    fn write_features(&self, value: u32) {
        let mut regs = self.regs();
        if regs.status & (DRIVER | FEATURES_OK | FAILED) != DRIVER {
            return;
        }
        match regs.driver_features_sel {
            0 => regs.driver_features = (regs.driver_features & !0xffff_ffff) | u64::from(value),
            1 => regs.driver_features = (regs.driver_features & 0xffff_ffff) | (u64::from(value) << 32),
            // Bits 64 and up exist in no feature set of ours: accepting one must not pass FEATURES_OK.
            _ if value != 0 => regs.status |= FAILED,
            _ => {}
        }
    }

    fn write_queue_ready(&self, value: u32) {
        let mut regs = self.regs();
        if !queues_open(&regs) {
            return;
        }
        let selected = regs.queue_sel as usize;
        if let Some(queue) = regs.queues.get_mut(selected) {
            queue.ready = value == 1;
        }
    }

    fn write_queue(&self, offset: u64, value: u32) {
        let mut regs = self.regs();
        if !queues_open(&regs) {
            return;
        }
        let selected = regs.queue_sel as usize;
        let Some(queue) = regs.queues.get_mut(selected).filter(|q| !q.ready) else { return };
        match offset {
            reg::QUEUE_NUM => queue.size = value,
            reg::QUEUE_DESC_LOW => set_low(&mut queue.desc, value),
            reg::QUEUE_DESC_HIGH => set_high(&mut queue.desc, value),
            reg::QUEUE_DRIVER_LOW => set_low(&mut queue.avail, value),
            reg::QUEUE_DRIVER_HIGH => set_high(&mut queue.avail, value),
            reg::QUEUE_DEVICE_LOW => set_low(&mut queue.used, value),
            reg::QUEUE_DEVICE_HIGH => set_high(&mut queue.used, value),
            _ => {}
        }
    }

    /// One turn of the io thread, after a kick or when the last turn answered [`Progress::More`].
    #[must_use]
    pub fn process(&self) -> Progress {
        self.core.process()
    }

    /// A host stream of the device became ready.
    #[must_use]
    pub fn host_event(&self, token: u32, ready: Readiness) -> Progress {
        self.core.host_event(token, ready)
    }

    /// The VM is over: the device closes what it holds.
    pub fn finish(&self) {
        self.core.finish();
    }

    /// Why the device stopped, once per stop; for the log.
    pub fn take_fault(&self) -> Option<Fault> {
        self.core.take_fault()
    }

    pub fn kind(&self) -> DeviceKind {
        self.core.kind()
    }

    pub fn migration(&self) -> MigrationStatus {
        self.core.migration()
    }

    /// The vCPUs and the io thread stand still.
    pub fn save(&self) -> MmioState {
        let mut regs = self.regs().clone();
        let (device, positions) = self.core.save();
        for (queue, (avail, used)) in regs.queues.iter_mut().zip(positions) {
            (queue.next_avail, queue.next_used) = (avail, used);
        }
        regs.status = self.status(&regs);
        let interrupt_status = self.core.interrupt().status();
        MmioState { version: MmioState::VERSION, kind: self.core.kind(), regs, interrupt_status, device }
    }

    /// Into a fresh transport; afterwards call [`Self::process`] once.
    pub fn restore(&self, state: &MmioState) -> Result<(), RestoreError> {
        if state.version != MmioState::VERSION {
            return Err(RestoreError::Version { found: state.version, known: MmioState::VERSION });
        }
        if state.kind != self.core.kind() {
            return Err(RestoreError::Kind);
        }
        let mut regs = self.regs();
        if state.regs.queues.len() != regs.queues.len() {
            return Err(RestoreError::Mismatch("number of queues"));
        }
        if state.regs.driver_features & !self.core.features() != 0 {
            return Err(RestoreError::Mismatch("features"));
        }
        let stopped = state.regs.status & NEEDS_RESET != 0;
        let live = state.regs.status & DRIVER_OK != 0 && !stopped;
        let active = live.then_some((state.regs.driver_features, state.regs.queues.as_slice()));
        self.core.restore(&state.device, active)?;
        if stopped {
            self.core.restore_stopped();
        }
        self.core.interrupt().set_status(state.interrupt_status);
        *regs = state.regs.clone();
        regs.status &= !NEEDS_RESET;
        Ok(())
    }
}

/// Queue registers move only between FEATURES_OK and DRIVER_OK.
fn queues_open(regs: &Regs) -> bool {
    regs.status & (FEATURES_OK | DRIVER_OK | FAILED) == FEATURES_OK
}

fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = (*address & !0xffff_ffff) | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = (*address & 0xffff_ffff) | (u64::from(value) << 32);
}
