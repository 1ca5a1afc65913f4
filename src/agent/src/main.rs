//! `casemate-agent`: init of the guest, or (with `--exec-helper`) the last step before a workload.
#![forbid(unsafe_code)]

fn main() {
    let helper = std::env::args_os().nth(1).is_some_and(|arg| arg == casemate_agent::helper::ARGUMENT);
    if helper {
        casemate_agent::helper::main();
    }
    if rustix::process::getpid().is_init() {
        casemate_agent::init::main();
    }
    eprintln!("casemate-agent is the init program of a Casemate guest and does nothing elsewhere");
    std::process::exit(2);
}
