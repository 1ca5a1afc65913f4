//! A condition over the arguments, as alternatives that a person reads: exact, each alternative a conjunction.

use super::diagram::{Bounded, Diagrams, FALSE, Field, Map, Node, TRUE};

/// Alternatives for one argument's values before they are given as "not" or as ranges, and before only their number
/// is told.
const MOST_VALUES: usize = 64;
/// Alternatives for a whole call.
const MOST: usize = 256;

/// Fields that are looked at for one call, each way to it counted once.
const MOST_LOOKS: usize = 512;

/// Alternatives under which a condition holds; empty: always. `name` gives the names of an argument's values.
pub(super) fn describe(
    d: &mut Diagrams,
    condition: Node,
    name: &impl Fn(Field, u64) -> Option<&'static str>,
) -> Bounded<Vec<String>> {
    let mut all = Description { name, known: Map::default(), whole: true };
    let mut texts = all.of(d, condition)?;
    if !all.whole {
        texts.truncate(MOST);
        texts.push(MORE.to_owned());
    }
    Ok(texts)
}

/// Stands last where alternatives were left out.
pub(super) const MORE: &str = "… and more alternatives than are listed";

struct Description<'a, F> {
    name: &'a F,
    known: Map<Node, Vec<String>>,
    /// Nothing was left out.
    whole: bool,
}

impl<F: Fn(Field, u64) -> Option<&'static str>> Description<'_, F> {
    fn of(&mut self, d: &mut Diagrams, condition: Node) -> Bounded<Vec<String>> {
        if condition == TRUE || condition == FALSE {
            return Ok(Vec::new());
        }
        if let Some(known) = self.known.get(&condition) {
            return Ok(known.clone());
        }
        let (field, _) = Field::of(d.variable(condition));
        let mut all = Vec::new();
        for target in targets(d, condition, field) {
            if target == FALSE {
                continue;
            }
            if all.len() > MOST || self.known.len() > MOST_LOOKS {
                self.whole = false;
                break;
            }
            d.look(1)?;
            let values = leads_to(d, condition, field, target, &mut Map::default())?;
            let rest = self.of(d, target)?;
            for this in alternatives(d, values, field, self.name)? {
                if rest.is_empty() {
                    all.push(this);
                } else {
                    all.extend(rest.iter().map(|rest| format!("{this} && {rest}")));
                }
            }
        }
        self.whole &= all.len() <= MOST;
        all.truncate(MOST);
        self.known.insert(condition, all.clone());
        Ok(all)
    }
}

/// What follows the bits of a field.
fn targets(d: &Diagrams, node: Node, field: Field) -> Vec<Node> {
    let mut targets = Vec::new();
    let mut open = vec![node];
    let mut seen = rustc_hash::FxHashSet::default();
    while let Some(node) = open.pop() {
        if !seen.insert(node) {
            continue;
        }
        let variable = d.variable(node);
        if d.number(node).is_none() && Field::of(variable).0 == field {
            let (low, high) = d.split(node, variable);
            open.extend([high, low]);
        } else {
            targets.push(node);
        }
    }
    targets
}

/// The field's values after which the target follows.
fn leads_to(d: &mut Diagrams, node: Node, field: Field, target: Node, known: &mut Map<Node, Node>) -> Bounded<Node> {
    let variable = d.variable(node);
    if d.number(node).is_some() || Field::of(variable).0 != field {
        return Ok(if node == target { TRUE } else { FALSE });
    }
    if let Some(known) = known.get(&node) {
        return Ok(*known);
    }
    d.look(1)?;
    let (low, high) = d.split(node, variable);
    let low = leads_to(d, low, field, target, known)?;
    let high = leads_to(d, high, field, target, known)?;
    let new = d.node(variable, low, high)?;
    known.insert(node, new);
    Ok(new)
}

/// The shortest of: values and masks, ranges, and what is left out.
fn alternatives(
    d: &mut Diagrams,
    values: Node,
    field: Field,
    name: &impl Fn(Field, u64) -> Option<&'static str>,
) -> Bounded<Vec<String>> {
    let not = d.not(values)?;
    let low = d.depends(values, |variable| variable >= field.variable(31));
    let high = field.bits() == 64 && d.depends(values, |variable| variable < field.variable(31));
    let name = |value| name(field, value);
    let word = Word { field: label(field), low, high };
    let yes = cubes(d, values, field);
    let no = cubes(d, not, field);
    let ranges = ranges(d, values, field, low, high);
    let count = |list: &Option<Vec<(u64, u64)>>| list.as_ref().map_or(usize::MAX, Vec::len);
    Ok(if count(&no) <= 16 && count(&no) * 2 <= count(&yes).min(count(&ranges)) {
        let all: Vec<String> =
            no.iter().flatten().map(|(mask, value)| word.equal(*mask, *value, false, &name)).collect();
        vec![all.join(" && ")]
    } else if count(&ranges) < count(&yes) {
        ranges.iter().flatten().map(|(first, last)| word.range(*first, *last)).collect()
    } else if let Some(yes) = yes {
        yes.iter().map(|(mask, value)| word.equal(*mask, *value, true, &name)).collect()
    } else {
        let example = d.example(values, &super::Input::default()).map_or(0, |input| field.value(&input));
        vec![format!("{} is one of more than {MOST_VALUES} patterns, as {example:#x}", word.name())]
    })
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

    fn equal(&self, mask: u64, value: u64, is: bool, name: &impl Fn(u64) -> Option<&'static str>) -> String {
        let sign = if is { "==" } else { "!=" };
        let known = name(value).map(|name| format!(" ({name})")).unwrap_or_default();
        match mask {
            u64::MAX => format!("{} {sign} {value:#x}{known}", self.field),
            0xffff_ffff => format!("u32({}) {sign} {value:#x}{known}", self.field),
            _ => format!("{} & {mask:#x} {sign} {value:#x}", self.field),
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

/// Masks and values, disjoint, that together are the set; `None` for too many.
fn cubes(d: &Diagrams, set: Node, field: Field) -> Option<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    let mut open = vec![(set, 0u64, 0u64)];
    while let Some((node, mask, value)) = open.pop() {
        match node {
            FALSE => {}
            TRUE => found.push((mask, value)),
            _ => {
                let variable = d.variable(node);
                let (low, high) = d.split(node, variable);
                let (_, bit) = Field::of(variable);
                open.push((high, mask | 1 << bit, value | 1 << bit));
                open.push((low, mask | 1 << bit, value));
            }
        }
        if found.len() > MOST_VALUES || open.len() > 4 * MOST_VALUES {
            return None;
        }
    }
    debug_assert!(field.bits() == 64 || found.iter().all(|(mask, _)| *mask <= u32::MAX.into()));
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
