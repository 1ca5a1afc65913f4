//! Memory: no code that can be written, no dump, no trace, and the processor's switches.

use super::common::{LIVE, each, named, threads};
use crate::rule::{Check, Initial, Parameter, Rule, Scope, Severity};
use crate::subject::{Kind, Known, Subject};

const LAYER: &str = "memory";
const SEEN: &[Kind] = &[Kind::Vm, Kind::Process];

pub static RULES: &[Rule] = &[
    Rule {
        id: "memory.no-writable-code",
        title: "no mapping is writable and executable at once",
        layer: LAYER,
        threat: "what an overflow writes can be run",
        severity: Severity::High,
        remedy: "map code read-only; of another VMM: build it without a JIT that writes in place",
        kinds: SEEN,
        parameters: &[],
        check: no_writable_code,
    },
    Rule {
        id: "memory.stack",
        title: "the stack is not executable",
        layer: LAYER,
        threat: "what an overflow writes to the stack can be run",
        severity: Severity::High,
        remedy: "link without an executable PT_GNU_STACK",
        kinds: SEEN,
        parameters: &[],
        check: stack,
    },
    Rule {
        id: "memory.not-dumpable",
        title: "others of its uid may not trace or dump it",
        layer: LAYER,
        threat: "a dumpable process can be traced by its uid, and its memory read through /proc",
        severity: Severity::Medium,
        remedy: "prctl(PR_SET_DUMPABLE, 0), before anything secret is in memory",
        kinds: LIVE,
        parameters: &[],
        check: not_dumpable,
    },
    Rule {
        id: "mitigations.speculation",
        title: "speculative store bypass and indirect branches are mitigated on every thread",
        layer: LAYER,
        threat: "a guest steers the speculation of the thread that serves it",
        severity: Severity::Info,
        remedy: "prctl(PR_SET_SPECULATION_CTRL), or spec_store_bypass_disable=seccomp spectre_v2_user=seccomp on the host's command line",
        kinds: SEEN,
        parameters: &[Parameter {
            name: "accepted",
            what: "states of /proc/PID/status that count as mitigated beside the kernel's own words for it",
            default: Initial::Words(&[]),
        }],
        check: speculation,
    },
];

fn no_writable_code(subject: &Subject, _: &Scope) -> Vec<Check> {
    let expected = "no mapping with w and x";
    each(
        subject,
        expected,
        |process| &process.memory,
        |process, memory| vec![Check::none_of(&memory.writable_executable, named(process), expected)],
    )
}

fn stack(subject: &Subject, _: &Scope) -> Vec<Check> {
    let expected = "stack without x";
    each(
        subject,
        expected,
        |process| &process.memory,
        |process, memory| {
            let seen = if memory.executable_stack { "executable" } else { "not executable" };
            vec![Check::judged(!memory.executable_stack, named(process), expected, seen)]
        },
    )
}

fn not_dumpable(subject: &Subject, _: &Scope) -> Vec<Check> {
    let expected = "not dumpable";
    each(
        subject,
        expected,
        |process| &process.memory,
        |process, memory| {
            vec![match &memory.dumpable {
                Known::Seen(dumpable) => Check::judged(
                    !dumpable,
                    named(process),
                    expected,
                    if *dumpable { "dumpable" } else { "not dumpable" },
                ),
                Known::Unseen(why) => Check::unknown(named(process), expected, why.clone()),
            }]
        },
    )
}

/// Words of /proc/PID/status (fs/proc/array.c, task_seccomp).
fn mitigated(word: &str) -> Option<bool> {
    match word {
        "not vulnerable"
        | "not affected"
        | "thread force mitigated"
        | "thread mitigated"
        | "globally mitigated"
        | "conditional force disabled"
        | "conditional disabled"
        | "always disabled" => Some(true),
        "unknown" | "unsupported" | "" => None,
        _ => Some(false),
    }
}

fn speculation(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let accepted = scope.words("accepted");
    let bad = |word: &str| mitigated(word) == Some(false) && !accepted.contains(&word);
    let expected = "mitigated or not vulnerable";
    let untold = subject.processes.iter().filter_map(|process| process.threads.seen()).flatten();
    let mut words = untold
        .filter(|thread| !thread.kernel)
        .flat_map(|thread| [thread.speculation_store_bypass.as_str(), thread.speculation_indirect_branch.as_str()]);
    if words.clone().next().is_some() && words.all(|word| mitigated(word).is_none()) {
        return vec![Check::unknown(subject.name.clone(), expected, "the kernel does not say for this processor")];
    }
    threads(subject, expected, |thread| {
        let states = [
            ("store bypass", thread.speculation_store_bypass.as_str()),
            ("indirect branch", thread.speculation_indirect_branch.as_str()),
        ];
        let found = states.iter().filter(|(_, word)| !thread.kernel && bad(word));
        let text: Vec<String> = found.map(|(name, word)| format!("{name}: {word}")).collect();
        (!text.is_empty()).then(|| text.join(", "))
    })
}
