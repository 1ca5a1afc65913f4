//! Posture, the proof, the processes that must be there, and who else is on the host.

use casemate_spec::Posture;

use super::common::{ALL_OF_A_VM, LIVE, threads_of};
use super::seccomp::verdicts_of;
use crate::crowd::WARDEN;
use crate::rule::{Check, Initial, Parameter, Rule, Scope, Severity, Verdict};
use crate::subject::{Kind, Known, Standing, Subject};

const LAYER: &str = "posture";

pub static RULES: &[Rule] = &[
    Rule {
        id: "posture.not-reduced",
        title: "no layer is missing",
        layer: LAYER,
        threat: "a VM runs with less than what Casemate stands for, and looks like the others",
        severity: Severity::High,
        remedy: "casemate doctor says what the host lacks; --require refuses such a start",
        kinds: ALL_OF_A_VM,
        parameters: &[Parameter {
            name: "least",
            what: "least posture: reduced, hardened or enforced",
            default: Initial::Word("hardened"),
        }],
        check: not_reduced,
    },
    Rule {
        id: "posture.reasoned",
        title: "a reduced posture has a reason",
        layer: LAYER,
        threat: "a layer is gone and nobody can say who accepted it",
        severity: Severity::Medium,
        remedy: "start it with --allow-reduced REASON, or with every layer",
        kinds: ALL_OF_A_VM,
        parameters: &[],
        check: reasoned,
    },
    Rule {
        id: "posture.no-warnings",
        title: "nothing is weaker than it could be",
        layer: LAYER,
        threat: "each warning is a layer that holds less than the newest kernel and policy would",
        severity: Severity::Info,
        remedy: "casemate doctor says what to do for each",
        kinds: ALL_OF_A_VM,
        parameters: &[Parameter {
            name: "accepted",
            what: "beginnings of warnings that are accepted",
            default: Initial::Words(&[]),
        }],
        check: no_warnings,
    },
    Rule {
        id: "posture.no-blockers",
        title: "the planned start would not be refused",
        layer: LAYER,
        threat: "a plan that cannot be applied protects nothing",
        severity: Severity::Medium,
        remedy: "casemate plan says for each what stands in the way",
        kinds: &[Kind::Plan],
        parameters: &[],
        check: no_blockers,
    },
    Rule {
        id: "posture.proof-held",
        title: "the proof before the first guest instruction held",
        layer: LAYER,
        threat: "the guest ran although a layer was not as planned",
        severity: Severity::Critical,
        remedy: "kill the VM; casemate inspect NAME shows the proof",
        kinds: LIVE,
        parameters: &[],
        check: proof_held,
    },
    Rule {
        id: "processes.both-there",
        title: "a runner and its warden serve the VM, and nobody else",
        layer: LAYER,
        threat: "without its warden a VM's end restores no label and frees no lease; a second runner is nobody's",
        severity: Severity::High,
        remedy: "casemate repair",
        kinds: LIVE,
        parameters: &[],
        check: both_there,
    },
    Rule {
        id: "warden.filtered",
        title: "the warden has its seccomp filter",
        layer: "seccomp",
        threat: "the warden keeps root's rights and talks to a runner that may be hostile",
        severity: Severity::High,
        remedy: "stop the VM and start it again with one build's programs",
        kinds: ALL_OF_A_VM,
        parameters: &[],
        check: warden_filtered,
    },
    Rule {
        id: "warden.domain",
        title: "the warden is not in the VMs' domain, nor unconfined",
        layer: "selinux",
        threat: "a warden in a VM's domain is within a VM's reach; an unconfined one is confined by nothing",
        severity: Severity::Medium,
        remedy: "casemate policy install, and start the VM by casemate",
        kinds: LIVE,
        parameters: &[Parameter {
            name: "refused",
            what: "types that a warden must not have",
            default: Initial::Words(&[
                "casemate_runner_t",
                "svirt_t",
                "container_kvm_t",
                "unconfined_t",
                "initrc_t",
                "kernel_t",
            ]),
        }],
        check: warden_domain,
    },
    Rule {
        id: "leases.neighbours",
        title: "nobody else has a level within reach",
        layer: "selinux",
        threat: "another manager's guest with the same or a wider level shares the VM's objects",
        severity: Severity::High,
        remedy: "casemate labels --check names both; restart one of them",
        kinds: &[Kind::Vm, Kind::Host],
        parameters: &[],
        check: neighbours,
    },
    Rule {
        id: "leases.leftovers",
        title: "nothing is left of sandboxes that ended",
        layer: LAYER,
        threat: "a label, lease, cgroup or process that nobody owns is found by the next one who gets its number",
        severity: Severity::Medium,
        remedy: "casemate repair -n shows what would be done, casemate repair does it",
        kinds: &[Kind::Vm, Kind::Host],
        parameters: &[],
        check: leftovers,
    },
];

fn standing(subject: &Subject, expected: &str, judge: impl FnOnce(&Standing) -> Check) -> Vec<Check> {
    vec![match &subject.standing {
        Known::Seen(standing) => judge(standing),
        Known::Unseen(why) => Check::unknown(subject.name.clone(), expected, why.clone()),
    }]
}

