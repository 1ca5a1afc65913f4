//! The bounded table of host clients and connections, and the queue of those that have something for the guest.

use std::collections::VecDeque;

use super::conn::{Connection, Key};
use super::line::Line;
use crate::traits::HostStream;

/// Host clients and connections together; with a window each this bounds the device's memory to 8 MiB.
pub const SLOTS: usize = 128;

pub enum Slot {
    Free,
    /// A host client that has not finished its line.
    Line(Box<dyn HostStream>, Line),
    /// A host client that waits for the guest to connect to a port.
    Parked(Box<dyn HostStream>, u32),
    Conn(Box<Connection>),
}

pub struct Table {
    slots: Vec<Slot>,
    /// Counts the uses of each slot, so that an event for an earlier use is told apart.
    uses: Vec<u16>,
    queued: Vec<bool>,
    ready: VecDeque<usize>,
}

impl Table {
    pub fn new() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| Slot::Free).collect(),
            uses: vec![0; SLOTS],
            queued: vec![false; SLOTS],
            ready: VecDeque::with_capacity(SLOTS),
        }
    }

    /// The event-loop token of a slot's present use; never 0, which is the acceptor's.
    pub fn token(&self, at: usize) -> u32 {
        (u32::from(self.uses[at]) << 16) | (at as u32 + 1)
    }

    pub fn by_token(&self, token: u32) -> Option<usize> {
        let at = ((token & 0xffff) as usize).checked_sub(1).filter(|&at| at < SLOTS)?;
        (self.token(at) == token).then_some(at)
    }

    pub fn free_slot(&self) -> Option<usize> {
        self.slots.iter().position(|s| matches!(s, Slot::Free))
    }

    pub fn slot(&mut self, at: usize) -> &mut Slot {
        &mut self.slots[at]
    }

    pub fn conn(&mut self, at: usize) -> Option<&mut Connection> {
        match &mut self.slots[at] {
            Slot::Conn(conn) => Some(conn),
            _ => None,
        }
    }

    pub fn find(&self, key: Key) -> Option<usize> {
        self.slots.iter().position(|s| matches!(s, Slot::Conn(c) if c.key == key))
    }

    pub fn find_parked(&self, port: u32) -> Option<usize> {
        self.slots.iter().position(|s| matches!(s, Slot::Parked(_, p) if *p == port))
    }

    /// Empties a slot and hands out what was in it. Its token is dead from now on.
    pub fn remove(&mut self, at: usize) -> Slot {
        self.uses[at] = self.uses[at].wrapping_add(1);
        std::mem::replace(&mut self.slots[at], Slot::Free)
    }

    /// Puts a connection up for the guest's next receive buffer.
    pub fn wake(&mut self, at: usize) {
        if !self.queued[at] {
            self.queued[at] = true;
            self.ready.push_back(at);
        }
    }

    pub fn next_ready(&mut self) -> Option<usize> {
        let at = self.ready.pop_front()?;
        self.queued[at] = false;
        Some(at)
    }

    /// Back to the head of the queue: there was no buffer.
    pub fn not_served(&mut self, at: usize) {
        self.queued[at] = true;
        self.ready.push_front(at);
    }

    pub fn indices(&self) -> std::ops::Range<usize> {
        0..SLOTS
    }
}
