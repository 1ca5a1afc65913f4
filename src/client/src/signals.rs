//! Signals as a descriptor, so that one poll loop sees them in order with everything else. No handlers.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::{Attempt, Result};

/// What is passed on to a workload.
const FORWARDED: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// A signal that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrived {
    /// The terminal has another size.
    Resize,
    /// SIGINT, SIGTERM, SIGHUP or SIGQUIT: the user wants an end.
    End(i32),
    Other(i32),
}

/// The forwarded signals are blocked in this thread and read here, until it is dropped. Children start with none blocked
/// (std resets their mask).
#[derive(Debug)]
pub struct Signals(SignalFd);

fn mask() -> SigSet {
    FORWARDED.into_iter().collect()
}

impl Signals {
    /// Call it in a process with one thread.
    pub fn take() -> Result<Signals> {
        let what = || "taking over signals".to_owned();
        mask().thread_block().attempt(what)?;
        SignalFd::with_flags(&mask(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map(Signals).attempt(what)
    }

    /// The next signal that waits.
    pub fn next(&self) -> Option<Arrived> {
        let info = self.0.read_signal().ok().flatten()?;
        let number = i32::try_from(info.ssi_signo).ok()?;
        Some(match Signal::try_from(number).ok()? {
            Signal::SIGWINCH => Arrived::Resize,
            Signal::SIGINT | Signal::SIGTERM | Signal::SIGHUP | Signal::SIGQUIT => Arrived::End(number),
            _ => Arrived::Other(number),
        })
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // What still waits was meant for the sandbox that is gone.
        while self.next().is_some() {}
        let _ = mask().thread_unblock();
    }
}
