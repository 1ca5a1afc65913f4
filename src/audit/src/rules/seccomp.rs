//! seccomp: a filter on every thread, ours, and nothing in it that opens more than it says.

use super::common::{ALL_OF_A_VM, PROCESSES, confined, counted, each, each_of, gathered, named, thread};
use crate::rule::{Check, Initial, Parameter, Rule, Scope, Severity, Verdict};
use crate::seccomp::{Remark, RemarkId, Verdicts, in_one_line};
use crate::subject::{Known, Process, Subject, Thread};

const LAYER: &str = "seccomp";

pub static RULES: &[Rule] = &[
    Rule {
        id: "seccomp.on-every-thread",
        title: "every thread has a seccomp filter",
        layer: LAYER,
        threat: "a thread that a filter missed has the whole system call table: the kernel's largest surface",
        severity: Severity::Critical,
        remedy: "install filters before threads start, or with SECCOMP_FILTER_FLAG_TSYNC",
        kinds: PROCESSES,
        parameters: &[],
        check: on_every_thread,
    },
    Rule {
        id: "seccomp.both-filters",
        title: "the coarse filter and the thread's own are stacked",
        layer: LAYER,
        threat: "with the coarse filter alone, a vCPU thread may do what only the start needs",
        severity: Severity::High,
        remedy: "stop the VM: its runner did not narrow a second time; casemate selftest",
        kinds: ALL_OF_A_VM,
        parameters: &[Parameter {
            name: "least",
            what: "filters that each thread of the runner must have",
            default: Initial::Number(2),
        }],
        check: both_filters,
    },
    Rule {
        id: "seccomp.ours",
        title: "the installed filters answer as ours do",
        layer: LAYER,
        threat: "another filter, or ours changed, was installed: what was reviewed is not what runs",
        severity: Severity::Critical,
        remedy: "install all of Casemate's programs from one build; compare with seccomp-filters/",
        kinds: ALL_OF_A_VM,
        parameters: &[],
        check: ours,
    },
    Rule {
        id: "seccomp.denies-by-default",
        title: "what is not listed is denied",
        layer: LAYER,
        threat: "an empty filter, or a list of what is denied, lets the next kernel's system calls through",
        severity: Severity::High,
        remedy: "make the default action kill or errno, and list what is allowed",
        kinds: PROCESSES,
        parameters: &[],
        check: denies_by_default,
    },
    Rule {
        id: "seccomp.no-dangerous-call",
        title: "no call is allowed that opens the kernel or other processes",
        layer: LAYER,
        threat: "bpf, io_uring, ptrace, mount, keyctl, userfaultfd and their like are what exploits are made of",
        severity: Severity::High,
        remedy: "take the call out of the filter, or bind its arguments",
        kinds: PROCESSES,
        parameters: &[Parameter {
            name: "allowed",
            what: "names of calls that may be allowed all the same",
            default: Initial::Words(&[]),
        }],
        check: no_dangerous_call,
    },
    Rule {
        id: "seccomp.narrow",
        title: "no call is allowed that a confined process seldom needs",
        layer: LAYER,
        threat: "opening files by name, memory that is writable and executable, device nodes: each is a step of an exploit",
        severity: Severity::Low,
        remedy: "take the call out of the filter, bind its arguments, or name it in `allowed`",
        kinds: PROCESSES,
        parameters: &[Parameter {
            name: "allowed",
            what: "names of calls that may be allowed all the same",
            default: Initial::Words(&[]),
        }],
        check: narrow,
    },
    Rule {
        id: "seccomp.no-unconditional-ioctl",
        title: "ioctl is allowed by request number only",
        layer: LAYER,
        threat: "ioctl without a condition is every driver's surface: TIOCSTI, FS_IOC_*, device control",
        severity: Severity::High,
        remedy: "list the request numbers that are used (argument 1)",
        kinds: PROCESSES,
        parameters: &[],
        check: no_unconditional_ioctl,
    },
    Rule {
        id: "seccomp.abi-checked",
        title: "the other ABIs' numbers are not decided as x86-64's",
        layer: LAYER,
        threat: "the same number is another call in i386, and x32 hides a call behind bit 30: the filter is walked round",
        severity: Severity::High,
        remedy: "compare seccomp_data.arch first, and refuse numbers with bit 30",
        kinds: PROCESSES,
        parameters: &[],
        check: abi_checked,
    },
    Rule {
        id: "seccomp.no-unreachable-rules",
        title: "every rule of the filter is reached",
        layer: LAYER,
        threat: "a rule that another one hides was meant to deny or to allow something, and does not",
        severity: Severity::Low,
        remedy: "remove or reorder the rule",
        kinds: PROCESSES,
        parameters: &[],
        check: no_unreachable_rules,
    },
    Rule {
        id: "seccomp.whole-arguments",
        title: "conditions compare the whole argument, and denials are actions that deny",
        layer: LAYER,
        threat: "a comparison of half an argument, a decision left to a tracer, or an errno of 0 looks like a rule and is none",
        severity: Severity::Low,
        remedy: "compare 64 bits where the kernel takes 64; use kill-process or a real errno",
        kinds: PROCESSES,
        parameters: &[Parameter {
            name: "allowed",
            what: "names of calls for which it may be so",
            default: Initial::Words(&[]),
        }],
        check: whole_arguments,
    },
];

