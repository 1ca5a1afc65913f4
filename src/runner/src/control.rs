//! The main thread once all is confined: the warden's word, the guest's end, the clock.
//!
//! ```text
//! Ready --Go--> Running <--Pause/Resume--> Paused
//!   any --Quit, an ending, no agent in time--> Exited reported, process ends
//!   any --warden gone--> process ends
//! ```

use std::process::ExitCode;
use std::time::{Duration, Instant};

use casemate_plan::RolePlan;
use casemate_sys::rustix::event::{PollFd, PollFlags, Timespec, poll};
use casemate_sys::rustix::io::Errno;
use casemate_vm::Ending;
use casemate_wire::record::{ExitCause, Finding};
use casemate_wire::runner::{FromRunner, GuestNews, ToRunner};
use casemate_wire::{Channel, ChannelError};

use crate::error::Error;
use crate::mailbox::Mail;
use crate::stages::Stages;
use crate::threads::Threads;

/// vCPUs leave the guest within this time or the pause has failed.
const PAUSE_LIMIT: Duration = Duration::from_secs(5);

/// Tells the warden why there is no VM.
pub fn report_failure(warden: &Channel, error: &Error) -> ExitCode {
    // If the warden is gone too, nobody is left to tell.
    let _ = warden.send(&FromRunner::Failed { step: error.step.into(), error: error.why.clone() });
    ExitCode::FAILURE
}

