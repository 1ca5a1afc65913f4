//! virtio-rng (virtio 1.2, 5.4): random bytes, a bounded number per request and per second.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::cursor::{ChainWriter, total};
use crate::device::{DeviceKind, DeviceState, Queues, RestoreError, Served, VirtioDevice};
use crate::queue::{Chain, Fault};
use crate::traits::{EntropySource, MigrationStatus, Progress};

/// A longer buffer is filled in part, which the driver must expect (5.4.6.1).
const PER_REQUEST: usize = 4096;
/// The host's generator is shared by all VMs: what one guest may draw.
const PER_SECOND: u32 = 1 << 20;
const REFILL: Duration = Duration::from_millis(100);
/// What a request costs beyond its bytes, so that empty requests are not free.
const REQUEST_COST: u32 = 64;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {
    pub version: u32,
}

impl RngState {
    pub const VERSION: u32 = 1;
}

pub struct Rng {
    source: Box<dyn EntropySource>,
    chain: Chain,
    left: u32,
    refilled: Instant,
}

impl Rng {
    pub fn new(source: Box<dyn EntropySource>) -> Self {
        Self { source, chain: Chain::default(), left: PER_SECOND / 10, refilled: Instant::now() }
    }

    fn refill(&mut self) {
        if self.refilled.elapsed() >= REFILL {
            self.refilled = Instant::now();
            self.left = PER_SECOND / 10;
        }
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[64]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {}

    fn process(&mut self, queue: usize, io: &mut Queues<'_>) -> Result<Progress, Fault> {
        self.refill();
        if self.left == 0 {
            return Ok(Progress::After(REFILL));
        }
        let (source, budget) = (&mut self.source, self.left);
        let left = &mut self.left;
        let progress = io.serve(queue, &mut self.chain, budget, |chain, mem| {
            let mut buf = [0; PER_REQUEST];
            let n = usize::try_from(total(chain.writable())).unwrap_or(PER_REQUEST).min(PER_REQUEST);
            // A source that fails gives nothing: zero bytes used, never a buffer of zeroes called random.
            let written = if source.fill(&mut buf[..n]).is_ok() {
                let mut writer = ChainWriter::new(mem, chain.writable());
                writer.write_all(&buf[..n])?;
                writer.written()
            } else {
                0
            };
            let cost = REQUEST_COST + n as u32;
            *left = left.saturating_sub(cost);
            Ok(Served { written, cost })
        })?;
        Ok(if progress == Progress::More { Progress::After(REFILL) } else { progress })
    }

    fn migration(&self) -> MigrationStatus {
        MigrationStatus::Transparent
    }

    fn save(&self) -> DeviceState {
        DeviceState::Rng(RngState { version: RngState::VERSION })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Rng(state) = state else { return Err(RestoreError::Kind) };
        if state.version != RngState::VERSION {
            return Err(RestoreError::Version { found: state.version, known: RngState::VERSION });
        }
        Ok(())
    }
}
