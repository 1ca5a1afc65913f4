//! virtio-console with one port (virtio 1.2, 5.3): hvc0. Output goes to a bounded sink; input, if any, comes from a
//! host stream and is read only as fast as the guest offers buffers for it.

use std::io::ErrorKind;

use serde::{Deserialize, Serialize};

use crate::cursor::{ChainReader, ChainWriter, total};
use crate::device::{DeviceKind, DeviceState, Queues, RestoreError, Served, VirtioDevice};
use crate::queue::{Chain, Fault};
use crate::traits::{ByteSink, HostStream, MigrationStatus, Progress, Readiness};

const RX: usize = 0;
const TX: usize = 1;
/// Output bytes per turn of the io thread.
const TURN: u32 = 256 * 1024;
/// What a request costs beyond its bytes.
const REQUEST_COST: u32 = 64;
/// Output bytes taken from one request; the rest of a longer one is dropped.
const PER_REQUEST: u64 = 64 * 1024;
const INPUT_CHUNK: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    pub version: u32,
}

impl ConsoleState {
    pub const VERSION: u32 = 1;
}

pub struct Console {
    output: Box<dyn ByteSink>,
    input: Option<Box<dyn HostStream>>,
    readable: bool,
    chain: Chain,
}

impl Console {
    /// The input stream registers itself under token 0.
    pub fn new(output: Box<dyn ByteSink>, mut input: Option<Box<dyn HostStream>>) -> std::io::Result<Self> {
        if let Some(stream) = &mut input {
            stream.register(0)?;
        }
        Ok(Self { output, input, readable: true, chain: Chain::default() })
    }

    fn transmit(&mut self, io: &mut Queues<'_>) -> Result<Progress, Fault> {
        let output = &mut self.output;
        let mut buf = [0; 4096];
        io.serve(TX, &mut self.chain, TURN, |chain, mem| {
            let mut reader = ChainReader::new(mem, chain.readable());
            let taken = reader.left().min(PER_REQUEST) as u32;
            let mut left = taken as usize;
            while left > 0 {
                let n = left.min(buf.len());
                reader.read_exact(&mut buf[..n])?;
                output.write(&buf[..n]);
                left -= n;
            }
            Ok(Served { written: 0, cost: REQUEST_COST + taken })
        })
    }

    /// Moves waiting input into the guest's buffers, one chunk per buffer.
    fn receive(&mut self, io: &mut Queues<'_>) -> Result<Progress, Fault> {
        let mut buf = [0; INPUT_CHUNK];
        let mut pushed = false;
        for _ in 0..64 {
            let Some(input) = self.input.as_mut().filter(|_| self.readable) else { break };
            if !io.pop(RX, &mut self.chain)? {
                break;
            }
            let room = usize::try_from(total(self.chain.writable())).unwrap_or(INPUT_CHUNK).min(INPUT_CHUNK);
            match if room == 0 { Ok(0) } else { input.read(&mut buf[..room]) } {
                Ok(0) if room > 0 => {
                    io.queue(RX).unpop();
                    self.input = None;
                }
                Ok(n) => {
                    let mut writer = ChainWriter::new(io.mem(), self.chain.writable());
                    writer.write_all(&buf[..n.min(room)])?;
                    let written = writer.written();
                    io.push(RX, &self.chain, written)?;
                    pushed = true;
                }
                Err(e) => {
                    io.queue(RX).unpop();
                    match e.kind() {
                        ErrorKind::WouldBlock => self.readable = false,
                        ErrorKind::Interrupted => {}
                        _ => self.input = None,
                    }
                }
            }
        }
        if pushed {
            io.signal(RX)?;
        }
        // A full turn leaves `readable` set; more buffers or more input bring us back.
        Ok(if pushed && self.readable && self.input.is_some() { Progress::More } else { Progress::Idle })
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[64, 64]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        // cols, rows and max_nr_ports mean something only with features that are not offered.
        data.fill(0);
    }

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {}

    fn process(&mut self, queue: usize, io: &mut Queues<'_>) -> Result<Progress, Fault> {
        match queue {
            RX => self.receive(io),
            _ => self.transmit(io),
        }
    }

    fn host_event(&mut self, _token: u32, ready: Readiness, io: &mut Queues<'_>) -> Result<Progress, Fault> {
        self.readable |= ready.readable;
        self.receive(io)
    }

    fn migration(&self) -> MigrationStatus {
        match self.input {
            Some(_) => MigrationStatus::ResetsConnections,
            None => MigrationStatus::Transparent,
        }
    }

    fn save(&self) -> DeviceState {
        DeviceState::Console(ConsoleState { version: ConsoleState::VERSION })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Console(state) = state else { return Err(RestoreError::Kind) };
        if state.version != ConsoleState::VERSION {
            return Err(RestoreError::Version { found: state.version, known: ConsoleState::VERSION });
        }
        Ok(())
    }
}
