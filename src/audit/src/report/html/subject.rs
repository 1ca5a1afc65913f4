//! Each subject with what was seen of it: standing, processes, files, labels, and the tables behind them.

use maud::{Markup, html};

use super::icon;
use super::process;
use super::seccomp::Shelf;
use super::tables::{bytes, fold, known, label, table};
use super::text::{Text, count, lines, number};
use crate::report::Report;
use crate::rule::Verdict;
use crate::subject::{Kind, Known, Object, Process, Separation, Standing, Subject};

/// Subjects that are open when the page is.
const OPEN: usize = 3;

/// A subject's name, leading to its section if it has one.
pub fn link(report: &Report, kind: Kind, name: &str) -> Markup {
    match report.subjects.iter().position(|s| s.kind == kind && s.name == name) {
        Some(at) => html! { a.subject href={ "#s" (at) } { (Text(name)) } },
        None => html! { span.subject { (Text(name)) } },
    }
}

pub fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Plan => "plan",
        Kind::Policy => "policy",
        Kind::Vm => "VM",
        Kind::Process => "process",
        Kind::Host => "host",
    }
}

pub fn section(report: &Report, shelf: &Shelf) -> Option<Markup> {
    let open = report.subjects.len() <= OPEN;
    (!report.subjects.is_empty()).then(|| {
        html! { @for (at, subject) in report.subjects.iter().enumerate() {
            details.subject id={ "s" (at) } open[open] {
                summary {
                    span.kind { (kind_word(subject.kind)) }
                    h3 { (Text(&subject.name)) }
                    (badges(report, subject))
                }
                (body(subject, shelf))
            }
        } }
    })
}

fn badges(report: &Report, subject: &Subject) -> Markup {
    let own = || report.findings.iter().filter(|f| f.kind == subject.kind && f.subject == subject.name);
    let fail = own().filter(|f| f.is_failure()).count();
    let noted = own().filter(|f| f.is_note()).count();
    let unknown = own().filter(|f| f.check.verdict == Verdict::Unknown).count();
    html! {
        @if let Known::Seen(standing) = &subject.standing { span.posture { (Text(&standing.posture)) } }
        @if fail > 0 { span.fail { (icon("fail")) (number(fail)) " failed" } }
        @if unknown > 0 { span.unknown { (icon("unknown")) (number(unknown)) " unknown" } }
        @if noted > 0 { span.info { (icon("info")) (number(noted)) " for information" } }
    }
}

fn body(subject: &Subject, shelf: &Shelf) -> Markup {
    let about_vm = matches!(subject.kind, Kind::Vm | Kind::Plan);
    html! {
        div.body {
            @if about_vm || subject.standing.seen().is_some() { (known(&subject.standing, standing)) }
            @if !subject.processes.is_empty() { h4 { "Processes and their privileges" } (process::tree(subject, shelf)) }
            @if !subject.objects.is_empty() { h4 { "Files" } (objects(&subject.objects)) }
            @if subject.kind != Kind::Process && subject.kind != Kind::Host { h4 { "Labels, as the policy answers" } (known(&subject.separation, separation)) }
            @if subject.kind == Kind::Host || subject.neighbours.seen().is_some_and(|n| !n.is_empty()) {
                h4 { "Others with a level within reach" } (known(&subject.neighbours, |all| lines(all)))
            }
            @if subject.kind == Kind::Host || subject.leftovers.seen().is_some_and(|l| !l.is_empty()) {
                h4 { "Left over" } (known(&subject.leftovers, |all| lines(all)))
            }
            @if !subject.processes.is_empty() {
                h4 { "Behind it" }
                div.parts { @for process in &subject.processes { div { (details(process)) } } }
            }
        }
    }
}

