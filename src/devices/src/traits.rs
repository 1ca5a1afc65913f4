//! What devices need from whoever wires them (the runner), and what they answer. No KVM, no paths, no fds here.

use std::io;
use std::time::Duration;

/// Raises one interrupt line; in the runner an irqfd. Must not block; a lost edge is the guest's loss only.
pub trait Trigger: Send + Sync {
    fn trigger(&self);
}

/// Takes console bytes. Must not block and must bound what it keeps; what it cannot keep it drops.
pub trait ByteSink: Send {
    fn write(&mut self, bytes: &[u8]);
}

/// Fills buffers with random bytes; in the runner getrandom(2).
pub trait EntropySource: Send {
    fn fill(&mut self, buf: &mut [u8]) -> io::Result<()>;
}

/// What the event loop saw on a host stream. Edge-triggered: the device remembers it until it meets `WouldBlock`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    pub readable: bool,
    pub writable: bool,
    /// Both directions are gone (EPOLLHUP or EPOLLERR).
    pub hangup: bool,
}

impl Readiness {
    /// After registration, and whenever nothing is known: try everything.
    pub const ALL: Self = Self { readable: true, writable: true, hangup: false };
}

/// A host-side byte stream, nonblocking. Dropping it closes it and ends its registration.
pub trait HostStream: Send {
    /// `Ok(0)` is end of stream; `WouldBlock` when there is nothing.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize>;
    fn write(&mut self, buf: &[u8]) -> io::Result<usize>;
    /// No more bytes will be written; the peer reads end of stream.
    fn shutdown_write(&mut self) -> io::Result<()>;
    /// Have the event loop report readiness under `token` from now on (edge-triggered).
    fn register(&mut self, token: u32) -> io::Result<()>;
}

/// Accepts host-side connections, nonblocking.
pub trait HostAcceptor: Send {
    /// `Ok(None)` when nobody waits.
    fn accept(&mut self) -> io::Result<Option<Box<dyn HostStream>>>;
    /// Have the event loop report waiting connections as readability of `token`.
    fn register(&mut self, token: u32) -> io::Result<()>;
}

/// Takes what the guest sends to the runner-internal report port. Several connections may be open at once; `id` tells
/// them apart. Bytes are the guest's: the sink parses and bounds them.
pub trait ReportSink: Send {
    fn opened(&mut self, id: u32);
    /// `Close` resets the connection.
    fn data(&mut self, id: u32, bytes: &[u8]) -> ReportVerdict;
    fn closed(&mut self, id: u32);
}

#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportVerdict {
    Continue,
    Close,
}

/// What the io thread shall do with a device after it had its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing left; wait for the next kick or host event.
    Idle,
    /// The budget of one turn is used up; call again after the other devices had theirs.
    More,
    /// Rate-limited; call again after this time.
    After(Duration),
}

impl Progress {
    /// The more urgent of two.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::More, _) | (_, Self::More) => Self::More,
            (Self::After(a), Self::After(b)) => Self::After(a.min(b)),
            (Self::After(a), Self::Idle) | (Self::Idle, Self::After(a)) => Self::After(a),
            (Self::Idle, Self::Idle) => Self::Idle,
        }
    }
}

/// What a register access asks of the vCPU loop.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    None,
    /// Wake the io thread: device `n` has work. Coalesced: at most one per turn of the io thread.
    Kick(u32),
    /// The guest asked for a reset (i8042, port 0xcf9, ACPI reset register).
    Reset,
    /// The guest entered ACPI S5.
    PowerOff,
    /// pvpanic: the guest kernel panicked.
    GuestPanicked,
    /// pvpanic: the guest kernel panicked and runs its crash kernel.
    GuestCrashLoaded,
}

/// What live migration and snapshots do with a device; every device must say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationStatus {
    /// State moves as it is; the guest notices nothing.
    Transparent,
    /// The device moves, its host connections do not: the guest sees them reset.
    ResetsConnections,
    /// Cannot move, for this reason.
    Refuses(&'static str),
}
