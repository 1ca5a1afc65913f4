//! A sandbox in the foreground: stdio, signals, and the workload's exit status as ours.
//!
//! ```text
//! Started -> wait for Ready -> attach, pump -> Exited by the agent -> wait for the warden's Exited -> exit status
//! ```
//! It dies with this process: the warden sees descriptor 3 hang up.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use casemate_agent_protocol::{ExitStatus, ToAgent};
use casemate_client::agent::{self, AgentStream};
use casemate_client::jailer::Launch;
use casemate_client::pump::{End, Outcome, Pump, Stdio};
use casemate_client::ring::{Log, LogReader};
use casemate_client::sanitize::{self, Sanitizer};
use casemate_client::signals::Signals;
use casemate_client::store::{self, SandboxDir};
use casemate_client::terminal::{self, RawMode};
use casemate_spec::wire::SpecFile;
use casemate_wire::jailer::Event;
use casemate_wire::record::{ExitCause, ExitReport, SandboxRecord};
use casemate_wire::runner::GuestNews;

use crate::failure::{Failure, OWN, Result};
use crate::output::{Context, say};
use crate::verbs::run::{Came, aborted, cause, next, not_run, policy, signal_code};

/// From Ready to a session; the agent listens before it says Ready.
const CONNECT: Duration = Duration::from_secs(10);
/// From the workload's end to the end of the VM. The warden switches a guest off that takes longer.
const POWER_OFF: Duration = Duration::from_secs(30);
/// As timeout(1) has it.
const TIMED_OUT: u8 = 124;

/// The exit status, and whether the workload got to run: a start that the user aborted leaves no record.
pub struct Ending {
    pub code: u8,
    pub ran: bool,
}

pub fn foreground(
    context: &Context,
    mut launch: Launch,
    signals: &Signals,
    record: &SandboxRecord,
    spec: &SpecFile,
) -> Result<Ending> {
    let ran = |code| Ending { code, ran: true };
    let dir = store::open(&context.dirs, &record.name)?;
    if spec.bare {
        return console(launch, signals, &dir).map(ran);
    }
    loop {
        match next(&mut launch, signals, None)? {
            Came::Event(Event::Guest(GuestNews::Ready)) => break,
            Came::Event(Event::Guest(GuestNews::Failed { detail })) => {
                let last = end(&mut launch, signals);
                launch.abort();
                let told = Failure::new(format!("{}: the guest could not start", record.name));
                let report = if let Last::Report(report) = &last { Some(report) } else { None };
                return Err(with_console(not_run(told, &detail), &dir, report));
            }
            Came::Event(Event::Exited(report)) => {
                finish(launch);
                return ended(&dir, &report, None).map(ran);
            }
            Came::Event(Event::Policy(news)) => policy(&news),
            Came::Event(_) | Came::Nothing => {}
            Came::Signal(signal) => return Ok(Ending { code: aborted(launch, signal)?, ran: false }),
        }
    }
    let stream = match connected(&mut launch, signals, &dir) {
        Ok(Connected::Stream(stream)) => stream,
        Ok(Connected::Ended(report)) => {
            finish(launch);
            return ended(&dir, &report, None).map(ran);
        }
        Ok(Connected::Signal(signal)) => return Ok(Ending { code: aborted(launch, signal)?, ran: false }),
        Err(failure) => {
            launch.abort();
            return Err(with_console(failure, &dir, None));
        }
    };
    let outcome = match attached(stream, &mut launch, signals, spec) {
        Ok(outcome) => outcome,
        Err(failure) => {
            // The agent's word is final for this session; hanging up ends the VM.
            launch.abort();
            return Err(Failure { message: format!("{}: {}", record.name, failure.message), ..failure });
        }
    };
    conclude(launch, signals, &dir, outcome).map(ran)
}

fn finish(launch: Launch) {
    if let Some(said) = launch.finish() {
        say(&format!("the jailer said: {said}"));
    }
}

