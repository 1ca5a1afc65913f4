//! Runs a filter on all inputs at once: every bit of the accumulator, X and the scratch memory is a diagram over the bits
//! of the input. Jumps go forward only, so one pass over the instructions meets every way through the program.

use std::rc::Rc;

use casemate_sys::seccomp::Instruction;

use super::diagram::{Bounded, Diagrams, FALSE, Field, Map, Node, TRUE, TooLarge};
use super::program::{Alu, NoFilter, Op, Operand, Test, decode};

/// Most ways that are kept apart, over the whole program: filters of this world need one per instruction.
const MOST_STATES: usize = 100_000;

/// Why a filter cannot be judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Undecided {
    #[error("it is no filter that the kernel would take: {0}")]
    NoFilter(#[from] NoFilter),
    #[error("it entangles its inputs so that deciding it exactly takes more than the memory set aside for one filter")]
    TooLarge,
    #[error("its answers change with the number more than {0} times")]
    TooManyRanges(usize),
}

impl From<TooLarge> for Undecided {
    fn from(_: TooLarge) -> Self {
        Self::TooLarge
    }
}

/// A filter, decided.
#[derive(Debug, Clone)]
pub(super) struct Analysis {
    /// The return value for each input.
    pub answer: Node,
    pub ops: Vec<Op>,
    /// Does any input reach the instruction?
    pub reached: Vec<bool>,
    /// Equality tests that are reached and never hold.
    pub never: Vec<usize>,
}

/// 32 diagrams, bit 0 first.
type Word = Rc<[Node; 32]>;

/// Places of A and X behind the 16 words of memory.
const A: usize = 16;
const X: usize = 17;

/// What the machine holds; what no later instruction reads is zero, so that ways meet again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State([Word; 18]);

pub(super) fn analyse(diagrams: &mut Diagrams, program: &[Instruction]) -> Result<Analysis, Undecided> {
    let ops = decode(program)?;
    let live = liveness(&ops);
    let zero: Word = Rc::new([FALSE; 32]);
    let mut machine = Machine { d: diagrams, live: &live, zero: zero.clone(), waiting: Vec::new(), states: 0 };
    machine.waiting.resize_with(ops.len(), Map::default);
    machine.go(0, State(std::array::from_fn(|_| zero.clone())), TRUE)?;
    let mut answer = FALSE;
    let mut reached = vec![false; ops.len()];
    let mut never = Vec::new();
    for (at, op) in ops.iter().enumerate() {
        let states = std::mem::take(&mut machine.waiting[at]);
        reached[at] = !states.is_empty();
        let mut held = false;
        for (state, path) in states {
            match machine.step(at, *op, state, path)? {
                Outcome::Went { held: yes } => held |= yes,
                Outcome::Returned(path, value) => answer = machine.d.choose(path, value, answer)?,
            }
        }
        if reached[at] && !held && matches!(op, Op::Branch { test: Test::Equal, .. }) {
            never.push(at);
        }
    }
    Ok(Analysis { answer, ops, reached, never })
}

/// For each instruction, the places that it or a later one reads before they are written: a bit each.
fn liveness(ops: &[Op]) -> Vec<u32> {
    let operand = |with: Operand| if with == Operand::X { 1 << X } else { 0u32 };
    let mut live = vec![0; ops.len()];
    for (at, op) in ops.iter().enumerate().rev() {
        let next = live.get(at + 1).copied().unwrap_or(0);
        live[at] = match *op {
            Op::Load(_) | Op::SetA(_) => next & !(1 << A),
            Op::SetX(_) => next & !(1 << X),
            Op::ReadA(word) => next & !(1 << A) | 1 << word,
            Op::ReadX(word) => next & !(1 << X) | 1 << word,
            Op::WriteA(word) => next & !(1 << word) | 1 << A,
            Op::WriteX(word) => next & !(1 << word) | 1 << X,
            Op::Alu(_, with) => next | 1 << A | operand(with),
            Op::Negate => next | 1 << A,
            Op::ToX => next & !(1 << X) | 1 << A,
            Op::ToA => next & !(1 << A) | 1 << X,
            Op::Jump(to) => live[to],
            Op::Branch { with, yes, no, .. } => live[yes] | live[no] | 1 << A | operand(with),
            Op::Return(_) => 0,
            Op::ReturnA => 1 << A,
        };
    }
    live
}

enum Outcome {
    Went { held: bool },
    Returned(Node, Node),
}

struct Machine<'a> {
    d: &'a mut Diagrams,
    live: &'a [u32],
    zero: Word,
    /// For each instruction: what the machine may hold there, and for which inputs.
    waiting: Vec<Map<State, Node>>,
    states: usize,
}

