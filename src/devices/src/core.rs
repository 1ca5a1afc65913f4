//! What every transport shares: one device, its queues, its interrupt, and who may touch them when.
//!
//! vCPU threads touch registers only; the io thread does the work. A notification is an atomic bit, so a storm of them
//! costs the guest its own time and wakes the io thread once. The device and its queues sit under one lock that the io
//! thread holds for one bounded turn; a driver's reset waits for at most that turn, so no I/O outlives a reset.
//!
//! ```text
//!   idle --activate--> live --fault--> stopped (NEEDS_RESET) --reset--> idle
//!                       '------------------reset-------------------------^
//! ```

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::device::{DeviceKind, DeviceState, Queues, RING_FEATURES, RestoreError, VERSION_1, VirtioDevice};
use crate::memory::GuestMem;
use crate::queue::{Fault, QueueSetup, VirtQueue};
use crate::traits::{Action, MigrationStatus, Progress, Readiness, Trigger};

const STATUS_USED: u32 = 1;
const STATUS_CONFIG: u32 = 2;

/// An interrupt line and the status register behind it.
pub struct Interrupt {
    status: AtomicU32,
    line: Box<dyn Trigger>,
}

impl Interrupt {
    fn new(line: Box<dyn Trigger>) -> Self {
        Self { status: AtomicU32::new(0), line }
    }

    fn raise(&self, bit: u32) {
        // The status must be visible before the edge: the handler reads it.
        self.status.fetch_or(bit, Ordering::SeqCst);
        self.line.trigger();
    }

    pub fn used_buffers(&self) {
        self.raise(STATUS_USED);
    }

    pub fn config_changed(&self) {
        self.raise(STATUS_CONFIG);
    }

    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    pub(crate) fn set_status(&self, bits: u32) {
        self.status.store(bits & (STATUS_USED | STATUS_CONFIG), Ordering::SeqCst);
    }
}

struct Inner {
    device: Box<dyn VirtioDevice>,
    queues: Vec<VirtQueue>,
    fault: Option<Fault>,
}

/// A device with its queues, without a register layout.
pub struct DeviceCore {
    index: u32,
    kind: DeviceKind,
    features: u64,
    sizes: &'static [u16],
    mem: GuestMem,
    irq: Interrupt,
    /// Queues notified and not yet looked at, one bit each.
    pending: AtomicU32,
    /// Queues that are rate-limited: looked at in the next turn, whatever brings it, but no reason to hold back a kick.
    deferred: AtomicU32,
    live: AtomicBool,
    needs_reset: AtomicBool,
    inner: Mutex<Inner>,
}

