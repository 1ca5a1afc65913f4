//! What a virtio device is to a transport, and the queues it may touch while it has its turn.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::block::BlockState;
use crate::console::ConsoleState;
use crate::core::Interrupt;
use crate::memory::GuestMem;
use crate::queue::{Chain, Fault, VirtQueue};
use crate::rng::RngState;
use crate::traits::{MigrationStatus, Progress, Readiness};
use crate::vsock::VsockState;

/// virtio device types (virtio 1.2, 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    Block,
    Console,
    Rng,
    Vsock,
}

impl DeviceKind {
    pub fn virtio_id(self) -> u32 {
        match self {
            Self::Block => 2,
            Self::Console => 3,
            Self::Rng => 4,
            Self::Vsock => 19,
        }
    }
}

/// Ring features that the queue layer implements for every device.
pub const RING_FEATURES: u64 = (1 << 28) | (1 << 29);
/// VIRTIO_F_VERSION_1: without it a driver is refused.
pub const VERSION_1: u64 = 1 << 32;

/// State of any device: plain, versioned, serializable. Untrusted when it comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    Block(BlockState),
    Console(ConsoleState),
    Rng(RngState),
    Vsock(VsockState),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RestoreError {
    #[error("the saved state is of another kind of device")]
    Kind,
    #[error("the saved state has version {found}, this build reads {known}")]
    Version { found: u32, known: u32 },
    #[error("the saved state does not fit the device: {0}")]
    Mismatch(&'static str),
    #[error("the saved queues cannot be set up: {0}")]
    Queues(Fault),
}

/// One virtio device behind any transport. All methods run under the transport's lock; none blocks for long.
pub trait VirtioDevice: Send {
    fn kind(&self) -> DeviceKind;
    /// Largest size of each queue; powers of two. The length is the number of queues (at most 32).
    fn queue_sizes(&self) -> &'static [u16];
    /// Device feature bits, without the ring features and VERSION_1.
    fn features(&self) -> u64;
    /// Fills `data` from the configuration space; bytes past its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes to the configuration space; read-only fields ignore it.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// The driver said DRIVER_OK with these features. All queues are processed next.
    fn activate(&mut self, features: u64);
    /// The driver reset the device: drop whatever belongs to it.
    fn reset(&mut self);
    /// The driver notified `queue`, or there is work left from the last turn. Bounded work only.
    fn process(&mut self, queue: usize, io: &mut Queues<'_>) -> Result<Progress, Fault>;
    /// A host stream of this device became ready. Called whether or not a driver is active.
    fn host_event(&mut self, _token: u32, _ready: Readiness, _io: &mut Queues<'_>) -> Result<Progress, Fault> {
        Ok(Progress::Idle)
    }
    /// The VM is over: what the device still holds goes to its host side. Bounded work only.
    fn finish(&mut self) {}
    fn migration(&self) -> MigrationStatus;
    fn save(&self) -> DeviceState;
    /// Called on a fresh device before its queues come back.
    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError>;
}

/// A handled request: bytes written for the used ring, and what it cost of the turn's budget.
pub struct Served {
    pub written: u32,
    pub cost: u32,
}

/// The queues of one device, its view of memory and its interrupt, for one turn.
pub struct Queues<'a> {
    pub(crate) mem: &'a GuestMem,
    pub(crate) queues: &'a mut [VirtQueue],
    pub(crate) irq: &'a Interrupt,
}

impl<'a> Queues<'a> {
    pub fn mem(&self) -> &'a GuestMem {
        self.mem
    }

    pub fn queue(&mut self, index: usize) -> &mut VirtQueue {
        &mut self.queues[index]
    }

    pub fn pop(&mut self, index: usize, chain: &mut Chain) -> Result<bool, Fault> {
        self.queues[index].pop(self.mem, chain)
    }

    pub fn push(&mut self, index: usize, chain: &Chain, written: u32) -> Result<(), Fault> {
        self.queues[index].push(self.mem, chain.head(), written)
    }

    /// Raises the interrupt for a queue if its driver wants one.
    pub fn signal(&mut self, index: usize) -> Result<(), Fault> {
        if self.queues[index].wants_interrupt(self.mem)? {
            self.irq.used_buffers();
        }
        Ok(())
    }

    /// The loop of every request/response queue: pop, handle, push, until the queue is empty or `budget` is spent.
    pub fn serve(
        &mut self,
        index: usize,
        chain: &mut Chain,
        budget: u32,
        mut handle: impl FnMut(&Chain, &GuestMem) -> Result<Served, Fault>,
    ) -> Result<Progress, Fault> {
        let mut left = budget;
        let mut pushed = false;
        let progress = loop {
            self.queues[index].quiet(self.mem)?;
            while left > 0 && self.pop(index, chain)? {
                let served = handle(chain, self.mem)?;
                self.push(index, chain, served.written)?;
                pushed = true;
                left = left.saturating_sub(served.cost.max(1));
            }
            if left == 0 {
                break Progress::More;
            }
            if !self.queues[index].listen(self.mem)? {
                break Progress::Idle;
            }
        };
        if pushed {
            self.signal(index)?;
        }
        Ok(progress)
    }
}

/// Copies the part of a device's configuration that an access covers; the rest reads as zero.
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let Some(from) = usize::try_from(offset).ok().and_then(|o| config.get(o..)) else { return };
    let n = from.len().min(data.len());
    data[..n].copy_from_slice(&from[..n]);
}
