//! The kvm tier: tiny guests on the local /dev/kvm. Needs root and /dev/kvm; without them every test is skipped and
//! the reason is printed.
//!
//! Each module gives its trials through `tests()`.

mod audit_rules;
mod audit_seccomp;
mod chain;
mod cli;
mod confine;
mod confine_probe;
mod devices;
mod evidence;
mod hostile;
mod hostile_devices;
mod hostile_queues;
mod jailer;
mod jailer_control;
mod jailer_input;
mod jailer_kill;
mod jailer_weak;
mod matrix;
mod observe;
mod runner;
mod selftest;
mod vm_boot;
mod why;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if let Some(code) = confine::case() {
        return code;
    }
    if let Some(code) = observe::case().or_else(audit_seccomp::case) {
        return code;
    }
    let args = Arguments::from_args();
    let modules = [
        vm_boot::tests(),
        runner::tests(),
        devices::tests(),
        hostile_queues::tests(),
        hostile_devices::tests(),
        jailer::tests(),
        jailer_control::tests(),
        jailer_input::tests(),
        jailer_kill::tests(),
        jailer_weak::tests(),
        matrix::tests(),
        cli::tests(),
        chain::tests(),
        observe::tests(),
        evidence::tests(),
        selftest::tests(),
        why::tests(),
        audit_rules::tests(),
        audit_seccomp::tests(),
    ];
    let mut trials: Vec<Trial> = modules.into_iter().flatten().collect();
    if let Some(reason) = missing() {
        eprintln!("kvm tier skipped: {reason}");
        trials = trials.into_iter().map(|trial| trial.with_ignored_flag(true)).collect();
    }
    // These need root, not KVM.
    trials.extend(confine::tests());
    trials.extend(observe::specimens());
    trials.extend(chain::with_qemu());
    trials.extend(audit_seccomp::without_kvm());
    libtest_mimic::run(&args, trials).exit_code()
}

/// Why the tier cannot run here.
fn missing() -> Option<String> {
    match std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => None,
        Err(error) => Some(format!("cannot open /dev/kvm: {error}")),
    }
}
