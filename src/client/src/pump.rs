//! Carries standard input, output and signals between this process and a process in the guest, in one poll loop.
//!
//! ```text
//! stdin --(window)--> agent --> stdout, stderr      back-pressure both ways: nothing is read that nothing can take
//! signals ----------> agent                         a second one to end gives up on the guest
//! warden's events --> Outcome::report
//! ```
//! Trust: all that comes from the agent is the guest's. Memory is bounded by one message per output.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use casemate_agent_protocol::{Bytes, ExitStatus, FromAgent, MAX_CHUNK, SessionError, ToAgent};
use casemate_wire::jailer::Event;
use casemate_wire::record::ExitReport;
use casemate_wire::runner::GuestNews;
use rustix::event::PollFlags;

use crate::agent::{self, AgentStream};
use crate::error::{Attempt, Error, Result};
use crate::jailer::Launch;
use crate::outbox::{FdWriter, Outbox};
use crate::sanitize::Sanitizer;
use crate::signals::{Arrived, Signals};
use crate::terminal;
use crate::wait::{self, readable};

/// Ctrl-], three times within a second, ends the session also when the guest does not.
const ESCAPE: u8 = 0x1d;
/// After the VM is gone, what is still on its way.
const REST: Duration = Duration::from_secs(2);
const SIGKILL: i32 = 9;
const SIGPIPE: i32 = 13;

/// The caller's ends.
#[derive(Debug, Clone, Copy)]
pub struct Stdio<'a> {
    /// `None`: the process in the guest reads /dev/null.
    pub stdin: Option<BorrowedFd<'a>>,
    pub stdout: BorrowedFd<'a>,
    pub stderr: BorrowedFd<'a>,
}

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    Exited(ExitStatus),
    /// The user asked twice, or by the escape keys (signal 9), or before the process ran.
    GivenUp {
        signal: i32,
    },
    /// The agent hung up; the warden may know more.
    Closed,
}

#[derive(Debug)]
pub struct Outcome {
    pub end: End,
    /// The warden's last word, if it came meanwhile.
    pub report: Option<ExitReport>,
    /// The agent's reason for not running the workload, as the warden heard it.
    pub failed: Option<String>,
}

struct Sink<'a> {
    fd: BorrowedFd<'a>,
    out: Outbox,
    /// `None`: bytes pass as they are.
    sanitizer: Option<Sanitizer>,
    closed: bool,
}

impl<'a> Sink<'a> {
    fn new(fd: BorrowedFd<'a>, tty: bool) -> Self {
        // Escape sequences reach a terminal only if the user gave it to the guest.
        let sanitizer = (!tty && terminal::is_terminal(fd)).then(Sanitizer::new);
        Sink { fd, out: Outbox::default(), sanitizer, closed: false }
    }

    fn take(&mut self, bytes: &[u8]) {
        match &mut self.sanitizer {
            _ if self.closed => {}
            Some(sanitizer) => sanitizer.feed(bytes, self.out.buffer()),
            None => self.out.push(bytes),
        }
    }

    /// True if the reader is gone, the first time.
    fn write(&mut self) -> bool {
        if self.out.write_piece(&mut FdWriter(self.fd)).is_ok() {
            return false;
        }
        self.out.discard();
        !std::mem::replace(&mut self.closed, true)
    }
}

/// One process of the guest and the caller's stdio.
pub struct Pump<'a> {
    agent: AgentStream,
    stdin: Option<BorrowedFd<'a>>,
    stdout: Sink<'a>,
    stderr: Sink<'a>,
    signals: Option<&'a Signals>,
    launch: Option<&'a mut Launch>,
    tty: bool,
    started: bool,
    asked_to_end: bool,
    escapes: Vec<Instant>,
    exit: Option<ExitStatus>,
    outcome: Outcome,
    rest_until: Option<Instant>,
}

