//! virtio and legacy device state machines.
//!
//! Runs inside `casemate-runner`, the process that the guest attacks: every register value, descriptor and packet is
//! hostile. No device panics, loops, allocates or logs without bound on guest input, and guest memory is reached
//! through one checked door ([`memory`]). No KVM, no paths: memory, interrupt lines, disks, streams and randomness are
//! handed in through the traits of [`traits`]. `README.md` beside this crate says how a runner wires a device.

#![forbid(unsafe_code)]

pub mod block;
pub mod bus;
pub mod console;
pub mod core;
mod cursor;
pub mod device;
pub mod host;
pub mod legacy;
pub mod memory;
pub mod mmio;
pub mod queue;
pub mod ringlog;
pub mod rng;
pub mod traits;
pub mod vsock;

#[cfg(test)]
mod mmio_tests;
#[cfg(test)]
mod queue_tests;
#[cfg(test)]
mod testing;

pub use block::Block;
pub use bus::{Bus, BusDevice, BusError};
pub use casemate_storage::BlockBackend;
pub use console::Console;
pub use device::{DeviceKind, DeviceState, RestoreError, VirtioDevice};
pub use memory::GuestMem;
pub use mmio::{MMIO_WINDOW, MmioState, VirtioMmio};
pub use queue::Fault;
pub use ringlog::RingLog;
pub use rng::Rng;
pub use traits::*;
pub use vsock::Vsock;
