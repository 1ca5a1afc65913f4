//! Specimens that violate one thing each, and an interpreter that knows nothing of diagrams.

mod foreign;
mod interpreter;
mod property;
mod specimens;
mod stacks;

use casemate_sys::seccomp::Instruction;

use super::*;

pub const ALLOW: u32 = 0x7fff_0000;
pub const KILL: u32 = 0x8000_0000;
pub const ERRNO: u32 = 0x0005_0000;
pub const X86_64: u32 = 0xc000_003e;
pub const I386: u32 = 0x4000_0003;

/// Offsets in struct seccomp_data.
pub const NR: u32 = 0;
pub const ARCH: u32 = 4;

pub fn low(arg: u32) -> u32 {
    16 + 8 * arg
}

pub fn high(arg: u32) -> u32 {
    low(arg) + 4
}

pub fn op(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

pub fn load(offset: u32) -> Instruction {
    op(0x20, offset)
}

pub fn ret(value: u32) -> Instruction {
    op(0x06, value)
}

pub fn branch(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

pub fn jeq(k: u32, jt: u8, jf: u8) -> Instruction {
    branch(0x15, k, jt, jf)
}

/// The architecture check with which a careful filter begins, then `ld [nr]`, and that x32 is killed.
pub fn careful() -> Program {
    let jge = branch(0x35, 0x4000_0000, 0, 1);
    vec![load(ARCH), jeq(X86_64, 1, 0), ret(KILL), load(NR), jge, ret(KILL)]
}

/// A careful list of calls, whatever their arguments.
pub fn list(calls: &[u32]) -> Program {
    let mut program = careful();
    for call in calls {
        program.extend([jeq(*call, 0, 1), ret(ALLOW)]);
    }
    program.push(ret(KILL));
    program
}

pub fn nr(name: &str) -> u32 {
    Abi::X86_64.number(name).unwrap()
}

pub fn judge(stack: &[Program]) -> std::sync::Arc<Verdicts> {
    Cache::default().judge(stack).unwrap()
}

pub fn has(verdicts: &Verdicts, id: RemarkId) -> bool {
    verdicts.remarks.iter().any(|remark| remark.id == id)
}

pub fn text_of(verdicts: &Verdicts, id: RemarkId) -> String {
    let texts = verdicts.remarks.iter().filter(|remark| remark.id == id).map(|remark| remark.text.clone());
    texts.collect::<Vec<_>>().join("\n")
}

pub fn call<'a>(verdicts: &'a Verdicts, abi: Abi, name: &str) -> Option<&'a Call> {
    verdicts.calls.iter().find(|call| call.abi == abi && call.name.as_deref() == Some(name))
}

/// What a table says of a number.
pub fn answers(verdicts: &Verdicts, abi: Abi, number: u32) -> Vec<Action> {
    let table = verdicts.tables.iter().find(|table| table.abi == abi).unwrap();
    let mut of = table.ranges.iter().filter(|range| (range.first..=range.last).contains(&number));
    let found = of.next().unwrap().answers.clone();
    assert!(of.next().is_none(), "two ranges have {number}");
    found
}
