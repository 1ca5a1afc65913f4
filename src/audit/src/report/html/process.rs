//! The processes of a subject as a tree with their privileges: who started whom, as which uid, with which label,
//! capabilities, namespaces and filters, thread by thread.

use std::collections::BTreeSet;

use maud::{Markup, html};

use super::seccomp::Shelf;
use super::tables::{self, known, label};
use super::text::{Text, count, number};
use crate::subject::{Known, Process, Subject, Thread, capability_names};

/// Roots first; each process stands once, whatever the parents' numbers say.
pub fn tree(subject: &Subject, shelf: &Shelf) -> Markup {
    let all = &subject.processes;
    let is_child = |p: &Process| parent(all, p).is_some();
    let mut drawn = BTreeSet::new();
    let roots: Vec<usize> = (0..all.len()).filter(|at| !is_child(&all[*at])).collect();
    html! {
        ul.tree {
            @for root in roots { (node(all, root, shelf, &mut drawn)) }
            // A circle of parents has no root.
            @for at in 0..all.len() { @if !drawn.contains(&at) { (node(all, at, shelf, &mut drawn)) } }
        }
    }
}

/// By pid where it runs; a planned runner is the warden's child.
fn parent(all: &[Process], process: &Process) -> Option<usize> {
    let found = match (process.pid, process.parent) {
        (None, _) if process.role != "warden" => all.iter().position(|p| p.role == "warden"),
        (_, Some(parent)) => all.iter().position(|p| p.pid == Some(parent)),
        _ => None,
    };
    found.filter(|at| !std::ptr::eq(&all[*at], process))
}

fn node(all: &[Process], at: usize, shelf: &Shelf, drawn: &mut BTreeSet<usize>) -> Markup {
    if !drawn.insert(at) {
        return Markup::default();
    }
    let children: Vec<usize> = (0..all.len()).filter(|child| parent(all, &all[*child]) == Some(at)).collect();
    let process = &all[at];
    html! {
        li {
            div.process {
                p.head {
                    strong { (Text(&process.role)) }
                    @match process.pid { Some(pid) => span.pid { "pid " (pid) }, None => span.pid { "planned" } }
                    span.exe { (known(&process.exe, |exe| html! { code { (Text(exe)) } })) }
                }
                (privileges(process))
                (threads(process, shelf))
            }
            @if !children.is_empty() { ul { @for child in children { (node(all, child, shelf, drawn)) } } }
        }
    }
}

fn privileges(process: &Process) -> Markup {
    html! {
        dl.privileges {
            (uid(process)) (capabilities(process))
            div { dt { "SELinux" } dd { (label(&process.label)) } }
            (namespaces(process))
            div { dt { "Landlock" } dd { (known(&process.landlock, |landlock| html! {
                (count(landlock.handled.len(), "right")) " handled, " (count(landlock.allowed.len(), "exception"))
            })) } }
            div { dt { "cgroup" } dd { (known(&process.cgroups, |cgroups| html! {
                @for cgroup in cgroups { @if !cgroup.limits.is_empty() {
                    @for (name, limit) in &cgroup.limits { span.limit { (Text(name)) " " b { (size(name, limit)) } } " " }
                } }
                @if cgroups.iter().all(|c| c.limits.is_empty()) { "no limit" }
            })) } }
        }
    }
}

/// cgroup files of memory and swap count bytes.
fn size(name: &str, limit: &str) -> Markup {
    match limit.parse::<i64>() {
        Ok(-1) => html! { "none" },
        Ok(bytes) if name.starts_with("memory.") && bytes >= i64::MAX & !0xffff => html! { "none" },
        Ok(bytes) if name.starts_with("memory.") => html! { (tables::bytes(bytes.unsigned_abs())) },
        _ => html! { (Text(limit)) },
    }
}

/// Threads that run the program's own code.
fn own(threads: &[Thread]) -> impl Iterator<Item = &Thread> {
    threads.iter().filter(|thread| !thread.kernel)
}

/// A privilege that is held is filled, one that was given up is an outline.
fn chip(held: bool, name: &str, value: Markup) -> Markup {
    html! { div.held[held].shed[!held] { dt { (name) } dd { (value) } } }
}