enum Connected {
    Stream(UnixStream),
    Ended(ExitReport),
    Signal(i32),
}

/// Connects to the agent, unless the user or the sandbox ends before.
fn connected(launch: &mut Launch, signals: &Signals, dir: &SandboxDir) -> Result<Connected> {
    let mut other = None;
    let stop = || {
        match next(launch, signals, Some(Duration::ZERO)) {
            Ok(Came::Event(Event::Exited(report))) => other = Some(Connected::Ended(report)),
            Ok(Came::Signal(signal)) => other = Some(Connected::Signal(signal)),
            _ => {}
        }
        other.is_some()
    };
    match (agent::connect(dir, CONNECT, stop), other) {
        (Ok(stream), _) => Ok(Connected::Stream(stream)),
        (Err(_), Some(other)) => Ok(other),
        (Err(error), None) => Err(error.into()),
    }
}

/// The session, from attaching to its end. The terminal is as before when this returns.
fn attached(stream: UnixStream, launch: &mut Launch, signals: &Signals, spec: &SpecFile) -> Result<Outcome> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let size = if spec.tty { terminal::size(&stdin) } else { None };
    let session = AgentStream::open(stream, &ToAgent::Attach { size })?;
    let _raw = if spec.tty && spec.interactive { Some(RawMode::enter(&stdin)?) } else { None };
    let stdin = spec.interactive.then(|| stdin.as_fd());
    let stdio = Stdio { stdin, stdout: stdout.as_fd(), stderr: stderr.as_fd() };
    Ok(Pump::new(session, stdio, spec.tty).signals(signals).launch(launch).run()?)
}

fn conclude(mut launch: Launch, signals: &Signals, dir: &SandboxDir, outcome: Outcome) -> Result<u8> {
    let status = match outcome.end {
        End::Exited(status) => Some(status),
        End::GivenUp { signal } => {
            if !launch.abort() {
                say(&format!("{}: killed, but its warden has not ended yet; see `casemate ps -a`", dir.name));
            }
            return Ok(signal_code(signal));
        }
        End::Closed => None,
    };
    let last = match outcome.report {
        Some(report) => Last::Report(report),
        None => end(&mut launch, signals),
    };
    let signal = match last {
        Last::Report(report) => {
            finish(launch);
            return ended(dir, &report, status);
        }
        Last::Signal(signal) => Some(signal),
        Last::Silence => None,
    };
    let gone = launch.abort();
    match (status, signal) {
        (Some(status), _) => Ok(status.code()),
        (None, Some(signal)) if gone => Ok(signal_code(signal)),
        _ => {
            let mut told =
                Failure::new(format!("{}: the session broke off and the sandbox did not end by itself", dir.name));
            told.causes.extend(outcome.failed.iter().map(|d| sanitize::line(d, 400)));
            Err(told.remedy(format!("`casemate logs --console {}` shows what its kernel said", dir.name)))
        }
    }
}

/// What the waiting for the warden's last word brought.
enum Last {
    Report(ExitReport),
    Signal(i32),
    Silence,
}

/// Waits for the warden's last word; a signal, or time, ends the waiting.
fn end(launch: &mut Launch, signals: &Signals) -> Last {
    let deadline = Instant::now() + POWER_OFF;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match next(launch, signals, Some(left)) {
            Ok(Came::Event(Event::Exited(report))) => return Last::Report(report),
            Ok(Came::Event(Event::Policy(news))) => policy(&news),
            Ok(Came::Event(_)) => {}
            Ok(Came::Signal(signal)) => return Last::Signal(signal),
            Ok(Came::Nothing) | Err(_) => return Last::Silence,
        }
    }
}