impl DeviceCore {
    pub fn new(
        index: u32,
        device: Box<dyn VirtioDevice>,
        mem: GuestMem,
        line: Box<dyn Trigger>,
    ) -> Result<Self, Fault> {
        let sizes = device.queue_sizes();
        let queues = sizes.iter().map(|&size| VirtQueue::new(size)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            index,
            kind: device.kind(),
            features: device.features() | RING_FEATURES | VERSION_1,
            sizes,
            mem,
            irq: Interrupt::new(line),
            pending: AtomicU32::new(0),
            deferred: AtomicU32::new(0),
            live: AtomicBool::new(false),
            needs_reset: AtomicBool::new(false),
            inner: Mutex::new(Inner { device, queues, fault: None }),
        })
    }

    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    pub fn features(&self) -> u64 {
        self.features
    }

    pub fn queue_sizes(&self) -> &'static [u16] {
        self.sizes
    }

    pub fn interrupt(&self) -> &Interrupt {
        &self.irq
    }

    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    // A panic under the lock aborts the runner (panic=abort); in tests the state is still good enough to look at.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.lock().device.read_config(offset, data);
    }

    pub fn write_config(&self, offset: u64, data: &[u8]) {
        self.lock().device.write_config(offset, data);
    }

    /// The driver said DRIVER_OK. A set-up that does not hold stops the device at once.
    pub fn activate(&self, features: u64, setups: &[QueueSetup]) -> Action {
        let mut inner = self.lock();
        match Self::set_up_queues(&mut inner.queues, features, setups, &self.mem) {
            Ok(()) => {
                inner.device.activate(features);
                self.live.store(true, Ordering::SeqCst);
                drop(inner);
                self.kick(self.all_queues())
            }
            Err(fault) => {
                self.stop(&mut inner, fault);
                Action::None
            }
        }
    }

    fn set_up_queues(
        queues: &mut [VirtQueue],
        features: u64,
        setups: &[QueueSetup],
        mem: &GuestMem,
    ) -> Result<(), Fault> {
        let event_idx = features & (1 << 29) != 0;
        for (i, (queue, setup)) in queues.iter_mut().zip(setups).enumerate() {
            queue.activate(i as u16, setup, event_idx, mem)?;
        }
        Ok(())
    }

    fn all_queues(&self) -> u32 {
        u32::MAX >> (32 - self.sizes.len() as u32).min(31)
    }

    /// The driver reset the device: waits for the turn under way, then nothing of the driver is left.
    pub fn reset(&self) {
        let mut inner = self.lock();
        self.live.store(false, Ordering::SeqCst);
        inner.queues.iter_mut().for_each(VirtQueue::reset);
        inner.device.reset();
        inner.fault = None;
        self.needs_reset.store(false, Ordering::SeqCst);
        self.pending.store(0, Ordering::SeqCst);
        self.deferred.store(0, Ordering::SeqCst);
        self.irq.set_status(0);
    }

    /// A queue notification from a vCPU. Takes no lock.
    pub fn notify(&self, queue: u32) -> Action {
        if (queue as usize) < self.sizes.len() && self.live.load(Ordering::SeqCst) {
            self.kick(1 << queue)
        } else {
            Action::None
        }
    }

    fn kick(&self, bits: u32) -> Action {
        if self.pending.fetch_or(bits, Ordering::SeqCst) == 0 { Action::Kick(self.index) } else { Action::None }
    }

    /// The VM is over.
    pub fn finish(&self) {
        self.lock().device.finish();
    }

    /// One turn of the io thread: every notified queue once, each within its budget.
    pub fn process(&self) -> Progress {
        let mut inner = self.lock();
        let notified = self.pending.swap(0, Ordering::SeqCst) | self.deferred.swap(0, Ordering::SeqCst);
        let mut progress = Progress::Idle;
        for queue in (0..self.sizes.len()).filter(|q| notified & (1 << q) != 0) {
            // A queue that is not live is empty, but the device may still have host streams to serve.
            let Inner { device, queues, .. } = &mut *inner;
            let mut io = Queues { mem: &self.mem, queues, irq: &self.irq };
            match device.process(queue, &mut io) {
                Ok(more) => {
                    self.remember(1 << queue, more);
                    progress = progress.and(more);
                }
                Err(fault) => self.stop(&mut inner, fault),
            }
        }
        progress
    }

    /// Marks queues for the turn that `progress` asks for.
    fn remember(&self, queues: u32, progress: Progress) {
        let _before = match progress {
            Progress::Idle => 0,
            Progress::More => self.pending.fetch_or(queues, Ordering::SeqCst),
            Progress::After(_) => self.deferred.fetch_or(queues, Ordering::SeqCst),
        };
    }

    /// A host stream of this device became ready.
    pub fn host_event(&self, token: u32, ready: Readiness) -> Progress {
        let mut inner = self.lock();
        let Inner { device, queues, .. } = &mut *inner;
        let mut io = Queues { mem: &self.mem, queues, irq: &self.irq };
        match device.host_event(token, ready, &mut io) {
            Ok(more) => {
                // What is left is taken up by the next turn, on whichever queue the device likes.
                self.remember(1, more);
                more
            }
            Err(fault) => {
                self.stop(&mut inner, fault);
                Progress::Idle
            }
        }
    }

    fn stop(&self, inner: &mut Inner, fault: Fault) {
        self.live.store(false, Ordering::SeqCst);
        inner.queues.iter_mut().for_each(VirtQueue::stop);
        inner.fault = Some(fault);
        self.needs_reset.store(true, Ordering::SeqCst);
        self.irq.config_changed();
    }

    /// Why the device stopped, once per stop; for the log.
    pub fn take_fault(&self) -> Option<Fault> {
        self.lock().fault.take()
    }

    pub fn migration(&self) -> MigrationStatus {
        self.lock().device.migration()
    }

    /// The device's state and the position of each queue. The vCPUs and the io thread stand still.
    pub fn save(&self) -> (DeviceState, Vec<(u16, u16)>) {
        let inner = self.lock();
        (inner.device.save(), inner.queues.iter().map(VirtQueue::positions).collect())
    }

    /// Brings back a saved device; with `active`, its queues too. Every value is checked like a driver's.
    pub fn restore(&self, state: &DeviceState, active: Option<(u64, &[QueueSetup])>) -> Result<(), RestoreError> {
        let mut inner = self.lock();
        inner.device.restore(state)?;
        if let Some((features, setups)) = active {
            Self::set_up_queues(&mut inner.queues, features, setups, &self.mem).map_err(RestoreError::Queues)?;
            inner.device.activate(features);
            self.live.store(true, Ordering::SeqCst);
            self.pending.store(self.all_queues(), Ordering::SeqCst);
        }
        Ok(())
    }

    pub(crate) fn restore_stopped(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
    }
}
