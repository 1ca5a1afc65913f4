//! What several layers' rules ask alike.

use crate::crowd::WARDEN;
use crate::rule::Check;
use crate::subject::{Kind, Known, Process, Subject, Thread};

pub const ALL_OF_A_VM: &[Kind] = &[Kind::Plan, Kind::Vm];
pub const LIVE: &[Kind] = &[Kind::Vm];
pub const PROCESSES: &[Kind] = &[Kind::Plan, Kind::Vm, Kind::Process];
pub const HOST: &[Kind] = &[Kind::Host];

/// `runner 4711`, or `runner` in a plan.
pub fn named(process: &Process) -> String {
    match process.pid {
        Some(pid) => format!("{} {pid}", process.role),
        None => process.role.clone(),
    }
}

/// Those that serve the guest and hold none of the host's rights; of a foreign subject, all.
pub fn confined(subject: &Subject) -> impl Iterator<Item = &Process> {
    subject.processes.iter().filter(|process| process.role != WARDEN)
}

/// One check for each confined process: of something of it that is known, or unknown with the reason.
pub fn each<T>(
    subject: &Subject,
    expected: &str,
    part: impl Fn(&Process) -> &Known<T>,
    judge: impl Fn(&Process, &T) -> Vec<Check>,
) -> Vec<Check> {
    each_of(confined(subject), expected, part, judge)
}

pub fn each_of<'a, T: 'a>(
    processes: impl Iterator<Item = &'a Process>,
    expected: &str,
    part: impl Fn(&'a Process) -> &'a Known<T>,
    judge: impl Fn(&'a Process, &'a T) -> Vec<Check>,
) -> Vec<Check> {
    let checked = processes.flat_map(|process| match part(process) {
        Known::Seen(value) => judge(process, value),
        Known::Unseen(why) => vec![Check::unknown(named(process), expected, why.clone())],
    });
    checked.collect()
}

/// One check for each confined process over all its threads: those for which `bad` has words are named.
pub fn threads(subject: &Subject, expected: &str, bad: impl Fn(&Thread) -> Option<String>) -> Vec<Check> {
    threads_of(confined(subject), expected, bad)
}

pub fn threads_of<'a>(
    processes: impl Iterator<Item = &'a Process>,
    expected: &str,
    bad: impl Fn(&'a Thread) -> Option<String>,
) -> Vec<Check> {
    each_of(
        processes,
        expected,
        |process| &process.threads,
        |process, threads| {
            if threads.is_empty() {
                return vec![Check::unknown(named(process), expected, "no thread was seen")];
            }
            let found = gathered(threads.iter().filter_map(|t| bad(t).map(|text| (t, text))));
            vec![Check::none_of(&found, format!("{}, {}", named(process), counted(threads.len())), expected)]
        },
    )
}

/// Threads of which the same is to be said are named together: a pool of hundreds is one line.
pub fn gathered<'a>(found: impl Iterator<Item = (&'a Thread, String)>) -> Vec<String> {
    const NAMED: usize = 3;
    let mut order: Vec<(String, Vec<String>)> = Vec::new();
    for (one, text) in found {
        match order.iter_mut().find(|(said, _)| *said == text) {
            Some((_, names)) => names.push(thread(one)),
            None => order.push((text, vec![thread(one)])),
        }
    }
    let lines = order.into_iter().map(|(text, names)| match names.len() {
        1..=NAMED => format!("{}: {text}", names.join(", ")),
        many => format!("{} and {} more: {text}", names[..NAMED].join(", "), many - NAMED),
    });
    lines.collect()
}

/// `1 thread`, `4 threads`.
pub fn counted(threads: usize) -> String {
    format!("{threads} thread{}", if threads == 1 { "" } else { "s" })
}

pub fn thread(thread: &Thread) -> String {
    match thread.tid {
        Some(tid) => format!("thread {} ({tid})", thread.name),
        None => format!("thread {}", thread.name),
    }
}

/// Is SELinux off, so that labels are nothing to look at? `Err` where that is not known.
pub fn selinux_is_off(subject: &Subject) -> Result<bool, String> {
    match &subject.host {
        Known::Seen(host) => Ok(host.selinux == "disabled"),
        Known::Unseen(why) => Err(why.clone()),
    }
}
