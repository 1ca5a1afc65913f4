//! casemate-runner: one VM, everything inherited, nothing opened.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    casemate_runner::run()
}
