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
/// (std resets their mask). What the caller had ignored, as nohup(1) and background jobs of a shell do, stays ignored.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
    mask: SigSet,
}

/// `SigIgn` of /proc/self/status: bit N-1 for signal N.
fn ignored(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn wanted(ignored: u64) -> SigSet {
    // A resize is ignored by default, and wanted.
    let heard = |signal: &Signal| *signal == Signal::SIGWINCH || ignored & (1 << (*signal as i32 - 1)) == 0;
    FORWARDED.into_iter().filter(heard).collect()
}

impl Signals {
    /// Call it in a process with one thread.
    pub fn take() -> Result<Signals> {
        let what = || "taking over signals".to_owned();
        let mask = wanted(ignored(&std::fs::read_to_string("/proc/self/status").attempt(what)?));
        mask.thread_block().attempt(what)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Signals { fd: SignalFd::with_flags(&mask, flags).attempt(what)?, mask })
    }

    /// The next signal that waits.
    pub fn next(&self) -> Option<Arrived> {
        let info = self.fd.read_signal().ok().flatten()?;
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
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // What still waits was meant for the sandbox that is gone.
        while self.next().is_some() {}
        let _ = self.mask.thread_unblock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nohup_ignores_is_left_alone() {
        let status = "Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000008001001\nSigCgt:\t0\n";
        let mask = wanted(ignored(status));
        assert!(!mask.contains(Signal::SIGHUP) && mask.contains(Signal::SIGINT) && mask.contains(Signal::SIGWINCH));
        assert_eq!(ignored(""), 0);
    }
}
