//! What the runner says, and through it the guest: heard only where its phase and our questions allow it, and bounded.

use std::time::{Duration, Instant};

use casemate_wire::ChannelError;
use casemate_wire::control::{Request, Response};
use casemate_wire::jailer::Event;
use casemate_wire::record::{ExitCause, Finding, Phase, Timing};
use casemate_wire::runner::{FromRunner, GuestNews};

use super::{Serving, Warden, printable};

/// After the workload's exit, the guest has this long to power off.
const POWER_OFF_TIME: Duration = Duration::from_secs(15);
/// Reports of the guest that are listened to (Ready, Started, Exited, and a few failures).
const MAX_NEWS: u32 = 16;
/// Laps of the runner's that are kept.
const MAX_LAPS: usize = 32;

impl Warden {
    /// Takes one message of the runner; false when there is none.
    pub(super) fn hear_runner(&mut self, serving: &mut Serving) -> bool {
        let message = match self.runner.try_receive::<FromRunner>() {
            Ok(message) if message.allowed_in(self.record.phase) && serving.expects(&message) => message,
            Ok(_) | Err(ChannelError::Codec(_)) => {
                serving.said = Some((ExitCause::InternalError, Some("the runner spoke out of turn".into())));
                self.kill(serving, ExitCause::InternalError);
                return false;
            }
            Err(error) => {
                serving.hung_up |= !matches!(error, ChannelError::WouldBlock);
                return false;
            }
        };
        match message {
            FromRunner::Paused => self.changed(serving, Phase::Paused, &Request::Pause),
            FromRunner::Resumed => self.changed(serving, Phase::Running, &Request::Resume),
            FromRunner::Attested(findings) => self.attested(serving, findings),
            FromRunner::Guest(news) => self.hear_guest(serving, news),
            FromRunner::Timed(laps) => self.timed(laps),
            FromRunner::Exited { cause, detail } => serving.said = Some((cause, detail.map(printable))),
            FromRunner::Failed { .. } => {}
        }
        true
    }

    /// The runner's word on its stages; it may be in the guest's hands, so it is bounded, once, and kept as text only.
    fn timed(&mut self, laps: Vec<Timing>) {
        if !std::mem::replace(&mut self.timed, true) {
            let own = |lap: Timing| Timing { role: "runner".into(), step: printable(lap.step), micros: lap.micros };
            self.watch.append(laps.into_iter().take(MAX_LAPS).map(own));
        }
    }

    fn hear_guest(&mut self, serving: &mut Serving, news: GuestNews) {
        self.watch.lap(match &news {
            GuestNews::Ready => "boot the guest until its agent is ready",
            GuestNews::Started => "attach, start the command",
            GuestNews::Exited { .. } => "run the command",
            GuestNews::Failed { .. } => "until the agent failed",
        });
        match &news {
            GuestNews::Ready => serving.boot_deadline = None,
            GuestNews::Started => {}
            GuestNews::Exited { status } => {
                serving.status = Some(*status);
                serving.off_deadline = Some(Instant::now() + POWER_OFF_TIME);
            }
            GuestNews::Failed { detail } => {
                serving.boot_deadline = None;
                serving.guest_failure = Some(printable(detail.clone()));
                serving.off_deadline = Some(Instant::now() + POWER_OFF_TIME);
            }
        }
        if let Some(client) = &self.client
            && client.send(&Event::Guest(news)).is_err()
            && self.record.detached
        {
            self.client = None;
        }
    }

    fn changed(&mut self, serving: &mut Serving, phase: Phase, asked: &Request) {
        self.record.phase = phase;
        if phase == Phase::Paused {
            serving.pause_deadline = None;
        }
        self.save();
        serving.answer_pending(asked, &Response::Done);
        // The policy may have turned while the runner was on its way to run on.
        self.hold(serving);
    }

    fn attested(&mut self, serving: &mut Serving, mut findings: Vec<Finding>) {
        findings.extend((self.attest)());
        serving.answer_pending(&Request::Attest, &Response::Findings(findings));
    }
}

impl Serving {
    /// May the runner say this now? Answers only to questions; news of the guest in a bounded number. A runner in the
    /// guest's hands must not be able to keep the warden busy.
    fn expects(&mut self, message: &FromRunner) -> bool {
        let question = match message {
            FromRunner::Paused => Request::Pause,
            FromRunner::Resumed => Request::Resume,
            FromRunner::Attested(_) => Request::Attest,
            FromRunner::Guest(_) => {
                self.news += 1;
                return self.news <= MAX_NEWS;
            }
            _ => return true,
        };
        match self.asked.iter().position(|asked| *asked == question) {
            Some(at) => {
                self.asked.swap_remove(at);
                true
            }
            None => false,
        }
    }
}
