//! A condition over the arguments, as alternatives that a person reads: exact, each alternative a conjunction.
//!
//! Argument by argument: the values of the first that lead to one and the same condition on the others stand together.
//! Where one such condition implies another, its values may be told with those of the other, if that is shorter:
//! alternatives may overlap.

use super::diagram::{Bounded, Diagrams, FALSE, Field, Map, Node, TRUE};
use super::values::{Form, alternatives};

/// Alternatives for a whole call.
const MOST: usize = 256;

/// Fields that are looked at for one call, each way to it counted once.
const MOST_LOOKS: usize = 512;

/// Conditions on the other arguments that are compared with one another.
const MOST_COMPARED: usize = 16;

/// Says what `field & mask == value` means, as `KVM_RUN`.
pub(super) type Meaning<'a> = &'a dyn Fn(Field, u64, u64) -> Option<String>;

/// Alternatives under which a condition holds; empty: always.
pub(super) fn describe(d: &mut Diagrams, condition: Node, meaning: Meaning) -> Bounded<Vec<String>> {
    let mut all = Description { meaning, known: Map::default(), whole: true };
    let mut texts = all.of(d, condition, Form::Apart)?;
    if !all.whole {
        texts.truncate(MOST);
        texts.push(MORE.to_owned());
    }
    Ok(texts)
}

/// Stands last where alternatives were left out.
pub(super) const MORE: &str = "… and more alternatives than are listed";

struct Description<'a> {
    meaning: Meaning<'a>,
    known: Map<Node, Vec<String>>,
    /// Nothing was left out.
    whole: bool,
}

/// Values of a field, and what must hold of the fields behind it.
struct Way {
    values: Node,
    rest: Node,
    /// The values hold all those of ways whose rest this rest implies.
    wide: bool,
}

impl Description<'_> {
    /// `form`: of several values of the first field, where nothing else stands beside them.
    fn of(&mut self, d: &mut Diagrams, condition: Node, form: Form) -> Bounded<Vec<String>> {
        if condition == TRUE || condition == FALSE {
            return Ok(Vec::new());
        }
        if let Some(known) = self.known.get(&condition) {
            return Ok(known.clone());
        }
        let (field, _) = Field::of(d.variable(condition));
        let mut all = Vec::new();
        let mut told: Vec<Way> = Vec::new();
        for (mut way, exact) in ways(d, condition, field)? {
            if all.len() > MOST || self.known.len() > MOST_LOOKS {
                self.whole = false;
                break;
            }
            d.look(1)?;
            let form = if way.rest == TRUE { form } else { Form::Together };
            let mut texts = alternatives(d, exact, field, form, self.meaning)?;
            if way.wide && way.values != exact {
                let wide = alternatives(d, way.values, field, form, self.meaning)?;
                way.wide = length(&wide) < length(&texts);
                texts = if way.wide { wide } else { texts };
            }
            let Some(rest) = self.rest(d, &way, &told)? else { continue };
            for this in texts {
                if rest.is_empty() {
                    all.push(this);
                } else if this.is_empty() {
                    all.extend(rest.iter().cloned());
                } else {
                    all.extend(rest.iter().map(|rest| format!("{this} && {rest}")));
                }
            }
            told.push(way);
        }
        self.whole &= all.len() <= MOST;
        all.truncate(MOST);
        self.known.insert(condition, all.clone());
        Ok(all)
    }

    /// What is left to be told of a way after those that cover a part of it; `None`: nothing.
    fn rest(&mut self, d: &mut Diagrams, way: &Way, told: &[Way]) -> Bounded<Option<Vec<String>>> {
        let mut left = way.rest;
        for other in told.iter().filter(|other| other.wide) {
            if implies(d, other.rest, way.rest)? {
                left = d.choose(other.rest, FALSE, left)?;
            }
        }
        if left == FALSE {
            return Ok(None);
        }
        let whole = self.of(d, way.rest, Form::Together)?;
        if left == way.rest || way.rest == TRUE {
            return Ok(Some(whole));
        }
        let left = self.of(d, left, Form::Together)?;
        Ok(Some(if length(&left) < length(&whole) { left } else { whole }))
    }
}

/// What a reader has to read.
fn length(texts: &[String]) -> usize {
    texts.iter().map(|text| text.len() + 1).sum()
}

fn implies(d: &mut Diagrams, a: Node, b: Node) -> Bounded<bool> {
    Ok(d.choose(b, FALSE, a)? == FALSE)
}

/// Ways through a field, each with its exact values; those first whose rest implies others' rests.
fn ways(d: &mut Diagrams, condition: Node, field: Field) -> Bounded<Vec<(Way, Node)>> {
    let mut exact = Vec::new();
    for rest in targets(d, condition, field).into_iter().filter(|rest| *rest != FALSE) {
        exact.push((rest, leads_to(d, condition, field, rest, &mut Map::default())?));
    }
    let compared = exact.len() <= MOST_COMPARED;
    let mut ways = Vec::new();
    for (rest, values) in &exact {
        let mut way = Way { values: *values, rest: *rest, wide: compared };
        let mut implied = 0;
        for (other, theirs) in exact.iter().filter(|(other, _)| compared && other != rest) {
            if implies(d, *rest, *other)? {
                way.values = d.or(way.values, *theirs)?;
                implied += 1;
            }
        }
        ways.push((implied, (way, *values)));
    }
    // Stable: ways that imply equally many stay in the order of their values.
    ways.sort_by_key(|(implied, _)| std::cmp::Reverse(*implied));
    Ok(ways.into_iter().map(|(_, way)| way).collect())
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
