//! A verdict table for people.

use std::fmt::Write as _;

use super::{Action, Call, Range, Table, Verdicts};

/// One thread's verdicts: filters, remarks, calls per ABI with conditions and reasons, and every other number.
/// All text in it is ours or a number: nothing of it comes from the audited process.
pub fn render(verdicts: &Verdicts) -> String {
    let mut out = String::new();
    // Writing into a String does not fail.
    let _ = write(&mut out, verdicts);
    out
}

fn write(out: &mut String, verdicts: &Verdicts) -> std::fmt::Result {
    for (index, filter) in verdicts.filters.iter().enumerate() {
        let what = match (&filter.known, &filter.claims) {
            (Some(name), _) => format!("equivalent to {name}"),
            (None, Some(name)) => format!("claims to be {name} and is NOT"),
            (None, None) => "none of ours".to_owned(),
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
    }
    for remark in &verdicts.remarks {
        let filter = remark.filter.map(|index| format!(" filter {index}")).unwrap_or_default();
        let instruction = remark.instruction.map(|at| format!(" instruction {at}")).unwrap_or_default();
        let severity = format!("{:?}", remark.severity).to_lowercase();
        writeln!(out, "remark ({severity}){filter}{instruction}: {}", remark.text)?;
    }
    verdicts.tables.iter().try_for_each(|table| write_table(out, table, &verdicts.calls))
}

fn write_table(out: &mut String, table: &Table, calls: &[Call]) -> std::fmt::Result {
    let passes = |range: &Range| range.answers.iter().any(|answer| answer.passes());
    let calls: Vec<&Call> = calls.iter().filter(|call| call.abi == table.abi).collect();
    if calls.is_empty() && !table.ranges.iter().any(passes) {
        let answers: Vec<Action> = table.ranges.iter().flat_map(|range| range.answers.iter().copied()).collect();
        return writeln!(out, "{}: nothing is allowed ({})", table.abi, listed(&answers));
    }
    writeln!(out, "{}: {} named calls allowed", table.abi, calls.len())?;
    for call in calls {
        let name = call.name.as_deref().unwrap_or("?");
        writeln!(out, "  {:>4} {name}", call.number - table.abi.base())?;
        for when in &call.when {
            writeln!(out, "         if {when}")?;
        }
        for why in &call.why {
            writeln!(out, "         why: {why}")?;
        }
    }
    writeln!(out, "  other numbers:")?;
    // What is listed above is not told again.
    let named = |range: &Range| (range.first..=range.last).take(1024).all(|number| table.abi.name(number).is_some());
    for range in table.ranges.iter().filter(|range| !(passes(range) && named(range))) {
        writeln!(out, "    {:#x}..={:#x}: {}", range.first, range.last, listed(&range.answers))?;
    }
    Ok(())
}

/// A hostile filter may have tens of thousands.
fn listed(answers: &[Action]) -> String {
    const SHOWN: usize = 12;
    let mut texts: Vec<String> = answers.iter().map(Action::to_string).collect();
    texts.sort();
    texts.dedup();
    match texts.len().checked_sub(SHOWN) {
        None | Some(0) => texts.join(" or "),
        Some(more) => format!("{} or one of {more} more", texts[..SHOWN].join(" or ")),
    }
}
