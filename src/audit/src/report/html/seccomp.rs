//! What each thread's filters allow. Threads with the same filters share a table: 200 runners have four between them.

use std::cmp::Reverse;
use std::sync::Arc;

use maud::{Markup, html};

use super::tables;
use super::text::{Text, count, lines};
use super::{icon, subject};
use crate::report::Report;
use crate::seccomp::{Abi, Call, Outline, Remark, Table, Verdicts, by_reason, closed, listed};
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
                p.lead { "Read back from the kernel and decided for every number of every ABI and all arguments." }
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
    let all = ["Call", "ABI", "When", "Why"];
    // Nobody gave reasons for another program's filter.
    let head = if verdicts.calls.iter().all(|call| call.why.is_empty()) { &all[..3] } else { &all[..] };
    html! {
        p.users { "Used by " @for (at, user) in users.iter().take(NAMED).enumerate() {
            @if at > 0 { ", " }
            (subject::link(report, user.subject.kind, &user.subject.name)) " " (Text(user.role)) " " code { (Text(&user.thread.name)) }
        } @if users.len() > NAMED { " and " (users.len() - NAMED) " more threads" } "." }
        (tables::table("Filters, the newest first", &["SHA-256 of the instructions", "Instructions", "What it is"], filters))
        @if !verdicts.remarks.is_empty() { ul.key { @for remark in &remarks(verdicts) {
            li { (icon(remark.severity.word())) (Text(&remark.text)) }
        } } }
        @for table in &verdicts.tables { (numbers(table)) }
        @for table in &verdicts.tables { (always(table.abi, &verdicts.calls)) }
        @if verdicts.calls.iter().any(|call| told(&call)) {
            (tables::table("Allowed calls, with conditions or reasons", head, verdicts.calls.iter().filter(told).map(|call| row(verdicts, call))))
        }
    }
}

/// The worst first, those with one reason as one.
fn remarks(verdicts: &Verdicts) -> Vec<Remark> {
    let mut remarks = by_reason(&verdicts.remarks);
    remarks.sort_by_key(|remark| Reverse(remark.severity));
    remarks
}

/// Is there more to tell of a call than its name?
fn told(call: &&Call) -> bool {
    !call.when.is_empty() || !call.why.is_empty()
}

/// Calls of an ABI whose names are all that there is to tell.
fn always(abi: Abi, calls: &[Call]) -> Markup {
    let names: Vec<&str> =
        calls.iter().filter(|call| call.abi == abi && !told(call)).filter_map(|call| call.name.as_deref()).collect();
    html! { @if !names.is_empty() {
        p.lead { (abi) ", allowed whatever the arguments (" (names.len()) "): " code { (names.join(", ")) } }
    } }
}

/// What the numbers of an ABI get that nobody listed, and those that get something else.
fn numbers(table: &Table) -> Markup {
    let outline = Outline::of(table);
    html! { p.lead {
        (table.abi) ": "
        @if closed(table) { "nothing is allowed: " } @else { (outline.rest()) ": " }
        strong { (listed(&outline.default)) }
        @for (answers, entries) in &outline.other { "; " strong { (listed(answers)) } ": " (entries.join(", ")) }
        "."
    } }
}

fn row(verdicts: &Verdicts, call: &Call) -> Vec<Markup> {
    let table = verdicts.tables.iter().find(|table| table.abi == call.abi);
    let refusal = table.and_then(|table| Outline::of(table).refusal(table, call));
    vec![
        html! { @match &call.name { Some(name) => code { (Text(name)) }, None => "no name" } " " span.pid { (call.number & !(1 << 30)) } },
        html! { (call.abi) },
        html! { @if call.when.is_empty() { span.none { "always" } } @else { span.code { (lines(&call.when)) } @if let Some(refusal) = &refusal { " otherwise " (refusal) } } },
        html! { @if !call.why.is_empty() { (lines(&call.why)) } },
    ]
}
