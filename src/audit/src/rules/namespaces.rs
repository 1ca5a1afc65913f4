//! Namespaces and mounts: worlds of the runner's own, and nothing in them.

use super::common::{ALL_OF_A_VM, LIVE, PROCESSES, each, named};
use crate::rule::{Check, Initial, Parameter, Rule, Scope, Severity};
use crate::subject::{Mount, Subject};

pub static RULES: &[Rule] = &[
    Rule {
        id: "namespaces.own",
        title: "no namespace of the host's",
        layer: "namespaces",
        threat: "in the host's namespaces a runner sees its processes, network, mounts and System V objects",
        severity: Severity::High,
        remedy: "start it in namespaces of its own (clone3 with CLONE_NEW*)",
        kinds: PROCESSES,
        parameters: &[Parameter {
            name: "kinds",
            what: "namespaces that must not be the host's, as /proc/PID/ns names them",
            default: Initial::Words(&["mnt", "pid", "net", "ipc", "uts", "cgroup"]),
        }],
        check: own,
    },
    Rule {
        id: "namespaces.exclusive",
        title: "no other VM is in this VM's namespaces",
        layer: "namespaces",
        threat: "two runners in one namespace see each other's processes, sockets or shared memory",
        severity: Severity::High,
        remedy: "stop one of the two",
        kinds: LIVE,
        parameters: &[Parameter {
            name: "kinds",
            what: "namespaces that must be one VM's alone",
            default: Initial::Words(&["mnt", "pid", "net", "ipc", "uts", "cgroup"]),
        }],
        check: exclusive,
    },
    Rule {
        id: "mounts.empty-root",
        title: "one empty, read-only root and nothing else is mounted",
        layer: "mounts",
        threat: "a path that exists can be opened, and one that can be written can be filled or executed",
        severity: Severity::High,
        remedy: "pivot into an empty tmpfs: ro,nosuid,nodev,noexec; detach everything else",
        kinds: ALL_OF_A_VM,
        parameters: &[Parameter {
            name: "options",
            what: "options that the root must have",
            default: Initial::Words(&["ro", "nosuid", "nodev", "noexec"]),
        }],
        check: empty_root,
    },
];

fn own(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let expected = "namespaces of its own";
    let kinds = scope.words("kinds");
    each(
        subject,
        expected,
        |process| &process.namespaces,
        |process, namespaces| {
            let judge = |kind: &&str| match namespaces.get(*kind) {
                None => Some(Err(format!("{kind} could not be seen"))),
                Some(namespace) if namespace.hosts => Some(Ok(format!("{kind} is the host's"))),
                Some(_) => None,
            };
            let (found, unseen): (Vec<_>, Vec<_>) = kinds.iter().filter_map(judge).partition(Result::is_ok);
            let found: Vec<String> = found.into_iter().flatten().collect();
            if let (true, Some(Err(why))) = (found.is_empty(), unseen.first()) {
                return vec![Check::unknown(named(process), expected, why.clone())];
            }
            vec![Check::none_of(&found, format!("{}: {}", named(process), kinds.join(" ")), expected)]
        },
    )
}

fn exclusive(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let expected = "no other VM in its namespaces";
    let kinds = scope.words("kinds");
    each(
        subject,
        expected,
        |process| &process.namespaces,
        |process, namespaces| {
            let listed = namespaces.iter().filter(|(kind, _)| kinds.contains(&kind.as_str()));
            let found: Vec<String> = listed
                .flat_map(|(_, namespace)| {
                    let others = scope.crowd.in_namespace(&namespace.id, &subject.name).into_iter();
                    others.map(move |vm| format!("{} with {vm}", namespace.id))
                })
                .collect();
            vec![Check::none_of(&found, named(process), expected)]
        },
    )
}

fn empty_root(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let options = scope.words("options");
    let expected = format!("one mount: tmpfs at /, {}", options.join(","));
    each(
        subject,
        &expected,
        |process| &process.mounts,
        |process, mounts| {
            let text = |mount: &Mount| {
                let options: Vec<&str> = mount.options.iter().map(String::as_str).collect();
                format!("{} at {} ({})", mount.kind, mount.point, options.join(","))
            };
            let seen: Vec<String> = mounts.iter().take(8).map(text).collect();
            let holds = match &mounts[..] {
                [root] => {
                    let locked = options.iter().all(|option| root.options.contains(*option));
                    root.point == "/" && root.kind == "tmpfs" && locked
                }
                _ => false,
            };
            let seen = format!("{} mounts: {}", mounts.len(), seen.join("; "));
            vec![Check::judged(holds, named(process), expected.as_str(), seen)]
        },
    )
}
