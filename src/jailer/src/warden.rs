//! The warden: the jailer's parent half, which lives as long as its VM.
//!
//! ```text
//! Starting --Attested, both agree, Go--> Running <--Pause/Resume--> Paused
//!     \------------------ pidfd readable ------------------------------> Stopped
//! ```
//! One poll loop over the pidfd, the runner's channel, the client, the control socket and a deadline. The runner is
//! untrusted: a message that its phase does not allow ends the VM.

mod control;
mod policy;
mod runner;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use casemate_sys::process::{Child, Exit};
use casemate_sys::signal;
use casemate_wire::control::{Request, Response};
use casemate_wire::record::{ExitCause, ExitReport, Finding, Phase, SandboxRecord};
use casemate_wire::runner::{FromRunner, ToRunner};
use casemate_wire::{Channel, ChannelError};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;

use self::control::Connection;
use crate::clock::Stopwatch;
use crate::error::{StepFailed, sentence};
use crate::policy_guard::PolicyGuard;
use crate::store::{STATE, SandboxDir};

/// How long a runner may take from exec to its attestation.
const PROOF_TIME: Duration = Duration::from_secs(30);

/// Attests the runner from outside; given by the pipeline so that the loop knows no layer.
pub type Attest = Box<dyn Fn() -> Vec<Finding>>;

/// What the warden holds of a running VM.
pub struct Warden {
    pub dir: SandboxDir,
    pub record: SandboxRecord,
    pub child: Child,
    pub runner: Channel,
    /// The client that started it; `None` once it is let go.
    pub client: Option<Channel>,
    pub control: OwnedFd,
    pub attest: Attest,
    /// News of the loaded policy; `None` where the sandbox has no label.
    pub policy: Option<PolicyGuard>,
    /// A connection to the guest's agent that was made while connections could be made; to ask it to end.
    pub agent: Option<UnixStream>,
    /// A boot timeout holds until the agent says Ready.
    pub boot_timeout: Option<Duration>,
    pub timeout: Option<Duration>,
    pub signals: OwnedFd,
    /// Clients that wait for the end.
    pub waiting: Vec<Channel>,
    pub watch: Stopwatch,
    /// The runner's laps are heard once.
    pub timed: bool,
}

struct Serving {
    connections: Vec<Connection>,
    /// What ends the VM when its time comes, soonest first matters only for the cause.
    boot_deadline: Option<Instant>,
    deadline: Option<Instant>,
    off_deadline: Option<Instant>,
    /// The runner owes a pause that the warden asked for.
    pause_deadline: Option<Instant>,
    /// The guest owes its end, because the policy no longer separates it; and the sentence for the record.
    policy_deadline: Option<Instant>,
    policy_end: Option<String>,
    killed: Option<ExitCause>,
    said: Option<(ExitCause, Option<String>)>,
    status: Option<u8>,
    guest_failure: Option<String>,
    news: u32,
    /// What the runner was asked and has not answered: it may speak of these, once each.
    asked: Vec<Request>,
    /// The runner's end of the channel is closed: it is about to end.
    hung_up: bool,
}

impl Warden {
    /// Waits for the runner's own attestation, adds the one from outside, compares both with the plan, and says Go.
    pub fn prove(&mut self) -> Result<(), StepFailed> {
        let mut findings = self.inside()?;
        self.watch.lap("wait for the runner's attestation");
        findings.extend((self.attest)());
        self.watch.lap("attest from outside");
        let bad: Vec<String> = findings.iter().filter(|f| !f.ok).map(tell).collect();
        let (first, layer) = (bad.first().cloned(), findings.iter().find(|f| !f.ok).map(|f| f.layer.clone()));
        self.record.findings = findings;
        if let (Some(_), Some(layer)) = (first, layer) {
            return Err(StepFailed::because(&format!("prove the confinement, layer {layer}"), bad.join("; ")));
        }
        if self.record.findings.is_empty() {
            return Err(StepFailed::because("prove the confinement", "nothing was attested"));
        }
        self.ask_before_go()?;
        self.watch.lap("ask the policy once more");
        self.record.phase = Phase::Running;
        self.dir.write_record(STATE, &self.record)?;
        self.runner.send(&ToRunner::Go).map_err(|e| StepFailed::stage("let the vCPUs run", e))?;
        self.watch.lap("write the record, let the vCPUs run");
        Ok(())
    }

