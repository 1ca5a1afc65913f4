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

/// The io thread's end: the log, and the buffer that changes places with the vCPUs'.
struct Drain {
    sink: Box<dyn ByteSink>,
    spare: Vec<u8>,
}

/// The serial port on the port bus, and its other half in the io thread.
pub struct SerialPort {
    index: u32,
    line: Arc<dyn Trigger>,
    uart: Mutex<Uart>,
    buffer: Buffer,
    sink: Mutex<Drain>,
}

impl SerialPort {
    /// `index` is the caller's name for the device; [`Action::Kick`] carries it.
    pub fn new(index: u32, line: Arc<dyn Trigger>, sink: Box<dyn ByteSink>) -> Self {
        let buffer = Buffer::default();
        let uart = Mutex::new(Serial::new(Line(Arc::clone(&line)), buffer.clone()));
        Self { index, line, uart, buffer, sink: Mutex::new(Drain { sink, spare: Vec::new() }) }
    }

    fn uart(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Empties the buffer into the log. Also called once before the runner ends, for the last line.
    pub fn process(&self) -> Progress {
        let mut drain = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        let Drain { sink, spare } = &mut *drain;
        let dropped = {
            let mut out = self.buffer.lock();
            out.kicked = false;
            out.wake = false;
            std::mem::swap(&mut out.bytes, spare);
            std::mem::take(&mut out.dropped)
        };
        sink.write(spare);
        spare.clear();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{CountingLine, Sink};

    fn port() -> (SerialPort, Sink) {
        let sink = Sink::default();
        (SerialPort::new(3, Arc::new(CountingLine::default()), Box::new(sink.clone())), sink)
    }

    #[test]
    fn a_line_wakes_the_io_thread_once() {
        let (port, sink) = port();
        let kicks: Vec<_> = b"one\ntwo\n".iter().map(|&b| port.write(0, &[b])).collect();
        assert_eq!(kicks.iter().filter(|k| **k == Action::Kick(3)).count(), 1);
        assert!(sink.0.lock().unwrap().is_empty(), "the vCPU thread writes nothing");
        let _ = port.process();
        assert_eq!(*sink.0.lock().unwrap(), b"one\ntwo\n");
        assert_eq!(port.write(0, b"\n"), Action::Kick(3));
    }

    #[test]
    fn a_flood_is_bounded_and_counted() {
        let (port, sink) = port();
        for _ in 0..BUFFER + 1000 {
            let _ = port.write(0, b"x");
        }
        assert!(port.buffer.lock().bytes.capacity() <= BUFFER);
        let _ = port.process();
        let log = sink.0.lock().unwrap();
        assert!(log.len() < BUFFER + 100);
        assert!(String::from_utf8_lossy(&log).contains("1000 bytes of serial output dropped"));
    }

    #[test]
    fn any_register_access_is_harmless() {
        let (port, _) = port();
        for offset in 0..300 {
            for value in 0..=255 {
                let _ = port.write(offset, &[value]);
                port.read(offset, &mut [0]);
            }
            let _ = port.write(offset, &[0; 4]);
            port.read(offset, &mut [0; 4]);
            assert!(port.save().in_buffer.len() <= 64);
        }
    }

    #[test]
    fn state_comes_back_or_is_refused() {
        let (port, _) = port();
        let _ = port.write(7, &[0x77]);
        assert_eq!(port.input(b"abc"), 3);
        let state = port.save();
        let (copy, _) = self::port();
        copy.restore(&state).unwrap();
        assert_eq!(copy.save(), state);
        assert!(copy.restore(&SerialState { in_buffer: vec![0; 65], ..state.clone() }).is_err());
        assert!(copy.restore(&SerialState { version: 2, ..state }).is_err());
    }
}
