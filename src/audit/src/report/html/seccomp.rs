//! What each thread's filters allow. Threads with the same filters share a table: 200 runners have four between them.

use std::sync::Arc;

use maud::{Markup, html};

use super::tables;
use super::text::{Text, count, lines};
use super::{icon, subject};
use crate::report::Report;
use crate::seccomp::{Abi, Action, Call, Verdicts};
use crate::subject::{Subject, Thread};

/// All different verdicts of a report, in order of appearance, with the threads that have them.
pub struct Shelf<'a> {
    verdicts: Vec<(&'a Arc<Verdicts>, Vec<User<'a>>)>,
}

struct User<'a> {
    subject: &'a Subject,
    role: &'a str,
    thread: &'a Thread,
}

/// Users that are named; the others are counted.
const NAMED: usize = 12;

impl<'a> Shelf<'a> {
    pub fn new(report: &'a Report) -> Self {
        let mut shelf = Self { verdicts: Vec::new() };
        for subject in &report.subjects {
            for process in &subject.processes {
                for thread in process.threads.seen().into_iter().flatten() {
                    if let Some(verdicts) = thread.filters.seen().filter(|_| thread.seccomp_mode == 2) {
                        let user = User { subject, role: &process.role, thread };
                        match shelf.find(verdicts) {
                            Some(at) => shelf.verdicts[at].1.push(user),
                            None => shelf.verdicts.push((verdicts, vec![user])),
                        }
                    }
                }
            }
        }
        shelf
    }

    fn find(&self, verdicts: &Arc<Verdicts>) -> Option<usize> {
        let same = self.verdicts.iter().position(|(known, _)| Arc::ptr_eq(known, verdicts));
        same.or_else(|| self.verdicts.iter().position(|(known, _)| *known == verdicts))
    }

    /// Where a thread's table stands.
    pub fn link(&self, verdicts: &Arc<Verdicts>) -> Markup {
        let calls = count(verdicts.calls.len(), "call");
        html! { @match self.find(verdicts) {
            Some(at) => a href={ "#v" (at) } { (calls) },
            None => (calls),
        } }
    }

    pub fn section(&self, report: &Report) -> Option<Markup> {
        (!self.verdicts.is_empty()).then(|| {
            html! {
                p.lead { "Read back from the kernel and decided for every number of every ABI. A call that is not listed is refused, whatever its arguments." }
                @for (at, (verdicts, users)) in self.verdicts.iter().enumerate() {
                    details.part id={ "v" (at) } {
                        summary { span { (name(verdicts)) } span.n { (count(verdicts.calls.len(), "call")) ", " (count(users.len(), "thread")) } }
                        (body(report, verdicts, users))
                    }
                }
            }
        })
    }
}

fn name(verdicts: &Verdicts) -> Markup {
    html! {
        @for (at, filter) in verdicts.filters.iter().enumerate() {
            @if at > 0 { " + " }
            @match (&filter.known, &filter.claims) {
                (Some(known), _) => code { (Text(known)) },
                (None, Some(claims)) => { "differs from " code { (Text(claims)) } },
                (None, None) => { "unknown filter " code { (Text(filter.digest.get(..12).unwrap_or(&filter.digest))) } },
            }
        }
        @if verdicts.filters.is_empty() { "no filter" }
    }
}

fn body(report: &Report, verdicts: &Verdicts, users: &[User]) -> Markup {
    let filters = verdicts.filters.iter().map(|filter| {
        let known = match (&filter.known, &filter.claims) {
            (Some(known), _) => html! { "answers as " code { (Text(known)) } },
            (None, Some(claims)) => {
                html! { strong.open { "claims to be " code { (Text(claims)) } ", answers otherwise" } }
            }
            (None, None) => html! { "not one of Casemate's" },
        };
        vec![html! { code { (Text(&filter.digest)) } }, html! { (filter.instructions) }, known]
    });
    html! {
        p.users { "Used by " @for (at, user) in users.iter().take(NAMED).enumerate() {
            @if at > 0 { ", " }
            (subject::link(report, user.subject.kind, &user.subject.name)) " " (Text(user.role)) " " code { (Text(&user.thread.name)) }
        } @if users.len() > NAMED { " and " (users.len() - NAMED) " more threads" } "." }
        (tables::table("Filters, the newest first", &["SHA-256 of the instructions", "Instructions", "What it is"], filters))
        @if !verdicts.remarks.is_empty() { ul.key { @for remark in &verdicts.remarks {
            li { (icon(remark.severity.word())) (Text(&remark.text)) }
        } } }
        (otherwise(verdicts))
        @if !verdicts.calls.is_empty() {
            (tables::table("Allowed calls", &["Call", "ABI", "When", "Why"], verdicts.calls.iter().map(call)))
        }
    }
}

fn call(call: &Call) -> Vec<Markup> {
    vec![
        html! { @match &call.name { Some(name) => code { (Text(name)) }, None => "no name" } " " span.pid { (call.number & !(1 << 30)) } },
        html! { (abi(call.abi)) },
        html! { @if call.when.is_empty() { span.none { "always" } } @else { span.code { (lines(&call.when)) } } },
        html! { @if !call.why.is_empty() { (lines(&call.why)) } },
    ]
}

/// What the numbers get that nobody listed: the answer of each ABI's largest range that allows nothing.
fn otherwise(verdicts: &Verdicts) -> Markup {
    let refused = verdicts.tables.iter().filter_map(|table| {
        let ranges = table.ranges.iter().filter(|r| !r.answers.contains(&Action::Allow));
        let range = ranges.max_by_key(|r| r.last - r.first)?;
        Some((abi(table.abi), range.answers.iter().map(|a| action(*a)).collect::<Vec<_>>().join(" or ")))
    });
    let refused: Vec<_> = refused.collect();
    html! { @if !refused.is_empty() {
        p.lead { "Any other number: " @for (at, (abi, answer)) in refused.iter().enumerate() { @if at > 0 { "; " } (abi) " " strong { (answer) } } "." }
    } }
}

fn abi(abi: Abi) -> &'static str {
    match abi {
        Abi::X86_64 => "x86-64",
        Abi::X32 => "x32",
        Abi::I386 => "i386",
    }
}

fn action(action: Action) -> String {
    match action {
        Action::KillProcess => "kills the process".into(),
        Action::KillThread => "kills the thread".into(),
        Action::Trap(_) => "SIGSYS".into(),
        Action::Errno(errno) => format!("errno {errno}"),
        Action::UserNotify => "asks a supervisor".into(),
        Action::Trace(_) => "asks a tracer".into(),
        Action::Log => "is logged and allowed".into(),
        Action::Allow => "is allowed".into(),
    }
}
