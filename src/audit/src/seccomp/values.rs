//! Values of one argument, as a person reads them.

use super::Input;
use super::conditions::Meaning;
use super::diagram::{Bounded, Diagrams, FALSE, Field, Node, TRUE};

/// Alternatives for one argument's values before they are given as "not" or as ranges, and before only their number
/// is told.
const MOST_VALUES: usize = 64;
/// Steps in search of masks.
const MOST_STEPS: usize = 4096;

/// How several single values are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// An alternative each.
    Apart,
    /// One alternative, `u32(arg1) in {0x1, 0x2}`.
    Together,
}

type Pairs = Vec<(u64, u64)>;
type Of<'a> = dyn Fn(u64, u64) -> Option<String> + 'a;

/// The shortest of: nothing for all values, single values, masks and values, ranges, and what is left out.
pub(super) fn alternatives(
    d: &mut Diagrams,
    values: Node,
    field: Field,
    form: Form,
    meaning: Meaning,
) -> Bounded<Vec<String>> {
    if values == TRUE {
        return Ok(vec![String::new()]);
    }
    let not = d.not(values)?;
    let low = d.depends(values, |variable| variable >= field.variable(31));
    let high = field.bits() == 64 && d.depends(values, |variable| variable < field.variable(31));
    let meaning: &Of = &|mask, value| meaning(field, mask, value);
    let word = Word { field: label(field), low, high };
    let yes = cubes(d, values)?;
    let no = cubes(d, not)?;
    let ranges = ranges(d, values, field, low, high);
    let single = singles(d, values, field, high);
    let count = |list: &Option<Pairs>| list.as_ref().map_or(usize::MAX, Vec::len);
    let shortest = count(&yes).min(count(&ranges));
    Ok(if count(&no) <= 16 && count(&no).saturating_mul(2) <= shortest.min(count(&single)) {
        let all: Vec<String> =
            no.iter().flatten().map(|(mask, value)| word.equal(*mask, *value, false, meaning)).collect();
        vec![all.join(" && ")]
    } else if let Some(single) = single.filter(|single| plain(single, shortest, meaning)) {
        match form {
            Form::Together if single.len() > 1 => {
                let all: Vec<String> = single.iter().map(|(mask, value)| valued(*mask, *value, meaning)).collect();
                vec![format!("{} in {{{}}}", word.name(), all.join(", "))]
            }
            _ => single.iter().map(|(mask, value)| word.equal(*mask, *value, true, meaning)).collect(),
        }
    } else if count(&ranges) < count(&yes) {
        ranges.iter().flatten().map(|(first, last)| word.range(*first, *last)).collect()
    } else if let Some(yes) = yes {
        yes.iter().map(|(mask, value)| word.equal(*mask, *value, true, meaning)).collect()
    } else {
        let example = d.example(values, &Input::default()).map_or(0, |input| field.value(&input));
        vec![format!("{} is one of more than {MOST_VALUES} patterns, as {example:#x}", word.name())]
    })
}

/// Are single values plainer than so many masks or ranges? Where they have names, or are not many more.
fn plain(single: &Pairs, shortest: usize, meaning: &Of) -> bool {
    let named = single.iter().filter(|(mask, value)| meaning(*mask, *value).is_some()).count();
    single.len() <= shortest.saturating_mul(2) || named * 2 >= single.len()
}

fn valued(mask: u64, value: u64, meaning: &Of) -> String {
    let known = meaning(mask, value).map(|meaning| format!(" ({meaning})")).unwrap_or_default();
    format!("{value:#x}{known}")
}

fn label(field: Field) -> String {
    match field {
        Field::Arch => "arch".into(),
        Field::Number => "nr".into(),
        Field::Argument(index) => format!("arg{index}"),
        Field::InstructionPointer => "instruction_pointer".into(),
    }
}

/// How an argument is written.
struct Word {
    field: String,
    /// Which halves matter.
    low: bool,
    high: bool,
}

impl Word {
    /// `u32(…)` where the upper half is free, as it is for the kernel, too, where it takes an int.
    fn name(&self) -> String {
        if self.low && !self.high { format!("u32({})", self.field) } else { self.field.clone() }
    }

    fn equal(&self, mask: u64, value: u64, is: bool, meaning: &Of) -> String {
        let sign = if is { "==" } else { "!=" };
        let value = valued(mask, value, meaning);
        match mask {
            u64::MAX => format!("{} {sign} {value}", self.field),
            0xffff_ffff => format!("u32({}) {sign} {value}", self.field),
            _ => format!("{} & {mask:#x} {sign} {value}", self.field),
        }
    }

