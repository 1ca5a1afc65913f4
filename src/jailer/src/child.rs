//! The child's steps, between clone3 and exec: it walks the plan's list and becomes the runner.
//! A failure is told to the warden through the runner's own socket; nothing of the host is changed here.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use casemate_label::VerifiedProc;
use casemate_plan::{Action, Plan, Role, RolePlan, Step};
use casemate_sys::exec::{Image, replace_process};
use casemate_sys::path::{self, OFlags};
use casemate_sys::process::exit_now;
use casemate_sys::procfs::Proc;
use casemate_sys::{fds, signal};
use casemate_wire::Channel;
use casemate_wire::runner::FromRunner;
use rustix::fs::FileType;

use crate::clock::ChildClock;
use crate::error::StepFailed;
use crate::start::Start;

/// What the child carries into its exec.
pub struct Bound {
    pub role: RolePlan,
    /// In the order of the descriptor table.
    pub table: Vec<OwnedFd>,
    pub program: OwnedFd,
    /// /dev/null for 0, 1 and 2: one read-only, one write-only.
    pub null: [OwnedFd; 2],
    pub clock: ChildClock,
}

/// Opens a program of ours, beside the jailer or in /usr/libexec/casemate: root's file that nobody else can write.
pub fn program(name: &str) -> Result<OwnedFd, StepFailed> {
    let step = format!("open {name}");
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    let dirs = beside.into_iter().chain([PathBuf::from("/usr/libexec/casemate")]);
    for dir in dirs {
        let fd = match path::open_no_symlinks(&dir.join(name), OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(fd) => fd,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(StepFailed::stage(&step, error)),
        };
        let is = path::identity(&fd).map_err(|e| StepFailed::stage(&step, e))?;
        if is.kind != FileType::RegularFile || is.uid != 0 || is.mode & 0o022 != 0 {
            let why = format!("{} must be a file of root's that only root can write", dir.join(name).display());
            return Err(StepFailed::because(&step, why));
        }
        return Ok(fd);
    }
    Err(StepFailed::because(&step, "it is neither beside the jailer nor in /usr/libexec/casemate; install it"))
}

pub fn runner_program() -> Result<OwnedFd, StepFailed> {
    program("casemate-runner")
}

/// /dev/null, opened for reading and for writing, checked to be the null device.
pub fn null_device() -> Result<[OwnedFd; 2], StepFailed> {
    let open = |flags| {
        let fd = path::open_no_symlinks(Path::new("/dev/null"), flags)
            .map_err(|e| StepFailed::stage("open /dev/null", e))?;
        let is = path::identity(&fd).map_err(|e| StepFailed::stage("open /dev/null", e))?;
        if is.kind == FileType::CharacterDevice && is.rdev == rustix::fs::makedev(1, 3) {
            return Ok(fd);
        }
        Err(StepFailed::because("open /dev/null", "it is not the null device"))
    };
    Ok([open(OFlags::RDONLY)?, open(OFlags::WRONLY)?])
}

/// Takes the child's steps. Ends in the runner, or in a report and an exit.
pub fn run(plan: &Plan, bound: Bound, start: &mut Start) -> ! {
    // The warden's end is the parent's; held here it would hide the parent's death from the runner.
    start.runner = None;
    start.control = None;
    let (failed, table) = match steps(plan, &bound, start) {
        Ok(last) => exec(last, bound),
        Err(failed) => (failed, bound.table),
    };
    let message = FromRunner::Failed { step: failed.step, error: failed.error };
    let warden = table.into_iter().nth(1).map(Channel::new);
    let told = warden.is_some_and(|channel| channel.send(&message).is_ok());
    exit_now(if told { 1 } else { 2 })
}

/// All steps but the exec, which it returns.
fn steps<'a>(plan: &'a Plan, bound: &Bound, start: &Start) -> Result<&'a Step, StepFailed> {
    let mut watch = start.watch.split("child");
    watch.lap("born");
    for step in plan.steps_of(Role::Child) {
        if step.action == Action::ExecRunner {
            bound.clock.tell(&watch);
            return Ok(step);
        }
        apply(step, bound, start)?;
        watch.lap("");
    }
    Err(StepFailed::because("plan", "it has no exec"))
}

fn apply(step: &Step, bound: &Bound, start: &Start) -> Result<(), StepFailed> {
    use casemate_confine::{capabilities, landlock, mounts, rlimits, seccomp, uid};
    let token = match &step.action {
        Action::JoinCgroup => {
            let cgroup = start.cgroup.as_ref().ok_or_else(|| StepFailed::at_because(step, "it was not made"))?;
            let proc = Proc::host().map_err(|e| StepFailed::at(step, e))?;
            cgroup.join(&proc)
        }
        Action::EmptyRoot => mounts::apply(),
        Action::SetRlimits { limits } => rlimits::apply(limits),
        Action::SetExecLabel => return set_exec_label(step, start),
        Action::RestrictLandlock { abi } => landlock::apply(*abi, bound.program.as_fd()),
        Action::InstallExecFilter => seccomp::apply(seccomp::Filter::JailerExec),
        Action::DropBoundingSet => return capabilities::drop_bounding().map_err(|e| StepFailed::at(step, e)),
        Action::DropGroups => return uid::drop_groups().map_err(|e| StepFailed::at(step, e)),
        Action::SetGid => return uid::set_gid(bound.role.gid).map_err(|e| StepFailed::at(step, e)),
        Action::SetUid => uid::set_uid(bound.role.uid, bound.role.gid),
        Action::DropCapabilities => capabilities::drop_all(),
        Action::ArrangeFds => return arrange_stdio(step, bound),
        _ => return Err(StepFailed::at_because(step, "this is not a step of the child's")),
    };
    // The token says that the layer was read back; both attestations look again after the exec.
    token.map(drop).map_err(|e| StepFailed::at(step, e))
}

/// The transition of the exec that follows, through a procfs of our own that nobody can have mounted over.
fn set_exec_label(step: &Step, start: &Start) -> Result<(), StepFailed> {
    let label = start.label.as_ref().ok_or_else(|| StepFailed::at_because(step, "no label was made"))?;
    VerifiedProc::mount_private().and_then(|proc| proc.set_exec_label(label)).map_err(|e| StepFailed::at(step, e))
}

/// 0, 1 and 2 are the null device; the rest of the table is placed by the exec itself.
fn arrange_stdio(step: &Step, bound: &Bound) -> Result<(), StepFailed> {
    for (number, null) in [(0, &bound.null[0]), (1, &bound.null[1]), (2, &bound.null[1])] {
        fds::redirect_stdio(null, number).map_err(|e| StepFailed::at(step, e))?;
    }
    signal::reset_for_exec().map_err(|e| StepFailed::at(step, e))
}

/// Returns only on failure: why, and the table at its new numbers, all else closed.
fn exec(step: &Step, bound: Bound) -> (StepFailed, Vec<OwnedFd>) {
    let Bound { table, program, null, clock, .. } = bound;
    drop(clock);
    // 0 to 2 are copies of them; the exec closes these numbers, so nothing may own them then.
    let [read, write] = null;
    fds::leak(read);
    fds::leak(write);
    let argv = vec![CString::from(c"casemate-runner")];
    let failed = replace_process(Image { program, argv, env: Vec::new(), fds: table });
    (StepFailed::at(step, failed.error), failed.fds)
}
