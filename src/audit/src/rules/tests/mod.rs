//! For every rule a specimen that violates it and is named; a sound subject that keeps to all; nothing unseen that passes.

mod good;
mod specimens;

use std::collections::BTreeSet;

use crate::profile::Profile;
use crate::report::Report;
use crate::rule::{Severity, Verdict};
use crate::subject::{Kind, Known, Process, Subject};
use crate::{Around, judge, rules};

const KINDS: [Kind; 5] = [Kind::Plan, Kind::Policy, Kind::Vm, Kind::Process, Kind::Host];

fn judged(subjects: Vec<Subject>) -> Report {
    judge(subjects, &Profile::default(), &Around::default())
}

/// What every rule says when it is violated.
pub(crate) fn violated() -> impl Iterator<Item = Report> {
    specimens::ALL.iter().map(|specimen| judged(spoiled(specimen)))
}

fn spoiled(specimen: &specimens::Specimen) -> Vec<Subject> {
    let mut subjects = vec![good::subject(specimen.kind)];
    if specimen.kind == Kind::Vm {
        subjects.push(good::vm(2));
    }
    (specimen.spoil)(&mut subjects);
    subjects
}

fn of(report: &Report, verdict: Verdict) -> Vec<String> {
    let found = report.findings.iter().filter(|finding| finding.check.verdict == verdict);
    found.map(|f| format!("{} {:?}: {} is {}", f.rule, f.kind, f.check.what, f.check.seen)).collect()
}

#[test]
fn what_is_sound_keeps_to_every_rule() {
    let mut passed = BTreeSet::new();
    for kind in KINDS {
        let report = judged(vec![good::subject(kind)]);
        assert_eq!(of(&report, Verdict::Fail), [""; 0], "{kind:?}");
        assert_eq!(of(&report, Verdict::Unknown), [""; 0], "{kind:?}");
        assert_eq!(report.exit_status(), 0);
        passed.extend(report.findings.iter().filter(|f| f.check.verdict == Verdict::Pass).map(|f| f.rule.clone()));
    }
    let all: BTreeSet<String> = rules::all().map(|rule| rule.id.to_owned()).collect();
    assert_eq!(passed, all, "each rule has passed for at least one kind");
    let two = judged(vec![good::vm(1), good::vm(2)]);
    assert_eq!(of(&two, Verdict::Fail), [""; 0], "two VMs beside each other");
}

#[test]
fn every_rule_has_a_specimen_that_it_names() {
    let mut covered = BTreeSet::new();
    for specimen in specimens::ALL {
        let report = judged(spoiled(specimen));
        let named = report.findings.iter().any(|f| f.rule == specimen.rule && f.check.verdict == Verdict::Fail);
        assert!(named, "{} ({:?}): {:#?}", specimen.rule, specimen.kind, of(&report, Verdict::Fail));
        let told = report.findings.iter().find(|f| f.rule == specimen.rule && f.check.verdict == Verdict::Fail);
        let told = told.map(|f| f.check.seen.clone()).unwrap_or_default();
        assert!(told.contains(specimen.seen), "{}: seen is {told:?}, without {:?}", specimen.rule, specimen.seen);
        assert_eq!(report.exit_status() == 0, specimen.info, "{}", specimen.rule);
        covered.insert(specimen.rule);
    }
    let missing: Vec<&str> = rules::all().map(|rule| rule.id).filter(|id| !covered.contains(id)).collect();
    assert_eq!(missing, [""; 0], "rules without a specimen");
}

fn unseen<T>(known: &mut Known<T>) {
    *known = Known::unseen("it could not be read");
}

#[test]
fn nothing_that_was_not_seen_passes() {
    for kind in KINDS {
        let mut subject = good::subject(kind);
        let blank = |process: &mut Process| {
            unseen(&mut process.label);
            unseen(&mut process.threads);
            unseen(&mut process.namespaces);
            unseen(&mut process.cgroups);
            unseen(&mut process.rlimits);
            unseen(&mut process.fds);
            unseen(&mut process.mounts);
            unseen(&mut process.environment);
            unseen(&mut process.memory);
            unseen(&mut process.landlock);
        };
        subject.processes.iter_mut().for_each(blank);
        for object in &mut subject.objects {
            unseen(&mut object.label);
            unseen(&mut object.inode);
            unseen(&mut object.writable_by);
            object.unchanged = Some(Known::unseen("it could not be read"));
        }
        unseen(&mut subject.separation);
        unseen(&mut subject.standing);
        unseen(&mut subject.host);
        unseen(&mut subject.neighbours);
        unseen(&mut subject.leftovers);
        let report = judged(vec![subject]);
        let passed: Vec<String> = of(&report, Verdict::Pass);
        // The plan's or record's own word, not the process's.
        let passed: Vec<&String> =
            passed.iter().filter(|line| !line.starts_with("objects.content-read-only")).collect();
        assert!(passed.is_empty(), "{kind:?}: {passed:?}");
        assert_eq!((report.exit_status(), report.count(Verdict::Fail)), (5, 0), "{kind:?}");
        assert!(report.findings.iter().all(|f| !f.check.seen.is_empty()), "each says why");
    }
}

#[test]
fn a_subject_without_anything_is_unknown_and_an_ended_one_is_not_judged() {
    let mut subject = good::vm(1);
    subject.processes.clear();
    subject.objects.clear();
    let report = judged(vec![subject.clone()]);
    assert!(of(&report, Verdict::Unknown).iter().any(|line| line.starts_with("capabilities.none")));
    if let Known::Seen(standing) = &mut subject.standing {
        standing.phase = "exited".into();
    }
    let report = judged(vec![subject]);
    assert_eq!(of(&report, Verdict::Unknown), [""; 0]);
    assert!(of(&report, Verdict::Inapplicable).iter().any(|line| line.starts_with("capabilities.none")));
}