impl Machine<'_> {
    fn go(&mut self, to: usize, mut state: State, path: Node) -> Bounded<()> {
        if path == FALSE {
            return Ok(());
        }
        for (place, word) in state.0.iter_mut().enumerate() {
            if self.live[to] >> place & 1 == 0 {
                *word = self.zero.clone();
            }
        }
        let before = self.waiting[to].get(&state).copied();
        if before.is_none() {
            self.states += 1;
            if self.states > MOST_STATES {
                return Err(TooLarge);
            }
        }
        let path = self.d.or(before.unwrap_or(FALSE), path)?;
        self.waiting[to].insert(state, path);
        Ok(())
    }

    fn step(&mut self, at: usize, op: Op, mut state: State, path: Node) -> Bounded<Outcome> {
        match op {
            Op::Load(offset) => state.0[A] = self.load(offset)?,
            Op::SetA(k) => state.0[A] = constant(k),
            Op::SetX(k) => state.0[X] = constant(k),
            Op::ReadA(word) => state.0[A] = state.0[usize::from(word)].clone(),
            Op::ReadX(word) => state.0[X] = state.0[usize::from(word)].clone(),
            Op::WriteA(word) => state.0[usize::from(word)] = state.0[A].clone(),
            Op::WriteX(word) => state.0[usize::from(word)] = state.0[X].clone(),
            Op::ToX => state.0[X] = state.0[A].clone(),
            Op::ToA => state.0[A] = state.0[X].clone(),
            Op::Negate => {
                let zero = self.zero.clone();
                state.0[A] = Rc::new(self.subtract(&zero, &state.0[A])?.0);
            }
            Op::Alu(Alu::Div, Operand::X) => {
                // Division by zero ends the program with 0 (bpf_convert_filter).
                let none = self.is_zero(&state.0[X])?;
                let ended = self.d.and(path, none)?;
                let on = self.d.choose(none, FALSE, path)?;
                if on != FALSE {
                    state.0[A] = self.divide(&state.0[A], &state.0[X])?;
                    self.go(at + 1, state, on)?;
                }
                return Ok(Outcome::Returned(ended, FALSE));
            }
            Op::Alu(what, with) => {
                let right = self.operand(with, &state);
                state.0[A] = self.alu(what, &state.0[A], &right)?;
            }
            Op::Jump(to) => {
                self.go(to, state, path)?;
                return Ok(Outcome::Went { held: true });
            }
            Op::Branch { test, with, yes, no } => return self.branch(test, with, [yes, no], state, path),
            Op::Return(k) => return Ok(Outcome::Returned(path, self.d.end(k)?)),
            Op::ReturnA => {
                let bits = state.0[A].clone();
                return Ok(Outcome::Returned(path, self.d.number_of(&bits)?));
            }
        }
        self.go(at + 1, state, path)?;
        Ok(Outcome::Went { held: true })
    }

    fn branch(&mut self, test: Test, with: Operand, to: [usize; 2], state: State, path: Node) -> Bounded<Outcome> {
        let right = self.operand(with, &state);
        let left = state.0[A].clone();
        let holds = match test {
            Test::Equal => self.equal(&left, &right)?,
            // left - right borrows where left < right.
            Test::AtLeast => {
                let below = self.subtract(&left, &right)?.1;
                self.d.not(below)?
            }
            Test::Greater => self.subtract(&right, &left)?.1,
            Test::AnyBit => {
                let common = self.each(&left, &right, Diagrams::and)?;
                let none = self.is_zero(&common)?;
                self.d.not(none)?
            }
        };
        let (yes, no) = (self.d.and(path, holds)?, self.d.choose(holds, FALSE, path)?);
        self.go(to[0], state.clone(), yes)?;
        self.go(to[1], state, no)?;
        Ok(Outcome::Went { held: yes != FALSE })
    }

    /// A word of struct seccomp_data, on a little-endian machine.
    fn load(&mut self, offset: u32) -> Bounded<Word> {
        let upper = if offset.is_multiple_of(8) { 0 } else { 32 };
        let (field, upper) = match offset {
            0 => (Field::Number, 0),
            4 => (Field::Arch, 0),
            8 | 12 => (Field::InstructionPointer, upper),
            _ => (Field::Argument(((offset - 16) / 8) as u8), upper),
        };
        let mut bits = [FALSE; 32];
        for (place, bit) in bits.iter_mut().enumerate() {
            *bit = self.d.node(field.variable(upper + place as u16), FALSE, TRUE)?;
        }
        Ok(Rc::new(bits))
    }

    fn operand(&self, with: Operand, state: &State) -> Word {
        match with {
            Operand::Constant(k) => constant(k),
            Operand::X => state.0[X].clone(),
        }
    }

    fn alu(&mut self, what: Alu, left: &Word, right: &Word) -> Bounded<Word> {
        match what {
            Alu::Add => self.add(left, right),
            Alu::Sub => Ok(Rc::new(self.subtract(left, right)?.0)),
            Alu::Mul => self.multiply(left, right),
            Alu::Div => self.divide(left, right),
            Alu::Or => self.each(left, right, Diagrams::or),
            Alu::And => self.each(left, right, Diagrams::and),
            Alu::Xor => self.each(left, right, Diagrams::xor),
            Alu::ShiftLeft => self.shift(left, right, true),
            Alu::ShiftRight => self.shift(left, right, false),
        }
    }

    fn each(
        &mut self,
        left: &Word,
        right: &Word,
        how: impl Fn(&mut Diagrams, Node, Node) -> Bounded<Node>,
    ) -> Bounded<Word> {
        let mut out = [FALSE; 32];
        for (place, out) in out.iter_mut().enumerate() {
            *out = how(self.d, left[place], right[place])?;
        }
        Ok(Rc::new(out))
    }

    fn equal(&mut self, left: &Word, right: &Word) -> Bounded<Node> {
        let mut same = TRUE;
        for place in 0..32 {
            let differ = self.d.xor(left[place], right[place])?;
            same = self.d.choose(differ, FALSE, same)?;
        }
        Ok(same)
    }

    fn is_zero(&mut self, word: &Word) -> Bounded<Node> {
        let mut any = FALSE;
        for bit in word.iter() {
            any = self.d.or(*bit, any)?;
        }
        self.d.not(any)
    }

    fn add(&mut self, left: &Word, right: &Word) -> Bounded<Word> {
        let (mut out, mut carry) = ([FALSE; 32], FALSE);
        for place in 0..32 {
            let (a, b) = (left[place], right[place]);
            let half = self.d.xor(a, b)?;
            out[place] = self.d.xor(half, carry)?;
            carry = self.d.choose(half, carry, a)?;
        }
        Ok(Rc::new(out))
    }

    /// Difference and borrow.
    fn subtract(&mut self, left: &Word, right: &Word) -> Bounded<([Node; 32], Node)> {
        let (mut out, mut borrow) = ([FALSE; 32], FALSE);
        for place in 0..32 {
            let (a, b) = (left[place], right[place]);
            let half = self.d.xor(a, b)?;
            out[place] = self.d.xor(half, borrow)?;
            borrow = self.d.choose(half, b, borrow)?;
        }
        Ok((out, borrow))
    }

    fn select(&mut self, condition: Node, then: &Word, otherwise: &Word) -> Bounded<Word> {
        self.each(then, otherwise, |d, a, b| d.choose(condition, a, b))
    }

    fn multiply(&mut self, left: &Word, right: &Word) -> Bounded<Word> {
        let mut sum = self.zero.clone();
        for place in 0..32 {
            if right[place] != FALSE {
                let more = self.add(&sum, &shifted(left, place, true))?;
                sum = self.select(right[place], &more, &sum)?;
            }
        }
        Ok(sum)
    }

    /// Long division. The divisor is not zero on any way that goes on with the result.
    fn divide(&mut self, left: &Word, right: &Word) -> Bounded<Word> {
        let mut quotient = [FALSE; 32];
        let mut rest = self.zero.clone();
        for place in (0..32).rev() {
            // The bit that leaves at the top: the rest is then above every divisor.
            let above = rest[31];
            let mut next = *shifted(&rest, 1, true);
            next[0] = left[place];
            let next = Rc::new(next);
            let (less, borrow) = self.subtract(&next, right)?;
            let fits = self.d.choose(borrow, above, TRUE)?;
            quotient[place] = fits;
            rest = self.select(fits, &Rc::new(less), &next)?;
        }
        Ok(Rc::new(quotient))
    }

    /// By the low five bits of the right operand, as the kernel's 32-bit shifts are.
    fn shift(&mut self, left: &Word, right: &Word, up: bool) -> Bounded<Word> {
        let mut word = left.clone();
        for place in 0..5 {
            let moved = shifted(&word, 1 << place, up);
            word = self.select(right[place], &moved, &word)?;
        }
        Ok(word)
    }
}

fn constant(k: u32) -> Word {
    Rc::new(std::array::from_fn(|place| if k >> place & 1 == 1 { TRUE } else { FALSE }))
}

fn shifted(word: &Word, by: usize, up: bool) -> Word {
    let from = |place: usize| if up { place.checked_sub(by) } else { place.checked_add(by) };
    Rc::new(std::array::from_fn(|place| from(place).and_then(|from| word.get(from)).copied().unwrap_or(FALSE)))
}
