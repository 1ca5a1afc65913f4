//! What is answered to the numbers of one ABI, as a person asks it: the answer to what nobody listed first, then what
//! differs from it.

use super::{Abi, Action, Call, Range, Table};

/// Numbers without a name in a row are one entry; of so many, names are looked for.
const NAMED: u32 = 1024;
/// Actions that are told of one number.
const SHOWN: usize = 12;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// To a number that no kernel has; several, if it depends on the arguments.
    pub default: Vec<Action>,
    /// Other answers, each with the names and numbers that get it, by number; without the named calls that pass.
    pub other: Vec<(Vec<Action>, Vec<String>)>,
}

impl Outline {
    pub fn of(table: &Table) -> Self {
        let abi = table.abi;
        let nobodys = abi.nobodys();
        let default = table.ranges.iter().find(|range| (range.first..=range.last).contains(&nobodys));
        let default = default.map(|range| range.answers.clone()).unwrap_or_default();
        let mut other: Vec<(Vec<Action>, Vec<String>)> = Vec::new();
        for range in table.ranges.iter().filter(|range| range.answers != default) {
            let passes = range.answers.iter().any(|answer| answer.passes());
            let entries = entries(abi, range, !passes);
            match other.iter_mut().find(|(answers, _)| *answers == range.answers) {
                _ if entries.is_empty() => {}
                Some((_, all)) => all.extend(entries),
                None => other.push((range.answers.clone(), entries)),
            }
        }
        Self { default, other }
    }

    /// What the default is the answer to.
    pub fn rest(&self) -> &'static str {
        let open = self.default.iter().any(|answer| answer.passes());
        if open { "any number that is not named here" } else { "any other number or argument" }
    }

    /// What a call gets whose conditions do not hold, unless that is the default.
    pub fn refusal(&self, table: &Table, call: &Call) -> Option<String> {
        let range = table.ranges.iter().find(|range| (range.first..=range.last).contains(&call.number))?;
        let answers: Vec<Action> = range.answers.iter().copied().filter(|answer| !answer.passes()).collect();
        (!call.when.is_empty() && !answers.is_empty() && answers != self.default).then(|| listed(&answers))
    }
}

/// No number of the ABI is run, or decided by somebody else.
pub fn closed(table: &Table) -> bool {
    let decided = |answer: &Action| !answer.passes() && !matches!(answer, Action::UserNotify | Action::Trace(_));
    table.ranges.iter().flat_map(|range| &range.answers).all(decided)
}

/// Every number of the ABI is run, whatever the arguments.
pub fn unfiltered(table: &Table) -> bool {
    table.ranges.iter().all(|range| range.answers == [Action::Allow])
}

/// Actions, as `EPERM or SIGSYS`. A hostile filter may have tens of thousands.
pub fn listed(answers: &[Action]) -> String {
    let mut texts: Vec<String> = answers.iter().map(Action::to_string).collect();
    texts.sort();
    texts.dedup();
    match texts.len().checked_sub(SHOWN) {
        None | Some(0) => texts.join(" or "),
        Some(more) => format!("{} or one of {more} more", texts[..SHOWN].join(" or ")),
    }
}

/// Names, where they are wanted, and numbers without a name.
fn entries(abi: Abi, range: &Range, names: bool) -> Vec<String> {
    let mut entries = Vec::new();
    // Beyond an ABI's table there is no name: what is left is one entry.
    let looked = range.last.min(range.first.saturating_add(NAMED - 1));
    let mut unnamed: Option<u32> = None;
    for number in range.first..=looked {
        match abi.name(number) {
            None => {
                unnamed.get_or_insert(number);
            }
            Some(name) => {
                entries.extend(unnamed.take().map(|first| numbers(abi, first, number - 1)));
                entries.extend(names.then(|| name.to_owned()));
            }
        }
    }
    if looked < range.last {
        unnamed.get_or_insert(looked + 1);
    }
    entries.extend(unnamed.map(|first| numbers(abi, first, range.last)));
    entries
}

/// Numbers as the ABI's table counts them; those far beyond it as the kernel has them.
fn numbers(abi: Abi, first: u32, last: u32) -> String {
    let text = |number: u32| match number.checked_sub(abi.base()) {
        Some(number) if number < 0x1_0000 => number.to_string(),
        _ => format!("{number:#x}"),
    };
    if first == last { text(first) } else { format!("{} to {}", text(first), text(last)) }
}
