//! A kernel that says yes and does nothing: `pretend NUMBER[,NUMBER] PROGRAM ARG...` executes the program under a filter that
//! answers these system calls with success without making them. How a layer is weak that "was applied" (tests/kvm/selftest.rs).

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use casemate_sys::seccomp::{Instruction, RET_ALLOW, RET_ERRNO, install};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let numbers = args.next().and_then(|text| text.into_string().ok()).unwrap_or_default();
    let numbers: Result<Vec<u32>, _> = numbers.split(',').map(str::parse).collect();
    let (Ok(numbers), Some(program)) = (numbers, args.next()) else {
        eprintln!("pretend NUMBER[,NUMBER] PROGRAM ARG...");
        return ExitCode::from(2);
    };
    // As root, which needs no no_new_privs for it: a jailer that found that set would behave otherwise.
    if let Err(error) = install(&filter(&numbers)) {
        eprintln!("pretend: {}", error.report());
        return ExitCode::FAILURE;
    }
    eprintln!("pretend: {}", Command::new(program).args(args).exec());
    ExitCode::FAILURE
}

/// Load the number; for each that is pretended, return "error 0"; else allow.
fn filter(numbers: &[u32]) -> Vec<Instruction> {
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let step = |code, jt, jf, k| Instruction { code, jt, jf, k };
    let mut program = vec![step(LOAD, 0, 0, 0)];
    for number in numbers {
        program.push(step(JUMP_IF_EQUAL, 0, 1, *number));
        program.push(step(RETURN, 0, 0, RET_ERRNO));
    }
    program.push(step(RETURN, 0, 0, RET_ALLOW));
    program
}