/// Our exit status, from the workload's (as its agent told us, or the warden) or from the end of the VM.
fn ended(dir: &SandboxDir, report: &ExitReport, status: Option<ExitStatus>) -> Result<u8> {
    let code = status.map(ExitStatus::code).or(report.status);
    let why = || format!("{}: {}", dir.name, cause(report.cause));
    match (report.cause, code) {
        (ExitCause::PowerOff | ExitCause::Reboot, Some(code)) => Ok(code),
        (ExitCause::Timeout, _) => {
            say(&why());
            Ok(TIMED_OUT)
        }
        (ExitCause::Killed | ExitCause::ClientGone, _) => {
            say(&why());
            Ok(signal_code(9))
        }
        (ExitCause::PolicyChanged, _) => {
            let mut told = Failure::new(why());
            told.causes.extend(report.detail.iter().map(|d| sanitize::line(d, 400)));
            Err(told.remedy(
                "`casemate doctor` says what SELinux lacks; --on-policy-change chooses what it does to a sandbox",
            ))
        }
        (ExitCause::AgentFailed, _) => {
            let detail = report.detail.clone().unwrap_or_default();
            Err(not_run(Failure::new(why()), &detail))
        }
        // The workload had ended, and said so, before the VM went wrong.
        (_, Some(code)) => {
            say(&format!("{} after its workload had ended", why()));
            Ok(code)
        }
        (ExitCause::PowerOff | ExitCause::Reboot, None) => {
            Err(Failure::new(format!("{} before its workload had ended", why())))
        }
        _ => {
            let mut told = Failure::new(why());
            told.causes.extend(report.detail.iter().map(|d| sanitize::line(d, 400)));
            Err(with_console(told, dir, Some(report)))
        }
    }
}

/// The end of the console, where it may tell more.
fn with_console(mut told: Failure, dir: &SandboxDir, report: Option<&ExitReport>) -> Failure {
    if report.is_none_or(|r| r.cause != ExitCause::Killed)
        && let Ok(mut reader) = LogReader::open(dir, Log::Console)
    {
        let mut bytes = Vec::new();
        let _ = reader.read_new(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
        let tail = &lines[lines.len().saturating_sub(12)..];
        told.attached = (!tail.is_empty()).then(|| tail.join("\n"));
    }
    told
}

/// A bare guest has no agent: its console is shown as it grows.
fn console(mut launch: Launch, signals: &Signals, dir: &SandboxDir) -> Result<u8> {
    let mut reader = LogReader::open(dir, Log::Console)?;
    let mut sanitizer = terminal::is_terminal(std::io::stdout()).then(Sanitizer::new);
    let mut show = |last: bool| -> Result<()> {
        let (mut raw, mut out) = (Vec::new(), Vec::new());
        reader.read_new(&mut raw)?;
        match &mut sanitizer {
            Some(sanitizer) => {
                sanitizer.feed(&raw, &mut out);
                if last {
                    sanitizer.finish(&mut out);
                }
            }
            None => out = raw,
        }
        let mut stdout = std::io::stdout().lock();
        crate::output::written(
            std::io::Write::write_all(&mut stdout, &out).and_then(|()| std::io::Write::flush(&mut stdout)),
        )
    };
    loop {
        let came = next(&mut launch, signals, Some(Duration::from_millis(50)))?;
        match came {
            Came::Event(Event::Exited(report)) => {
                show(true)?;
                finish(launch);
                return match report.cause {
                    ExitCause::PowerOff | ExitCause::Reboot => Ok(report.status.unwrap_or(0)),
                    _ => ended(dir, &report, None),
                };
            }
            Came::Signal(signal) => {
                if !launch.abort() {
                    return Err(Failure::new(format!("{}: its warden has not ended yet", dir.name)).code(OWN));
                }
                show(true)?;
                return Ok(signal_code(signal));
            }
            Came::Event(Event::Policy(news)) => policy(&news),
            Came::Event(_) | Came::Nothing => {
                if let Err(closed) = show(false) {
                    launch.abort();
                    return Err(closed);
                }
            }
        }
    }
}
