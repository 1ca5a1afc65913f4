//! Decision diagrams over the 512 bits of struct seccomp_data: reduced, ordered, shared (Bryant 1986), with 32-bit numbers
//! at their ends, so that one diagram is a filter's whole answer.
//!
//! Two functions that answer every input alike are the same [`Node`]; that is what equivalence rests on. Our own, and not
//! a library's: the libraries hold two-valued diagrams that share nothing with one another, and no bound on what a
//! hostile filter makes them build.

use super::Input;

/// Keys are numbers that we give out ourselves: no attacker picks them.
pub(super) type Map<K, V> = rustc_hash::FxHashMap<K, V>;

/// A function; equal functions have equal nodes within one [`Diagrams`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Node(u32);

/// Ends: 0, which is also false, and 1, which is also true.
pub(super) const FALSE: Node = Node(0);
pub(super) const TRUE: Node = Node(1);

/// The filter is too entangled to be decided in bounded memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLarge;

pub(super) type Bounded<T> = Result<T, TooLarge>;

// Bits in the order in which they are decided: architecture, number, arguments 0 to 5, instruction pointer; each from
// its highest bit down, so that ranges and equalities stay small.
/// Stands behind every variable.
const END: u16 = u16::MAX;

/// Part of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Field {
    Arch,
    Number,
    /// 0 to 5.
    Argument(u8),
    InstructionPointer,
}

impl Field {
    pub(super) fn bits(self) -> u16 {
        if matches!(self, Self::Arch | Self::Number) { 32 } else { 64 }
    }

    /// Its highest bit.
    fn first(self) -> u16 {
        match self {
            Self::Arch => 0,
            Self::Number => 32,
            Self::Argument(index) => 64 + 64 * u16::from(index),
            Self::InstructionPointer => 448,
        }
    }

    /// The variable of a bit; bit 0 is worth 1.
    pub(super) fn variable(self, bit: u16) -> u16 {
        self.first() + self.bits() - 1 - bit
    }

    /// Field and bit of a variable.
    pub(super) fn of(variable: u16) -> (Self, u16) {
        let field = match variable {
            0..32 => Self::Arch,
            32..64 => Self::Number,
            64..448 => Self::Argument(((variable - 64) / 64) as u8),
            _ => Self::InstructionPointer,
        };
        (field, field.bits() - 1 - (variable - field.first()))
    }

    pub(super) fn value(self, input: &Input) -> u64 {
        match self {
            Self::Arch => input.arch.into(),
            Self::Number => input.nr.into(),
            Self::Argument(index) => input.args[usize::from(index)],
            Self::InstructionPointer => input.instruction_pointer,
        }
    }

