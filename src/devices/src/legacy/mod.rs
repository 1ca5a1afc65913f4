//! The few non-virtio devices that a PC kernel expects: a serial port, ways to reset and power off, pvpanic.

mod power;
mod serial;

pub use power::{AcpiPower, I8042, PvPanic, ResetPort};
pub use serial::{COM1_IRQ, COM1_PORT, SERIAL_PORTS, SerialPort, SerialState};
