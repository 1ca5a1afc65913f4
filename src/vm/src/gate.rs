//! Hold, run, stop: one gate that all vCPU threads of a VM pass.
//!
//! ```text
//! Hold --resume--> Run --pause--> Hold        any --stop--> Stop (final)
//!   Run or Hold --recall--> Recall (every vCPU leaves its loop) --resume--> Run
//! ```
//! A vCPU looks at the gate before its first KVM_RUN and after each interrupted one; whoever changes the gate kicks
//! the threads with a signal (see `vcpu`), so that a guest that never exits still obeys.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::vcpu::kick;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Hold,
    Run,
    Recall,
    Stop,
}

/// What a vCPU thread hears at the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passage {
    Go,
    /// It stood still for a while: the guest's clock must be told.
    GoAfterHold,
    Recall,
    Stop,
}

#[derive(Debug)]
struct Inner {
    want: Want,
    /// Thread ids of the vCPUs inside the loop.
    threads: Vec<libc::pid_t>,
    parked: usize,
}

/// Shared by the vCPU threads and their controller.
#[derive(Debug)]
pub struct Gate {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Default for Gate {
    fn default() -> Self {
        let inner = Inner { want: Want::Hold, threads: Vec::new(), parked: 0 };
        Self { inner: Mutex::new(inner), changed: Condvar::new() }
    }
}

impl Gate {
    /// Lets the vCPUs run.
    pub fn resume(&self) {
        self.set(Want::Run);
    }

    /// Holds the vCPUs. `true` when all of them stand still within `limit`.
    pub fn pause(&self, limit: Duration) -> bool {
        self.set(Want::Hold);
        self.wait_until(limit, Want::Hold, |inner| inner.parked >= inner.threads.len())
    }

    /// Waits for `done` while the gate stays at `want`.
    fn wait_until(&self, limit: Duration, want: Want, done: impl Fn(&Inner) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let mut inner = self.lock();
        while inner.want == want && !done(&inner) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        inner.want == want
    }

    /// Makes every vCPU leave its loop, to enter it again later. `true` when all left within `limit`.
    pub fn recall(&self, limit: Duration) -> bool {
        self.set(Want::Recall);
        self.wait_until(limit, Want::Recall, |inner| inner.threads.is_empty())
    }

    /// Makes every vCPU leave its loop for good.
    pub fn stop(&self) {
        self.set(Want::Stop);
    }

    /// Whether the vCPUs are held.
    pub fn is_held(&self) -> bool {
        self.lock().want == Want::Hold
    }

    /// A vCPU thread enters; waits until it may run.
    pub(crate) fn enter(&self, thread: libc::pid_t) -> Passage {
        let mut inner = self.lock();
        inner.threads.push(thread);
        self.wait(inner)
    }

    /// A vCPU thread asks whether it may go on, and waits while the gate is held.
    pub(crate) fn pass(&self) -> Passage {
        self.wait(self.lock())
    }

    /// A vCPU thread leaves its loop.
    pub(crate) fn leave(&self, thread: libc::pid_t) {
        let mut inner = self.lock();
        inner.threads.retain(|t| *t != thread);
        drop(inner);
        self.changed.notify_all();
    }

    fn wait(&self, mut inner: MutexGuard<'_, Inner>) -> Passage {
        let held = inner.want == Want::Hold;
        if held {
            inner.parked += 1;
            self.changed.notify_all();
            while inner.want == Want::Hold {
                inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
            }
            inner.parked -= 1;
        }
        match inner.want {
            Want::Recall => Passage::Recall,
            Want::Stop => Passage::Stop,
            Want::Hold | Want::Run if held => Passage::GoAfterHold,
            Want::Hold | Want::Run => Passage::Go,
        }
    }

    fn set(&self, want: Want) {
        let mut inner = self.lock();
        if inner.want != Want::Stop {
            inner.want = want;
        }
        if want != Want::Run {
            inner.threads.iter().for_each(|thread| kick(*thread));
        }
        drop(inner);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_thread_waits_for_resume_and_leaves_on_stop() {
        let gate = Arc::new(Gate::default());
        let theirs = Arc::clone(&gate);
        // Thread id 0 is never a thread of ours: the kick fails silently and the condition variable does the work.
        let thread = std::thread::spawn(move || (theirs.enter(0), theirs.pass(), theirs.leave(0)));
        assert!(gate.pause(Duration::from_secs(5)));
        gate.resume();
        assert_eq!(thread.join().unwrap().1, Passage::Go);
        assert!(gate.pause(Duration::from_secs(1)), "nobody is left to wait for");
    }

    #[test]
    fn stop_is_final() {
        let gate = Gate::default();
        gate.stop();
        gate.resume();
        assert_eq!(gate.pass(), Passage::Stop);
        assert!(!gate.pause(Duration::from_millis(1)));
        assert!(!gate.recall(Duration::from_millis(1)));
    }

    #[test]
    fn a_recalled_thread_leaves_and_may_come_back() {
        let gate = Arc::new(Gate::default());
        let theirs = Arc::clone(&gate);
        let thread = std::thread::spawn(move || {
            let first = theirs.enter(0);
            theirs.leave(0);
            first
        });
        assert!(gate.recall(Duration::from_secs(5)));
        assert!(matches!(thread.join().unwrap(), Passage::Recall));
        gate.resume();
        assert_eq!(gate.enter(0), Passage::Go);
    }
}
