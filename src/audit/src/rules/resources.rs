//! cgroups and rlimits: what a guest can use up.

use super::common::{ALL_OF_A_VM, PROCESSES, each, named};
use crate::rule::{Check, Initial, Parameter, Rule, Scope, Severity};
use crate::subject::{CgroupOf, Limit, Subject};

pub static RULES: &[Rule] = &[
    Rule {
        id: "cgroup.limited",
        title: "memory and tasks are limited",
        layer: "cgroup",
        threat: "one guest uses up the host's memory or process table, and every other stops",
        severity: Severity::High,
        remedy: "mount cgroup2 with the controllers, and start it by the jailer; --limit sets the values",
        kinds: PROCESSES,
        parameters: &[Parameter {
            name: "controllers",
            what: "what must be limited: memory, pids, cpu, io",
            default: Initial::Words(&["memory", "pids"]),
        }],
        check: limited,
    },
    Rule {
        id: "cgroup.bounds",
        title: "limits are within what the profile grants",
        layer: "cgroup",
        threat: "a limit that is larger than the host is none",
        severity: Severity::Medium,
        remedy: "lower --memory and --limit, or raise the bound in the profile",
        kinds: ALL_OF_A_VM,
        parameters: &[
            Parameter {
                name: "memory",
                what: "most bytes of memory that a VM's cgroup may grant",
                default: Initial::Number(1 << 40),
            },
            Parameter { name: "pids", what: "most tasks that it may grant", default: Initial::Number(4096) },
        ],
        check: bounds,
    },
    Rule {
        id: "rlimits.no-core",
        title: "no core dump is written",
        layer: "rlimits",
        threat: "a core dump of a runner is its guest's memory in a file, or in another program's hands",
        severity: Severity::High,
        remedy: "RLIMIT_CORE 0, soft and hard",
        kinds: PROCESSES,
        parameters: &[],
        check: no_core,
    },
    Rule {
        id: "rlimits.bounded",
        title: "descriptors, tasks, locked memory and message queues are limited",
        layer: "rlimits",
        threat: "a runner taken over uses up what its uid and the kernel have of them",
        severity: Severity::Medium,
        remedy: "set the limits before the exec, soft and hard; the jailer does",
        kinds: ALL_OF_A_VM,
        parameters: &[
            Parameter { name: "open_files", what: "most open descriptors", default: Initial::Number(512) },
            Parameter { name: "processes", what: "most tasks of its uid", default: Initial::Number(260) },
            Parameter { name: "locked_memory", what: "most bytes of locked memory", default: Initial::Number(0) },
            Parameter { name: "message_queues", what: "most bytes in message queues", default: Initial::Number(0) },
        ],
        check: bounded,
    },
];

/// By controller: limit files of cgroup v2 and v1.
const FILES: [(&str, &[&str]); 4] = [
    ("memory", &["memory.max", "memory.limit_in_bytes"]),
    ("pids", &["pids.max"]),
    ("cpu", &["cpu.max", "cpu.cfs_quota_us"]),
    ("io", &["io.max"]),
];

/// The narrowest limit of a controller over all the groups; v1 says "unlimited" with the largest number of pages.
fn limit(groups: &[CgroupOf], controller: &str) -> Option<u64> {
    const LARGEST: u64 = 1 << 62;
    let files = FILES.iter().find(|(name, _)| *name == controller).map_or(&[][..], |(_, files)| files);
    let values = groups.iter().flat_map(|group| files.iter().filter_map(|file| group.limits.get(*file)));
    // io.max has a line for each device: any is a limit.
    let number = |value: &String| match controller {
        "io" => (!value.trim().is_empty()).then_some(0),
        _ => value.split_whitespace().next()?.parse::<u64>().ok(),
    };
    values.filter_map(number).filter(|number| *number < LARGEST).min()
}

fn limited(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let controllers = scope.words("controllers");
    let expected = format!("a limit of {}", controllers.join(", "));
    each(
        subject,
        &expected,
        |process| &process.cgroups,
        |process, groups| {
            let missing = controllers.iter().filter(|controller| limit(groups, controller).is_none());
            let found: Vec<String> = missing.map(|controller| format!("{controller} is not limited")).collect();
            vec![Check::none_of(&found, named(process), expected.as_str())]
        },
    )
}

fn bounds(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let bounds = [("memory", scope.number("memory")), ("pids", scope.number("pids"))];
    let expected = format!("memory at most {}, pids at most {}", bounds[0].1, bounds[1].1);
    each(
        subject,
        &expected,
        |process| &process.cgroups,
        |process, groups| {
            // None at all is cgroup.limited's.
            let over =
                bounds.iter().filter_map(|(name, most)| Some((name, limit(groups, name).filter(|is| is > most)?)));
            let found: Vec<String> = over.map(|(name, is)| format!("{name} {is}")).collect();
            vec![Check::none_of(&found, named(process), expected.as_str())]
        },
    )
}

fn no_core(subject: &Subject, _: &Scope) -> Vec<Check> {
    let expected = "core file size 0, soft and hard";
    each(
        subject,
        expected,
        |process| &process.rlimits,
        |process, limits| {
            vec![match limits.get("Max core file size") {
                None => Check::unknown(named(process), expected, "the limit is not listed"),
                Some(limit) => {
                    let holds = *limit == Limit { soft: Some(0), hard: Some(0) };
                    Check::judged(holds, named(process), expected, words(limit))
                }
            }]
        },
    )
}

fn bounded(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let wanted = [
        ("Max open files", scope.number("open_files")),
        ("Max processes", scope.number("processes")),
        ("Max locked memory", scope.number("locked_memory")),
        ("Max msgqueue size", scope.number("message_queues")),
    ];
    let expected = "hard limits within the profile's";
    each(
        subject,
        expected,
        |process| &process.rlimits,
        |process, limits| {
            let check = |(name, most): &(&str, u64)| {
                let what = format!("{}: {name}", named(process));
                let expected = format!("at most {most}");
                match limits.get(*name) {
                    None => Check::unknown(what, expected, "the limit is not listed"),
                    Some(limit) => {
                        Check::judged(limit.hard.is_some_and(|is| is <= *most), what, expected, words(limit))
                    }
                }
            };
            wanted.iter().map(check).collect()
        },
    )
}

fn words(limit: &Limit) -> String {
    let word = |value: Option<u64>| value.map_or_else(|| "unlimited".to_owned(), |value| value.to_string());
    format!("{} (hard {})", word(limit.soft), word(limit.hard))
}
