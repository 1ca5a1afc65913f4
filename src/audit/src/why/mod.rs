//! `casemate why`: what was denied to which process of ours, by which layer and rule, whether it should be, and the
//! narrowest change that would allow it.
//!
//! Trust: none in what the records say (names, paths), all in what the kernel says of them (uid, pid, label, arguments).
//! Every answer is text that may hold anything: whoever prints it escapes it.
//!
//! ```text
//! sources: auditd's files, the journal, the kernel's ring ─> record ─> event (joined) ─> who ─> seccomp │ selinux │
//!                                                                                       landlock │ dac ─> Denial
//! ```

mod dac;
pub mod event;
pub mod follow;
mod landlock;
mod lines;
pub mod record;
mod seccomp;
mod selinux;
pub mod sources;
pub mod status;
pub mod who;

use std::collections::BTreeMap;

use casemate_wire::record::FailedStart;
use serde::Serialize;

use crate::policy::Policy;
use event::{Event, Events};
use record::{Kind, Record, Stamp};
pub use who::{Known, Role, Sandbox, Who};

/// Was it to be expected?
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Expected {
    /// Something tried what it must not: a hostile guest that took over its runner, or another process.
    Attempt,
    /// A probe of selftest, attack, matrix or audit: the denial is the test.
    Probe,
    /// A start's own look at its layers.
    Control,
    /// A fault of Casemate's or of its policy.
    Gap,
    /// The host is set up so.
    Host,
    Unclear,
}

impl Expected {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Expected::Attempt => "expected: an attempt that must be denied",
            Expected::Probe => "expected: a test",
            Expected::Control => "expected: the start's own control",
            Expected::Gap => "NOT expected: a gap",
            Expected::Host => "the host's doing",
            Expected::Unclear => "unclear",
        }
    }
}

/// What a layer's part finds out of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reason {
    pub what: String,
    pub layer: &'static str,
    pub outcome: String,
    pub rule: String,
    pub expected: Expected,
    pub why: String,
    pub remedy: String,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Denial {
    /// The last of its kind; `serial` is 0 where it is no audit record.
    pub last: Stamp,
    /// The first: the same process tried the same several times.
    pub first: Stamp,
    pub times: u64,
    pub who: Who,
    pub what: String,
    /// In the plan's words: `seccomp`, `landlock`, `selinux`, `uid`, `capabilities`, …
    pub layer: String,
    pub outcome: String,
    pub rule: String,
    pub expected: Expected,
    pub why: String,
    /// The narrowest change that would allow it, or why nothing should.
    pub remedy: String,
}

/// All denials of ours, oldest first.
pub fn denials(events: &Events, known: &Known, policy: Option<&Policy>, failed: &[FailedStart]) -> Vec<Denial> {
    let told = denials_of(events.iter(), events, known, policy);
    let mut all: Vec<Denial> = told.into_iter().chain(failed.iter().map(failed_start)).collect();
    all.sort_by_key(|denial| denial.last);
    all
}

/// Denials that some events tell of; `events` knows who made which Landlock domain.
pub fn denials_of<'a>(
    some: impl Iterator<Item = (&'a Stamp, &'a Event)>,
    events: &Events,
    known: &Known,
    policy: Option<&Policy>,
) -> Vec<Denial> {
    let mut found: BTreeMap<(Stamp, usize), Denial> = BTreeMap::new();
    let mut keys: BTreeMap<String, (Stamp, usize)> = BTreeMap::new();
    for (stamp, event) in some {
        for (at, denial) in of_event(stamp, event, events, known, policy).into_iter().enumerate() {
            let key = key(&denial);
            match keys.get(&key).and_then(|first| found.get_mut(first)) {
                Some(first) => {
                    first.times += 1;
                    first.last = *stamp;
                }
                None => {
                    keys.insert(key, (*stamp, at));
                    found.insert((*stamp, at), denial);
                }
            }
        }
    }
    let mut all: Vec<Denial> = found.into_values().collect();
    all.sort_by_key(|denial| denial.last);
    all
}

/// The same process, tried the same, for the same reason. A probe makes each attempt in a child of its own.
fn key(denial: &Denial) -> String {
    let Denial { who, what, layer, rule, outcome, .. } = denial;
    let pid = who.pid.filter(|_| who.role != Role::Probe);
    format!("{:?}\0{:?}\0{:?}\0{what}\0{layer}\0{rule}\0{outcome}", who.sandbox, who.role, (pid, &who.thread, who.uid))
}

fn of_event(stamp: &Stamp, event: &Event, events: &Events, known: &Known, policy: Option<&Policy>) -> Vec<Denial> {
    let mut all = Vec::new();
    let mut add = |record: &Record, explain: &dyn Fn(&Who) -> Option<Reason>| {
        let domain = record.field("domain").and_then(|id| events.domain(id, stamp.seconds));
        let who = who::who(stamp, event, record, domain, known, record.field("tcontext"));
        if let Some((who, reason)) = who.and_then(|who| explain(&who).map(|reason| (who, reason))) {
            all.push(Denial {
                last: *stamp,
                first: *stamp,
                times: 1,
                who,
                what: reason.what,
                layer: reason.layer.into(),
                outcome: reason.outcome,
                rule: reason.rule,
                expected: reason.expected,
                why: reason.why,
                remedy: reason.remedy,
            });
        }
    };
    for record in event.all(Kind::SECCOMP) {
        add(record, &|who| seccomp::explain(event, record, who));
    }
    for kind in [Kind::AVC, Kind::USER_AVC, Kind::SELINUX_ERR] {
        for record in event.all(kind) {
            add(record, &|who| selinux::explain(event, record, who, policy));
        }
    }
    for record in event.all(Kind::LANDLOCK_ACCESS) {
        let domain = record.field("domain").and_then(|id| events.domain(id, stamp.seconds));
        add(record, &|who| landlock::explain(event, record, domain, who));
    }
    if let Some(record) = dac::record(event) {
        add(record, &|who| dac::explain(event, record, who));
    }
    all
}

/// The jailer's own word on a start that it gave up.
pub fn failed_start(failed: &FailedStart) -> Denial {
    let stamp = Stamp { seconds: failed.at, millis: 0, serial: 0 };
    let denied =
        ["EACCES", "EPERM", "Permission denied", "Operation not permitted"].iter().any(|e| failed.error.contains(e));
    Denial {
        last: stamp,
        first: stamp,
        times: 1,
        who: Who {
            sandbox: Some(failed.name.clone()),
            certain: true,
            role: Role::Jailer,
            thread: None,
            pid: Some(failed.pid),
            uid: Some(0),
            exe: None,
            label: None,
        },
        what: format!("start: {}", failed.step),
        layer: if failed.layer == "-" { "none".into() } else { failed.layer.clone() },
        outcome: if denied { "denied" } else { "refused" }.into(),
        rule: failed.error.clone(),
        expected: Expected::Host,
        why: "the jailer stopped the start and took everything back".into(),
        remedy: "as the message says; an audit record of the same second, if there is one, has the rule".into(),
    }
}

#[cfg(test)]
#[path = "why_tests.rs"]
mod tests;