fn uid(process: &Process) -> Markup {
    match &process.threads {
        Known::Unseen(_) => chip(false, "uid", known(&process.threads, |_| Markup::default())),
        Known::Seen(threads) => {
            let ids: BTreeSet<_> = own(threads).flat_map(|t| t.uid.into_iter().zip(t.gid)).collect();
            let root = ids.iter().any(|(uid, gid)| *uid == 0 || *gid == 0);
            let all = html! { @for (at, (uid, gid)) in ids.iter().enumerate() { @if at > 0 { ", " } (uid) ":" (gid) } };
            chip(root, "uid:gid", html! { (all) @if root { " (root)" } })
        }
    }
}

fn capabilities(process: &Process) -> Markup {
    let shown = |threads: &Vec<Thread>| {
        let held = own(threads)
            .fold(0, |held, t| held | t.capabilities.effective | t.capabilities.permitted | t.capabilities.ambient);
        let bounding = own(threads).fold(0, |all, t| all | t.capabilities.bounding);
        html! { (set(held)) @if bounding & !held != 0 { span.aside { " could gain " (set(bounding & !held)) } } }
    };
    let held = process
        .threads
        .seen()
        .is_some_and(|threads| own(threads).any(|t| t.capabilities.permitted | t.capabilities.effective != 0));
    chip(held, "capabilities", known(&process.threads, shown))
}

/// A few by name, many by number.
fn set(set: u64) -> Markup {
    const NAMED: usize = 6;
    let names = capability_names(set);
    match names.len() {
        0 => html! { "none" },
        1..=NAMED => html! { (names.join(", ")) },
        n => html! { abbr title=(names.join(", ")) { (n) " capabilities" } },
    }
}

fn namespaces(process: &Process) -> Markup {
    let host = process.namespaces.seen().is_some_and(|all| all.values().any(|ns| ns.hosts));
    let names = |hosts: bool| {
        known(&process.namespaces, |all| {
            let names: Vec<_> = all.iter().filter(|(_, ns)| ns.hosts == hosts).map(|(name, _)| name.as_str()).collect();
            html! { @if names.is_empty() { "none" } @else { (Text(&names.join(" "))) } }
        })
    };
    html! {
        (chip(false, "own namespaces", names(false)))
        @if process.namespaces.seen().is_some() { (chip(host, "the host's", names(true))) }
    }
}

fn threads(process: &Process, shelf: &Shelf) -> Markup {
    known(&process.threads, |threads| {
        const SHOWN: usize = 24;
        let (shown, folded) = threads.split_at(threads.len().min(SHOWN));
        let table = |threads: &[Thread]| {
            tables::table(
                "Threads",
                &["Thread", "uid", "Capabilities", "NNP", "seccomp", "Allowed calls"],
                threads.iter().map(|thread| row(thread, shelf)).collect::<Vec<_>>(),
            )
        };
        html! {
            (table(shown))
            @if !folded.is_empty() { details { summary { (number(folded.len())) " more threads" } (table(folded)) } }
        }
    })
}

fn row(thread: &Thread, shelf: &Shelf) -> Vec<Markup> {
    let name = html! { code { (Text(&thread.name)) } @if let Some(tid) = thread.tid { " " span.pid { (tid) } } @if thread.kernel { " " span.aside { "kernel thread" } } };
    if thread.kernel {
        return vec![name, html! { (thread.uid[1]) }, html! { "–" }, html! { "–" }, html! { "–" }, html! { "–" }];
    }
    let mode = match thread.seccomp_mode {
        0 => html! { strong.open { "no filter" } },
        1 => html! { "strict" },
        _ => count(thread.filter_count as usize, "filter"),
    };
    vec![
        name,
        html! { (thread.uid[1]) },
        set(thread.capabilities.effective | thread.capabilities.permitted),
        html! { @if thread.no_new_privs { "yes" } @else { "no" } },
        mode,
        match thread.seccomp_mode {
            2 => known(&thread.filters, |verdicts| shelf.link(verdicts)),
            1 => html! { "read, write, exit, sigreturn" },
            _ => html! { "all" },
        },
    ]
}
