//! From the programs of a thread to its verdicts; what was judged once is remembered by the digests of its programs.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use casemate_filters::Filter as Ours;
use casemate_sys::seccomp::Instruction;

use super::diagram::{Diagrams, FALSE, Field, Node};
use super::symbolic::{Analysis, Undecided, analyse};
use super::{Abi, Action, Call, Difference, Filter, Input, Range, Table, Verdicts};
use super::{action, conditions, names, program, remarks};

/// Nodes and steps of the diagrams: Casemate's largest filter takes 120,000. Some 40 bytes each.
const MOST_STEPS: usize = 3_000_000;
/// Ranges of numbers of one ABI that are answered differently.
const MOST_RANGES: usize = 4096;
/// Witnesses of a difference.
const MOST_DIFFERENCES: usize = 16;
/// kcmp, which each of our filters answers with an errno of its own.
const MARKER: &str = "kcmp";

pub type Program = Vec<Instruction>;

/// Judges stacks of filters, each once.
#[derive(Debug)]
pub struct Cache {
    steps: usize,
    inner: Mutex<Inner>,
}

impl Default for Cache {
    fn default() -> Self {
        Self::bounded(MOST_STEPS)
    }
}

#[derive(Debug, Default)]
struct Inner {
    engine: Option<Engine>,
    /// By the digests of the programs, newest first.
    stacks: HashMap<Vec<String>, Result<Arc<Verdicts>, Undecided>>,
    programs: BTreeMap<String, Program>,
}

impl Cache {
    /// A stack that takes more than so many nodes and steps of its diagrams is undecided.
    pub(super) fn bounded(steps: usize) -> Self {
        Self { steps, inner: Mutex::default() }
    }

    /// The verdicts of a stack of filters, newest first.
    ///
    /// # Errors
    /// A program that is no filter, or that is too entangled to be decided.
    pub fn judge(&self, stack: &[Program]) -> Result<Arc<Verdicts>, Undecided> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let digests: Vec<String> = stack.iter().map(|program| program::digest(program)).collect();
        if let Some(known) = inner.stacks.get(&digests) {
            return known.clone();
        }
        for (digest, program) in digests.iter().zip(stack) {
            inner.programs.entry(digest.clone()).or_insert_with(|| program.clone());
        }
        if inner.engine.as_ref().is_some_and(|engine| engine.d.len() > self.steps / 4) {
            inner.engine = None;
        }
        let verdicts = match &mut inner.engine {
            Some(engine) => engine.verdicts(stack, &digests),
            none => none.insert(Engine::new(self.steps)).verdicts(stack, &digests),
        };
        let verdicts = verdicts.map(Arc::new);
        if verdicts.is_err() {
            // It may have filled the diagrams.
            inner.engine = None;
        }
        inner.stacks.insert(digests, verdicts.clone());
        verdicts
    }

    /// Every program that was judged, by digest: [`super::Filter::digest`] to its instructions as [`super::to_hex`]
    /// writes them.
    pub fn programs(&self) -> BTreeMap<String, String> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.programs.iter().map(|(digest, program)| (digest.clone(), program::to_hex(program))).collect()
    }

    /// Inputs that a program and our filter of that name answer differently; none if they are equivalent. `None`: no
    /// filter of ours has this name.
    ///
    /// # Errors
    /// As [`Cache::judge`].
    pub fn differences(&self, program: &[Instruction], ours: &str) -> Result<Option<Vec<Difference>>, Undecided> {
        let Some(ours) = Ours::by_name(ours) else { return Ok(None) };
        let mut engine = Engine::new(self.steps);
        let answer = engine.answer(program)?.1;
        let ours = engine.ours(ours)?;
        Ok(Some(engine.differences(ours, answer)))
    }
}

/// The diagrams, and those of our filters that were asked for.
#[derive(Debug)]
pub(super) struct Engine {
    pub d: Diagrams,
    ours: BTreeMap<Ours, Node>,
}

/// One filter of a stack.
pub(super) struct Layer {
    pub analysis: Analysis,
    /// Its answers as the kernel reads them.
    pub answer: Node,
    /// The filter of ours whose marker it bears, with the answers of that one.
    claims: Option<(Ours, Node)>,
}

impl Layer {
    /// Ours, or one that answers every input as ours does.
    fn known(&self) -> Option<Ours> {
        self.claims.filter(|(_, node)| *node == self.answer).map(|(filter, _)| filter)
    }
}

