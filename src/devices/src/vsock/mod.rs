//! virtio-vsock (virtio 1.2, 5.10), terminated here: the guest's stream sockets meet Unix sockets, and no vhost or host
//! vsock module is involved.
//!
//! Trust: the guest sends any packet it likes, the host client any line. The number of connections, what each buffers
//! and what is owed to a guest that offers no buffers are all bounded: when the debts are full, its packets wait.
//! Data for the guest is not buffered at all; it is read when the guest has both a buffer and credit.
//!
//! `guest.rs` takes packets, `send.rs` makes them, `hostside.rs` speaks to host clients; `conn.rs` is one connection,
//! `credit.rs` its arithmetic.

mod conn;
mod credit;
mod guest;
mod header;
mod hostside;
mod line;
mod send;
mod table;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::conn::{Phase, due};
use self::header::Header;
use self::table::{Slot, Table};
use crate::cursor::ChainWriter;
use crate::device::{DeviceKind, DeviceState, Queues, RestoreError, VirtioDevice, read_config_bytes};
use crate::queue::{Chain, Fault};
use crate::traits::{HostAcceptor, HostStream, MigrationStatus, Progress, Readiness, ReportSink};

pub use guest::REPORT_PORT;

const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
/// Resets owed for packets that belong to no connection.
const RESETS_MAX: usize = 64;
/// Agent reports come over one connection; a few more for one that reconnects.
const REPORTS_MAX: u32 = 4;
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
const SCRATCH: usize = credit::WINDOW as usize;
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
const TRANSPORT_RESET: [u8; 4] = [0; 4];

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    pub version: u32,
    pub guest_cid: u64,
}

impl VsockState {
    pub const VERSION: u32 = 1;
}

pub struct Vsock {
    guest_cid: u64,
    acceptor: Option<Box<dyn HostAcceptor>>,
    acceptable: bool,
    reports: Box<dyn ReportSink>,
    reports_open: u32,
    report_id: u32,
    table: Table,
    resets: VecDeque<Header>,
    /// The guest's packets wait because `resets` is full.
    stalled: bool,
    /// After a restore the guest must learn that its connections are gone.
    announce_reset: bool,
    next_port: u32,
    chain: Chain,
    scratch: Box<[u8]>,
}

impl Vsock {
    /// The acceptor registers itself under token 0; streams under tokens of their own.
    pub fn new(
        guest_cid: u64,
        mut acceptor: Option<Box<dyn HostAcceptor>>,
        reports: Box<dyn ReportSink>,
    ) -> io::Result<Self> {
        if let Some(acceptor) = &mut acceptor {
            acceptor.register(0)?;
        }
        Ok(Self {
            guest_cid,
            acceptor,
            acceptable: true,
            reports,
            reports_open: 0,
            report_id: 0,
            table: Table::new(),
            resets: VecDeque::with_capacity(RESETS_MAX),
            stalled: false,
            announce_reset: false,
            next_port: Self::first_port(),
            chain: Chain::default(),
            scratch: vec![0; SCRATCH].into_boxed_slice(),
        })
    }

    /// Both directions once, each within its budget.
    fn turn(&mut self, io: &mut Queues<'_>) -> Result<Progress, Fault> {
        let accepted = self.accept();
        let sent = self.transmit(io)?;
        Ok(accepted.and(sent).and(self.pump(io)?))
    }

    fn send_event(&mut self, io: &mut Queues<'_>) -> Result<(), Fault> {
        if self.announce_reset && io.pop(EVENT, &mut self.chain)? {
            let mut writer = ChainWriter::new(io.mem(), self.chain.writable());
            writer.write_all(&TRANSPORT_RESET)?;
            let written = writer.written();
            io.push(EVENT, &self.chain, written)?;
            io.signal(EVENT)?;
            self.announce_reset = false;
        }
        Ok(())
    }
}

/// Answers a host client with one line. The socket's buffer was empty or nearly so: what does not fit at once means a
/// client that plays games, and `false`.
fn say(stream: &mut dyn HostStream, text: &str) -> bool {
    matches!(stream.write(text.as_bytes()), Ok(n) if n == text.len())
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[256, 256, 16]
    }

    fn features(&self) -> u64 {
        // Stream sockets need no feature bit (5.10.3).
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, _features: u64) {}

    /// Connections end with the driver that made them. Clients that wait for a guest keep waiting: the first thing any
    /// driver does is a reset.
    fn reset(&mut self) {
        self.resets.clear();
        self.stalled = false;
        for at in self.table.indices() {
            match self.table.slot(at) {
                Slot::Conn(conn) if matches!(conn.phase, Phase::Connecting { .. }) => {
                    conn.phase = Phase::Connecting { asked: false };
                    conn.due = due::REQUEST;
                    self.table.wake(at);
                }
                Slot::Conn(_) => self.forget(at),
                _ => {}
            }
        }
    }

    fn process(&mut self, queue: usize, io: &mut Queues<'_>) -> Result<Progress, Fault> {
        if queue == EVENT {
            self.send_event(io)?;
            return Ok(Progress::Idle);
        }
        self.turn(io)
    }

    fn host_event(&mut self, token: u32, ready: Readiness, io: &mut Queues<'_>) -> Result<Progress, Fault> {
        if token == 0 {
            self.acceptable = true;
        } else {
            self.client_ready(token, ready);
        }
        self.turn(io)
    }

    fn migration(&self) -> MigrationStatus {
        MigrationStatus::ResetsConnections
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock(VsockState { version: VsockState::VERSION, guest_cid: self.guest_cid })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Vsock(state) = state else { return Err(RestoreError::Kind) };
        if state.version != VsockState::VERSION {
            return Err(RestoreError::Version { found: state.version, known: VsockState::VERSION });
        }
        if state.guest_cid != self.guest_cid {
            return Err(RestoreError::Mismatch("guest CID"));
        }
        self.announce_reset = true;
        Ok(())
    }
}