    fn put(self, input: &mut Input, bit: u16, value: bool) {
        let new = self.value(input) & !(1 << bit) | u64::from(value) << bit;
        match self {
            // A 32-bit field has no bit above 31.
            Self::Arch => input.arch = new as u32,
            Self::Number => input.nr = new as u32,
            Self::Argument(index) => input.args[usize::from(index)] = new,
            Self::InstructionPointer => input.instruction_pointer = new,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Inner {
    /// END for an end, whose number is `low`.
    variable: u16,
    low: u32,
    high: u32,
}

/// What is done with the numbers of two diagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Pair {
    BitOr,
    /// As seccomp_run_filters takes the answers of a newer and an older filter.
    Precedence,
}

#[derive(Debug)]
pub(super) struct Diagrams {
    nodes: Vec<Inner>,
    unique: Map<Inner, u32>,
    choices: Map<(Node, Node, Node), Node>,
    pairs: Map<(Pair, Node, Node), Node>,
    limit: usize,
    /// Nodes looked at since [`Diagrams::begin`]: what is not remembered costs time, too.
    looks: std::cell::Cell<usize>,
}

/// Looks at nodes that are allowed for each one that may be made.
const LOOKS: usize = 16;

impl Diagrams {
    /// At most `limit` nodes and remembered steps together, of some 40 bytes each: a bound on memory and on time.
    pub(super) fn new(limit: usize) -> Self {
        let (unique, choices, pairs) = Default::default();
        let mut new = Self { nodes: Vec::new(), unique, choices, pairs, limit, looks: Default::default() };
        for number in [0, 1] {
            new.nodes.push(Inner { variable: END, low: number, high: 0 });
            new.unique.insert(new.nodes[number as usize], number);
        }
        new
    }

    /// Nodes and remembered steps.
    pub(super) fn len(&self) -> usize {
        self.nodes.len() + self.choices.len() + self.pairs.len()
    }

    /// A new question begins, with time of its own.
    pub(super) fn begin(&self) {
        self.looks.set(0);
    }

    /// Counts looks at nodes; too many are an error.
    pub(super) fn look(&self, nodes: usize) -> Bounded<()> {
        self.looks.set(self.looks.get().saturating_add(nodes));
        if self.looks.get() > self.limit.saturating_mul(LOOKS) { Err(TooLarge) } else { Ok(()) }
    }

    fn shared(&mut self, inner: Inner) -> Bounded<Node> {
        if let Some(node) = self.unique.get(&inner) {
            return Ok(Node(*node));
        }
        if self.len() >= self.limit {
            return Err(TooLarge);
        }
        let node = u32::try_from(self.nodes.len()).map_err(|_| TooLarge)?;
        self.nodes.push(inner);
        self.unique.insert(inner, node);
        Ok(Node(node))
    }

    pub(super) fn end(&mut self, number: u32) -> Bounded<Node> {
        self.shared(Inner { variable: END, low: number, high: 0 })
    }

    pub(super) fn node(&mut self, variable: u16, low: Node, high: Node) -> Bounded<Node> {
        if low == high { Ok(low) } else { self.shared(Inner { variable, low: low.0, high: high.0 }) }
    }

    fn inner(&self, node: Node) -> Inner {
        self.nodes[node.0 as usize]
    }

    /// The number of an end.
    pub(super) fn number(&self, node: Node) -> Option<u32> {
        let inner = self.inner(node);
        (inner.variable == END).then_some(inner.low)
    }

    /// Its first variable; behind all of them for an end.
    pub(super) fn variable(&self, node: Node) -> u16 {
        self.inner(node).variable
    }

    /// What it becomes with a variable, which must not be behind its first one, at 0 and at 1.
    pub(super) fn split(&self, node: Node, variable: u16) -> (Node, Node) {
        let inner = self.inner(node);
        if inner.variable == variable { (Node(inner.low), Node(inner.high)) } else { (node, node) }
    }

    /// `then` where the condition holds, `otherwise` elsewhere.
    pub(super) fn choose(&mut self, condition: Node, then: Node, otherwise: Node) -> Bounded<Node> {
        match condition {
            TRUE => return Ok(then),
            FALSE => return Ok(otherwise),
            _ if then == otherwise => return Ok(then),
            _ if (then, otherwise) == (TRUE, FALSE) => return Ok(condition),
            _ => {}
        }
        if let Some(known) = self.choices.get(&(condition, then, otherwise)) {
            return Ok(*known);
        }
        let variable = [condition, then, otherwise].map(|node| self.variable(node)).into_iter().min().unwrap_or(END);
        let ((c0, c1), (t0, t1)) = (self.split(condition, variable), self.split(then, variable));
        let (o0, o1) = self.split(otherwise, variable);
        let low = self.choose(c0, t0, o0)?;
        let high = self.choose(c1, t1, o1)?;
        let node = self.node(variable, low, high)?;
        if self.len() >= self.limit {
            return Err(TooLarge);
        }
        self.choices.insert((condition, then, otherwise), node);
        Ok(node)
    }

    pub(super) fn and(&mut self, a: Node, b: Node) -> Bounded<Node> {
        self.choose(a, b, FALSE)
    }

    pub(super) fn or(&mut self, a: Node, b: Node) -> Bounded<Node> {
        self.choose(a, TRUE, b)
    }

    pub(super) fn not(&mut self, a: Node) -> Bounded<Node> {
        self.choose(a, FALSE, TRUE)
    }

    pub(super) fn xor(&mut self, a: Node, b: Node) -> Bounded<Node> {
        let not = self.not(b)?;
        self.choose(a, not, b)
    }

    fn pair(&mut self, how: Pair, a: Node, b: Node) -> Bounded<Node> {
        if a == b {
            return Ok(a);
        }
        if let (Some(x), Some(y)) = (self.number(a), self.number(b)) {
            return self.end(match how {
                Pair::BitOr => x | y,
                Pair::Precedence if super::action::rank(y) < super::action::rank(x) => y,
                Pair::Precedence => x,
            });
        }
        if let Some(known) = self.pairs.get(&(how, a, b)) {
            return Ok(*known);
        }
        let variable = self.variable(a).min(self.variable(b));
        let ((a0, a1), (b0, b1)) = (self.split(a, variable), self.split(b, variable));
        let low = self.pair(how, a0, b0)?;
        let high = self.pair(how, a1, b1)?;
        let node = self.node(variable, low, high)?;
        self.pairs.insert((how, a, b), node);
        Ok(node)
    }

    /// The answer of a newer and an older filter together.
    pub(super) fn stack(&mut self, newer: Node, older: Node) -> Bounded<Node> {
        self.pair(Pair::Precedence, newer, older)
    }

    /// The number whose bits these are; bit 0 first.
    pub(super) fn number_of(&mut self, bits: &[Node; 32]) -> Bounded<Node> {
        let mut sum = FALSE;
        for (place, bit) in bits.iter().enumerate() {
            let one = self.end(1 << place)?;
            let part = self.choose(*bit, one, FALSE)?;
            sum = self.pair(Pair::BitOr, sum, part)?;
        }
        Ok(sum)
    }

    /// The same function with other numbers at its ends.
    pub(super) fn map(&mut self, node: Node, change: impl Fn(u32) -> u32) -> Bounded<Node> {
        self.map_known(node, &change, &mut Map::default())
    }

    fn map_known(&mut self, node: Node, change: &impl Fn(u32) -> u32, known: &mut Map<Node, Node>) -> Bounded<Node> {
        if let Some(number) = self.number(node) {
            return self.end(change(number));
        }
        if let Some(known) = known.get(&node) {
            return Ok(*known);
        }
        self.look(1)?;
        let Inner { variable, low, high } = self.inner(node);
        let low = self.map_known(Node(low), change, known)?;
        let high = self.map_known(Node(high), change, known)?;
        let new = self.node(variable, low, high)?;
        known.insert(node, new);
        Ok(new)
    }

    /// `field & mask == value`.
    pub(super) fn equals(&mut self, field: Field, mask: u64, value: u64) -> Bounded<Node> {
        let mut node = if value & !mask == 0 { TRUE } else { FALSE };
        for bit in (0..field.bits()).filter(|bit| mask >> bit & 1 == 1) {
            let variable = field.variable(bit);
            node = if value >> bit & 1 == 1 {
                self.node(variable, FALSE, node)?
            } else {
                self.node(variable, node, FALSE)?
            };
        }
        Ok(node)
    }

    /// What is left where an earlier field has this value; no variable before the field may be in it.
    pub(super) fn given(&self, mut node: Node, field: Field, value: u64) -> Node {
        for bit in (0..field.bits()).rev() {
            let (low, high) = self.split(node, field.variable(bit));
            node = if value >> bit & 1 == 1 { high } else { low };
        }
        node
    }

    /// Numbers that some input leads to, ascending; `None` if there are more than `most`.
    pub(super) fn numbers(&self, node: Node, most: usize) -> Option<Vec<u32>> {
        let mut seen = rustc_hash::FxHashSet::default();
        let mut found = std::collections::BTreeSet::new();
        let mut open = vec![node];
        while let Some(node) = open.pop() {
            if !seen.insert(node) {
                continue;
            }
            match self.number(node) {
                Some(number) => {
                    found.insert(number);
                }
                None => {
                    let inner = self.inner(node);
                    open.extend([Node(inner.low), Node(inner.high)]);
                }
            }
            if found.len() > most {
                return None;
            }
        }
        // The next one who can fail does, if these were too many.
        let _ = self.look(seen.len());
        Some(found.into_iter().collect())
    }

    /// Does it depend on any of these variables?
    pub(super) fn depends(&self, node: Node, on: impl Fn(u16) -> bool) -> bool {
        let mut seen = rustc_hash::FxHashSet::default();
        let mut open = vec![node];
        while let Some(node) = open.pop() {
            let inner = self.inner(node);
            if inner.variable == END || !seen.insert(node) {
                continue;
            }
            if on(inner.variable) {
                return true;
            }
            open.extend([Node(inner.low), Node(inner.high)]);
        }
        false
    }

    /// What the function gives for one input.
    pub(super) fn evaluate(&self, mut node: Node, input: &Input) -> u32 {
        loop {
            let inner = self.inner(node);
            if inner.variable == END {
                return inner.low;
            }
            let (field, bit) = Field::of(inner.variable);
            node = Node(if field.value(input) >> bit & 1 == 1 { inner.high } else { inner.low });
        }
    }

    /// An input that two functions answer differently; bits that do not matter are as in `base`, or 0.
    pub(super) fn differ(&self, mut a: Node, mut b: Node, base: &Input) -> Option<Input> {
        if a == b {
            return None;
        }
        let mut input = *base;
        loop {
            let variable = self.variable(a).min(self.variable(b));
            if variable == END {
                return Some(input);
            }
            let ((a0, a1), (b0, b1)) = (self.split(a, variable), self.split(b, variable));
            let (field, bit) = Field::of(variable);
            let one = a0 == b0;
            field.put(&mut input, bit, one);
            (a, b) = if one { (a1, b1) } else { (a0, b0) };
        }
    }

    /// An input for which a condition holds.
    pub(super) fn example(&self, condition: Node, base: &Input) -> Option<Input> {
        self.differ(condition, FALSE, base)
    }
}
