//! One virtqueue as devices use it: chains are collected once, completely and bounded, before a device looks at them.
//!
//! The walking itself is virtio-queue's; this layer adds what a hostile driver needs to meet: a chain that loops,
//! leaves the table, is longer than the queue, nests indirect tables or mixes the order of readable and writable
//! parts is a [`Fault`], never a short chain that looks valid. A fault stops the device (DEVICE_NEEDS_RESET).

use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestAddress;

use crate::memory::{GuestAddr, GuestMem, OutsideMemory, Segment};

/// What a driver did that no correct driver does. The device stops until it is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    #[error("the driver's available index jumps past the ring")]
    AvailIndex,
    #[error("a descriptor chain is broken: it loops, leaves its table or nests indirect tables")]
    BrokenChain,
    #[error("a descriptor chain is longer than its queue")]
    ChainTooLong,
    #[error("a descriptor chain has a readable part after a writable one")]
    Misordered,
    #[error("a descriptor chain is too short for its request")]
    ChainTooShort,
    #[error("a virtqueue ring cannot be accessed")]
    Ring,
    #[error("queue {0} is set up with an invalid size, alignment or address")]
    QueueSetup(u16),
    #[error(transparent)]
    OutsideMemory(#[from] OutsideMemory),
}

/// Where the driver placed a queue, as written to the transport; unchecked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSetup {
    pub size: u32,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    pub ready: bool,
    /// Ring positions; zero unless restored.
    pub next_avail: u16,
    pub next_used: u16,
}

/// A collected descriptor chain; reused from request to request so that none allocates.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    readable: usize,
}

impl Chain {
    /// The driver's readable part (device input).
    pub fn readable(&self) -> &[Segment] {
        &self.segments[..self.readable]
    }

    /// The device's writable part (device output).
    pub fn writable(&self) -> &[Segment] {
        &self.segments[self.readable..]
    }

    pub fn head(&self) -> u16 {
        self.head
    }

    fn push(&mut self, segment: Segment, writable: bool, limit: u16) -> Result<(), Fault> {
        if self.segments.len() >= usize::from(limit) {
            return Err(Fault::ChainTooLong);
        }
        if !writable {
            if self.readable != self.segments.len() {
                return Err(Fault::Misordered);
            }
            self.readable += 1;
        }
        self.segments.push(segment);
        Ok(())
    }
}

/// A queue that the driver may or may not have set up. Not live: nothing to pop, nothing is written.
pub struct VirtQueue {
    queue: Queue,
    live: bool,
}

impl VirtQueue {
    /// `max_size` is a power of two, at most 32768, from the device's own table.
    pub fn new(max_size: u16) -> Result<Self, Fault> {
        let queue = Queue::new(max_size).map_err(|_| Fault::Ring)?;
        Ok(Self { queue, live: false })
    }

    /// Takes the driver's set-up after checking it against memory. A queue that is not ready stays dead.
    pub fn activate(&mut self, index: u16, setup: &QueueSetup, event_idx: bool, mem: &GuestMem) -> Result<(), Fault> {
        self.reset();
        if !setup.ready {
            return Ok(());
        }
        let bad = Fault::QueueSetup(index);
        let size = u16::try_from(setup.size).map_err(|_| bad)?;
        let queue = &mut self.queue;
        queue.try_set_size(size).map_err(|_| bad)?;
        queue.try_set_desc_table_address(GuestAddress(setup.desc)).map_err(|_| bad)?;
        queue.try_set_avail_ring_address(GuestAddress(setup.avail)).map_err(|_| bad)?;
        queue.try_set_used_ring_address(GuestAddress(setup.used)).map_err(|_| bad)?;
        queue.set_next_avail(setup.next_avail);
        queue.set_next_used(setup.next_used);
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        // virtio-queue takes an available ring at address 0 for "never set up".
        if setup.avail == 0 || !rings_inside(size, setup, mem) {
            self.reset();
            return Err(bad);
        }
        self.live = true;
        Ok(())
    }

    pub fn reset(&mut self) {
        self.queue.reset();
        self.live = false;
    }

    /// Stops the queue without forgetting its position.
    pub fn stop(&mut self) {
        self.live = false;
    }

    pub fn is_live(&self) -> bool {
        self.live
    }

    pub fn positions(&self) -> (u16, u16) {
        (self.queue.next_avail(), self.queue.next_used())
    }

    /// Takes the next chain into `chain`; `false` when there is none.
    pub fn pop(&mut self, mem: &GuestMem, chain: &mut Chain) -> Result<bool, Fault> {
        if !self.live {
            return Ok(false);
        }
        let limit = self.queue.size();
        let Some(descriptors) = self.queue.iter(mem).map_err(|_| Fault::AvailIndex)?.next() else {
            return Ok(false);
        };
        chain.head = descriptors.head_index();
        chain.segments.clear();
        chain.readable = 0;
        let mut ended = false;
        for d in descriptors {
            let segment = Segment { addr: GuestAddr(d.addr().0), len: d.len() };
            chain.push(segment, d.is_write_only(), limit)?;
            ended = !d.has_next();
        }
        // The iterator ends alike for a finished chain and for one it refuses to follow.
        if ended { Ok(true) } else { Err(Fault::BrokenChain) }
    }

    /// Gives the chain popped last back to the ring, unused.
    pub fn unpop(&mut self) {
        if self.live {
            self.queue.go_to_previous_position();
        }
    }

    /// Returns a chain to the driver with `written` bytes in its writable part.
    pub fn push(&mut self, mem: &GuestMem, head: u16, written: u32) -> Result<(), Fault> {
        if !self.live {
            return Ok(());
        }
        self.queue.add_used(mem, head, written).map_err(|_| Fault::Ring)
    }

    /// Whether the driver wants an interrupt for what was pushed since the last call.
    pub fn wants_interrupt(&mut self, mem: &GuestMem) -> Result<bool, Fault> {
        if !self.live {
            return Ok(false);
        }
        self.queue.needs_notification(mem).map_err(|_| Fault::Ring)
    }

    /// Asks the driver not to notify while the device is looking anyway.
    pub fn quiet(&mut self, mem: &GuestMem) -> Result<(), Fault> {
        if !self.live {
            return Ok(());
        }
        self.queue.disable_notification(mem).map_err(|_| Fault::Ring)
    }

    /// Asks for notifications again; `true` if more chains came in meanwhile.
    pub fn listen(&mut self, mem: &GuestMem) -> Result<bool, Fault> {
        if !self.live {
            return Ok(false);
        }
        self.queue.enable_notification(mem).map_err(|_| Fault::Ring)
    }
}

/// Each ring lies inside one region of guest memory (virtio 1.2, 2.7: 16 bytes a descriptor, 2 an available entry,
/// 8 a used entry, and 6 bytes of header and event index each).
fn rings_inside(size: u16, setup: &QueueSetup, mem: &GuestMem) -> bool {
    let n = u32::from(size);
    let inside = |addr: u64, len: u32| Segment { addr: GuestAddr(addr), len }.checked(mem, 0, len).is_ok();
    inside(setup.desc, 16 * n) && inside(setup.avail, 6 + 2 * n) && inside(setup.used, 6 + 8 * n)
}
