//! One place that waits for children: PID 1 inherits every orphan, and two waiters would steal from each other.
//!
//! A child is started and registered under one lock, and collected under the same lock, so that an exit can never be
//! seen before its owner is known, nor a pid signalled after it was freed.
use crate::spawn::{Child, SpawnError, Spawner};
use casemate_agent_protocol::ExitStatus;
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Pid, Signal, WaitIdOptions, WaitOptions, WaitStatus};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
struct Slot {
    status: Mutex<Option<ExitStatus>>,
    event: OwnedFd,
}

/// A started process of ours.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    slot: Arc<Slot>,
    reaper: Arc<Reaper>,
}

#[derive(Debug, Default)]
pub struct Reaper {
    children: Mutex<HashMap<Pid, Arc<Slot>>>,
    started: Condvar,
    running: Mutex<bool>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The data are valid after every single assignment: a panic elsewhere does not spoil them.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reaper {
    /// Starts the waiting thread, once.
    pub fn start(self: &Arc<Self>) -> std::io::Result<()> {
        let mut running = locked(&self.running);
        if !*running {
            let own = Arc::clone(self);
            std::thread::Builder::new().name("reaper".into()).stack_size(64 * 1024).spawn(move || own.run())?;
            *running = true;
        }
        Ok(())
    }

    fn run(&self) {
        loop {
            // Look without collecting, so that collecting happens under the lock.
            match rustix::process::waitid(rustix::process::WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                Ok(_) => self.collect(),
                Err(rustix::io::Errno::CHILD) => {
                    let children = locked(&self.children);
                    if children.is_empty() {
                        drop(self.started.wait(children));
                    }
                }
                Err(_) => {}
            }
        }
    }

    fn collect(&self) {
        let mut children = locked(&self.children);
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some(slot) = children.remove(&pid) {
                *locked(&slot.status) = Some(exit_status(status));
                let _ = rustix::io::write(&slot.event, &1u64.to_ne_bytes());
            }
        }
    }

    /// Starts a child and registers it in one step.
    pub fn spawn(self: &Arc<Self>, spawner: &Spawner) -> Result<(Process, Child), SpawnError> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(SpawnError::system)?;
        let slot = Arc::new(Slot { status: Mutex::new(None), event });
        let (pid, pending) = {
            let mut children = locked(&self.children);
            let (pid, pending) = spawner.start()?;
            children.insert(pid, Arc::clone(&slot));
            self.started.notify_all();
            (pid, pending)
        };
        let process = Process { pid, slot, reaper: Arc::clone(self) };
        // The helper's verdict is awaited outside the lock: it may take as long as a slow file system.
        let child = pending.finish()?;
        Ok((process, child))
    }
}

impl Process {
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Readable once the process has ended.
    pub fn exit_event(&self) -> BorrowedFd<'_> {
        self.slot.event.as_fd()
    }

    pub fn status(&self) -> Option<ExitStatus> {
        *locked(&self.slot.status)
    }

    /// To the process alone. Without effect on one that has ended.
    pub fn signal(&self, signal: Signal) {
        let children = locked(&self.reaper.children);
        if children.contains_key(&self.pid) {
            let _ = rustix::process::kill_process(self.pid, signal);
        }
    }

    /// To all processes of its group (each process here leads its own session and group).
    pub fn signal_group(&self, signal: Signal) {
        let children = locked(&self.reaper.children);
        if children.contains_key(&self.pid) {
            let _ = rustix::process::kill_process_group(self.pid, signal);
        }
    }
}

fn exit_status(status: WaitStatus) -> ExitStatus {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitStatus::Code((code & 0xff) as u8),
        (None, Some(signal)) => ExitStatus::Signal((signal & 0x7f) as u8),
        (None, None) => ExitStatus::Code(255),
    }
}