impl<'a> Pump<'a> {
    /// `tty`: the guest got a terminal, so everything passes unchanged.
    pub fn new(agent: AgentStream, stdio: Stdio<'a>, tty: bool) -> Self {
        Pump {
            agent,
            stdin: stdio.stdin,
            stdout: Sink::new(stdio.stdout, tty),
            stderr: Sink::new(stdio.stderr, tty),
            signals: None,
            launch: None,
            tty,
            started: false,
            asked_to_end: false,
            escapes: Vec::new(),
            exit: None,
            outcome: Outcome { end: End::Closed, report: None, failed: None },
            rest_until: None,
        }
    }

    pub fn signals(mut self, signals: &'a Signals) -> Self {
        self.signals = Some(signals);
        self
    }

    /// Also listens to the warden.
    pub fn launch(mut self, launch: &'a mut Launch) -> Self {
        self.launch = Some(launch);
        self
    }

    /// Until the process has ended and all its output is written.
    pub fn run(mut self) -> Result<Outcome> {
        loop {
            self.take_messages()?;
            let drained = self.stdout.out.is_empty() && self.stderr.out.is_empty();
            if let Some(status) = self.exit.filter(|_| drained) {
                self.outcome.end = End::Exited(status);
                return Ok(self.outcome);
            }
            let over = self.rest_until.is_some_and(|until| until <= Instant::now());
            if drained && (self.agent.has_ended() || over) {
                return Ok(self.outcome);
            }
            if let Some(signal) = self.turn()? {
                self.outcome.end = End::GivenUp { signal };
                return Ok(self.outcome);
            }
        }
    }

    fn room(&self) -> bool {
        self.stdout.out.is_empty() && self.stderr.out.is_empty()
    }

    fn take_messages(&mut self) -> Result<()> {
        while self.room() && self.exit.is_none() {
            let Some(message) = self.agent.message()? else { return Ok(()) };
            match message {
                FromAgent::Started { .. } => self.started = true,
                FromAgent::Stdout(bytes) => self.stdout.take(&bytes.0),
                FromAgent::Stderr(bytes) => self.stderr.take(&bytes.0),
                FromAgent::StdinClosed => self.stdin = None,
                FromAgent::Exited(status) => self.exit = Some(status),
                FromAgent::Error { kind, message } => return Err(agent::refusal(kind, &message)),
                FromAgent::Hello { .. } | FromAgent::StdinAck { .. } => {}
                other => return Err(SessionError::Unsolicited(other.name()).into()),
            }
        }
        Ok(())
    }

    /// One poll and what follows from it. A signal: the user gave up on the guest.
    fn turn(&mut self) -> Result<Option<i32>> {
        let stdin = self.stdin.filter(|_| self.agent.session.stdin_room() > 0);
        let none = PollFlags::empty();
        let out = |sink: &Sink<'_>| if sink.out.is_empty() { none } else { PollFlags::OUT };
        let heard = self.launch.as_ref().filter(|_| self.outcome.report.is_none()).map(|l| l.channel().as_fd());
        // A descriptor with nothing to wait for would report its hang-up for ever: such ones are left out.
        let wanted = [
            (Some(self.agent.as_fd()), self.agent.interest(self.room() && self.exit.is_none())),
            (stdin, PollFlags::IN),
            (Some(self.stdout.fd), out(&self.stdout)),
            (Some(self.stderr.fd), out(&self.stderr)),
            (self.signals.map(AsFd::as_fd), PollFlags::IN),
            (heard, PollFlags::IN),
        ];
        let asked: Vec<_> =
            wanted.iter().filter_map(|(fd, flags)| Some(((*fd)?, *flags))).filter(|w| w.1 != none).collect();
        let limit = self.rest_until.map(|until| until.saturating_duration_since(Instant::now()));
        let mut answers = wait::ready(&asked, limit).attempt(|| "waiting for the guest".into())?.into_iter();
        let got = wanted.map(|(fd, flags)| match fd {
            Some(_) if flags != none => answers.next().unwrap_or(none),
            _ => none,
        });
        if got[0].contains(PollFlags::OUT) {
            self.agent.flush();
        }
        if readable(got[0]) {
            self.agent.fill();
        }
        self.write(got[2], got[3])?;
        if readable(got[5]) {
            self.hear();
        }
        if readable(got[4])
            && let Some(signal) = self.signal()?
        {
            return Ok(Some(signal));
        }
        if readable(got[1]) && self.read_stdin()? {
            return Ok(Some(SIGKILL));
        }
        Ok(None)
    }

