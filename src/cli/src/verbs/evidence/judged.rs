//! The audit in a bundle: made when it is gathered, and made again from what it was made from when it is verified.

use std::path::Path;

use casemate_audit::profile::Profile;
use casemate_audit::report::Report;
use casemate_audit::rule::{Finding, Severity, Verdict};
use casemate_audit::seccomp::Cache;
use casemate_audit::subject::{Known, Process, Subject};
use casemate_audit::{Around, Policy, judge};
use casemate_client::store::Entry;
use casemate_evidence::{Evidence, Part};
use serde_json::Value;

use super::super::audit;
use super::originals::Originals;
use super::told::Checks;
use crate::failure::{Failure, Result};
use crate::output::Context;

/// The report of this sandbox.
pub fn report(context: &Context, entry: &Entry, profile: Option<&Path>) -> Result<Part<Value>> {
    let profile = match profile {
        None => Profile::default(),
        Some(path) => Profile::read(path).map_err(|e| Failure::from_error(&e))?,
    };
    let subject = audit::live(context, &audit::observer()?, entry, &audit::survey(context), None);
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let policy = if entry.record.label.is_some() { Policy::live().ok() } else { None };
    let report = judge(vec![subject], &profile, &Around { time: super::gather::now(), host, policy: policy.as_ref() });
    Ok(serde_json::to_value(report).into())
}

pub fn check(evidence: &Evidence, originals: &Originals, checks: &mut Checks) {
    if let Some(filters) = evidence.filters.taken() {
        super::filters::check(filters, evidence, checks);
    }
    let policy = originals.policy(evidence, checks);
    let Some(value) = evidence.audit.taken() else { return };
    let report: std::result::Result<Report, _> = serde_json::from_value(value.clone());
    checks.result("the audit's report is one", report.as_ref().map(|_| ()));
    let Ok(report) = report else { return };
    let again = serde_json::to_value(&report).is_ok_and(|again| again == *value);
    checks.holds("the audit's report is of this version", again, "it holds what this program does not know");
    let [subject] = &report.subjects[..] else {
        checks.holds("the audit is of one sandbox", false, format!("of {}", report.subjects.len()));
        return;
    };
    checks.equal("the audit is of this sandbox", &subject.name, &evidence.sandbox);
    findings(&report, originals, policy.as_ref(), checks);
    runner(evidence, subject, checks);
    separation(subject, policy.as_ref(), checks);
}

/// The rules again, over the subject as it was seen.
fn findings(report: &Report, originals: &Originals, policy: Option<&Policy>, checks: &mut Checks) {
    let standard = Profile::default();
    let profile = originals.profile.as_ref().unwrap_or(&standard);
    let what = format!("the rules find the same in what was seen ({} findings)", report.findings.len());
    if profile.name() != report.profile {
        let why = format!("it was judged by the profile {}; give it with --profile", report.profile);
        checks.skip(what, why);
    } else {
        let around = Around { time: report.time, host: report.host.clone(), policy };
        let again = judge(report.subjects.clone(), profile, &around);
        let key = |f: &Finding| format!("{} {}: {}", f.rule, f.check.what, word(f.check.verdict));
        let told = |list: &[Finding], other: &[Finding]| -> Vec<String> {
            list.iter().filter(|f| !other.contains(f)).map(key).take(5).collect()
        };
        let (more, less) = (told(&again.findings, &report.findings), told(&report.findings, &again.findings));
        let wrong = match again.findings == report.findings && again.waived == report.waived {
            true => vec![],
            false => vec![format!("found now: [{}]; told: [{}]", more.join("; "), less.join("; "))],
        };
        checks.none(what, &wrong);
    }
    failures(report, checks);
    let unknown = report.findings.iter().filter(|f| f.check.verdict == Verdict::Unknown);
    let mut unknown: Vec<&str> = unknown.map(|f| f.rule.as_str()).collect();
    unknown.dedup();
    if !unknown.is_empty() {
        checks
            .skip(format!("what the rules could not look at: {}", unknown.join(", ")), "see the report in the bundle");
    }
}

/// Findings of high severity and above speak against the sandbox; others are told.
fn failures(report: &Report, checks: &mut Checks) {
    let failed = || report.findings.iter().filter(|f| f.check.verdict == Verdict::Fail);
    let text = |f: &Finding| {
        let (rule, check) = (&f.rule, &f.check);
        format!("{rule} ({}): {}: expected {}, seen {}", f.severity.word(), check.what, check.expected, check.seen)
    };
    let grave: Vec<String> = failed().filter(|f| f.severity >= Severity::High).map(text).collect();
    checks.none("the audit found nothing of high severity", &grave);
    for finding in failed().filter(|f| f.severity < Severity::High) {
        checks.note("the audit's finding", text(finding));
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "fail",
        Verdict::Unknown => "unknown",
        Verdict::Inapplicable => "inapplicable",
    }
}