/// Reports the attestation, then serves the warden until the VM is over.
pub fn serve(
    plan: &RolePlan,
    warden: &Channel,
    mut threads: Threads,
    findings: Vec<Finding>,
    mut stages: Stages,
) -> ExitCode {
    if warden.send(&FromRunner::Attested(findings.clone())).is_err() {
        return ExitCode::FAILURE;
    }
    stages.lap("send the attestation");
    let mut life = Life::new(plan, findings);
    match life.follow(warden, &mut threads) {
        Some((cause, detail)) => {
            stages.lap("wait for Go, run the guest");
            let heard = threads.ear.clone();
            let fault = threads.finish();
            let (cause, detail) = refine(cause, detail, heard.panic(), fault);
            stages.lap("stop the threads");
            // A warden that is gone shows at the next message.
            let _ = warden.send(&FromRunner::Timed(stages.laps()));
            match warden.send(&FromRunner::Exited { cause, detail }) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        None => ExitCode::FAILURE,
    }
}

/// A panicked Linux guest resets: its console tells that from a reboot. A device fault explains what nothing else does.
fn refine(
    cause: ExitCause,
    detail: Option<String>,
    panic: Option<String>,
    fault: Option<String>,
) -> (ExitCause, Option<String>) {
    match (cause, panic) {
        (ExitCause::Reboot | ExitCause::TripleFault, Some(panic)) => (ExitCause::GuestPanic, Some(panic)),
        (ExitCause::GuestPanic | ExitCause::BootTimeout, panic) => (cause, detail.or(panic).or(fault)),
        (cause, _) => (cause, detail.or(fault)),
    }
}

type End = (ExitCause, Option<String>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Ready,
    Running,
    Paused,
}

/// What the main thread remembers.
struct Life {
    phase: Phase,
    findings: Vec<Finding>,
    /// How long the agent may still take; counts down while the guest runs, `None` once it answered.
    boot_left: Option<Duration>,
    /// The whole of it, for each life of the guest.
    boot_limit: Option<Duration>,
    running_since: Instant,
    agent_failed: Option<String>,
}

impl Life {
    fn new(plan: &RolePlan, findings: Vec<Finding>) -> Self {
        let boot_limit = plan.vm.agent.then(|| Duration::from_millis(plan.vm.boot_timeout_ms));
        Self {
            phase: Phase::Ready,
            findings,
            boot_left: boot_limit,
            boot_limit,
            running_since: Instant::now(),
            agent_failed: None,
        }
    }

    /// `None`: the warden is gone, or spoke out of turn.
    fn follow(&mut self, warden: &Channel, threads: &mut Threads) -> Option<End> {
        loop {
            let timeout = self.boot_timeout();
            let mut fds = [PollFd::new(warden, PollFlags::IN), PollFd::new(&*threads.mailbox, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Some((ExitCause::InternalError, Some(format!("cannot wait: {error}")))),
            }
            let (warden_spoke, mail) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
            if mail && let Some(end) = self.read_mail(warden, threads) {
                return Some(end);
            }
            if warden_spoke {
                match warden.try_receive::<ToRunner>() {
                    Ok(message) => match self.obey(message, warden, threads) {
                        Ok(None) => {}
                        Ok(Some(end)) => return Some(end),
                        Err(Gone) => return None,
                    },
                    Err(ChannelError::WouldBlock) => {}
                    Err(_) => return None,
                }
            }
            if self.boot_is_over() {
                return Some((ExitCause::BootTimeout, None));
            }
        }
    }

    fn obey(&mut self, message: ToRunner, warden: &Channel, threads: &Threads) -> Result<Option<End>, Gone> {
        match (message, self.phase) {
            (ToRunner::Go, Phase::Ready) => self.run(threads),
            (ToRunner::Pause, Phase::Running) => {
                self.stop_clock();
                if !threads.gate.pause(PAUSE_LIMIT) {
                    return Ok(Some((ExitCause::InternalError, Some("a vCPU did not come to rest".into()))));
                }
                self.phase = Phase::Paused;
                warden.send(&FromRunner::Paused).map_err(|_| Gone)?;
            }
            (ToRunner::Resume, Phase::Paused) => {
                self.run(threads);
                warden.send(&FromRunner::Resumed).map_err(|_| Gone)?;
            }
            (ToRunner::Attest, _) => {
                warden.send(&FromRunner::Attested(self.findings.clone())).map_err(|_| Gone)?;
            }
            (ToRunner::Quit, _) => return Ok(Some((ExitCause::Killed, None))),
            // Out of turn: this is not the warden that the phase table describes.
            (ToRunner::Go | ToRunner::Pause | ToRunner::Resume, _) => return Err(Gone),
        }
        Ok(None)
    }

    fn run(&mut self, threads: &Threads) {
        self.phase = Phase::Running;
        self.running_since = Instant::now();
        threads.gate.resume();
    }

    fn read_mail(&mut self, warden: &Channel, threads: &mut Threads) -> Option<End> {
        let mut end = None;
        for mail in threads.mailbox.take() {
            match mail {
                Mail::News(news) => self.pass_on(news, warden),
                Mail::Broken(why) => return Some((ExitCause::InternalError, Some(why))),
                Mail::Ended(Ending::Stopped | Ending::Recalled) => {}
                Mail::Ended(ending) => {
                    // The first ending counts; the other vCPUs stop because of it.
                    end.get_or_insert(ending);
                }
            }
        }
        let end = end?;
        // An agent that failed would fail again: its reset is the end.
        if let (Ending::Reset(_), Some(restart), None) = (end, &mut threads.restart, &self.agent_failed) {
            return match restart.prepare(&threads.gate, &threads.bell) {
                Ok(()) => {
                    threads.ear.forget();
                    self.boot_left = self.boot_limit;
                    match self.phase {
                        // The reset and the pause met: the new life begins when it is resumed.
                        Phase::Paused => {}
                        Phase::Ready | Phase::Running => self.run(threads),
                    }
                    None
                }
                Err(error) => Some((ExitCause::InternalError, Some(error.to_string()))),
            };
        }
        let (cause, detail) = describe(end);
        Some(match self.agent_failed.take() {
            Some(failed) if cause != ExitCause::InternalError => (ExitCause::AgentFailed, Some(failed)),
            _ => (cause, detail),
        })
    }

    fn pass_on(&mut self, news: GuestNews, warden: &Channel) {
        match &news {
            GuestNews::Failed { detail } => self.agent_failed = Some(detail.clone()),
            GuestNews::Ready | GuestNews::Started | GuestNews::Exited { .. } => {}
        }
        // Any word of the agent's ends the wait for it.
        self.boot_left = None;
        // A gone warden shows at the next poll.
        let _ = warden.send(&FromRunner::Guest(news));
    }

    fn stop_clock(&mut self) {
        let ran = self.running_since.elapsed();
        self.boot_left = self.boot_left.map(|left| left.saturating_sub(ran));
    }

    fn boot_is_over(&self) -> bool {
        self.phase == Phase::Running && self.boot_left.is_some_and(|left| self.running_since.elapsed() >= left)
    }

    fn boot_timeout(&self) -> Option<Timespec> {
        let left = self.boot_left.filter(|_| self.phase == Phase::Running)?;
        Timespec::try_from(left.saturating_sub(self.running_since.elapsed()) + Duration::from_millis(1)).ok()
    }
}

/// The warden is gone or not to be trusted.
#[derive(Debug)]
struct Gone;

/// An ending in the words of the exit report.
fn describe(ending: Ending) -> End {
    let internal = |detail: String| (ExitCause::InternalError, Some(detail));
    match ending {
        Ending::PowerOff => (ExitCause::PowerOff, None),
        Ending::Reset(_) => (ExitCause::Reboot, None),
        Ending::TripleFault => (ExitCause::TripleFault, None),
        Ending::Panic(_) => (ExitCause::GuestPanic, None),
        Ending::Halted => internal("the guest halted without interrupts".into()),
        Ending::FailEntry { reason, cpu } => internal(format!("guest entry failed: reason {reason:#x} on CPU {cpu}")),
        Ending::InternalError { suberror: 1 } => internal("KVM could not emulate a guest instruction".into()),
        Ending::InternalError { suberror } => internal(format!("KVM internal error {suberror}")),
        Ending::RunFailed { errno } => internal(format!("KVM_RUN failed: errno {errno}")),
        Ending::UnexpectedExit { reason } => internal(format!("unexpected KVM exit {reason}")),
        Ending::Stopped | Ending::Recalled => (ExitCause::Killed, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_on_the_console_is_not_a_reboot() {
        let panic = Some("Kernel panic - not syncing: x".to_string());
        assert_eq!(refine(ExitCause::Reboot, None, panic.clone(), None), (ExitCause::GuestPanic, panic.clone()));
        assert_eq!(refine(ExitCause::Reboot, None, None, None), (ExitCause::Reboot, None));
        assert_eq!(refine(ExitCause::PowerOff, None, panic.clone(), None), (ExitCause::PowerOff, None));
        assert_eq!(refine(ExitCause::GuestPanic, None, panic.clone(), None), (ExitCause::GuestPanic, panic));
        let fault = Some("Block device stopped: x".to_string());
        assert_eq!(refine(ExitCause::Reboot, None, None, fault.clone()), (ExitCause::Reboot, fault));
    }

    #[test]
    fn every_ending_has_its_cause() {
        assert_eq!(describe(Ending::PowerOff).0, ExitCause::PowerOff);
        assert_eq!(describe(Ending::TripleFault).0, ExitCause::TripleFault);
        let (cause, detail) = describe(Ending::InternalError { suberror: 1 });
        assert_eq!(cause, ExitCause::InternalError);
        assert!(detail.unwrap().contains("emulate"));
    }
}