fn filtered(thread: &Thread) -> bool {
    !thread.kernel
}

fn on_every_thread(subject: &Subject, _: &Scope) -> Vec<Check> {
    let expected = "Seccomp: 2 on every thread";
    each(
        subject,
        expected,
        |process| &process.threads,
        |process, threads| {
            let own: Vec<&Thread> = threads.iter().filter(|thread| filtered(thread)).collect();
            if own.is_empty() {
                return vec![Check::unknown(named(process), expected, "no thread was seen")];
            }
            let bare = own.iter().filter(|thread| thread.seccomp_mode != 2);
            let found = gathered(bare.map(|thread| (*thread, format!("mode {}", thread.seccomp_mode))));
            vec![Check::none_of(&found, format!("{}, {}", named(process), counted(own.len())), expected)]
        },
    )
}

fn both_filters(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let least = scope.number("least");
    let expected = format!("at least {least} filters on every thread");
    each(
        subject,
        &expected,
        |process| &process.threads,
        |process, threads| {
            let few = threads.iter().filter(|thread| filtered(thread) && u64::from(thread.filter_count) < least);
            let found = gathered(few.map(|thread| (thread, thread.filter_count.to_string())));
            vec![Check::none_of(&found, named(process), expected.as_str())]
        },
    )
}

/// One check for each process over its threads' filters; unknown where one could not be read.
fn verdicts(
    subject: &Subject,
    expected: &str,
    bad: impl Fn(&Process, &Thread, &Verdicts) -> Option<String>,
) -> Vec<Check> {
    verdicts_of(confined(subject), expected, bad)
}

pub(super) fn verdicts_of<'a>(
    processes: impl Iterator<Item = &'a Process>,
    expected: &str,
    bad: impl Fn(&Process, &Thread, &Verdicts) -> Option<String>,
) -> Vec<Check> {
    each_of(
        processes,
        expected,
        |process| &process.threads,
        |process, threads| {
            let (mut found, mut unseen, mut looked) = (Vec::new(), Vec::new(), 0);
            for one in threads.iter().filter(|thread| filtered(thread)) {
                match &one.filters {
                    Known::Seen(verdicts) => {
                        looked += 1;
                        found.extend(bad(process, one, verdicts).map(|text| (one, text)));
                    }
                    Known::Unseen(why) => unseen.push(format!("{}: {why}", thread(one))),
                }
            }
            let found = gathered(found.into_iter());
            // What was found stands, whatever else could not be read.
            vec![match (found.is_empty(), unseen.first()) {
                (true, Some(why)) => Check::unknown(named(process), expected, why.clone()),
                (true, None) if looked == 0 => Check::unknown(named(process), expected, "no thread was seen"),
                _ => Check::none_of(&found, format!("{}, {}", named(process), counted(looked)), expected),
            }]
        },
    )
}

