//! Landlock: handled rights complete, nothing allowed, and what a probe in the domain saw.

use casemate_plan::landlock::handled;

use super::common::{ALL_OF_A_VM, LIVE, each, named};
use crate::rule::{Check, Initial, Parameter, Rule, Scope, Severity};
use crate::subject::{Kind, Known, Subject};

const LAYER: &str = "landlock";

pub static RULES: &[Rule] = &[
    Rule {
        id: "landlock.present",
        title: "a Landlock domain holds the runner",
        layer: LAYER,
        threat: "without Landlock, a path that leads into the jail is opened by uid alone",
        severity: Severity::High,
        remedy: "boot with landlock in lsm=, on a kernel of the wanted ABI",
        kinds: ALL_OF_A_VM,
        parameters: &[Parameter {
            name: "floor",
            what: "least Landlock ABI: 1 files, 2 refer, 3 truncate, 4 TCP, 5 device ioctl, 6 signals and abstract sockets",
            default: Initial::Number(1),
        }],
        check: present,
    },
    Rule {
        id: "landlock.complete",
        title: "the ruleset handles every right that the ABI has",
        layer: LAYER,
        threat: "a right that a ruleset does not handle is not denied (truncate, refer, ioctl: each was forgotten by somebody)",
        severity: Severity::High,
        remedy: "handle every right of the ABI; the jailer does, by plan::landlock::handled",
        kinds: ALL_OF_A_VM,
        parameters: &[],
        check: complete,
    },
    Rule {
        id: "landlock.nothing-allowed",
        title: "no path and no port is allowed to the runner",
        layer: LAYER,
        threat: "what a rule allows cannot be taken back by a narrower one",
        severity: Severity::High,
        remedy: "remove the rule: the runner opens nothing",
        kinds: ALL_OF_A_VM,
        parameters: &[Parameter {
            name: "allowed",
            what: "rules that may be there, in the report's words",
            default: Initial::Words(&[]),
        }],
        check: nothing_allowed,
    },
    Rule {
        id: "landlock.scopes",
        title: "Landlock also covers TCP, signals and abstract sockets",
        layer: LAYER,
        threat: "an older ABI leaves network, signals and abstract sockets to the other layers",
        severity: Severity::Low,
        remedy: "boot a kernel of 6.12 or later (ABI 6)",
        kinds: &[Kind::Plan, Kind::Vm, Kind::Host],
        parameters: &[Parameter { name: "abi", what: "ABI that covers what is wanted", default: Initial::Number(6) }],
        check: scopes,
    },
    Rule {
        id: "landlock.probed",
        title: "a probe in the same domain is denied what it must be",
        layer: LAYER,
        threat: "the kernel has no read-back of a domain: a ruleset that was never enforced looks like one that is",
        severity: Severity::Critical,
        remedy: "stop the VM; casemate selftest tries the layer alone",
        kinds: LIVE,
        parameters: &[Parameter {
            name: "required",
            what: "`yes`: an audit without a probe is unknown, not out of place",
            default: Initial::Word("no"),
        }],
        check: probed,
    },
];

fn present(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let floor = scope.number("floor").max(1);
    let expected = format!("Landlock ABI {floor} or later");
    each(
        subject,
        &expected,
        |process| &process.landlock,
        |process, landlock| {
            let seen = if landlock.abi == 0 { "no Landlock".into() } else { format!("ABI {}", landlock.abi) };
            vec![Check::judged(u64::from(landlock.abi) >= floor, named(process), expected.as_str(), seen)]
        },
    )
}

fn complete(subject: &Subject, _: &Scope) -> Vec<Check> {
    let expected = "every right of its ABI handled";
    each(
        subject,
        expected,
        |process| &process.landlock,
        |process, landlock| {
            if landlock.abi == 0 {
                return vec![Check::inapplicable(named(process), "there is no Landlock (landlock.present)")];
            }
            let missing: Vec<String> = handled(landlock.abi)
                .into_iter()
                .filter(|right| !landlock.handled.contains(right))
                .map(|right| format!("{right} not handled"))
                .collect();
            vec![Check::none_of(&missing, format!("{}, ABI {}", named(process), landlock.abi), expected)]
        },
    )
}

fn nothing_allowed(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let expected = "no rule that allows something";
    let allowed = scope.words("allowed");
    each(
        subject,
        expected,
        |process| &process.landlock,
        |process, landlock| {
            if landlock.abi == 0 {
                return vec![Check::inapplicable(named(process), "there is no Landlock (landlock.present)")];
            }
            let found: Vec<String> =
                landlock.allowed.iter().filter(|rule| !allowed.contains(&rule.as_str())).cloned().collect();
            vec![Check::none_of(&found, named(process), expected)]
        },
    )
}

fn scopes(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let abi = scope.number("abi");
    let expected = format!("Landlock ABI {abi} or later");
    vec![match &subject.host {
        Known::Seen(host) => {
            let seen = format!("ABI {}", host.landlock_abi);
            Check::judged(u64::from(host.landlock_abi) >= abi, "the host", expected, seen)
        }
        Known::Unseen(why) => Check::unknown("the host", expected, why.clone()),
    }]
}

fn probed(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let expected = "denied what must be denied, allowed what must be allowed";
    each(
        subject,
        expected,
        |process| &process.landlock,
        |process, landlock| match &landlock.probed {
            None if landlock.abi == 0 => {
                vec![Check::inapplicable(named(process), "there is no Landlock (landlock.present)")]
            }
            None if scope.word("required") == "yes" => {
                vec![Check::unknown(named(process), expected, "no probe was placed in its domain (audit vm --probe)")]
            }
            None => {
                let why = "no probe was asked for (audit vm --probe); the runner's own attempt stands in the proof of its start";
                vec![Check::inapplicable(named(process), why)]
            }
            Some(probes) if probes.is_empty() => {
                vec![Check::unknown(named(process), expected, "the probe tried nothing")]
            }
            Some(probes) => {
                let bad = probes.iter().filter(|probe| !probe.ok);
                let found: Vec<String> = bad.map(|probe| format!("{}: {}", probe.attempt, probe.outcome)).collect();
                vec![Check::none_of(&found, format!("{}, {} attempts", named(process), probes.len()), expected)]
            }
        },
    )
}
