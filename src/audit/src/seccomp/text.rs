//! A verdict table for people.

use std::cmp::Reverse;
use std::fmt::Write as _;

use super::outline::{Outline, closed, listed, unfiltered};
use super::{Call, Filter, Table, Verdicts, by_reason};

/// Columns of a list of names.
const WIDTH: usize = 112;

/// One thread's verdicts: filters, remarks, calls per ABI with conditions and reasons, and what every other number gets.
/// All text in it is ours or a number: nothing of it comes from the audited process.
pub fn render(verdicts: &Verdicts) -> String {
    let mut out = String::new();
    // Writing into a String does not fail.
    let _ = write(&mut out, verdicts);
    out
}

fn write(out: &mut String, verdicts: &Verdicts) -> std::fmt::Result {
    for (index, filter) in verdicts.filters.iter().enumerate() {
        write_filter(out, index, filter)?;
    }
    let mut remarks = by_reason(&verdicts.remarks);
    remarks.sort_by_key(|remark| Reverse(remark.severity));
    for remark in remarks {
        let filter = remark.filter.map(|index| format!(" filter {index}")).unwrap_or_default();
        let instruction = remark.instruction.map(|at| format!(" instruction {at}")).unwrap_or_default();
        writeln!(out, "remark ({}){filter}{instruction}: {}", remark.severity.word(), remark.text)?;
    }
    verdicts.tables.iter().try_for_each(|table| write_table(out, table, &verdicts.calls))
}

fn write_filter(out: &mut String, index: usize, filter: &Filter) -> std::fmt::Result {
    let what = match (&filter.known, &filter.claims) {
        (Some(name), _) => format!("equivalent to {name}"),
        (None, Some(name)) => format!("claims to be {name} and is NOT"),
        (None, None) => "not one of Casemate's".to_owned(),
    };
    writeln!(out, "filter {index}: {} instructions, {what}, {}", filter.instructions, filter.digest)?;
    for difference in &filter.differences {
        let input = &difference.input;
        let name = difference.name.as_deref().unwrap_or("call");
        let args: Vec<String> = input.args.iter().map(|arg| format!("{arg:#x}")).collect();
        let (ours, theirs) = (difference.ours, difference.theirs);
        let at = format!("nr {} arch {:#x} ({})", input.nr, input.arch, args.join(", "));
        writeln!(out, "  differs: {name} {at}: ours {ours}, installed {theirs}")?;
    }
    Ok(())
}

fn write_table(out: &mut String, table: &Table, calls: &[Call]) -> std::fmt::Result {
    let calls: Vec<&Call> = calls.iter().filter(|call| call.abi == table.abi).collect();
    if closed(table) {
        let answers: Vec<_> = table.ranges.iter().flat_map(|range| range.answers.iter().copied()).collect();
        return writeln!(out, "{}: nothing is allowed ({})", table.abi, listed(&answers));
    }
    if unfiltered(table) {
        return writeln!(out, "{}: everything is allowed", table.abi);
    }
    let outline = Outline::of(table);
    let (count, calls_word) = (calls.len(), if calls.len() == 1 { "call" } else { "calls" });
    writeln!(
        out,
        "{}: {count} named {calls_word} allowed; {}: {}",
        table.abi,
        outline.rest(),
        listed(&outline.default)
    )?;
    for (answers, entries) in &outline.other {
        writeln!(out, "  {}:", listed(answers))?;
        write_list(out, entries)?;
    }
    // What has nothing to tell but its name stands in one list.
    let (plain, told): (Vec<&Call>, Vec<&Call>) =
        calls.into_iter().partition(|call| call.when.is_empty() && call.why.is_empty());
    if !plain.is_empty() {
        writeln!(out, "  allowed whatever the arguments ({}):", plain.len())?;
        write_list(out, &plain.iter().map(|call| name(call).to_owned()).collect::<Vec<_>>())?;
    }
    for call in told {
        let refusal = outline.refusal(table, call).map(|answer| format!(", otherwise {answer}")).unwrap_or_default();
        writeln!(out, "  {:>4} {}{refusal}", call.number - table.abi.base(), name(call))?;
        for when in &call.when {
            writeln!(out, "         if {when}")?;
        }
        for why in &call.why {
            writeln!(out, "         why: {why}")?;
        }
    }
    Ok(())
}

fn name(call: &Call) -> &str {
    call.name.as_deref().unwrap_or("?")
}

fn write_list(out: &mut String, entries: &[String]) -> std::fmt::Result {
    let mut line = String::new();
    for (at, entry) in entries.iter().enumerate() {
        let comma = if at + 1 < entries.len() { ", " } else { "" };
        if !line.is_empty() && line.len() + entry.len() + 5 > WIDTH {
            writeln!(out, "    {}", line.trim_end())?;
            line.clear();
        }
        write!(line, "{entry}{comma}")?;
    }
    if line.is_empty() { Ok(()) } else { writeln!(out, "    {line}") }
}