    fn range(&self, first: u64, last: u64) -> String {
        let (name, most) = (self.name(), if self.high { u64::MAX } else { u32::MAX.into() });
        match (first, last) {
            (first, last) if first == last => format!("{name} == {first:#x}"),
            (0, last) => format!("{name} <= {last:#x}"),
            (first, last) if last == most => format!("{name} >= {first:#x}"),
            (first, last) => format!("{first:#x} <= {name} <= {last:#x}"),
        }
    }
}

/// Masks and values that together are the set, none of them in vain; `None` for too many (Minato 1992, irredundant sums
/// of products).
fn cubes(d: &mut Diagrams, set: Node) -> Bounded<Option<Pairs>> {
    let mut sums = Sums { found: Vec::new(), steps: 0 };
    let whole = sums.between(d, set, set, 0, 0)?;
    sums.found.sort_unstable();
    Ok(whole.map(|_| sums.found))
}

struct Sums {
    found: Pairs,
    steps: usize,
}

impl Sums {
    /// Finds cubes that hold all of `least` and nothing beyond `most`, under the bits decided so far; gives their union.
    fn between(&mut self, d: &mut Diagrams, least: Node, most: Node, mask: u64, value: u64) -> Bounded<Option<Node>> {
        self.steps += 1;
        if self.steps > MOST_STEPS || self.found.len() > MOST_VALUES {
            return Ok(None);
        }
        if least == FALSE {
            return Ok(Some(FALSE));
        }
        if most == TRUE {
            self.found.push((mask, value));
            return Ok(Some(TRUE));
        }
        let variable = d.variable(least).min(d.variable(most));
        let bit = 1 << Field::of(variable).1;
        let ((least0, least1), (most0, most1)) = (d.split(least, variable), d.split(most, variable));
        // What only one value of the bit allows.
        let only0 = d.choose(most1, FALSE, least0)?;
        let only1 = d.choose(most0, FALSE, least1)?;
        let Some(zero) = self.between(d, only0, most0, mask | bit, value)? else { return Ok(None) };
        let Some(one) = self.between(d, only1, most1, mask | bit, value | bit)? else { return Ok(None) };
        // The others, whatever the bit.
        let (left0, left1) = (d.choose(zero, FALSE, least0)?, d.choose(one, FALSE, least1)?);
        let left = d.or(left0, left1)?;
        let both = d.and(most0, most1)?;
        let Some(any) = self.between(d, left, both, mask, value)? else { return Ok(None) };
        let (low, high) = (d.or(zero, any)?, d.or(one, any)?);
        d.node(variable, low, high).map(Some)
    }
}

/// Each value by itself, of the lower half alone where the upper one is free; `None` for too many.
fn singles(d: &Diagrams, set: Node, field: Field, high: bool) -> Option<Pairs> {
    let bits = if high { 64 } else { 32 };
    let mask = if high { u64::MAX } else { u32::MAX.into() };
    let (mut found, mut open) = (Vec::new(), vec![(set, bits, 0u64)]);
    while let Some((node, left, value)) = open.pop() {
        match (node, left) {
            (FALSE, _) => {}
            (_, 0) => found.push((mask, value)),
            _ => {
                let (low, high) = d.split(node, field.variable(left - 1));
                open.push((high, left - 1, value << 1 | 1));
                open.push((low, left - 1, value << 1));
            }
        }
        if found.len() > MOST_VALUES || open.len() > 2 * MOST_VALUES {
            return None;
        }
    }
    Some(found)
}

/// Ascending ranges of values, of the lower half alone where the upper one is free; `None` for too many, and for a
/// lower half that is free under conditions on the upper one.
fn ranges(d: &Diagrams, set: Node, field: Field, low: bool, high: bool) -> Option<Vec<(u64, u64)>> {
    if !low {
        return None;
    }
    let bits = if high { 64 } else { 32 };
    let mut found: Vec<(u64, u64)> = Vec::new();
    let mut open = vec![(set, bits, 0u64)];
    let mut steps = 0;
    while let Some((node, left, prefix)) = open.pop() {
        steps += 1;
        if steps > 64 * MOST_VALUES || found.len() > MOST_VALUES {
            return None;
        }
        if node == FALSE {
            continue;
        }
        if node == TRUE {
            let first = if left == 64 { 0 } else { prefix << left };
            let last = first | if left == 64 { u64::MAX } else { (1 << left) - 1 };
            match found.last_mut() {
                Some((_, end)) if end.checked_add(1) == Some(first) => *end = last,
                _ => found.push((first, last)),
            }
            continue;
        }
        let (low, high) = d.split(node, field.variable(left - 1));
        open.push((high, left - 1, prefix << 1 | 1));
        open.push((low, left - 1, prefix << 1));
    }
    Some(found)
}