    fn inside(&self) -> Result<Vec<Finding>, StepFailed> {
        const STEP: &str = "wait for the runner's attestation";
        let until = Instant::now() + PROOF_TIME;
        loop {
            let mut fds = vec![PollFd::new(&self.runner, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
            if let Some(client) = &self.client {
                fds.push(PollFd::new(client, PollFlags::RDHUP));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(StepFailed::because(STEP, format!("none within {} s", PROOF_TIME.as_secs())));
            }
            poll(&mut fds, Some(left))?;
            let hung_up = |fd: &PollFd<'_>| fd.revents().intersects(PollFlags::RDHUP | PollFlags::HUP);
            if fds.get(2).is_some_and(hung_up) {
                return Err(StepFailed::because(STEP, "the client went away"));
            }
            if !fds[1].revents().is_empty() {
                return Err(StepFailed::because(STEP, "asked to end by a signal"));
            }
            match self.runner.try_receive::<FromRunner>() {
                Ok(FromRunner::Attested(findings)) if !findings.is_empty() => return Ok(findings),
                Ok(FromRunner::Failed { step, error }) => return Err(StepFailed::because(&step, error)),
                Ok(_) => return Err(StepFailed::because(STEP, "it said something else")),
                Err(ChannelError::WouldBlock) => {}
                Err(ChannelError::Closed) => return Err(self.death(STEP)),
                Err(error) => return Err(StepFailed::stage(STEP, error)),
            }
        }
    }

    fn death(&self, step: &str) -> StepFailed {
        let ended = self.child.wait().map_or("for an unknown reason".into(), how);
        StepFailed::because(step, format!("the runner ended {ended}"))
    }

    /// Serves until the runner is reaped, and says how it ended.
    pub fn serve(&mut self) -> Result<ExitReport, StepFailed> {
        let now = Instant::now();
        let mut serving = Serving {
            connections: Vec::new(),
            boot_deadline: self.boot_timeout.map(|t| now + t),
            deadline: self.timeout.map(|t| now + t),
            off_deadline: None,
            pause_deadline: None,
            policy_deadline: None,
            policy_end: None,
            killed: None,
            said: None,
            status: None,
            guest_failure: None,
            news: 0,
            hung_up: false,
            asked: Vec::new(),
        };
        loop {
            if self.turn(&mut serving)? {
                let exit = self.child.wait().map_err(|e| StepFailed::stage("reap the runner", e))?;
                let report = serving.report(exit);
                // They are answered when the host is as it was: whoever waits may look at the record at once.
                let waiting = serving.connections.into_iter().filter(|c| c.waits || c.pending.is_some());
                self.waiting = waiting.map(|c| c.channel).collect();
                return Ok(report);
            }
        }
    }

    /// One turn of the loop; true when the runner has ended.
    fn turn(&mut self, serving: &mut Serving) -> Result<bool, StepFailed> {
        let ready = self.wait(serving)?;
        if ready.runner {
            self.hear_runner(serving);
        }
        if ready.ended {
            // What it said last is still in the socket.
            while self.hear_runner(serving) {}
            return Ok(true);
        }
        if ready.client_gone && self.client.take().is_some() && !self.record.detached {
            self.kill(serving, ExitCause::ClientGone);
        }
        if ready.signal {
            let _taken = signal::take(&self.signals).map_err(|e| StepFailed::stage("read a signal", e))?;
            self.kill(serving, ExitCause::Killed);
        }
        if ready.policy
            && let Some(guard) = &mut self.policy
        {
            guard.hear();
        }
        if let Some(verdict) = self.policy.as_mut().and_then(PolicyGuard::verdict) {
            self.judge_policy(serving, verdict);
        }
        self.check_deadlines(serving);
        for index in ready.connections {
            self.hear_connection(serving, index);
        }
        if ready.control {
            self.accept(serving);
        }
        serving.connections.retain(|c| !c.closed);
        Ok(false)
    }

    fn wait(&self, serving: &Serving) -> Result<Ready, StepFailed> {
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.child.as_fd(), PollFlags::IN),
            // A closed channel is always ready: the kernel takes a VM apart for milliseconds after it, which is no time
            // to spin.
            if serving.hung_up {
                PollFd::from_borrowed_fd(self.child.as_fd(), PollFlags::IN)
            } else {
                PollFd::new(&self.runner, PollFlags::IN)
            },
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.control, PollFlags::IN),
        ];
        fds.extend(serving.connections.iter().map(|c| PollFd::new(&c.channel, PollFlags::IN)));
        if let Some(client) = &self.client {
            fds.push(PollFd::new(client, PollFlags::RDHUP));
        }
        let told = self.policy.as_ref().and_then(PolicyGuard::fd);
        let told_at = fds.len();
        fds.extend(told.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let policy = self.policy.as_ref().and_then(PolicyGuard::deadline);
        let next = serving.deadlines().into_iter().chain([policy]).flatten().min();
        poll(&mut fds, next.map(|at| at.saturating_duration_since(Instant::now())))?;
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let connections = 4..4 + serving.connections.len();
        Ok(Ready {
            ended: is_ready(&fds[0]),
            runner: is_ready(&fds[1]),
            signal: is_ready(&fds[2]),
            control: is_ready(&fds[3]),
            connections: connections.clone().filter(|i| is_ready(&fds[*i])).map(|i| i - 4).collect(),
            client_gone: self.client.is_some() && fds.get(connections.end).is_some_and(is_ready),
            policy: fds.get(told_at).is_some_and(is_ready),
        })
    }

