//! The testbed tier: a Debian host with SELinux enforcing and KVM, emulated (testbed/README.md). Needs root for
//! building it once; where it cannot be had, every test is skipped and the reason is printed.
//!
//! Each module gives its trials through `tests()`.

mod alloc;
mod audit;
mod audit_live;
mod chains;
mod cli;
mod crash;
mod evidence;
mod l1;
mod label;
mod main_job;
mod matrix;
mod modes;
mod neighbours;
mod objects;
mod policy;
mod profiles;
mod why;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    // one L1, two emulated CPUs: tests in parallel only disturb each other
    args.test_threads = Some(1);
    let mut trials: Vec<Trial> = [
        label::tests(),
        alloc::tests(),
        audit::tests(),
        audit_live::tests(),
        cli::tests(),
        chains::tests(),
        main_job::tests(),
        modes::tests(),
        crash::tests(),
        evidence::tests(),
        matrix::tests(),
        profiles::tests(),
        neighbours::tests(),
        objects::tests(),
        policy::tests(),
        why::tests(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let wanted = |t: &Trial| args.filter.as_ref().is_none_or(|f| t.name().contains(f.as_str()));
    if !args.list
        && trials.iter().any(wanted)
        && let Err(reason) = l1::up()
    {
        eprintln!("testbed tier skipped: {reason}");
        trials = trials.into_iter().map(|trial| trial.with_ignored_flag(true)).collect();
    }
    let conclusion = libtest_mimic::run(&args, trials);
    l1::down();
    conclusion.exit_code()
}