fn standing(standing: &Standing) -> Markup {
    html! {
        dl.facts {
            div { dt { "Posture" } dd { strong { (Text(&standing.posture)) } } }
            div { dt { "Phase" } dd { (Text(&standing.phase)) } }
            div { dt { "Guest" } dd { (count(standing.cpus as usize, "vCPU")) ", " (bytes(standing.memory)) } }
            div { dt { "Level" } dd { @if standing.level_shared { strong { "shared with others" } } @else { "its own" } } }
            @if let Some(reason) = &standing.allow_reduced { div { dt { "Reduced because" } dd { (Text(reason)) } } }
            @if !standing.warnings.is_empty() { div.wide { dt { "Warnings" } dd { (lines(&standing.warnings)) } } }
            @if !standing.blockers.is_empty() { div.wide { dt { "Would be refused" } dd { (lines(&standing.blockers)) } } }
            @if !standing.unproven.is_empty() { div.wide { dt { "Not proven at the start" } dd { (lines(&standing.unproven)) } } }
        }
    }
}

fn objects(objects: &[Object]) -> Markup {
    let row = |object: &Object| {
        let wrong = match (&object.wanted, &object.label) {
            (Some(wanted), Known::Seen(Some(label))) => wanted != label,
            _ => false,
        };
        vec![
            html! { (Text(&object.name)) },
            html! { code { (Text(&object.path)) } @if let Some(Known::Seen(false)) = object.unchanged { " " strong.open { "now another file" } } },
            html! { @if object.read_only { "read" } @else { "read, write" } },
            html! { (label(&object.label)) @if wrong { " " strong.open { "must be " code { (Text(object.wanted.as_deref().unwrap_or_default())) } } } },
            known(
                &object.inode,
                |inode| html! { (inode.uid) ":" (inode.gid) " " code { (format!("{:04o}", inode.mode & 0o7777)) } @if inode.links != 1 { " " (inode.links) " links" } },
            ),
            known(&object.writable_by, |who| lines(who)),
        ]
    };
    table(
        "Files",
        &["Name", "Path", "The VM may", "Label", "Owner, mode", "Others who may write"],
        objects.iter().map(row),
    )
}

fn separation(separation: &Separation) -> Markup {
    html! {
        dl.facts {
            div { dt { "Policy" } dd { code { (Text(&separation.origin)) } } }
            div { dt { "Family" } dd { (Text(&separation.family)) } }
            div { dt { "Enforcing" } dd { @match separation.enforcing { Some(true) => "yes", Some(false) => { strong.open { "no" } }, None => "a file, not loaded" } } }
            div { dt { "Permissive domain" } dd { @if separation.permissive_domain { strong.open { "yes" } } @else { "no" } } }
            div.wide { dt { "VM" } dd { code { (Text(&separation.runner)) } } }
            div.wide { dt { "Its images" } dd { code { (Text(&separation.image)) } } }
            div.wide { dt { "On another VM's objects it may" } dd { (lines(&separation.reach)) } }
        }
        (fold("Classes that categories do not hold back", Some(separation.unconstrained.len()), lines(&separation.unconstrained)))
        (fold("Domains that can become the VM's", Some(separation.entries.len()), lines(&separation.entries)))
        (fold("Domains that may write its image, trace or signal it", Some(separation.others.len()), lines(&separation.others)))
        (fold("Flows between two levels", Some(separation.flows.len()), lines(&separation.flows)))
        (fold("Booleans that bear on it", Some(separation.booleans.len()), table("Booleans", &["Boolean", "Now"],
            separation.booleans.iter().map(|(name, on)| vec![html! { code { (Text(name)) } }, html! { @if *on { "on" } @else { "off" } }]))))
    }
}

