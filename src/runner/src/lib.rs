//! The runner: one VM in one process that owns no privilege.
//!
//! Purpose: brings `vm`, `devices` and `storage` together, confined by `confine`, under the warden's command.
//! Trust: this is the process the guest attacks. It holds no capability, an own uid, an empty root; every file,
//! socket and /dev/kvm is an inherited, named descriptor; once narrowed it can open nothing more.
//! Called by: the jailer's child, by `execveat`, with descriptors from 3 on and nothing else.
//!
//! ```text
//! thread   does                                              filter
//! main     talks to the warden, keeps time, ends the VM      runner.main
//! io       all device work: disks, vsock, console, logs      runner.io
//! vcpuN    runs the guest, registers only                    runner.vcpu
//! ```
//! [`run`] is the whole story in its order; each step is a file of this crate.
#![forbid(unsafe_code)]

mod attest;
mod control;
mod disks;
mod error;
mod exits;
mod initrd_tail;
mod input;
mod io;
mod machine;
mod mailbox;
mod reports;
mod restart;
mod serial_tap;
mod stages;
mod threads;

use std::process::ExitCode;

use casemate_plan::RolePlan;
use casemate_wire::record::Finding;

pub use error::Error;
use input::Table;
use stages::Stages;
use threads::Threads;

/// The runner, from first to last instruction. The exit code tells only whether the warden was told the rest.
pub fn run() -> ExitCode {
    let mut stages = Stages::start();
    let (plan, inherited) = match input::take() {
        Ok(taken) => taken,
        Err(error) => return give_up(&error),
    };
    stages.lap("take plan and descriptors");
    let narrowed = attest::narrow(&plan, &inherited);
    stages.lap("narrow and attest from inside");
    let (mut fds, warden) = match input::name(&plan, inherited) {
        Ok(named) => named,
        Err(error) => return give_up(&error),
    };
    match narrowed.and_then(|findings| start(&plan, &mut fds, findings, &mut stages)) {
        Ok((threads, findings)) => control::serve(&plan, &warden, threads, findings, stages),
        Err(error) => control::report_failure(&warden, &error),
    }
}

/// The machine with its threads, all confined, none running yet.
fn start(
    plan: &RolePlan,
    fds: &mut Table,
    mut findings: Vec<Finding>,
    stages: &mut Stages,
) -> Result<(Threads, Vec<Finding>), Error> {
    let machine = machine::build(plan, fds, stages)?;
    let mut threads = threads::start(plan, machine)?;
    stages.lap("start the threads, a filter each");
    findings.append(&mut threads.findings);
    findings.extend(attest::confine_main(plan)?);
    stages.lap("confine the main thread");
    Ok((threads, findings))
}

/// Without a plan there is no warden to tell.
fn give_up(error: &Error) -> ExitCode {
    eprintln!("casemate-runner: {error}");
    ExitCode::FAILURE
}
