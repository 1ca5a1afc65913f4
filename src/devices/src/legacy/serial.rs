//! COM1: vm-superio's 16550 with its output handed to the io thread.
//!
//! The vCPU thread only appends to a bounded buffer and never makes a system call for a byte; the io thread empties
//! the buffer into the log. A guest that writes faster than the log takes loses bytes, which are counted.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vm_superio::Serial;
use vm_superio::serial::NoEvents;

use crate::bus::BusDevice;
use crate::device::RestoreError;
use crate::traits::{Action, ByteSink, MigrationStatus, Progress, Trigger};

pub const COM1_PORT: u64 = 0x3f8;
pub const SERIAL_PORTS: u64 = 8;
pub const COM1_IRQ: u32 = 4;

/// Output the io thread has not taken yet, at most.
const BUFFER: usize = 64 * 1024;
/// Without a newline the io thread is woken when this much waits.
const WAKE_AT: usize = 1024;

/// Registers of the port, as vm-superio names them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    pub version: u32,
    pub baud_divisor_low: u8,
    pub baud_divisor_high: u8,
    pub interrupt_enable: u8,
    pub interrupt_identification: u8,
    pub line_control: u8,
    pub line_status: u8,
    pub modem_control: u8,
    pub modem_status: u8,
    pub scratch: u8,
    pub in_buffer: Vec<u8>,
}

impl SerialState {
    pub const VERSION: u32 = 1;
}

#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    dropped: u64,
    kicked: bool,
    wake: bool,
}

/// The `Write` that vm-superio sees: memory only.
#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Output>>);

impl Buffer {
    fn lock(&self) -> MutexGuard<'_, Output> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Buffer {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut out = self.lock();
        let room = BUFFER - out.bytes.len();
        let take = buf.len().min(room);
        out.bytes.extend_from_slice(&buf[..take]);
        out.dropped += (buf.len() - take) as u64;
        out.wake |= buf.contains(&b'\n') || out.bytes.len() >= WAKE_AT;
        // Never an error: the guest must not learn how fast the log is.
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// vm-superio's trigger in front of ours.
struct Line(Arc<dyn Trigger>);

impl vm_superio::Trigger for Line {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.trigger();
        Ok(())
    }
}

type Uart = Serial<Line, NoEvents, Buffer>;

/// The serial port on the port bus, and its other half in the io thread.
pub struct SerialPort {
    index: u32,
    line: Arc<dyn Trigger>,
    uart: Mutex<Uart>,
    buffer: Buffer,
    sink: Mutex<Box<dyn ByteSink>>,
}

impl SerialPort {
    /// `index` is the caller's name for the device; [`Action::Kick`] carries it.
    pub fn new(index: u32, line: Arc<dyn Trigger>, sink: Box<dyn ByteSink>) -> Self {
        let buffer = Buffer::default();
        let uart = Mutex::new(Serial::new(Line(Arc::clone(&line)), buffer.clone()));
        Self { index, line, uart, buffer, sink: Mutex::new(sink) }
    }

    fn uart(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Empties the buffer into the log. Also called once before the runner ends, for the last line.
    pub fn process(&self) -> Progress {
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        let (bytes, dropped) = {
            let mut out = self.buffer.lock();
            out.kicked = false;
            out.wake = false;
            (std::mem::take(&mut out.bytes), std::mem::take(&mut out.dropped))
        };
        sink.write(&bytes);
        if dropped > 0 {
            sink.write(format!("\n[casemate: {dropped} bytes of serial output dropped]\n").as_bytes());
        }
        Progress::Idle
    }

    /// Types `bytes` into the guest; answers how many fit.
    pub fn input(&self, bytes: &[u8]) -> usize {
        self.uart().enqueue_raw_bytes(bytes).unwrap_or(0)
    }

    pub fn migration(&self) -> MigrationStatus {
        MigrationStatus::Transparent
    }

    pub fn save(&self) -> SerialState {
        let s = self.uart().state();
        SerialState {
            version: SerialState::VERSION,
            baud_divisor_low: s.baud_divisor_low,
            baud_divisor_high: s.baud_divisor_high,
            interrupt_enable: s.interrupt_enable,
            interrupt_identification: s.interrupt_identification,
            line_control: s.line_control,
            line_status: s.line_status,
            modem_control: s.modem_control,
            modem_status: s.modem_status,
            scratch: s.scratch,
            in_buffer: s.in_buffer,
        }
    }

    pub fn restore(&self, s: &SerialState) -> Result<(), RestoreError> {
        if s.version != SerialState::VERSION {
            return Err(RestoreError::Version { found: s.version, known: SerialState::VERSION });
        }
        let state = vm_superio::SerialState {
            baud_divisor_low: s.baud_divisor_low,
            baud_divisor_high: s.baud_divisor_high,
            interrupt_enable: s.interrupt_enable,
            interrupt_identification: s.interrupt_identification,
            line_control: s.line_control,
            line_status: s.line_status,
            modem_control: s.modem_control,
            modem_status: s.modem_status,
            scratch: s.scratch,
            in_buffer: s.in_buffer.clone(),
        };
        let uart = Serial::from_state(&state, Line(Arc::clone(&self.line)), NoEvents, self.buffer.clone())
            .map_err(|_| RestoreError::Mismatch("serial input buffer"))?;
        *self.uart() = uart;
        Ok(())
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (u8::try_from(offset), data) {
            (Ok(offset), [byte]) => *byte = self.uart().read(offset),
            (_, data) => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let (Ok(offset), [byte]) = (u8::try_from(offset), data) else { return Action::None };
        // Neither an interrupt nor the buffer can fail; see Line and Buffer.
        let _ = self.uart().write(offset, *byte);
        let mut out = self.buffer.lock();
        if out.wake && !out.kicked {
            out.kicked = true;
            return Action::Kick(self.index);
        }
        Action::None
    }
}
