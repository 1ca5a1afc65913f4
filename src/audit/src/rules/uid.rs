//! User and group ids: not root's, one VM's alone, the same in every place.

use super::common::{LIVE, PROCESSES, each, named, thread, threads};
use crate::rule::{Check, Rule, Scope, Severity};
use crate::subject::{Subject, Thread};

const LAYER: &str = "uid";

pub static RULES: &[Rule] = &[
    Rule {
        id: "uid.not-root",
        title: "no thread has root's uid or gid",
        layer: LAYER,
        threat: "root's uid owns the host's files and /proc, whatever capabilities are gone",
        severity: Severity::Critical,
        remedy: "run it by a leased uid (the jailer does); check uid_first in /etc/casemate/casemate.toml",
        kinds: PROCESSES,
        parameters: &[],
        check: not_root,
    },
    Rule {
        id: "uid.one-identity",
        title: "real, effective, saved and file system ids are the same on every thread",
        layer: LAYER,
        threat: "a saved id lets a thread take up again what it gave up",
        severity: Severity::High,
        remedy: "setresuid and setresgid with three equal ids, before the threads start",
        kinds: PROCESSES,
        parameters: &[],
        check: one_identity,
    },
    Rule {
        id: "uid.no-groups",
        title: "no supplementary groups",
        layer: LAYER,
        threat: "a group left over from the starter opens the host's devices and files (kvm, disk, docker)",
        severity: Severity::High,
        remedy: "setgroups(0) before the gid and the uid are set",
        kinds: PROCESSES,
        parameters: &[],
        check: no_groups,
    },
    Rule {
        id: "uid.exclusive",
        title: "no other VM has this VM's uid",
        layer: LAYER,
        threat: "two VMs with one uid may signal and trace each other, and open each other's files",
        severity: Severity::Critical,
        remedy: "stop one of the two; casemate repair frees leases that nobody holds",
        kinds: LIVE,
        parameters: &[],
        check: exclusive,
    },
];

fn not_root(subject: &Subject, _: &Scope) -> Vec<Check> {
    threads(subject, "neither uid 0 nor gid 0", |thread| {
        let root = thread.uid.contains(&0) || thread.gid.contains(&0);
        root.then(|| ids(thread))
    })
}

fn one_identity(subject: &Subject, _: &Scope) -> Vec<Check> {
    let expected = "one uid and one gid";
    each(
        subject,
        expected,
        |process| &process.threads,
        |process, all| {
            let Some(first) = all.first() else { return Vec::new() };
            let (uid, gid) = ([first.uid[0]; 4], [first.gid[0]; 4]);
            let differ = all.iter().filter(|thread| thread.uid != uid || thread.gid != gid);
            let found: Vec<String> = differ.map(|t| format!("{}: {}", thread(t), ids(t))).collect();
            vec![Check::none_of(&found, format!("{}, uid {}", named(process), first.uid[0]), expected)]
        },
    )
}

fn no_groups(subject: &Subject, _: &Scope) -> Vec<Check> {
    threads(subject, "no supplementary group", |thread| {
        (!thread.groups.is_empty()).then(|| format!("groups {:?}", thread.groups))
    })
}

fn exclusive(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let expected = "a uid of its own";
    each(
        subject,
        expected,
        |process| &process.threads,
        |process, threads| {
            let mut uids: Vec<u32> = threads.iter().flat_map(|thread| thread.uid).collect();
            uids.sort_unstable();
            uids.dedup();
            let found: Vec<String> = uids
                .iter()
                .flat_map(|uid| {
                    scope.crowd.with_uid(*uid, &subject.name).into_iter().map(move |vm| format!("{vm} has {uid}"))
                })
                .collect();
            vec![Check::none_of(&found, named(process), expected)]
        },
    )
}

/// `uid 0, gid 0`, or all four (real, effective, saved, file system) where they differ.
fn ids(thread: &Thread) -> String {
    let said = |name: &str, ids: &[u32; 4]| match ids.iter().all(|id| *id == ids[0]) {
        true => format!("{name} {}", ids[0]),
        false => format!("{name} {} (real, effective, saved, file system)", ids.map(|id| id.to_string()).join(" ")),
    };
    format!("{}, {}", said("uid", &thread.uid), said("gid", &thread.gid))
}
