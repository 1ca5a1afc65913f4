//! The one process the guest exists for: when it starts, who follows it, and how it ends.
//!
//! ```text
//! Waiting --Attach | detached--> Running --exit | Stop | timeout--> Over
//! ```
//! Sessions talk to it through [`Workload`]; its relay runs in the thread that called [`Workload::run`].
use crate::client::Client;
use crate::reaper::{Process, Reaper};
use crate::relay::{Control, Relay, Tick};
use crate::spawn::{Launch, SpawnError, Spawner};
use casemate_agent_protocol::{Attach, EndCause, ErrorKind, ExecRequest, ExitStatus, FromAgent, GuestConfig, WinSize};
use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::process::Signal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const DEFAULT_SIZE: WinSize = WinSize { rows: 24, cols: 80 };

#[derive(Debug, Default)]
struct Inbox {
    /// The newest client and its terminal's size.
    attach: Option<(Client, Option<WinSize>)>,
    stop: Option<Duration>,
    over: bool,
}

/// Shared between the workload's thread and the sessions.
#[derive(Debug)]
pub struct Workload {
    config: GuestConfig,
    helper: PathBuf,
    inbox: Mutex<Inbox>,
    wake: OwnedFd,
}

/// How it went.
#[derive(Debug)]
pub enum Ended {
    Exited {
        status: ExitStatus,
        cause: EndCause,
    },
    NotStarted(SpawnError),
    /// No client came in time, or it was stopped before one came.
    NeverAttached,
}

impl Workload {
    pub fn new(config: GuestConfig, helper: PathBuf) -> std::io::Result<Arc<Self>> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Workload { config, helper, inbox: Mutex::default(), wake }))
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn clear_wake(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
    }

    /// Gives the client to the workload, or back when it is over.
    pub fn attach(&self, client: Client, size: Option<WinSize>) -> Result<(), Client> {
        let mut inbox = self.inbox();
        if inbox.over {
            return Err(client);
        }
        inbox.attach = Some((client, size));
        drop(inbox);
        self.notify();
        Ok(())
    }

    /// Asks it to end. Without a grace, the configured one.
    pub fn stop(&self, grace: Option<Duration>) {
        self.inbox().stop = Some(grace.unwrap_or(Duration::from_millis(self.config.stop_grace_ms)));
        self.notify();
    }

    /// Starts the workload when its time has come and follows it to its end. `started` is called once with its pid.
    pub fn run(self: &Arc<Self>, reaper: &Arc<Reaper>, fallback: Option<&OwnedFd>, started: impl FnOnce(u32)) -> Ended {
        let ended = self.run_inner(reaper, fallback, started);
        let mut inbox = self.inbox();
        inbox.over = true;
        if let Some((client, _)) = inbox.attach.take() {
            refuse(client, ErrorKind::NotRunning, "the workload has ended");
        }
        ended
    }

    fn run_inner(
        self: &Arc<Self>,
        reaper: &Arc<Reaper>,
        fallback: Option<&OwnedFd>,
        started: impl FnOnce(u32),
    ) -> Ended {
        let first = match self.config.attach {
            Attach::Detached => None,
            Attach::Wait { timeout_ms } => match self.await_client(Duration::from_millis(timeout_ms)) {
                Some(first) => Some(first),
                None => return Ended::NeverAttached,
            },
        };
        let size = first.as_ref().and_then(|(_, size)| *size);
        let spawner = Spawner { helper: self.helper.clone(), launch: launch(&self.config, size) };
        let (process, child) = match reaper.spawn(&spawner) {
            Ok(pair) => pair,
            Err(error) => {
                if let Some((client, _)) = first {
                    refuse(client, error.kind, &error.message);
                }
                return Ended::NotStarted(error);
            }
        };
        started(process.pid());
        let supervisor = Supervisor {
            workload: self,
            stop_signal: Signal::from_named_raw(self.config.stop_signal).unwrap_or(Signal::TERM),
            timeout: self.config.timeout_ms.map(|ms| Instant::now() + Duration::from_millis(ms)),
            kill_at: None,
            cause: EndCause::Itself,
        };
        match Relay::new(process, child, fallback, supervisor) {
            Ok(mut relay) => {
                if let Some((client, _)) = first {
                    relay.attach(client);
                }
                let (status, supervisor) = relay.run();
                Ended::Exited { status, cause: supervisor.cause }
            }
            Err(error) => Ended::NotStarted(SpawnError::system(error)),
        }
    }

    fn await_client(&self, time: Duration) -> Option<(Client, Option<WinSize>)> {
        let deadline = Instant::now() + time;
        loop {
            let mut inbox = self.inbox();
            if inbox.stop.is_some() {
                return None;
            }
            if let Some(first) = inbox.attach.take() {
                return Some(first);
            }
            drop(inbox);
            let left = deadline.saturating_duration_since(Instant::now());
            if !crate::stream::wait_for(self.wake.as_fd(), PollFlags::IN, left) {
                return None;
            }
            self.clear_wake();
        }
    }
}

fn launch(config: &GuestConfig, size: Option<WinSize>) -> Launch {
    Launch {
        exec: ExecRequest {
            argv: config.argv.clone(),
            env: config.env.clone(),
            cwd: config.cwd.clone(),
            user: config.user.clone(),
            groups: config.groups.clone(),
            tty: config.tty.then_some(size.unwrap_or(DEFAULT_SIZE)),
            stdin: config.stdin,
        },
        rlimits: config.rlimits.clone(),
        hostname: config.hostname.clone(),
    }
}

fn refuse(mut client: Client, kind: ErrorKind, message: &str) {
    client.queue(&FromAgent::Error { kind, message: crate::session::cut(message) });
    client.flush();
    client.stream.finish(Duration::from_secs(1));
}

/// Stop, timeout and new clients, seen from the relay.
struct Supervisor<'a> {
    workload: &'a Workload,
    stop_signal: Signal,
    timeout: Option<Instant>,
    kill_at: Option<Instant>,
    cause: EndCause,
}

impl Supervisor<'_> {
    fn begin_stop(&mut self, process: &Process, cause: EndCause, grace: Duration) {
        if self.kill_at.is_none() {
            self.cause = cause;
            process.signal(self.stop_signal);
        }
        // A second stop may shorten the grace, never lengthen it.
        let at = Instant::now() + grace;
        self.kill_at = Some(self.kill_at.map_or(at, |old| old.min(at)));
    }
}

impl Control for Supervisor<'_> {
    fn tick(&mut self, process: &Process) -> Tick {
        self.workload.clear_wake();
        let (attach, stop) = {
            let mut inbox = self.workload.inbox();
            (inbox.attach.take(), inbox.stop.take())
        };
        if let Some(grace) = stop {
            self.begin_stop(process, EndCause::Stopped, grace);
        }
        let now = Instant::now();
        if self.timeout.is_some_and(|at| at <= now) {
            self.timeout = None;
            let grace = Duration::from_millis(self.workload.config.stop_grace_ms);
            self.begin_stop(process, EndCause::Timeout, grace);
        }
        if self.kill_at.is_some_and(|at| at <= now) {
            process.signal_group(Signal::KILL);
            // Again in a while: a process that forked out of the group between two looks does not matter, its own end does.
            self.kill_at = Some(now + Duration::from_secs(1));
        }
        let deadline = [self.timeout, self.kill_at].into_iter().flatten().min();
        Tick { attach: attach.map(|(client, _)| client), deadline }
    }

    fn wake(&self) -> Option<BorrowedFd<'_>> {
        Some(self.workload.wake.as_fd())
    }

    fn client_lost(&mut self, _process: &Process) {}
}
