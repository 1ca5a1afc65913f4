//! Filter programs: decoded, and refused where the kernel would refuse them (kernel/seccomp.c, seccomp_check_filter;
//! net/core/filter.c, bpf_check_classic).

use casemate_sys::seccomp::Instruction;
use sha2::{Digest as _, Sha256};

/// BPF_MAXINSNS
const MOST: usize = 4096;
/// sizeof(struct seccomp_data)
const DATA: u32 = 64;

/// Why a program is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoFilter {
    #[error("the program is empty")]
    Empty,
    #[error("the program has {0} instructions, the kernel takes {MOST}")]
    Long(usize),
    #[error("instruction {0}: the kernel allows no opcode {1:#06x} in a seccomp filter")]
    Opcode(usize, u16),
    #[error("instruction {0} jumps behind the end")]
    Jump(usize),
    #[error("instruction {0} loads from offset {1}, which is no word of struct seccomp_data")]
    Load(usize, u32),
    #[error("instruction {0} uses memory word {1} of 16")]
    Memory(usize, u32),
    #[error("instruction {0} reads a memory word that a way to it has not written")]
    Unwritten(usize),
    #[error("instruction {0} divides by zero or shifts by more than 31")]
    Operand(usize),
    #[error("the last instruction does not return")]
    NoReturn,
    #[error("{0} bytes of hexadecimal are no whole number of instructions, or are not hexadecimal")]
    Text(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operand {
    Constant(u32),
    X,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alu {
    Add,
    Sub,
    Mul,
    Div,
    Or,
    And,
    Xor,
    ShiftLeft,
    ShiftRight,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    Equal,
    Greater,
    AtLeast,
    AnyBit,
}

/// A decoded instruction; targets are absolute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    /// A from a word of struct seccomp_data.
    Load(u32),
    SetA(u32),
    SetX(u32),
    ReadA(u8),
    ReadX(u8),
    WriteA(u8),
    WriteX(u8),
    Alu(Alu, Operand),
    Negate,
    ToX,
    ToA,
    Jump(usize),
    Branch {
        test: Test,
        with: Operand,
        yes: usize,
        no: usize,
    },
    Return(u32),
    ReturnA,
}

/// Decodes a whole program.
pub(super) fn decode(program: &[Instruction]) -> Result<Vec<Op>, NoFilter> {
    if program.is_empty() {
        return Err(NoFilter::Empty);
    }
    if program.len() > MOST {
        return Err(NoFilter::Long(program.len()));
    }
    let ops: Result<Vec<Op>, NoFilter> =
        program.iter().enumerate().map(|(at, instruction)| one(at, *instruction, program.len())).collect();
    let ops = ops?;
    if !matches!(ops.last(), Some(Op::Return(_) | Op::ReturnA)) {
        return Err(NoFilter::NoReturn);
    }
    written(&ops)?;
    Ok(ops)
}

fn one(at: usize, Instruction { code, jt, jf, k }: Instruction, len: usize) -> Result<Op, NoFilter> {
    let memory = || u8::try_from(k).ok().filter(|word| *word < 16).ok_or(NoFilter::Memory(at, k));
    let target = |over: usize| at.checked_add(1 + over).filter(|to| *to < len).ok_or(NoFilter::Jump(at));
    let with = if code & 0x08 == 0 { Operand::Constant(k) } else { Operand::X };
    let branch = |test| Ok(Op::Branch { test, with, yes: target(jt.into())?, no: target(jf.into())? });
    let alu = |what| {
        let bad = match (what, with) {
            (Alu::Div, Operand::Constant(k)) => k == 0,
            (Alu::ShiftLeft | Alu::ShiftRight, Operand::Constant(k)) => k > 31,
            _ => false,
        };
        if bad { Err(NoFilter::Operand(at)) } else { Ok(Op::Alu(what, with)) }
    };
    match code {
        0x20 if k < DATA && k.is_multiple_of(4) => Ok(Op::Load(k)),
        0x20 => Err(NoFilter::Load(at, k)),
        0x80 => Ok(Op::SetA(DATA)),
        0x81 => Ok(Op::SetX(DATA)),
        0x00 => Ok(Op::SetA(k)),
        0x01 => Ok(Op::SetX(k)),
        0x60 => Ok(Op::ReadA(memory()?)),
        0x61 => Ok(Op::ReadX(memory()?)),
        0x02 => Ok(Op::WriteA(memory()?)),
        0x03 => Ok(Op::WriteX(memory()?)),
        0x04 | 0x0c => alu(Alu::Add),
        0x14 | 0x1c => alu(Alu::Sub),
        0x24 | 0x2c => alu(Alu::Mul),
        0x34 | 0x3c => alu(Alu::Div),
        0x44 | 0x4c => alu(Alu::Or),
        0x54 | 0x5c => alu(Alu::And),
        0x64 | 0x6c => alu(Alu::ShiftLeft),
        0x74 | 0x7c => alu(Alu::ShiftRight),
        0x84 => Ok(Op::Negate),
        0xa4 | 0xac => alu(Alu::Xor),
        0x07 => Ok(Op::ToX),
        0x87 => Ok(Op::ToA),
        0x05 => usize::try_from(k).map_err(|_| NoFilter::Jump(at)).and_then(target).map(Op::Jump),
        0x15 | 0x1d => branch(Test::Equal),
        0x25 | 0x2d => branch(Test::Greater),
        0x35 | 0x3d => branch(Test::AtLeast),
        0x45 | 0x4d => branch(Test::AnyBit),
        0x06 => Ok(Op::Return(k)),
        0x16 => Ok(Op::ReturnA),
        _ => Err(NoFilter::Opcode(at, code)),
    }
}

/// Every memory word that is read was written on each way to it (check_load_and_stores).
fn written(ops: &[Op]) -> Result<(), NoFilter> {
    let mut before = vec![u16::MAX; ops.len()];
    let mut here = 0u16;
    for (at, op) in ops.iter().enumerate() {
        here &= before[at];
        match *op {
            Op::WriteA(word) | Op::WriteX(word) => here |= 1 << word,
            Op::ReadA(word) | Op::ReadX(word) if here >> word & 1 == 0 => return Err(NoFilter::Unwritten(at)),
            Op::Jump(to) => {
                before[to] &= here;
                here = u16::MAX;
            }
            Op::Branch { yes, no, .. } => {
                before[yes] &= here;
                before[no] &= here;
                here = u16::MAX;
            }
            _ => {}
        }
    }
    Ok(())
}

/// SHA-256 of the instructions in the kernel's form, hexadecimal.
pub fn digest(program: &[Instruction]) -> String {
    hex(&Sha256::digest(bytes(program)))
}

/// The instructions in the kernel's form on a little-endian machine, hexadecimal.
pub fn to_hex(program: &[Instruction]) -> String {
    hex(&bytes(program))
}

/// What [`to_hex`] wrote.
pub fn from_hex(text: &str) -> Result<Vec<Instruction>, NoFilter> {
    let bad = || NoFilter::Text(text.len());
    let digit = |c: u8| char::from(c).to_digit(16).map(|digit| digit as u8).ok_or_else(bad);
    let (digits, rest) = text.as_bytes().as_chunks::<2>();
    let raw: Result<Vec<u8>, NoFilter> =
        digits.iter().map(|[high, low]| Ok(digit(*high)? << 4 | digit(*low)?)).collect();
    let raw = raw?;
    let (instructions, odd) = raw.as_chunks::<8>();
    if !rest.is_empty() || !odd.is_empty() {
        return Err(bad());
    }
    let instruction = |raw: &[u8; 8]| {
        let [c0, c1, jt, jf, k0, k1, k2, k3] = *raw;
        Instruction { code: u16::from_le_bytes([c0, c1]), jt, jf, k: u32::from_le_bytes([k0, k1, k2, k3]) }
    };
    Ok(instructions.iter().map(instruction).collect())
}

fn bytes(program: &[Instruction]) -> Vec<u8> {
    let one = |i: &Instruction| {
        let ([c0, c1], [k0, k1, k2, k3]) = (i.code.to_le_bytes(), i.k.to_le_bytes());
        [c0, c1, i.jt, i.jf, k0, k1, k2, k3]
    };
    program.iter().flat_map(one).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
