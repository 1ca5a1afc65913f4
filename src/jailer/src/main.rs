//! `casemate-jailer`: the only role with root rights. It takes a *spec* from its caller, never a plan, and
//! becomes the warden of the VM it started. `casemate-jailer --help` lists the verbs.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    casemate_jailer::main()
}