/// The long tables of one process, folded.
fn details(process: &Process) -> Markup {
    let title = |what: &'static str| html! { strong { (Text(&process.role)) } " " (what) };
    html! {
        (fold(title("open descriptors"), process.fds.seen().map(Vec::len), known(&process.fds, |fds| table(
            "Descriptors", &["fd", "Planned as", "Kind", "Access", "Target", "Label"],
            fds.iter().map(|fd| vec![
                html! { (fd.number) },
                html! { @match &fd.planned { Some(name) => (Text(name)), None => strong.open { "in no plan" } } },
                html! { (Text(&fd.kind)) },
                html! { @match (fd.read, fd.write) { (true, true) => "read, write", (true, false) => "read", (false, true) => "write", (false, false) => "path only" } },
                html! { code { (Text(&fd.target)) } },
                html! { @if let Some(label) = &fd.label { code { (Text(label)) } } },
            ])))))
        (landlock(process, title("Landlock")))
        (fold(title("mounts"), process.mounts.seen().map(Vec::len), known(&process.mounts, |mounts| table(
            "Mounts", &["At", "Kind", "Options"],
            mounts.iter().map(|mount| vec![
                html! { code { (Text(&mount.point)) } },
                html! { (Text(&mount.kind)) },
                html! { (Text(&mount.options.iter().map(String::as_str).collect::<Vec<_>>().join(", "))) },
            ])))))
        (fold(title("namespaces"), process.namespaces.seen().map(std::collections::BTreeMap::len), known(&process.namespaces, |all| table(
            "Namespaces", &["Kind", "Which", "Whose"],
            all.iter().map(|(name, ns)| vec![html! { (Text(name)) }, html! { code { (Text(&ns.id)) } }, html! { @if ns.hosts { "the host's" } @else { "its own" } }])))))
        (fold(title("limits"), process.rlimits.seen().map(std::collections::BTreeMap::len), known(&process.rlimits, |all| table(
            "Resource limits", &["Limit", "Soft", "Hard"],
            all.iter().map(|(name, limit)| vec![html! { (Text(name)) }, bound(limit.soft), bound(limit.hard)])))))
        (fold(title("environment"), process.environment.seen().map(Vec::len), known(&process.environment, |names| lines(names))))
        (memory(process, title("memory")))
    }
}

fn bound(limit: Option<u64>) -> Markup {
    html! { @match limit { Some(limit) => (limit), None => "unlimited" } }
}

fn landlock(process: &Process, title: Markup) -> Markup {
    let probes = process.landlock.seen().and_then(|l| l.probed.as_ref()).map(Vec::len);
    fold(
        title,
        probes,
        known(&process.landlock, |landlock| {
            html! {
                dl.facts {
                    div { dt { "ABI" } dd { (landlock.abi) } }
                    div.wide { dt { "Handled, so denied but for the exceptions" } dd { (Text(&landlock.handled.join(", "))) } }
                    div.wide { dt { "Exceptions" } dd { (lines(&landlock.allowed)) } }
                }
                @match &landlock.probed {
                    None => p.not-seen { (icon("unknown")) "Nothing was tried in this domain; the kernel has no read-back of it." },
                    Some(probes) => (table("Tried in the same domain", &["Attempt", "Outcome", "As it must be"], probes.iter().map(|probe| vec![
                        html! { (Text(&probe.attempt)) }, html! { code { (Text(&probe.outcome)) } },
                        html! { @if probe.ok { (icon("pass")) "yes" } @else { (icon("fail")) "no" } },
                    ]))),
                }
            }
        }),
    )
}

fn memory(process: &Process, title: Markup) -> Markup {
    let wx = process.memory.seen().map(|m| m.writable_executable.len()).filter(|n| *n > 0);
    fold(
        title,
        wx,
        known(&process.memory, |memory| {
            html! {
                dl.facts {
                    div { dt { "Dumpable" } dd { (known(&memory.dumpable, |yes| html! { @if *yes { "yes" } @else { "no" } })) } }
                    div { dt { "Core dump filter" } dd { @match memory.coredump_filter { Some(bits) => code { (format!("{bits:#x}")) }, None => "not known" } } }
                    div { dt { "Locked" } dd { (bytes(memory.locked)) } }
                    div { dt { "Stack" } dd { @if memory.executable_stack { strong.open { "executable" } } @else { "not executable" } } }
                    div.wide { dt { "Writable and executable" } dd { (lines(&memory.writable_executable)) } }
                }
            }
        }),
    )
}