    fn kill(&self, serving: &mut Serving, cause: ExitCause) {
        serving.killed.get_or_insert(cause);
        // ESRCH means that it ended by itself, which the pidfd tells next.
        if let Err(error) = self.child.kill() {
            eprintln!("casemate-jailer: {}", sentence(&error));
        }
        (serving.deadline, serving.boot_deadline, serving.off_deadline) = (None, None, None);
        (serving.pause_deadline, serving.policy_deadline) = (None, None);
    }

    fn check_deadlines(&mut self, serving: &mut Serving) {
        let now = Instant::now();
        let passed = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if passed(serving.deadline) {
            self.kill(serving, ExitCause::Timeout);
        } else if passed(serving.boot_deadline) {
            self.kill(serving, ExitCause::BootTimeout);
        } else if passed(serving.off_deadline) {
            // The workload is done; a guest that does not power off is switched off.
            serving.said.get_or_insert((ExitCause::PowerOff, Some("the guest was switched off".into())));
            self.kill(serving, ExitCause::PowerOff);
        } else if passed(serving.policy_deadline) {
            self.kill(serving, ExitCause::PolicyChanged);
        } else if passed(serving.pause_deadline) {
            serving.policy_end.get_or_insert("the runner did not pause when SELinux stopped separating it".into());
            self.kill(serving, ExitCause::PolicyChanged);
        }
    }
}

struct Ready {
    ended: bool,
    policy: bool,
    runner: bool,
    signal: bool,
    control: bool,
    client_gone: bool,
    connections: Vec<usize>,
}

impl Serving {
    fn deadlines(&self) -> [Option<Instant>; 5] {
        [self.boot_deadline, self.deadline, self.off_deadline, self.pause_deadline, self.policy_deadline]
    }

    fn answer_pending(&mut self, request: &Request, response: &Response) {
        for connection in self.connections.iter_mut().filter(|c| c.pending.as_ref() == Some(request)) {
            connection.pending = None;
            connection.reply(response);
        }
    }

    fn report(&self, exit: Exit) -> ExitReport {
        let status = self.status;
        // Ended for the policy's sake, by its own power-off or by us; another cause that came first stays the cause.
        let other = self.killed.is_some_and(|cause| !matches!(cause, ExitCause::PolicyChanged | ExitCause::PowerOff));
        if let Some(why) = self.policy_end.clone().filter(|_| !other) {
            return ExitReport { cause: ExitCause::PolicyChanged, status, detail: Some(why) };
        }
        if let Some(cause) = self.killed.filter(|cause| *cause != ExitCause::PowerOff) {
            return ExitReport { cause, status, detail: self.said.clone().and_then(|(_, detail)| detail) };
        }
        if let Some(detail) = &self.guest_failure {
            return ExitReport { cause: ExitCause::AgentFailed, status, detail: Some(detail.clone()) };
        }
        match self.said.clone() {
            Some((cause, detail)) => ExitReport { cause, status, detail },
            None => {
                ExitReport { cause: ExitCause::RunnerDied, status, detail: Some(format!("it ended {}", how(exit))) }
            }
        }
    }
}

/// How a process ended, as a sentence's end; SIGSYS is a filter's doing and said to be.
fn how(exit: Exit) -> String {
    match exit {
        Exit::Signaled(signal) if signal == Signal::SYS.as_raw() => {
            "by SIGSYS: a seccomp filter refused a system call (see the kernel log)".into()
        }
        other => format!("with {other}"),
    }
}

fn tell(finding: &Finding) -> String {
    format!("{}: expected {}, seen {}", finding.what, finding.expected, finding.seen)
}

/// Guest text for a record: bounded, without control characters.
fn printable(text: String) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

fn poll(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> Result<(), StepFailed> {
    let timeout = timeout.map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: i64::from(t.subsec_nanos()) });
    match rustix::event::poll(fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(StepFailed::stage("wait for events", std::io::Error::from(error))),
    }
}