impl Engine {
    pub fn new(steps: usize) -> Self {
        Self { d: Diagrams::new(steps), ours: BTreeMap::new() }
    }

    fn ours(&mut self, filter: Ours) -> Result<Node, Undecided> {
        if let Some(node) = self.ours.get(&filter) {
            return Ok(*node);
        }
        let (_, answer) = self.answer(filter.program())?;
        self.ours.insert(filter, answer);
        Ok(answer)
    }

    /// A filter's raw analysis, and its answers as the kernel reads them.
    pub fn answer(&mut self, program: &[Instruction]) -> Result<(Analysis, Node), Undecided> {
        let analysis = analyse(&mut self.d, program)?;
        let answer = self.d.map(analysis.answer, |value| Action::of(value).value())?;
        Ok((analysis, answer))
    }

    fn verdicts(&mut self, stack: &[Program], digests: &[String]) -> Result<Verdicts, Undecided> {
        self.d.begin();
        let mut layers = Vec::new();
        let mut raw = self.d.end(action::NO_FILTER)?;
        for (at, program) in stack.iter().enumerate() {
            let (analysis, answer) = self.answer(program)?;
            // The newest filter's own answer counts, even where it is the same action: nothing came before it.
            raw = if at == 0 { analysis.answer } else { self.d.stack(raw, analysis.answer)? };
            let claims = match self.bears(answer) {
                Some(filter) => Some((filter, self.ours(filter)?)),
                None => None,
            };
            layers.push(Layer { analysis, answer, claims });
        }
        let answer = self.d.map(raw, |value| Action::of(value).value())?;
        let tables = Abi::ALL.into_iter().map(|abi| self.table(answer, abi)).collect::<Result<Vec<_>, _>>()?;
        let calls = self.calls(answer, &layers)?;
        let filters = layers.iter().zip(digests).map(|(layer, digest)| self.filter(layer, digest)).collect();
        let mut verdicts = Verdicts { filters, calls, tables, remarks: Vec::new() };
        verdicts.remarks = remarks::all(&mut self.d, &verdicts, answer, &layers)?;
        Ok(verdicts)
    }

    fn filter(&self, layer: &Layer, digest: &str) -> Filter {
        let known = layer.known();
        let claims = layer.claims.filter(|_| known.is_none());
        Filter {
            digest: digest.to_owned(),
            instructions: layer.analysis.ops.len(),
            known: known.map(|filter| filter.name().to_owned()),
            claims: claims.map(|(filter, _)| filter.name().to_owned()),
            differences: claims.map(|(_, ours)| self.differences(ours, layer.answer)).unwrap_or_default(),
        }
    }

    /// The filter of ours whose marker it bears; each of ours has one, so that nothing without one is ours.
    fn bears(&self, answer: Node) -> Option<Ours> {
        let nr = Abi::X86_64.number(MARKER)?;
        let says = Action::of(self.d.evaluate(answer, &Input { nr, arch: Abi::X86_64.arch(), ..Input::default() }));
        let bears = |filter: &Ours| u16::try_from(filter.marker()).is_ok_and(|marker| says == Action::Errno(marker));
        Ours::ALL.into_iter().find(bears)
    }

    /// Witnesses: one per named call first, then any.
    fn differences(&self, ours: Node, theirs: Node) -> Vec<Difference> {
        let mut inputs = Vec::new();
        for abi in Abi::ALL {
            let base = Input { arch: abi.arch(), ..Input::default() };
            let (a, b) = (given_arch(&self.d, ours, abi), given_arch(&self.d, theirs, abi));
            for (nr, _) in abi.table() {
                let base = Input { nr, ..base };
                let of = |node| self.d.given(node, Field::Number, nr.into());
                inputs.extend(self.d.differ(of(a), of(b), &base));
            }
        }
        if inputs.is_empty() {
            inputs.extend(self.d.differ(ours, theirs, &Input::default()));
        }
        inputs.truncate(MOST_DIFFERENCES);
        let difference = |input: Input| Difference {
            input,
            name: abi_of(&input).and_then(|abi| abi.name(input.nr)).map(str::to_owned),
            ours: Action::of(self.d.evaluate(ours, &input)),
            theirs: Action::of(self.d.evaluate(theirs, &input)),
        };
        inputs.into_iter().map(difference).collect()
    }

