//! virtio-vsock.

use std::io;

use serde::{Deserialize, Serialize};

use crate::device::{DeviceKind, DeviceState, Queues, RestoreError, VirtioDevice, read_config_bytes};
use crate::queue::Fault;
use crate::traits::{HostAcceptor, MigrationStatus, Progress, ReportSink};

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
    _acceptor: Option<Box<dyn HostAcceptor>>,
    _reports: Box<dyn ReportSink>,
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
        Ok(Self { guest_cid, _acceptor: acceptor, _reports: reports })
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }
    fn queue_sizes(&self) -> &'static [u16] {
        &[256, 256, 16]
    }
    fn features(&self) -> u64 {
        0
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.guest_cid.to_le_bytes(), offset, data);
    }
    fn activate(&mut self, _features: u64) {}
    fn reset(&mut self) {}
    fn process(&mut self, _queue: usize, _io: &mut Queues<'_>) -> Result<Progress, Fault> {
        Ok(Progress::Idle)
    }
    fn migration(&self) -> MigrationStatus {
        MigrationStatus::ResetsConnections
    }
    fn save(&self) -> DeviceState {
        DeviceState::Vsock(VsockState { version: VsockState::VERSION, guest_cid: self.guest_cid })
    }
    fn restore(&mut self, _state: &DeviceState) -> Result<(), RestoreError> {
        Ok(())
    }
}
