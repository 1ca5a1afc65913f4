//! Random filters on random inputs: the solver against the interpreter. Random bytes: no panic.

use proptest::prelude::*;

use super::interpreter::{holds, run, run_stack};
use super::*;
use crate::seccomp::diagram::{Diagrams, FALSE, TRUE};
use crate::seccomp::program::decode;
use crate::seccomp::symbolic::analyse;

/// Numbers that meet in filters and inputs, so that comparisons are hit.
const NUMBERS: [u32; 14] =
    [0, 1, 2, 3, 16, 59, 101, 0x7fff_ffff, 0x8000_0000, 0x4000_0000, 0x4000_0065, 0xffff_ffff, X86_64, I386];

fn number() -> impl Strategy<Value = u32> {
    prop_oneof![6 => prop::sample::select(&NUMBERS[..]), 1 => any::<u32>(), 2 => 0u32..64]
}

fn answer() -> impl Strategy<Value = u32> {
    let actions =
        [ALLOW, ALLOW | 7, 0, KILL, ERRNO, ERRNO | 1, ERRNO | 5000, 0x7ffc_0000, 0x7ff0_0003, 0x7fc0_0000, 0x0003_0002];
    prop_oneof![8 => prop::sample::select(actions.to_vec()), 1 => any::<u32>()]
}

/// Jumps are brought into range later.
fn instruction() -> impl Strategy<Value = Instruction> {
    let words = prop::sample::select(vec![0u32, 0, 0, 4, 4, 8, 12, 16, 20, 24, 28, 32, 56, 60]);
    let simple = prop::sample::select(vec![0x80u16, 0x81, 0x84, 0x07, 0x87]);
    let memory = prop::sample::select(vec![0x60u16, 0x61, 0x02, 0x03]);
    let alu = prop::sample::select(vec![0x04u16, 0x0c, 0x14, 0x1c, 0x44, 0x4c, 0x54, 0x5c, 0xa4, 0xac]);
    let shift = prop::sample::select(vec![0x64u16, 0x6c, 0x74, 0x7c]);
    let hard = prop::sample::select(vec![0x24u16, 0x34, 0x3c]);
    let jumps = prop::sample::select(vec![0x15u16, 0x15, 0x15, 0x1d, 0x25, 0x2d, 0x35, 0x3d, 0x45, 0x4d]);
    prop_oneof![
        6 => words.prop_map(load),
        1 => (prop::bool::ANY, number()).prop_map(|(a, k)| op(u16::from(!a), k)),
        1 => simple.prop_map(|code| op(code, 0)),
        2 => (memory, 0u32..3).prop_map(|(code, k)| op(code, k)),
        3 => (alu, number()).prop_map(|(code, k)| op(code, k)),
        1 => (shift, 0u32..32).prop_map(|(code, k)| op(code, k)),
        1 => (hard, 1u32..9).prop_map(|(code, k)| op(code, k)),
        10 => (jumps, number(), 0u8..6, 0u8..6).prop_map(|(code, k, jt, jf)| branch(code, k, jt, jf)),
        1 => (0u32..6).prop_map(|k| op(0x05, k)),
        2 => answer().prop_map(ret),
        1 => Just(op(0x16, 0)),
    ]
}

/// A program that the kernel takes: every memory word it reads is written, jumps stay inside, the end returns.
fn program() -> impl Strategy<Value = Program> {
    (prop::collection::vec(instruction(), 1..24), answer()).prop_map(|(mut body, last)| {
        let len = body.len();
        for (at, i) in body.iter_mut().enumerate() {
            let room = (len - at - 1) as u32;
            if i.code & 7 == 5 {
                i.jt = i.jt.min(room as u8);
                i.jf = i.jf.min(room as u8);
                i.k = if i.code == 5 { i.k.min(room) } else { i.k };
            }
        }
        let mut all = vec![load(NR), op(0x02, 0), op(0x02, 1), load(low(0)), op(0x02, 2), load(NR)];
        all.extend(body);
        all.push(ret(last));
        all
    })
}