    fn write(&mut self, stdout: PollFlags, stderr: PollFlags) -> Result<()> {
        let gone = (!stdout.is_empty() && self.stdout.write()) | (!stderr.is_empty() && self.stderr.write());
        // As a pipe on this host would tell it.
        if gone && self.started && self.exit.is_none() {
            self.agent.send(&ToAgent::Signal { signal: SIGPIPE })?;
        }
        Ok(())
    }

    fn hear(&mut self) {
        let Some(launch) = self.launch.as_mut() else { return };
        match launch.try_event() {
            Ok(Some(Event::Exited(report))) => {
                self.outcome.report = Some(report);
                self.rest_until = Some(Instant::now() + REST);
            }
            Ok(Some(Event::Policy(news))) => {
                // A raw terminal wants the carriage return; elsewhere it does no harm.
                let text = crate::sanitize::line(&news.text, 600);
                self.stderr.take(format!("casemate: {text}{}", if self.tty { "\r\n" } else { "\n" }).as_bytes());
            }
            Ok(Some(Event::Guest(GuestNews::Failed { detail }))) => self.outcome.failed = Some(detail),
            Ok(_) => {}
            // The warden died; the runner follows it at once.
            Err(_) => {
                self.launch = None;
                self.rest_until = Some(Instant::now() + REST);
            }
        }
    }

    fn signal(&mut self) -> Result<Option<i32>> {
        while let Some(arrived) = self.signals.and_then(Signals::next) {
            match arrived {
                Arrived::Resize => {
                    if let Some(size) = self.stdin.and_then(terminal::size).filter(|_| self.tty) {
                        self.agent.send(&ToAgent::Resize(size))?;
                    }
                }
                Arrived::End(_) if self.asked_to_end => return Ok(Some(SIGKILL)),
                Arrived::End(signal) if !self.started => return Ok(Some(signal)),
                Arrived::End(signal) => {
                    self.asked_to_end = true;
                    self.agent.send(&ToAgent::Signal { signal })?;
                }
                Arrived::Other(signal) if self.started => self.agent.send(&ToAgent::Signal { signal })?,
                Arrived::Other(_) => {}
            }
        }
        Ok(None)
    }

    fn read_stdin(&mut self) -> Result<bool> {
        let Some(stdin) = self.stdin else { return Ok(false) };
        let mut buffer = [0; MAX_CHUNK];
        let room = self.agent.session.stdin_room();
        match rustix::io::read(stdin, &mut buffer[..room]) {
            Ok(0) => {
                self.stdin = None;
                self.agent.send(&ToAgent::StdinEof)?;
            }
            Ok(read) => {
                if self.tty && self.escaped(&buffer[..read]) {
                    return Ok(true);
                }
                self.agent.send(&ToAgent::Stdin(Bytes(buffer[..read].to_vec())))?;
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // A terminal that hung up.
            Err(rustix::io::Errno::IO) => self.stdin = None,
            Err(error) => return Err(Error::Io { attempt: "reading standard input".into(), source: error.into() }),
        }
        Ok(false)
    }

    fn escaped(&mut self, typed: &[u8]) -> bool {
        let now = Instant::now();
        for byte in typed {
            if *byte == ESCAPE {
                self.escapes.push(now);
            } else {
                self.escapes.clear();
            }
        }
        self.escapes.retain(|at| now.duration_since(*at) < Duration::from_secs(1));
        self.escapes.len() >= 3
    }
}

#[cfg(test)]
#[path = "pump_tests.rs"]
mod tests;
