//! virtio-blk (virtio 1.2, 5.2) over a [`BlockBackend`].
//!
//! A request is checked as a whole (layout, size, range, permission) before the first byte moves. Data passes through
//! one fixed buffer per disk, so a request allocates nothing, whatever its size. Broken layouts stop the device; a
//! request that is well-formed but cannot be done ends with IOERR or UNSUPP.

mod config;
mod request;
#[cfg(test)]
mod tests;

use casemate_storage::{BlockBackend, SECTOR};
use serde::{Deserialize, Serialize};

use crate::device::{DeviceKind, DeviceState, Queues, RestoreError, VirtioDevice, read_config_bytes};
use crate::queue::{Chain, Fault};
use crate::traits::{MigrationStatus, Progress};

use config::{F_FLUSH, config_space, features};
use request::Bounce;

const QUEUE_SIZE: u16 = 256;
/// Data bytes (plus a little for each request) per turn of the io thread.
const TURN: u32 = 8 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    pub version: u32,
    pub sectors: u64,
    pub read_only: bool,
    pub id: [u8; 20],
}

impl BlockState {
    pub const VERSION: u32 = 1;
}

pub struct Block {
    backend: Box<dyn BlockBackend>,
    id: [u8; 20],
    config: [u8; config::LEN],
    chain: Chain,
    bounce: Bounce,
    /// The driver did not take FLUSH: every write is made stable before it completes (5.2.6.2).
    write_through: bool,
}

impl Block {
    /// `id` is what the guest reads as the disk's serial; longer ones are cut at 20 bytes.
    pub fn new(backend: Box<dyn BlockBackend>, id: &str) -> Self {
        let mut bytes = [0; 20];
        let n = id.len().min(bytes.len());
        bytes[..n].copy_from_slice(&id.as_bytes()[..n]);
        let config = config_space(backend.size() / SECTOR);
        Self { backend, id: bytes, config, chain: Chain::default(), bounce: Bounce::new(), write_through: true }
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        features(self.backend.is_read_only())
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, features: u64) {
        self.write_through = features & F_FLUSH == 0;
    }

    fn reset(&mut self) {
        self.write_through = true;
    }

    fn process(&mut self, queue: usize, io: &mut Queues<'_>) -> Result<Progress, Fault> {
        let Self { backend, id, chain, bounce, write_through, .. } = self;
        let mut disk = request::Disk { backend: &mut **backend, id, bounce, write_through: *write_through };
        io.serve(queue, chain, TURN, |chain, mem| disk.handle(chain, mem))
    }

    /// An image keeps its tables in memory between flushes; nobody is left to tell of a failure.
    fn finish(&mut self) {
        let _lost = self.backend.close();
    }

    fn migration(&self) -> MigrationStatus {
        MigrationStatus::Transparent
    }

    fn save(&self) -> DeviceState {
        DeviceState::Block(BlockState {
            version: BlockState::VERSION,
            sectors: self.backend.size() / SECTOR,
            read_only: self.backend.is_read_only(),
            id: self.id,
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Block(state) = state else { return Err(RestoreError::Kind) };
        if state.version != BlockState::VERSION {
            return Err(RestoreError::Version { found: state.version, known: BlockState::VERSION });
        }
        if state.sectors != self.backend.size() / SECTOR || state.read_only != self.backend.is_read_only() {
            return Err(RestoreError::Mismatch("disk size or mode"));
        }
        self.id = state.id;
        Ok(())
    }
}