#[test]
fn a_host_without_selinux_is_told_once_and_not_called_enforcing() {
    let mut subject = good::vm(1);
    if let Known::Seen(host) = &mut subject.host {
        host.selinux = "disabled".into();
    }
    subject.processes.iter_mut().for_each(|process| process.label = Known::Seen(None));
    subject.separation = Known::unseen("this host has no SELinux");
    let report = judged(vec![subject]);
    assert_eq!(of(&report, Verdict::Fail).len(), 1);
    assert!(of(&report, Verdict::Fail)[0].starts_with("selinux.present"));
    let selinux = report.findings.iter().filter(|f| f.layer == "selinux" && f.check.verdict == Verdict::Pass);
    let named: Vec<&str> = selinux.map(|f| f.rule.as_str()).collect();
    assert_eq!(named, ["leases.neighbours", "selinux.object-labels", "selinux.object-labels"]);
}

#[test]
fn the_warden_is_not_judged_as_a_runner() {
    let subject = good::vm(1);
    let wardens = judged(vec![subject]);
    let about: Vec<&str> =
        wardens.findings.iter().filter(|f| f.check.what.starts_with("warden")).map(|f| f.rule.as_str()).collect();
    assert_eq!(about, ["warden.filtered", "warden.domain"]);
}

#[test]
fn rules_are_whole() {
    let mut ids = BTreeSet::new();
    for rule in rules::all() {
        assert!(ids.insert(rule.id), "{} stands twice", rule.id);
        let form = rule.id.split_once('.').is_some_and(|(layer, name)| !layer.is_empty() && !name.is_empty());
        assert!(form && rule.id.chars().all(|c| c.is_ascii_lowercase() || "-.".contains(c)), "{}", rule.id);
        assert!(!rule.kinds.is_empty() && rule.threat.len() > 30 && rule.remedy.len() > 5, "{}", rule.id);
        assert!(rule.parameters.iter().all(|p| !["enabled", "reason", "severity"].contains(&p.name)), "{}", rule.id);
    }
}

#[test]
fn the_status_follows_the_worst() {
    let mut report = judged(vec![good::vm(1)]);
    for (severity, status) in
        [(Severity::Info, 0), (Severity::Low, 1), (Severity::Medium, 1), (Severity::High, 3), (Severity::Critical, 4)]
    {
        report.findings[0].check.verdict = Verdict::Fail;
        report.findings[0].severity = severity;
        assert_eq!(report.exit_status(), status);
    }
    report.findings.clear();
    assert_eq!(report.exit_status(), 5, "an audit that looked at nothing is no proof");
}

/// A process without filters must not pass for calls that no filter allows: nothing forbids it any.
#[test]
fn no_filter_passes_for_nothing() {
    let mut subject = good::subject(Kind::Process);
    for process in &mut subject.processes {
        let Known::Seen(threads) = &mut process.threads else { panic!("a sound process is seen") };
        for thread in threads {
            (thread.seccomp_mode, thread.filter_count) = (0, 0);
            thread.filters = Known::Seen(crate::seccomp::Cache::default().judge(&[]).expect("no filter is decided"));
        }
    }
    let report = judged(vec![subject]);
    let passed: Vec<&str> = (report.findings.iter())
        .filter(|f| f.layer == "seccomp" && f.check.verdict == Verdict::Pass)
        .map(|f| f.rule.as_str())
        .collect();
    assert_eq!(passed, [""; 0]);
    let failed = of(&report, Verdict::Fail);
    assert!(failed.iter().any(|f| f.starts_with("seccomp.on-every-thread") && f.contains("mode 0")), "{failed:?}");
}

/// What a profile takes out of the one rule falls to the other: nothing that is open between two VMs is judged by neither.
#[test]
fn what_is_not_called_harmful_is_judged_as_the_rest() {
    let failed = |profile: &str| -> Vec<String> {
        let mut subject = good::subject(Kind::Policy);
        let Known::Seen(separation) = &mut subject.separation else { panic!("a sound policy answers") };
        separation.reach.push("image file:read".into());
        let profile = Profile::parse(profile, "org").unwrap();
        let report = judge(vec![subject], &profile, &Around::default());
        report.findings.iter().filter(|f| f.check.verdict == Verdict::Fail).map(|f| f.rule.clone()).collect()
    };
    assert_eq!(failed(""), ["selinux.no-reach"]);
    assert_eq!(failed("[rules.'selinux.no-reach']\nharmful = ['write']"), ["selinux.no-rest"]);
    let waived = "[rules.'selinux.no-reach']\nenabled = false\nreason = 'one tenant'";
    assert_eq!(failed(waived), [""; 0], "waived, and said in the report");
}

/// Threads of which the same is to be said are told in one line.
#[test]
fn a_pool_of_threads_is_one_line() {
    let mut subject = good::subject(Kind::Process);
    let Known::Seen(threads) = &mut subject.processes[0].threads else { panic!("seen") };
    let one = threads[0].clone();
    threads.extend((0..200).map(|at| crate::subject::Thread {
        tid: Some(50_000 + at),
        no_new_privs: false,
        ..one.clone()
    }));
    let report = judged(vec![subject]);
    let told = report.findings.iter().find(|f| f.rule == "capabilities.no-new-privs").expect("judged");
    assert!(told.check.seen.ends_with(" and 197 more: not set"), "{}", told.check.seen);
}
