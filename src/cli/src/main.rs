//! `casemate`: the command line. It holds no privilege of its own; `casemate-jailer` does what needs one.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    casemate_cli::main()
}
