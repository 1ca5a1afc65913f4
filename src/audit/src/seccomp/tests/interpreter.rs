//! Classic BPF on one input, after the kernel's documentation (networking/filter.rst): independent of the solver.

use super::*;

fn word(input: &Input, offset: u32) -> u32 {
    let mut data = [0u8; 64];
    data[0..4].copy_from_slice(&input.nr.to_le_bytes());
    data[4..8].copy_from_slice(&input.arch.to_le_bytes());
    data[8..16].copy_from_slice(&input.instruction_pointer.to_le_bytes());
    for (index, arg) in input.args.iter().enumerate() {
        data[16 + 8 * index..24 + 8 * index].copy_from_slice(&arg.to_le_bytes());
    }
    let at = offset as usize;
    u32::from_le_bytes(data[at..at + 4].try_into().unwrap())
}

/// The return value; the program must be one that the kernel takes.
pub fn run(program: &[Instruction], input: &Input) -> u32 {
    let (mut a, mut x, mut memory, mut pc) = (0u32, 0u32, [0u32; 16], 0usize);
    loop {
        let i = program[pc];
        pc += 1;
        let right = if i.code & 8 == 0 { i.k } else { x };
        let mut jump = |yes: bool| pc += usize::from(if yes { i.jt } else { i.jf });
        match i.code {
            0x20 => a = word(input, i.k),
            0x80 => a = 64,
            0x81 => x = 64,
            0x00 => a = i.k,
            0x01 => x = i.k,
            0x60 => a = memory[i.k as usize],
            0x61 => x = memory[i.k as usize],
            0x02 => memory[i.k as usize] = a,
            0x03 => memory[i.k as usize] = x,
            0x04 | 0x0c => a = a.wrapping_add(right),
            0x14 | 0x1c => a = a.wrapping_sub(right),
            0x24 | 0x2c => a = a.wrapping_mul(right),
            0x34 | 0x3c if right == 0 => return 0,
            0x34 | 0x3c => a /= right,
            0x44 | 0x4c => a |= right,
            0x54 | 0x5c => a &= right,
            0x64 | 0x6c => a <<= right & 31,
            0x74 | 0x7c => a >>= right & 31,
            0x84 => a = a.wrapping_neg(),
            0xa4 | 0xac => a ^= right,
            0x07 => x = a,
            0x87 => a = x,
            0x05 => pc += i.k as usize,
            0x15 | 0x1d => jump(a == right),
            0x25 | 0x2d => jump(a > right),
            0x35 | 0x3d => jump(a >= right),
            0x45 | 0x4d => jump(a & right != 0),
            0x06 => return i.k,
            0x16 => return a,
            other => panic!("opcode {other:#x}"),
        }
    }
}

/// What the kernel does under a stack of filters, newest first (seccomp_run_filters).
pub fn run_stack(stack: &[Program], input: &Input) -> Action {
    let mut answer = ALLOW;
    for program in stack {
        let this = run(program, input);
        let rank = |value: u32| (value & 0xffff_0000) as i32;
        if rank(this) < rank(answer) {
            answer = this;
        }
    }
    Action::of(answer)
}

/// Does an alternative of [`Call::when`] hold? Knows the text only.
pub fn holds(alternative: &str, input: &Input) -> bool {
    alternative.split(" && ").all(|comparison| {
        // What values mean stands in parentheses.
        let parts = comparison.split(" (").enumerate();
        let bare = parts.map(|(at, part)| if at == 0 { part } else { part.split_once(')').unwrap().1 });
        let comparison = bare.collect::<String>();
        let words: Vec<&str> = comparison.split(' ').collect();
        let number = |text: &str| u64::from_str_radix(text.strip_prefix("0x").unwrap(), 16).unwrap();
        let value = |text: &str| {
            let (name, mask) = match text.strip_prefix("u32(") {
                Some(rest) => (rest.strip_suffix(')').unwrap(), u64::from(u32::MAX)),
                None => (text, u64::MAX),
            };
            let field = match name.strip_prefix("arg") {
                Some(index) => input.args[index.parse::<usize>().unwrap()],
                None if name == "instruction_pointer" => input.instruction_pointer,
                None => panic!("{comparison}"),
            };
            field & mask
        };
        match words[..] {
            [what, "==", is] => value(what) == number(is),
            [what, "!=", is] => value(what) != number(is),
            [what, "<=", is] => value(what) <= number(is),
            [what, ">=", is] => value(what) >= number(is),
            [what, "&", mask, "==", is] => value(what) & number(mask) == number(is),
            [what, "&", mask, "!=", is] => value(what) & number(mask) != number(is),
            [what, "in", ..] => {
                let set = comparison.split_once('{').unwrap().1.strip_suffix('}').unwrap();
                set.split(", ").any(|is| value(what) == number(is))
            }
            [least, "<=", what, "<=", most] => (number(least)..=number(most)).contains(&value(what)),
            _ => panic!("{comparison}"),
        }
    })
}
