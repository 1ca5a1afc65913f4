//! casemate-probe: the attacker's stand-in. See the library.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    casemate_probe::main()
}
