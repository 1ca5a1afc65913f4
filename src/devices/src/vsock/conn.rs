//! One connection between a guest port and a host stream or the report sink.
//!
//! ```text
//!   Connecting --RESPONSE--> Open --EOF / SHUTDOWN both ways--> (stream closed) --RST--> gone
//!       '------------------------------ RST, lie, error ---------------------------------^
//! ```

use std::collections::VecDeque;
use std::io::ErrorKind;

use super::credit::{Credit, WINDOW};
use super::header::{SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use crate::traits::HostStream;

/// (host port, guest port).
pub type Key = (u32, u32);

/// Control packets that a connection owes the guest, sent as buffers come.
pub mod due {
    pub const RST: u8 = 1;
    pub const REQUEST: u8 = 2;
    pub const RESPONSE: u8 = 4;
    pub const SHUTDOWN: u8 = 8;
    pub const CREDIT_UPDATE: u8 = 16;
    pub const CREDIT_REQUEST: u8 = 32;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A host client waits for the guest's answer; `asked` once the request is on the ring.
    Connecting {
        asked: bool,
    },
    Open,
    /// Nothing moves any more; only a reset is owed or awaited.
    Closing,
}

/// The host's end.
pub enum End {
    Stream(Box<dyn HostStream>),
    Report(u32),
    Gone,
}

pub struct Connection {
    pub key: Key,
    pub end: End,
    pub phase: Phase,
    pub credit: Credit,
    pub due: u8,
    /// Bytes from the guest that the host has not taken; at most [`WINDOW`].
    out: VecDeque<u8>,
    /// Bytes that the host client sent with its line; go to the guest first.
    carry: Vec<u8>,
    readable: bool,
    writable: bool,
    pub hangup: bool,
    /// The host will send nothing more, or the guest wants nothing more.
    input_done: bool,
    /// The host takes nothing more: what the guest still sends is discarded.
    output_lost: bool,
    /// What the guest said it will not do any more (SHUTDOWN flags).
    guest_done: u32,
    /// What the guest was told, or is to be told, in SHUTDOWN packets.
    pub told: u32,
    credit_asked: bool,
}

impl Connection {
    pub fn new(key: Key, end: End, phase: Phase, owed: u8, carry: &[u8]) -> Self {
        Self {
            key,
            end,
            phase,
            credit: Credit::default(),
            due: owed,
            out: VecDeque::new(),
            carry: carry.to_vec(),
            readable: true,
            writable: true,
            hangup: false,
            input_done: false,
            output_lost: false,
            guest_done: 0,
            told: 0,
            credit_asked: false,
        }
    }

    /// Whether data from the host may be there for the guest.
    fn has_input(&self) -> bool {
        let stream = matches!(self.end, End::Stream(_));
        self.phase == Phase::Open && !self.input_done && stream && (self.readable || !self.carry.is_empty())
    }

    /// Whether a receive buffer of the guest could be used now.
    pub fn wants_buffer(&self) -> bool {
        self.due != 0 || (self.has_input() && (self.credit.available() > 0 || !self.credit_asked))
    }

    /// Lets go of the host's end and of all buffers.
    pub fn close(&mut self) -> Option<u32> {
        self.phase = Phase::Closing;
        self.out = VecDeque::new();
        self.carry = Vec::new();
        match std::mem::replace(&mut self.end, End::Gone) {
            End::Report(id) => Some(id),
            _ => None,
        }
    }

    pub fn ready(&mut self, readable: bool, writable: bool, hangup: bool) {
        self.readable |= readable;
        self.writable |= writable;
        self.hangup |= hangup;
    }

    /// The guest said SHUTDOWN.
    pub fn guest_shutdown(&mut self, flags: u32) {
        self.guest_done |= flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
        if self.guest_done & SHUTDOWN_RECEIVE != 0 {
            self.input_done = true;
            self.carry = Vec::new();
        }
    }

    pub fn guest_may_send(&self) -> bool {
        self.guest_done & SHUTDOWN_SEND == 0
    }

    /// New credit from the guest: data may flow again.
    pub fn credit_came(&mut self) {
        if self.credit.available() > 0 {
            self.credit_asked = false;
        }
    }

    /// Takes bytes from the guest that passed the window check: to the host at once, or into the buffer.
    pub fn take(&mut self, bytes: &[u8]) {
        let mut done = 0;
        if self.out.is_empty() {
            done = self.write_some(bytes);
        }
        if self.output_lost {
            done = bytes.len();
        }
        self.credit.forwarded(done as u32);
        self.out.extend(&bytes[done..]);
        debug_assert!(self.out.len() <= WINDOW as usize);
    }

    fn write_some(&mut self, bytes: &[u8]) -> usize {
        let End::Stream(stream) = &mut self.end else { return 0 };
        let mut done = 0;
        while self.writable && !self.output_lost && done < bytes.len() {
            match stream.write(&bytes[done..]) {
                Ok(n) if n > 0 => done += n.min(bytes.len() - done),
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                _ => self.output_lost = true,
            }
        }
        done
    }

    /// Writes what waits for the host, then passes on the guest's end of stream. Owes the guest what follows from it.
    pub fn flush(&mut self) {
        while self.writable && !self.output_lost && !self.out.is_empty() {
            let chunk = std::mem::take(&mut self.out);
            let (front, _) = chunk.as_slices();
            let done = self.write_some(front);
            self.out = chunk;
            self.out.drain(..done);
            self.credit.forwarded(done as u32);
        }
        if self.output_lost && !self.out.is_empty() {
            self.credit.forwarded(self.out.len() as u32);
            self.out.clear();
        }
        if self.out.is_empty() {
            // A burst's buffer is not kept for the life of an idle connection.
            self.out = VecDeque::new();
            self.finish_output();
        }
        if self.credit.owes_update() {
            self.due |= due::CREDIT_UPDATE;
        }
    }

    fn finish_output(&mut self) {
        if self.phase != Phase::Open {
            return;
        }
        if self.output_lost {
            self.tell(SHUTDOWN_RECEIVE);
        }
        if self.guest_done & SHUTDOWN_SEND != 0 {
            if self.input_done {
                // Both directions are finished and everything is delivered: a reset ends it (5.10.6.5).
                self.due |= due::RST;
            } else if let End::Stream(stream) = &mut self.end {
                // A host that is gone already needs no end of stream.
                let _ = stream.shutdown_write();
            }
        }
    }

    fn tell(&mut self, flags: u32) {
        if self.told & flags != flags {
            self.told |= flags;
            self.due |= due::SHUTDOWN;
        }
    }

    /// Reads host data for the guest into `buf`, as much as its credit allows.
    pub fn read_input(&mut self, buf: &mut [u8]) -> usize {
        if !self.has_input() {
            return 0;
        }
        let allowed = buf.len().min(self.credit.available() as usize);
        if allowed == 0 {
            self.credit_asked = true;
            self.due |= due::CREDIT_REQUEST;
            return 0;
        }
        let buf = &mut buf[..allowed];
        let n = if self.carry.is_empty() {
            self.read_stream(buf)
        } else {
            let n = buf.len().min(self.carry.len());
            buf[..n].copy_from_slice(&self.carry[..n]);
            self.carry.drain(..n);
            n
        };
        self.credit.sent(n as u32);
        n
    }

    fn read_stream(&mut self, buf: &mut [u8]) -> usize {
        let End::Stream(stream) = &mut self.end else { return 0 };
        loop {
            match stream.read(buf) {
                Ok(n) if n > 0 => return n.min(buf.len()),
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                ended => {
                    self.input_done = true;
                    self.output_lost |= self.hangup || ended.is_err();
                    self.tell(SHUTDOWN_SEND);
                    self.flush();
                }
            }
            return 0;
        }
    }
}