fn not_reduced(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let least = scope.word("least");
    let expected = format!("posture {least} or better");
    standing(subject, &expected, |standing| {
        let what = subject.name.clone();
        match (standing.posture.parse::<Posture>(), least.parse::<Posture>()) {
            (Ok(seen), Ok(wanted)) => Check::judged(seen >= wanted, what, expected.as_str(), standing.posture.clone()),
            (_, Err(why)) => Check::unknown(what, expected.as_str(), format!("the profile's `least`: {why}")),
            (Err(_), _) => Check::judged(false, what, expected.as_str(), standing.posture.clone()),
        }
    })
}

fn reasoned(subject: &Subject, _: &Scope) -> Vec<Check> {
    let expected = "a reason where the posture is reduced";
    standing(subject, expected, |standing| {
        if standing.posture != "reduced" {
            return Check::judged(true, subject.name.clone(), expected, format!("it is {}", standing.posture));
        }
        let reason = standing.allow_reduced.as_deref().map(str::trim).filter(|reason| !reason.is_empty());
        Check::judged(reason.is_some(), subject.name.clone(), expected, reason.unwrap_or("none"))
    })
}

fn no_warnings(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let accepted = scope.words("accepted");
    let expected = "no warning";
    standing(subject, expected, |standing| {
        let counts = |warning: &&String| !accepted.iter().any(|begin| warning.starts_with(begin));
        let found: Vec<String> = standing.warnings.iter().filter(counts).cloned().collect();
        Check::none_of(&found, subject.name.clone(), expected)
    })
}

fn no_blockers(subject: &Subject, _: &Scope) -> Vec<Check> {
    let expected = "nothing stands in the way";
    standing(subject, expected, |standing| Check::none_of(&standing.blockers, subject.name.clone(), expected))
}

fn proof_held(subject: &Subject, _: &Scope) -> Vec<Check> {
    let expected = "every finding of the proof as planned";
    standing(subject, expected, |standing| Check::none_of(&standing.unproven, subject.name.clone(), expected))
}

fn both_there(subject: &Subject, _: &Scope) -> Vec<Check> {
    let expected = "one runner and one warden";
    standing(subject, expected, |standing| {
        if !matches!(standing.phase.as_str(), "running" | "paused") {
            return Check::inapplicable(subject.name.clone(), format!("it is {}", standing.phase));
        }
        let count = |role: &str| subject.processes.iter().filter(|process| process.role == role).count();
        let (runners, wardens) = (count("runner"), count(WARDEN));
        let alive = subject.processes.iter().all(|process| process.threads.seen().is_none_or(|all| !all.is_empty()));
        let seen = format!("{runners} runners, {wardens} wardens");
        Check::judged(runners == 1 && wardens == 1 && alive, subject.name.clone(), expected, seen)
    })
}

fn warden_filtered(subject: &Subject, _: &Scope) -> Vec<Check> {
    let expected = "Seccomp: 2 on every thread, by the warden's own filter";
    let wardens = subject.processes.iter().filter(|process| process.role == WARDEN);
    let mut checks = threads_of(wardens.clone(), expected, |one| {
        (one.seccomp_mode != 2).then(|| format!("mode {}", one.seccomp_mode))
    });
    // Without a filter there is none to compare.
    if checks.iter().all(|check| check.verdict == Verdict::Pass) {
        checks = verdicts_of(wardens, expected, |_, _, verdicts| {
            let own = verdicts.filters.iter().any(|filter| filter.known.as_deref() == Some(WARDEN));
            (!own).then(|| "its filter is not the warden's".to_owned())
        });
    }
    checks
}

fn warden_domain(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let refused = scope.words("refused");
    let expected = format!("none of {}", refused.join(", "));
    let wardens = subject.processes.iter().filter(|process| process.role == WARDEN);
    super::common::each_of(
        wardens,
        &expected,
        |process| &process.label,
        |process, label| {
            vec![match label {
                None => Check::inapplicable(super::common::named(process), "the host has no SELinux (selinux.present)"),
                Some(label) => {
                    let type_ = crate::crowd::type_of(label).unwrap_or_default();
                    let holds = !type_.is_empty() && !refused.contains(&type_);
                    Check::judged(holds, super::common::named(process), expected.as_str(), label.clone())
                }
            }]
        },
    )
}

fn listed(subject: &Subject, list: &Known<Vec<String>>, expected: &str) -> Vec<Check> {
    vec![match list {
        Known::Seen(list) => Check::none_of(list, subject.name.clone(), expected),
        Known::Unseen(why) => Check::unknown(subject.name.clone(), expected, why.clone()),
    }]
}

fn neighbours(subject: &Subject, _: &Scope) -> Vec<Check> {
    listed(subject, &subject.neighbours, "no other level within reach")
}

fn leftovers(subject: &Subject, _: &Scope) -> Vec<Check> {
    listed(subject, &subject.leftovers, "nothing left over")
}