/// The newest filter is the thread's own, the oldest the coarse one.
fn ours(subject: &Subject, _: &Scope) -> Vec<Check> {
    verdicts(subject, "the thread's own filter on top of the coarse one, each equal to ours", |process, _, verdicts| {
        let names: Vec<&str> = verdicts.filters.iter().map(|f| f.known.as_deref().unwrap_or("another")).collect();
        let own = names.first().is_some_and(|name| name.starts_with(&format!("{}.", process.role)));
        let coarse = names.len() > 1 && names[1..].iter().all(|name| *name == COARSE);
        if own && coarse {
            return None;
        }
        let differs = verdicts.filters.iter().find_map(|f| Some((f.claims.as_deref()?, f.differences.first()?)));
        let how = differs.map(|(claims, d)| {
            let call = d.name.clone().unwrap_or_else(|| d.input.nr.to_string());
            format!("; it claims to be {claims} and answers {call} with {:?} instead of {:?}", d.theirs, d.ours)
        });
        Some(format!(
            "{}{}",
            if names.is_empty() { "no filter".into() } else { names.join(", ") },
            how.unwrap_or_default()
        ))
    })
}

const COARSE: &str = "jailer.exec";

/// What is for information only is no finding: it stands in the verdicts.
fn remarked(subject: &Subject, expected: &str, of: &[RemarkId], allowed: &[&str]) -> Vec<Check> {
    hinted(subject, expected, of, allowed, |hint| hint > Severity::Info)
}

fn hinted(
    subject: &Subject,
    expected: &str,
    of: &[RemarkId],
    allowed: &[&str],
    fits: fn(Severity) -> bool,
) -> Vec<Check> {
    let judged = verdicts(subject, expected, |_, _, verdicts| {
        let counts = |remark: &&Remark| {
            let is_allowed = remark.call.as_deref().is_some_and(|call| allowed.contains(&call));
            of.contains(&remark.id) && fits(remark.severity) && !is_allowed
        };
        let told = in_one_line(verdicts.remarks.iter().filter(counts));
        (!told.is_empty()).then_some(told)
    });
    if of.contains(&RemarkId::NoFilter) {
        return judged;
    }
    // A process without any filter must not pass for what its filters do not allow.
    let bare = |process: &Process| {
        let threads = process.threads.seen().into_iter().flatten();
        threads.filter(|thread| filtered(thread)).all(|thread| thread.seccomp_mode == 0)
    };
    let told =
        confined(subject).zip(judged).map(|(process, check)| match bare(process) && check.verdict == Verdict::Pass {
            true => Check::inapplicable(named(process), "there is no filter to look at: see seccomp.on-every-thread"),
            false => check,
        });
    told.collect()
}

fn denies_by_default(subject: &Subject, _: &Scope) -> Vec<Check> {
    use RemarkId::{AllowsEverything, DefaultAllow, DeniesEverything, NoFilter, UnnamedAllowed};
    let of = [NoFilter, AllowsEverything, DeniesEverything, DefaultAllow, UnnamedAllowed];
    remarked(subject, "a filter that lists what is allowed", &of, &[])
}

fn no_dangerous_call(subject: &Subject, scope: &Scope) -> Vec<Check> {
    use RemarkId::{DangerousCall, SocketFamily, TerminalInjection};
    let of = [DangerousCall, SocketFamily, TerminalInjection];
    hinted(subject, "no dangerous call", &of, &scope.words("allowed"), |hint| hint >= Severity::Medium)
}

fn narrow(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let of = [RemarkId::DangerousCall];
    hinted(subject, "no call beyond need", &of, &scope.words("allowed"), |hint| hint == Severity::Low)
}

fn no_unconditional_ioctl(subject: &Subject, _: &Scope) -> Vec<Check> {
    remarked(subject, "no ioctl without a condition", &[RemarkId::UnconditionalIoctl], &[])
}

fn abi_checked(subject: &Subject, _: &Scope) -> Vec<Check> {
    use RemarkId::{I386Open, NoAbiCheck, X32Open};
    remarked(subject, "each ABI decided for itself", &[NoAbiCheck, I386Open, X32Open], &[])
}

fn no_unreachable_rules(subject: &Subject, _: &Scope) -> Vec<Check> {
    remarked(subject, "no rule that no input reaches", &[RemarkId::Unreachable], &[])
}

fn whole_arguments(subject: &Subject, scope: &Scope) -> Vec<Check> {
    use RemarkId::{AsksOthers, ErrnoZero, KillsThreadOnly, UnknownAction, UpperHalfUnchecked};
    let of = [UpperHalfUnchecked, AsksOthers, UnknownAction, ErrnoZero, KillsThreadOnly];
    remarked(subject, "whole arguments and actions that deny", &of, &scope.words("allowed"))
}
