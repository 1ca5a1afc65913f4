//! casemate-runner: one VM, everything inherited, nothing opened.
fn main() -> std::process::ExitCode {
    casemate_runner::run()
}
