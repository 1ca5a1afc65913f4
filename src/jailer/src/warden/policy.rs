//! What the warden does when the loaded policy stops, or starts again, to separate its sandbox.
//!
//! ```text
//! separates --verdict: no--> said, recorded, and: warn | pause (held until it separates, or is accepted) | stop
//!           <-verdict: yes-- said, recorded; what is paused stays paused until told
//! ```

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use casemate_agent_protocol::{AGENT_PORT, ClientSession, ToAgent};
use casemate_plan::Layer;
use casemate_spec::{PolicyChange, Posture};
use casemate_wire::control::{Request, Response};
use casemate_wire::jailer::Event;
use casemate_wire::record::{ExitCause, Phase, PolicyNews};
use casemate_wire::runner::ToRunner;

use super::{Serving, Warden};
use crate::clock;
use crate::error::StepFailed;
use crate::policy_guard::Verdict;

/// The runner stops its vCPUs within this time, or is killed.
const PAUSE_TIME: Duration = Duration::from_secs(10);
/// The workload's grace, and the whole of a stop; then it is killed.
const GRACE: Duration = Duration::from_secs(3);
const STOP_TIME: Duration = Duration::from_secs(10);
/// Turns for worse and better that a record keeps.
const MAX_HISTORY: usize = 16;

impl Warden {
    /// Once more, right before the vCPUs run: the facts were gathered before the labels were set.
    pub(super) fn ask_before_go(&mut self) -> Result<(), StepFailed> {
        let (Some(guard), Some(state)) = (&mut self.policy, &mut self.record.selinux) else { return Ok(()) };
        let verdict = guard.ask();
        if state.separates && !verdict.separates {
            let why = format!(
                "the policy changed while this sandbox was started: {}; start it again",
                verdict.why.join("; ")
            );
            return Err(StepFailed { layer: Layer::Selinux, ..StepFailed::because("ask the policy once more", why) });
        }
        // Started without separation, on request: it is what is compared with from now on.
        (state.seqno_at_start, state.seqno) = (verdict.seqno, verdict.seqno);
        state.why = verdict.why;
        Ok(())
    }

    /// Takes a verdict into the record; tells and acts if it is another one than before.
    pub(super) fn judge_policy(&mut self, serving: &mut Serving, verdict: Verdict) {
        let Some(state) = &mut self.record.selinux else { return };
        let (turned, other) = (state.separates != verdict.separates, state.why != verdict.why);
        state.changes = state.changes.saturating_add(1);
        state.seqno = verdict.seqno;
        if turned || other {
            let now = clock::now();
            if turned {
                state.since = now;
            }
            (state.separates, state.why) = (verdict.separates, verdict.why);
            if state.separates {
                (state.held, state.accepted) = (false, None);
            }
            let start = state.posture_at_start;
            self.record.posture = if state.separates || start == Posture::Reduced { start } else { Posture::Reduced };
            let separated = state.separated_at_start;
            if turned && !state.separates && separated {
                self.act(serving);
            }
            self.tell_policy(now);
        }
        self.save();
    }

    fn act(&mut self, serving: &mut Serving) {
        let Some(state) = &mut self.record.selinux else { return };
        match state.on_change {
            PolicyChange::Warn => {}
            PolicyChange::Pause => {
                state.held = true;
                self.hold(serving);
            }
            PolicyChange::Stop => self.stop(serving),
        }
    }

    /// Asks the runner to pause, if it is to be held and nothing of the kind is on its way.
    pub(super) fn hold(&mut self, serving: &mut Serving) {
        let held = self.record.selinux.as_ref().is_some_and(|state| state.held);
        let underway = serving.asked.iter().any(|r| matches!(r, Request::Pause | Request::Resume));
        if !held || underway || self.record.phase != Phase::Running {
            return;
        }
        serving.pause_deadline = Some(Instant::now() + PAUSE_TIME);
        serving.asked.push(Request::Pause);
        if self.runner.send(&ToRunner::Pause).is_err() {
            self.kill(serving, ExitCause::PolicyChanged);
        }
    }

    /// The guest is asked to end, and killed when its time is over. A paused guest cannot be asked.
    fn stop(&mut self, serving: &mut Serving) {
        let why = self.record.selinux.as_ref().map(|state| state.why.join("; ")).unwrap_or_default();
        serving.policy_end = Some(format!("SELinux no longer separates it: {why}"));
        let asked =
            self.record.phase == Phase::Running && self.agent.as_ref().is_some_and(|agent| ask_to_stop(agent).is_ok());
        if asked {
            serving.policy_deadline = Some(Instant::now() + STOP_TIME);
        } else {
            self.kill(serving, ExitCause::PolicyChanged);
        }
    }

    /// To the record's history, to whoever started it, to the warden's own stderr.
    fn tell_policy(&mut self, at: u64) {
        let (name, posture) = (&self.record.name, self.record.posture);
        let Some(state) = &mut self.record.selinux else { return };
        let text = match (state.separates, state.separated_at_start) {
            (true, true) => format!("SELinux separates {name} again; posture {posture}"),
            (true, false) => format!("SELinux separates {name} now; posture {posture}, as it was started"),
            (false, true) => format!(
                "SELinux no longer separates {name}: {}; posture {posture}, was {}{}",
                state.why.join("; "),
                state.posture_at_start,
                match state.on_change {
                    PolicyChange::Warn => String::new(),
                    PolicyChange::Pause => format!("; paused: `casemate resume {name}` once it separates"),
                    PolicyChange::Stop => "; it is ended".into(),
                }
            ),
            (false, false) => format!("SELinux does not separate {name}: {}; posture {posture}", state.why.join("; ")),
        };
        let news = PolicyNews { at, separates: state.separates, text };
        if state.history.len() >= MAX_HISTORY {
            state.history.remove(0);
        }
        state.history.push(news.clone());
        if let Some(client) = &self.client
            && client.send(&Event::Policy(news)).is_err()
            && self.record.detached
        {
            self.client = None;
        }
    }

    /// Why a resume is refused, if it is.
    pub(super) fn held_back(&self) -> Option<Response> {
        let state = self.record.selinux.as_ref().filter(|state| state.held && !state.separates)?;
        Some(Response::Refused(format!(
            "SELinux does not separate it since the policy changed: {}; mend that, or accept it with --allow-reduced REASON",
            state.why.join("; ")
        )))
    }

    /// A resume that accepts what is: said in the record, until SELinux separates again.
    pub(super) fn accept_reduced(&mut self, reason: &str) {
        let reason = super::printable(reason.to_owned());
        let Some(state) = self.record.selinux.as_mut().filter(|state| !state.separates) else { return };
        state.held = false;
        state.accepted = Some(reason.clone());
        self.record.warnings.push(format!("resumed although SELinux does not separate it: {reason}"));
        self.save();
    }

    pub(super) fn save(&self) {
        if let Err(error) = self.dir.write_record(crate::store::STATE, &self.record) {
            eprintln!("casemate-jailer: {error}");
        }
    }
}

/// Writes the whole request at once, to a non-blocking socket, and reads nothing: a warden does not listen to a guest.
fn ask_to_stop(mut agent: &UnixStream) -> std::io::Result<()> {
    let grace_ms = u64::try_from(GRACE.as_millis()).ok();
    let (_, request) = ClientSession::open(&ToAgent::Stop { grace_ms }).map_err(std::io::Error::other)?;
    let mut bytes = format!("CONNECT {AGENT_PORT}\n").into_bytes();
    bytes.extend(request);
    agent.write_all(&bytes)
}