/// What was seen of the runner is what was planned and recorded.
fn runner(evidence: &Evidence, subject: &Subject, checks: &mut Checks) {
    let Some(process) = subject.processes.iter().find(|process| process.role == "runner") else {
        checks.skip("the runner as it was seen", "the audit saw no runner: the sandbox had ended");
        return;
    };
    let name = evidence.record.runner;
    let seen = (process.pid, process.start_time);
    checks.equal(
        "the runner that was seen is the recorded one",
        &seen,
        &(name.map(|n| n.pid), name.map(|n| n.start_time)),
    );
    match &process.label {
        Known::Seen(label) => checks.equal("the runner's label is the planned one", label, &evidence.record.label),
        Known::Unseen(why) => checks.skip("the runner's label is the planned one", why.clone()),
    }
    descriptors(evidence, process, checks);
    threads(evidence, process, checks);
}

fn descriptors(evidence: &Evidence, process: &Process, checks: &mut Checks) {
    let what = "the runner has the planned descriptors, and nothing else that keeps data";
    let (Known::Seen(fds), Some(planned)) = (&process.fds, evidence.start.taken()) else {
        checks.skip(what, process.fds.why().unwrap_or("the bundle holds no plan").to_owned());
        return;
    };
    let mut wrong = Vec::new();
    // KVM's and eventfds have no object; 0, 1 and 2 are /dev/null.
    let keeps_something = |kind: &str| matches!(kind, "file" | "dir" | "blk" | "socket" | "pipe");
    let mut closed = Vec::new();
    for bound in &planned.role.fds {
        match fds.iter().find(|fd| fd.number == bound.number) {
            Some(fd) if fd.object.is_some_and(|object| object == (bound.dev, bound.ino)) => {}
            // Closed after its use, and the number is one of KVM's by now.
            Some(fd) if fd.planned.is_none() && !keeps_something(&fd.kind) => closed.push(bound.name.as_str()),
            Some(fd) if fd.planned.is_none() => {
                wrong.push(format!("{} is {:?}, where {} was planned", fd.number, fd.target, bound.name));
            }
            Some(fd) if fd.object.is_some() => wrong.push(format!("{} ({}) is another object", fd.number, bound.name)),
            Some(_) => {}
            None => closed.push(bound.name.as_str()),
        }
    }
    let planned = |number| planned.role.fds.iter().any(|bound| bound.number == number);
    let more = fds.iter().filter(|fd| !planned(fd.number) && keeps_something(&fd.kind));
    wrong.extend(more.map(|fd| format!("{} is {:?}, which is in no plan", fd.number, fd.target)));
    let what = format!("{what} (closed by now: {})", closed.join(", "));
    checks.none(what, &wrong);
}

/// What the audit says of each thread's filters is what the contained instructions answer.
fn threads(evidence: &Evidence, process: &Process, checks: &mut Checks) {
    let what = "the verdict tables of each of the runner's threads are those of the contained filters";
    let (Known::Seen(threads), Some(filters)) = (&process.threads, evidence.filters.taken()) else {
        checks.skip(what, process.threads.why().or(evidence.filters.why()).unwrap_or_default().to_owned());
        return;
    };
    let cache = Cache::default();
    let mut wrong = Vec::new();
    for thread in threads.iter().filter(|thread| !thread.kernel) {
        let Known::Seen(told) = &thread.filters else {
            let why = thread.filters.why().unwrap_or_default().to_owned();
            checks.skip(format!("the verdict tables of thread {}", thread.name), why);
            continue;
        };
        let contained = filters.threads.iter().find(|t| Some(t.tid) == thread.tid && t.role == process.role);
        match contained.map(|contained| super::filters::verdicts(filters, contained, &cache)) {
            Some(Ok(again)) if again == *told => {}
            Some(Ok(_)) => wrong.push(format!("thread {}: other verdicts", thread.name)),
            Some(Err(why)) => wrong.push(format!("thread {}: {why}", thread.name)),
            None => wrong.push(format!("thread {}: no filters are contained", thread.name)),
        }
    }
    checks.none(what, &wrong);
}

/// What the policy answers, asked again.
fn separation(subject: &Subject, policy: Option<&Policy>, checks: &mut Checks) {
    let Some(policy) = policy else { return };
    let what = "the policy answers the same about two such VMs";
    let Known::Seen(told) = &subject.separation else {
        checks.skip(what, subject.separation.why().unwrap_or_default().to_owned());
        return;
    };
    let family = casemate_audit::policy::vm::Family::find(policy, Some(&told.family));
    let levels = casemate_audit::observe::OTHERS;
    let again = family
        .and_then(|family| casemate_audit::policy::separation::separation(policy, &family, levels, told.enforcing));
    match again {
        Err(error) => checks.result(what, Err(error)),
        Ok(again) => {
            let mut other = Vec::new();
            let mut differ = |name: &str, same: bool| other.extend((!same).then(|| format!("{name} differs")));
            differ("permissive domain", again.permissive_domain == told.permissive_domain);
            differ("reach", again.reach == told.reach);
            differ("unconstrained classes", again.unconstrained == told.unconstrained);
            differ("entries", again.entries == told.entries);
            differ("others", again.others == told.others);
            differ("booleans", again.booleans == told.booleans);
            differ("flows", again.flows == told.flows);
            checks.none(what, &other);
        }
    }
}