fn input() -> impl Strategy<Value = Input> {
    let word = || prop_oneof![4 => number().prop_map(u64::from), 1 => any::<u64>(), 1 => number().prop_map(|n| u64::from(n) << 32)];
    let arch = prop_oneof![3 => Just(X86_64), 2 => Just(I386), 1 => any::<u32>()];
    (number(), arch, word(), prop::array::uniform6(word())).prop_map(|(nr, arch, instruction_pointer, args)| Input {
        nr,
        arch,
        instruction_pointer,
        args,
    })
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(120))]

    #[test]
    fn the_solver_answers_as_the_interpreter_does(program in program(), inputs in prop::collection::vec(input(), 40)) {
        let mut d = Diagrams::new(40_000);
        prop_assert!(decode(&program).is_ok(), "{:?}", decode(&program));
        // What multiplies or divides two arguments may be given up; anything else may not be answered wrongly.
        if let Ok(analysis) = analyse(&mut d, &program) {
            for input in inputs {
                prop_assert_eq!(d.evaluate(analysis.answer, &input), run(&program, &input), "{:x?}", input);
            }
        }
    }

    #[test]
    fn tables_and_conditions_say_what_the_kernel_does(
        stack in prop::collection::vec(program(), 1..4),
        inputs in prop::collection::vec(input(), 30),
    ) {
        if let Ok(verdicts) = Cache::bounded(40_000).judge(&stack) {
            for input in inputs {
                let does = run_stack(&stack, &input);
                let Some(abi) = crate::seccomp::judge::abi_of(&input) else { continue };
                let says = answers(&verdicts, abi, input.nr);
                prop_assert!(says.contains(&does), "{says:?} {does:?}");
                if abi.name(input.nr).is_some() {
                    let call = verdicts.calls.iter().find(|call| (call.abi, call.number) == (abi, input.nr));
                    let told = call.map(|call| &call.when);
                    // A condition of more patterns than a person reads is told by an example.
                    if told.is_some_and(|when| when.iter().any(|w| w.contains("patterns") || w == crate::seccomp::conditions::MORE)) {
                        continue;
                    }
                    let passes = told.is_some_and(|when| when.is_empty() || when.iter().any(|w| holds(w, &input)));
                    prop_assert_eq!(passes, does.passes(), "{:?} {:x?}", told, input);
                }
            }
            // Each range is answered in all the ways that it says: tables do not only cover, they are exact.
            for table in &verdicts.tables {
                let total: u64 = table.ranges.iter().map(|range| u64::from(range.last - range.first) + 1).sum();
                let all = match table.abi { Abi::X86_64 => 3 << 30, Abi::X32 => 1 << 30, Abi::I386 => 1u64 << 32 };
                prop_assert_eq!(total, all);
            }
        }
    }

    #[test]
    fn an_instruction_that_an_input_reaches_is_not_called_unreachable(program in program(), inputs in prop::collection::vec(input(), 40)) {
        let mut d = Diagrams::new(40_000);
        if let Ok(analysis) = analyse(&mut d, &program) {
            // Instrumented: each instruction in turn returns a value that nothing else does.
            for (at, reached) in analysis.reached.iter().enumerate() {
                let mut marked = program.clone();
                marked[at] = ret(0x1234_5678);
                let met = inputs.iter().any(|input| run(&marked, input) == 0x1234_5678);
                prop_assert!(!met || *reached, "instruction {at}");
            }
        }
    }

    #[test]
    fn no_bytes_make_the_analyser_panic(bytes in prop::collection::vec(any::<[u8; 8]>(), 0..40), fit in any::<bool>()) {
        let text: String = bytes.iter().flatten().map(|byte| format!("{byte:02x}")).collect();
        let mut program = from_hex(&text).unwrap();
        if fit {
            // Opcodes that exist, with operands as they come.
            let codes = [0x20u16, 0x15, 0x06, 0x04, 0x2c, 0x3c, 0x54, 0x64, 0x02, 0x60, 0x05, 0x45, 0x16];
            for i in &mut program {
                i.code = codes[usize::from(i.code) % codes.len()];
                i.k %= 64;
                (i.jt, i.jf) = (i.jt % 4, i.jf % 4);
            }
            program.push(ret(ALLOW));
        }
        match Cache::bounded(40_000).judge(std::slice::from_ref(&program)) {
            Ok(verdicts) => { render(&verdicts); }
            Err(error) => { prop_assert!(!error.to_string().is_empty()); }
        }
        prop_assert_eq!(from_hex(&to_hex(&program)).unwrap(), program);
    }
}

proptest! {
    #![proptest_config(cases(80))]

    /// Two programs are one node exactly if no input tells them apart; and where there is a witness, it is one.
    #[test]
    fn a_witness_is_one(one in program(), at in any::<prop::sample::Index>(), other in instruction()) {
        let mut two = one.clone();
        let place = at.index(one.len());
        two[place] = other;
        prop_assume!(decode(&two).is_ok());
        let mut d = Diagrams::new(40_000);
        let (Ok(a), Ok(b)) = (analyse(&mut d, &one), analyse(&mut d, &two)) else { return Ok(()) };
        match d.differ(a.answer, b.answer, &Input::default()) {
            Some(input) => prop_assert_ne!(run(&one, &input), run(&two, &input)),
            None => prop_assert_eq!(a.answer, b.answer),
        }
    }
}

#[test]
fn true_and_false_are_the_numbers_one_and_zero() {
    let d = Diagrams::new(10);
    assert_eq!((d.number(FALSE), d.number(TRUE)), (Some(0), Some(1)));
}
