//! What stands above the findings of a text report: what each process may do, and what keeps VMs apart.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use casemate_audit::report::Matrix;
use casemate_audit::report::visible::visible;
use casemate_audit::rule::Verdict;
use casemate_audit::subject::{
    CgroupOf, Fd, Kind, Known, Memory, NamespaceOf, Process, Subject, Thread, capabilities_said,
};

use crate::output::{Tone, paint, size};

/// With more VMs than this, a page for each is left to `audit vm NAME`.
const PAGES: usize = 4;
/// Calls, variables and the like: the rest is in `--format json`.
const SHOWN: usize = 12;

pub fn overview(subjects: &[Subject], matrix: &Matrix) -> String {
    let mut out = String::new();
    let vms = subjects.iter().filter(|subject| subject.kind == Kind::Vm).count();
    let shown = |subject: &&Subject| subject.kind == Kind::Process || (subject.kind == Kind::Vm && vms <= PAGES);
    for subject in subjects.iter().filter(shown) {
        for process in &subject.processes {
            of_process(&mut out, &subject.name, process);
        }
    }
    between(&mut out, matrix);
    out
}

fn of_process(out: &mut String, name: &str, process: &Process) {
    let pid = process.pid.map_or_else(String::new, |pid| format!(" {pid}"));
    let head = format!("{}{pid} of {}", process.role, visible(name));
    let _ = writeln!(out, "{}", paint(&head, Tone::Head));
    if let Known::Unseen(why) = &process.threads {
        let _ = writeln!(out, "  not looked at: {}\n", visible(why));
        return;
    }
    for (name, text) in layers(process) {
        let _ = writeln!(out, "  {name:<12} {}", visible(&text));
    }
    threads(out, process.threads.seen().into_iter().flatten());
    out.push('\n');
}

