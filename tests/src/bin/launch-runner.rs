//! A jail in miniature for the kvm tier: what a runner needs around it to attest, without leases, namespaces and
//! cgroups, so that tests of the runner need no jailer.
//!
//! `launch-runner RUNNER UID`, with the runner's descriptor table already at its numbers from 3 on. Landlock, coarse
//! filter, capabilities and uid as the jailer's child applies them, then exec.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::process::ExitCode;

use casemate_confine::seccomp::{self, Filter};
use casemate_confine::{capabilities, landlock, uid};
use casemate_sys::{exec, fds};

type AnyError = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match launch() {
        Err(error) => {
            eprintln!("launch-runner: {error}");
            ExitCode::FAILURE
        }
        Ok(never) => match never {},
    }
}

fn launch() -> Result<std::convert::Infallible, AnyError> {
    let count = (exec::FIRST_FD..).take_while(|number| fds::is_open(*number)).count();
    let table = exec::inherit(count)?;
    let mut args = std::env::args().skip(1);
    let program = std::fs::File::open(args.next().ok_or("which runner?")?)?;
    let id: u32 = args.next().ok_or("which uid?")?.parse()?;
    let _landlock = landlock::apply(landlock::probe(), program.as_fd())?;
    let _seccomp = seccomp::apply(Filter::JailerExec)?;
    capabilities::drop_bounding()?;
    uid::drop_groups()?;
    uid::set_gid(id)?;
    let _uid = uid::set_uid(id, id)?;
    let _capabilities = capabilities::drop_all()?;
    let argv = vec![CString::new("casemate-runner")?];
    let failed = exec::replace_process(exec::Image { program: program.into(), argv, env: Vec::new(), fds: table });
    Err(failed.error.into())
}