    fn table(&self, answer: Node, abi: Abi) -> Result<Table, Undecided> {
        let mut ranges: Vec<(Range, Node)> = Vec::new();
        let mut open = vec![(given_arch(&self.d, answer, abi), 32u16, 0u64)];
        while let Some((node, left, prefix)) = open.pop() {
            self.d.look(1)?;
            // x32 has the numbers with bit 30 and without bit 31; x86-64 all others.
            if left <= 30 && abi != Abi::I386 && (prefix << left >> 30 == 1) != (abi == Abi::X32) {
                continue;
            }
            let field = (left > 0 && self.d.variable(node) < Field::Argument(0).variable(63)) || left > 30;
            if field && left > 0 {
                let (low, high) = self.d.split(node, Field::Number.variable(left - 1));
                open.push((high, left - 1, prefix << 1 | 1));
                open.push((low, left - 1, prefix << 1));
                continue;
            }
            let first = (prefix << left) as u32;
            let last = first | ((1u64 << left) - 1) as u32;
            match ranges.last_mut() {
                Some((range, before)) if *before == node && range.last.checked_add(1) == Some(first) => {
                    range.last = last
                }
                _ => {
                    let answers = self.d.numbers(node, usize::from(u16::MAX)).ok_or(Undecided::TooLarge)?;
                    let mut answers: Vec<Action> = answers.into_iter().map(Action::of).collect();
                    answers.sort();
                    ranges.push((Range { first, last, answers }, node));
                }
            }
            if ranges.len() > MOST_RANGES {
                return Err(Undecided::TooManyRanges(MOST_RANGES));
            }
        }
        Ok(Table { abi, ranges: ranges.into_iter().map(|(range, _)| range).collect() })
    }

    fn calls(&mut self, answer: Node, layers: &[Layer]) -> Result<Vec<Call>, Undecided> {
        let mut calls = Vec::new();
        // Most calls of a list are under one of few conditions.
        let passes = self.d.map(answer, |value| u32::from(Action::of(value).passes()))?;
        for abi in Abi::ALL {
            let of_abi = given_arch(&self.d, passes, abi);
            for (number, name) in abi.table() {
                self.d.look(1)?;
                let condition = self.d.given(of_abi, Field::Number, number.into());
                if condition == FALSE {
                    continue;
                }
                let meaning = |field, mask, value| match field {
                    Field::Argument(index) => names::meaning(name, index, mask, value),
                    _ => None,
                };
                let when = conditions::describe(&mut self.d, condition, &meaning)?;
                let why = if abi == Abi::X86_64 { self.why(number, condition, layers)? } else { Vec::new() };
                calls.push(Call { abi, number, name: Some(name.to_owned()), when, why });
            }
        }
        Ok(calls)
    }

    /// Reasons of the newest filter of ours that has rules for a call, of those rules that the whole stack lets through.
    fn why(&mut self, number: u32, condition: Node, layers: &[Layer]) -> Result<Vec<String>, Undecided> {
        let mut why: Vec<String> = Vec::new();
        let ours = layers.iter().filter_map(Layer::known);
        let of_call = |ours: Ours| {
            ours.rules().iter().filter(move |rule| rule.number == i64::from(number) && rule.refused.is_none())
        };
        for rule in
            ours.map(of_call).map(Iterator::collect::<Vec<_>>).find(|rules| !rules.is_empty()).unwrap_or_default()
        {
            let mut live = condition;
            let mut constants = Vec::new();
            for c in rule.conditions {
                let holds = self.d.equals(Field::Argument(c.arg), c.mask, c.value)?;
                live = self.d.and(live, holds)?;
                constants.extend(c.constant);
            }
            if live != FALSE {
                let prefix = if constants.is_empty() { String::new() } else { format!("{}: ", constants.join(", ")) };
                why.push(format!("{prefix}{}", rule.why));
            }
        }
        Ok(why)
    }
}

/// The ABI by which the kernel takes an input.
pub(super) fn abi_of(input: &Input) -> Option<Abi> {
    let x32 = input.nr >> 30 == 1;
    Abi::ALL.into_iter().find(|abi| abi.arch() == input.arch && (*abi == Abi::I386 || (*abi == Abi::X32) == x32))
}

/// What is left of a function under an ABI's architecture; the number comes first in it.
pub(super) fn given_arch(d: &Diagrams, node: Node, abi: Abi) -> Node {
    d.given(node, Field::Arch, abi.arch().into())
}