/// What each layer leaves the process as a whole, by its name.
fn layers(process: &Process) -> [(&'static str, String); 9] {
    let words = |names: &[String]| list(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let label = |label: &Option<String>| label.clone().unwrap_or_else(|| "none: no SELinux here".into());
    [
        ("program", said(&process.exe, Clone::clone)),
        ("label", said(&process.label, label)),
        ("namespaces", said(&process.namespaces, namespaces)),
        ("cgroup", said(&process.cgroups, |all| limits(all))),
        ("descriptors", said(&process.fds, |fds| descriptors(fds))),
        (
            "mounts",
            said(&process.mounts, |mounts| {
                let writable = mounts.iter().filter(|mount| !mount.options.contains("ro")).count();
                format!("{}, {writable} of them writable", mounts.len())
            }),
        ),
        ("environment", said(&process.environment, |names| words(names))),
        ("memory", said(&process.memory, memory)),
        (
            "Landlock",
            said(&process.landlock, |landlock| match landlock.abi {
                0 => "none".into(),
                abi => {
                    format!("ABI {abi}, handles {} rights, allows {}", landlock.handled.len(), landlock.allowed.len())
                }
            }),
        ),
    ]
}

fn namespaces(all: &BTreeMap<String, NamespaceOf>) -> String {
    let of = |hosts: bool| {
        let those = all.iter().filter(|(_, namespace)| namespace.hosts == hosts);
        list(&those.map(|(name, _)| name.as_str()).collect::<Vec<_>>())
    };
    format!("own: {}; the host's: {}", of(false), of(true))
}

fn limits(all: &[CgroupOf]) -> String {
    let each = all.iter().flat_map(|cgroup| &cgroup.limits);
    let limits: BTreeSet<String> = each.map(|(file, value)| format!("{file} {}", limit(file, value))).collect();
    list(&limits.iter().map(String::as_str).collect::<Vec<_>>())
}

fn descriptors(fds: &[Fd]) -> String {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    fds.iter().for_each(|fd| *kinds.entry(fd.kind.as_str()).or_default() += 1);
    let counts: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    format!("{} ({})", fds.len(), counts.join(", "))
}

fn memory(memory: &Memory) -> String {
    let dumpable = |dumpable: &bool| if *dumpable { "traceable by its uid" } else { "not dumpable" }.to_owned();
    format!(
        "{} mappings writable and executable, {} KiB locked, {}",
        memory.writable_executable.len(),
        memory.locked / 1024,
        said(&memory.dumpable, dumpable)
    )
}

/// What a cgroup file says, in units; the largest that v1 can say, or -1, is none.
fn limit(file: &str, value: &str) -> String {
    match value.parse::<i64>() {
        Ok(-1) => "none".into(),
        Ok(bytes) if file.starts_with("memory.") && bytes >= i64::MAX & !0xffff => "none".into(),
        Ok(bytes) if file.starts_with("memory.") => size(bytes.unsigned_abs()),
        _ => value.to_owned(),
    }
}

/// Threads that may do the same are told together.
fn threads<'a>(out: &mut String, threads: impl Iterator<Item = &'a Thread>) {
    let mut alike: Vec<(Vec<&Thread>, String)> = Vec::new();
    for thread in threads {
        let may = may(thread);
        match alike.iter_mut().find(|(_, known)| *known == may) {
            Some((all, _)) => all.push(thread),
            None => alike.push((vec![thread], may)),
        }
    }
    for (all, may) in alike {
        let names: Vec<String> = all
            .iter()
            .take(SHOWN)
            .map(|thread| format!("{} {}", thread.tid.map_or_else(String::new, |tid| tid.to_string()), thread.name))
            .collect();
        let more = if all.len() > SHOWN { format!(", and {} more", all.len() - SHOWN) } else { String::new() };
        let _ = writeln!(out, "  thread {}{more}", visible(&names.join(", ")));
        out.push_str(&may);
    }
}

fn may(thread: &Thread) -> String {
    let mut text = String::new();
    let [real, effective, saved, files] = thread.uid;
    let uid = if [effective, saved, files] == [real; 3] { real.to_string() } else { format!("{:?}", thread.uid) };
    let caps = thread.capabilities;
    let nnp = if thread.no_new_privs { "no_new_privs" } else { "may gain privileges at exec" };
    let kernel = if thread.kernel { "; runs in the kernel alone" } else { "" };
    let _ = writeln!(
        text,
        "    uid {uid}, capabilities {}, could gain {}, {nnp}{kernel}",
        capabilities_said(caps.effective | caps.permitted | caps.ambient),
        capabilities_said(caps.bounding)
    );
    let seccomp = match (thread.seccomp_mode, &thread.filters) {
        (0, _) => "no filter: every system call".to_owned(),
        (1, _) => "strict: read, write, exit, sigreturn".to_owned(),
        (_, Known::Unseen(why)) => format!("filters: {}, not read: {why}", thread.filter_count),
        (_, Known::Seen(verdicts)) => {
            let named = |whole: bool| -> BTreeSet<&str> {
                let calls = verdicts.calls.iter().filter(|call| call.when.is_empty() == whole);
                calls.filter_map(|call| call.name.as_deref()).collect()
            };
            let (whole, partly) = (named(true), named(false));
            format!(
                "{} {} calls ({}) and {} under conditions ({})",
                match verdicts.filters.len() {
                    1 => "1 filter allows".to_owned(),
                    count => format!("{count} filters allow"),
                },
                whole.len(),
                list(&whole.into_iter().collect::<Vec<_>>()),
                partly.len(),
                list(&partly.into_iter().collect::<Vec<_>>())
            )
        }
    };
    let _ = writeln!(text, "    seccomp: {}", visible(&seccomp));
    text
}

/// Layer by layer: holds for every pair, or for how many not, and why.
fn between(out: &mut String, matrix: &Matrix) {
    let vms = matrix.vms.len();
    if vms < 2 {
        return;
    }
    let all = vms * (vms - 1);
    let mut counts = vec![0usize; matrix.cells.len()];
    for pair in &matrix.pairs {
        if let Some(count) = counts.get_mut(pair.cell) {
            *count += 1;
        }
    }
    if let Some(common) = counts.get_mut(matrix.common) {
        *common = all - matrix.pairs.len();
    }
    let _ =
        writeln!(out, "{}", paint(&format!("what keeps {vms} VMs apart, each layer alone ({all} pairs)"), Tone::Head));
    let layers: BTreeSet<&String> = matrix.cells.iter().flat_map(|cell| cell.layers.keys()).collect();
    for layer in layers {
        let mut answers: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (cell, count) in matrix.cells.iter().zip(&counts) {
            if let Some((verdict, why)) = cell.layers.get(layer) {
                let word = match verdict {
                    Verdict::Pass => "holds",
                    Verdict::Fail => "NOT",
                    _ => "unknown",
                };
                *answers.entry((word, why)).or_default() += count;
            }
        }
        for ((word, why), count) in answers {
            let tone = if word == "holds" { Tone::Good } else { Tone::Weak };
            let share = if count == all { "all".to_owned() } else { count.to_string() };
            let _ = writeln!(out, "  {layer:<11} {} {share}: {}", paint(&format!("{word:<7}"), tone), visible(why));
        }
    }
    out.push('\n');
}

fn said<T>(known: &Known<T>, say: impl FnOnce(&T) -> String) -> String {
    match known {
        Known::Seen(value) => say(value),
        Known::Unseen(why) => format!("not known: {why}"),
    }
}

fn list(all: &[&str]) -> String {
    match all.len() {
        0 => "none".into(),
        1..=SHOWN => all.join(", "),
        many => format!("{}, and {} more", all[..SHOWN].join(", "), many - SHOWN),
    }
}
