//! `ps`: the sandboxes of this host.

use casemate_client::store::{self, Damaged, Entry, Status};
use casemate_client::{avc, sanitize};
use casemate_spec::Posture;
use casemate_wire::record::{ExitReport, SandboxRecord};
use serde::Serialize;

use crate::args::PsArgs;
use crate::failure::Result;
use crate::output::{Context, Tone, cell, seconds_since, size, span, table_text, width};

#[derive(Serialize)]
struct Row<'a> {
    status: Status,
    #[serde(flatten)]
    record: &'a SandboxRecord,
}

#[derive(Serialize)]
struct Json<'a> {
    sandboxes: Vec<Row<'a>>,
    damaged: &'a [Damaged],
}

pub fn ps(context: &Context, args: &PsArgs) -> Result<()> {
    let listing = store::list(&context.dirs)?;
    let shown: Vec<&Entry> = listing.entries.iter().filter(|e| args.all || e.status != Status::Exited).collect();
    if context.json() {
        let sandboxes = shown.iter().map(|e| Row { status: e.status, record: &e.record }).collect();
        return context.print_json(&Json { sandboxes, damaged: &listing.damaged });
    }
    if args.quiet {
        let names: String = shown.iter().map(|e| format!("{}\n", e.record.name)).collect();
        return context.print(&names);
    }
    let rows: Vec<(&Entry, [String; 8])> = shown.iter().map(|entry| (*entry, cells(entry))).collect();
    let most = if args.no_trunc { usize::MAX } else { room(&rows) };
    let mut table = context.table(&HEAD);
    for (entry, [name, status, posture, rest @ ..]) in &rows {
        let mut row = vec![
            cell(name, Tone::Head),
            cell(status, status_tone(entry.status)),
            cell(posture, posture_tone(entry.record.posture)),
        ];
        row.extend(rest.iter().map(|text| cell(text, Tone::Plain)));
        row.push(cell(command(&entry.record, most), Tone::Dim));
        table.add_row(row);
    }
    let mut text = table_text(&table);
    for Damaged { name, problem, .. } in &listing.damaged {
        text.push_str(&format!("{name}: no usable record: {problem}\n"));
    }
    for entry in shown.iter().filter(|entry| entry.status.is_alive()) {
        if let Some(state) = entry.record.selinux.as_ref().filter(|_| has_turned(&entry.record)) {
            let since = span(seconds_since(state.since));
            let why = sanitize::line(&state.why.join("; "), 400);
            let through = denials(&entry.record).map_or(0, |d| d.would_be_denied);
            let count = if through > 0 { format!("; at least {through} accesses let through") } else { String::new() };
            text.push_str(&format!(
                "{}: * posture {} when it was started; since {since}: {why}{count}\n",
                entry.record.name, state.posture_at_start
            ));
        }
    }
    if listing.entries.iter().any(|e| e.status == Status::Lost) {
        text.push_str("lost: its warden died without cleaning up; `casemate repair` does\n");
    }
    context.print(&text)
}

const HEAD: [&str; 9] = ["NAME", "STATUS", "POSTURE", "CATEGORIES", "UID", "CPUS", "MEMORY", "CREATED", "COMMAND"];

fn cells(entry: &Entry) -> [String; 8] {
    let record = &entry.record;
    [
        record.name.clone(),
        status_text(entry),
        posture_text(record),
        record.categories.clone().unwrap_or_else(|| "-".into()),
        record.uid.to_string(),
        record.cpus.to_string(),
        size(record.memory),
        format!("{} ago", span(seconds_since(record.created))),
    ]
}

/// What the other columns leave for the command.
fn room(rows: &[(&Entry, [String; 8])]) -> usize {
    let Some(width) = width() else { return 60 };
    let widest = |at: usize| rows.iter().map(|(_, cells)| cells[at].chars().count()).chain([HEAD[at].len()]).max();
    let others: usize = (0..8).filter_map(widest).map(|cell| cell + 2).sum();
    // One for the ellipsis, and never nothing.
    width.saturating_sub(others + 3).max(12)
}

/// The posture of now; marked where it is not that of the start.
pub fn posture_text(record: &SandboxRecord) -> String {
    format!("{}{}", record.posture, if has_turned(record) { "*" } else { "" })
}

/// From the kernel's log, where it can be read.
pub fn denials(record: &SandboxRecord) -> Option<avc::Denials> {
    avc::count(record.label.as_deref()?, record.runner?.start_time)
}

fn has_turned(record: &SandboxRecord) -> bool {
    record.selinux.as_ref().is_some_and(|state| state.separated_at_start && !state.separates)
}

pub fn status_text(entry: &Entry) -> String {
    match (&entry.record.exit, entry.status) {
        (Some(report), Status::Exited) => format!("exited {}", exit_text(report)),
        (_, status) => status.to_string(),
    }
}

fn exit_text(report: &ExitReport) -> String {
    use casemate_wire::record::ExitCause::{PowerOff, Reboot};
    match (report.status, report.cause) {
        (Some(code), PowerOff | Reboot) => format!("({code})"),
        (None, PowerOff) => "(powered off)".into(),
        (_, other) => format!("({})", crate::verbs::run::cause(other)),
    }
}

pub fn status_tone(status: Status) -> Tone {
    match status {
        Status::Running => Tone::Good,
        Status::Starting | Status::Paused => Tone::Weak,
        Status::Exited => Tone::Dim,
        Status::Lost => Tone::Bad,
    }
}

pub fn posture_tone(posture: Posture) -> Tone {
    match posture {
        Posture::Enforced => Tone::Good,
        Posture::Hardened => Tone::Plain,
        Posture::Reduced => Tone::Bad,
    }
}

/// The command on one line, as a shell would take it where that is short.
pub fn command(record: &SandboxRecord, most: usize) -> String {
    if record.command.is_empty() {
        return "(bare)".into();
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    let words = record.command.iter().take(64).map(|word| {
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    });
    sanitize::line(&words.collect::<Vec<_>>().join(" "), most)
}
