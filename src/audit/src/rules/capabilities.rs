//! Capabilities and no_new_privs: nothing to begin with, and nothing to gain.

use super::common::{PROCESSES, threads};
use crate::rule::{Check, Initial, Parameter, Rule, Scope, Severity};
use crate::subject::{Subject, capabilities_said};

const LAYER: &str = "capabilities";

pub static RULES: &[Rule] = &[
    Rule {
        id: "capabilities.none",
        title: "no thread has a capability in any set",
        layer: LAYER,
        threat: "a runner with a capability mounts, traces, opens or configures what the host keeps for root",
        severity: Severity::Critical,
        remedy: "start it by the jailer, which empties every set; of a foreign process: drop capabilities, also from the bounding set",
        kinds: PROCESSES,
        parameters: &[Parameter {
            name: "allowed",
            what: "bits that may be set in any of the sets, by number, as \"12\" for CAP_NET_ADMIN (linux/capability.h)",
            default: Initial::Words(&[]),
        }],
        check: none,
    },
    Rule {
        id: "capabilities.no-new-privs",
        title: "no thread can gain privileges by an exec",
        layer: LAYER,
        threat: "a set-user-ID program or file capabilities give back what was dropped",
        severity: Severity::High,
        remedy: "prctl(PR_SET_NO_NEW_PRIVS); the runner sets it before its threads start",
        kinds: PROCESSES,
        parameters: &[],
        check: no_new_privs,
    },
];

fn none(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let bits = scope.words("allowed").into_iter().filter_map(|word| word.parse::<u32>().ok()).filter(|bit| *bit < 64);
    let allowed = bits.fold(0u64, |set, bit| set | 1 << bit);
    threads(subject, "no capability in any set", |thread| {
        let sets = &thread.capabilities;
        let named = [
            ("inheritable", sets.inheritable),
            ("permitted", sets.permitted),
            ("effective", sets.effective),
            ("bounding", sets.bounding),
            ("ambient", sets.ambient),
        ];
        let found = named.iter().filter(|(_, set)| set & !allowed != 0);
        let text: Vec<String> = found.map(|(name, set)| format!("{name} {}", capabilities_said(*set))).collect();
        (!text.is_empty()).then(|| text.join(", "))
    })
}

fn no_new_privs(subject: &Subject, _: &Scope) -> Vec<Check> {
    threads(subject, "no_new_privs on every thread", |thread| (!thread.no_new_privs).then(|| "not set".into()))
}
