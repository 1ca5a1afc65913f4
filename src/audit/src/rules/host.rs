//! The host: what no sandbox can make up for.

use super::common::HOST;
use crate::rule::{Check, Initial, Parameter, Rule, Scope, Severity};
use crate::subject::{Host, Known, Subject};

const LAYER: &str = "host";

pub static RULES: &[Rule] = &[
    Rule {
        id: "host.vulnerabilities",
        title: "the processor's known vulnerabilities are mitigated",
        layer: LAYER,
        threat: "a guest reads other guests' or the host's memory through the processor",
        severity: Severity::High,
        remedy: "update kernel and microcode; remove mitigations=off from the kernel's command line",
        kinds: HOST,
        parameters: &[Parameter {
            name: "accepted",
            what: "vulnerabilities that may stay, by their file's name below /sys/devices/system/cpu/vulnerabilities",
            default: Initial::Words(&[]),
        }],
        check: vulnerabilities,
    },
    Rule {
        id: "host.smt",
        title: "no two guests share a core",
        layer: LAYER,
        threat: "sibling threads of one core share caches and buffers: side channels between two VMs",
        severity: Severity::Medium,
        remedy: "echo off > /sys/devices/system/cpu/smt/control, or nosmt; or one tenant per host",
        kinds: HOST,
        parameters: &[],
        check: smt,
    },
    Rule {
        id: "host.ksm",
        title: "memory of two VMs is not merged",
        layer: LAYER,
        threat: "same-page merging tells one VM what another has in memory (timing), and makes Rowhammer targets",
        severity: Severity::High,
        remedy: "echo 2 > /sys/kernel/mm/ksm/run",
        kinds: HOST,
        parameters: &[],
        check: ksm,
    },
    Rule {
        id: "host.swap",
        title: "guest memory does not go to a disk",
        layer: LAYER,
        threat: "guest memory stays on the swap device after the guest is gone",
        severity: Severity::Low,
        remedy: "swapoff -a, or an encrypted swap area with a key that dies with the boot (name it in `accepted`)",
        kinds: HOST,
        parameters: &[Parameter {
            name: "accepted",
            what: "swap areas that may be used, as /proc/swaps names them; one that ends in * stands for all that begin so",
            default: Initial::Words(&["/dev/zram*"]),
        }],
        check: swap,
    },
];

fn known(subject: &Subject, what: &str, expected: &str, judge: impl FnOnce(&Host) -> Vec<Check>) -> Vec<Check> {
    match &subject.host {
        Known::Seen(host) => judge(host),
        Known::Unseen(why) => vec![Check::unknown(what, expected, why.clone())],
    }
}

fn vulnerabilities(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let expected = "not affected, or mitigated";
    let accepted = scope.words("accepted");
    known(subject, "vulnerabilities", expected, |host| {
        let judged = host.vulnerabilities.iter().map(|(name, says)| {
            if accepted.contains(&name.as_str()) {
                return Check::inapplicable(name.clone(), format!("accepted by the profile: {says}"));
            }
            if says.starts_with("Unknown") {
                return Check::unknown(name.clone(), expected, says.clone());
            }
            // "Mitigation: Clear CPU buffers; SMT vulnerable" is judged by host.smt.
            let holds = says.starts_with("Not affected")
                || says.starts_with("Mitigation:")
                || says.starts_with("KVM: Mitigation");
            Check::judged(holds, name.clone(), expected, says.clone())
        });
        judged.collect()
    })
}

fn smt(subject: &Subject, _: &Scope) -> Vec<Check> {
    let expected = "off";
    known(subject, "SMT", expected, |host| {
        vec![match host.smt {
            Some(on) => Check::judged(!on, "SMT", expected, if on { "on" } else { "off" }),
            None => Check::unknown("SMT", expected, "the kernel does not say (/sys/devices/system/cpu/smt/active)"),
        }]
    })
}

fn ksm(subject: &Subject, _: &Scope) -> Vec<Check> {
    let expected = "off";
    known(subject, "KSM", expected, |host| {
        vec![match host.ksm {
            Some(on) => Check::judged(!on, "KSM", expected, if on { "on" } else { "off" }),
            None => Check::unknown("KSM", expected, "it could not be read (/sys/kernel/mm/ksm/run)"),
        }]
    })
}

fn swap(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let accepted = scope.words("accepted");
    let fits =
        |area: &str| accepted.iter().any(|a| a.strip_suffix('*').map_or(area == *a, |begin| area.starts_with(begin)));
    known(subject, "swap areas", "none in use", |host| {
        let found: Vec<String> = host.swap.iter().filter(|area| !fits(area)).cloned().collect();
        vec![Check::none_of(&found, "swap areas", "none in use")]
    })
}
