//! `run`: one straight function from a specification to a finished VM.

mod record;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use casemate_evidence::parts::KEPT;
use casemate_label::{Attribute, Profile, VerifiedProc, mode};
use casemate_plan::{Action, BoundFd, HostConfig, Plan, Role, RolePlan, names, plan};
use casemate_spec::{PolicyChange, SandboxId, SandboxSpec};
use casemate_sys::process::{Child, CloneOptions, Cloned, clone3};
use casemate_sys::{fds, memfd, path, signal};
use casemate_wire::Channel;
use casemate_wire::jailer::Event;
use casemate_wire::record::{ExitCause, ExitReport, Phase};
use rustix::process::Signal;

use crate::child::{self, Bound};
use crate::clock::{ChildClock, Stopwatch};
use crate::error::StepFailed;
use crate::facts::Gathered;
use crate::policy_guard::PolicyGuard;
use crate::start::{self, Asked, Start};
use crate::store::{EXIT, RunDir, STATE, VSOCK};
use crate::warden::Warden;
use crate::{attest, facts, guest, input, past};

/// Runs a sandbox to its end. The client hears of every outcome through its socket.
pub fn run(config: &HostConfig) -> Result<(), StepFailed> {
    let watch = Stopwatch::start("jailer");
    let input = input::take()?;
    match started(config, &input.spec, input.client, watch) {
        Ok(()) => Ok(()),
        Err(NotStarted { client, failed, left, name }) => {
            if let Some(name) = name {
                past::told(RunDir::open(&config.run_dir, true).and_then(|run| past::failed(&run, &name, &failed)));
            }
            let mut failure = failed.failure(left);
            failure.console = None;
            if client.send(&Event::Failed(failure)).is_err() {
                return Err(StepFailed::because("tell the client of a failed start", "it went away"));
            }
            Ok(())
        }
    }
}

struct NotStarted {
    client: Channel,
    /// Of the sandbox, where it has come to one.
    name: Option<String>,
    failed: StepFailed,
    left: Vec<String>,
}

fn started(config: &HostConfig, spec: &[u8], client: Channel, mut watch: Stopwatch) -> Result<(), NotStarted> {
    let signals = match prepare_process() {
        Ok(signals) => signals,
        Err(failed) => return Err(NotStarted { client, name: None, failed, left: Vec::new() }),
    };
    watch.lap("prepare the jailer");
    let planned = input::spec(spec).and_then(|spec| {
        watch.lap("parse the specification");
        let Gathered { host, choice } = facts::gather(spec.selinux().profile)?;
        watch.lap("gather the facts of the host");
        let plan = plan(&spec, &host, config);
        plan.check().map_err(|e| StepFailed::because("plan", e.to_string()))?;
        watch.lap("plan");
        Ok((spec, plan, choice.profile, host))
    });
    let (parsed, plan, profile, facts) = match planned {
        Ok(planned) => planned,
        Err(failed) => return Err(NotStarted { client, name: None, failed, left: Vec::new() }),
    };
    let asked = Asked { bytes: spec.to_vec(), facts };
    let spec = parsed;
    let mut start = match reserve(config, &spec, &plan, profile, asked, watch) {
        Ok(start) => start,
        Err(failed) => {
            let name = spec.name().map(ToString::to_string);
            return Err(NotStarted { client, name, failed, left: Vec::new() });
        }
    };
    let name = Some(start.name.to_string());
    match launch(&spec, &plan, &mut start) {
        Ok((child, role)) => serve(&spec, &plan, role, start, child, client, signals),
        Err(failed) => Err(NotStarted { client, name, failed, left: start.undo(false) }),
    }
}

/// A session of its own (a terminal's Ctrl-C is the client's business), signals as events, nothing inherited by exec.
fn prepare_process() -> Result<OwnedFd, StepFailed> {
    const STAGE: &str = "prepare the jailer";
    // EPERM: we lead a session already.
    let _session = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    rustix::process::chdir("/").map_err(|e| StepFailed::stage(STAGE, std::io::Error::from(e)))?;
    clear_attributes()?;
    fds::cloexec_all().map_err(|e| StepFailed::stage(STAGE, e))?;
    signal::as_fd(&[Signal::TERM, Signal::INT, Signal::HUP]).map_err(|e| StepFailed::stage(STAGE, e))
}

/// An exec that changes no domain (an administrator's jailer, a host without the module) keeps its caller's attributes: a
/// label that somebody meant for something else.
fn clear_attributes() -> Result<(), StepFailed> {
    // Off, or not to be asked: told by the facts.
    if !matches!(casemate_label::selinuxfs::SelinuxFs::here(), Ok(Some(_))) {
        return Ok(());
    }
    let cleared = casemate_label::VerifiedProc::open_host().and_then(|proc| proc.clear_attributes());
    cleared.map_err(|e| StepFailed::stage("clear the label attributes of the caller", e))
}

fn reserve(
    config: &HostConfig,
    spec: &SandboxSpec,
    plan: &Plan,
    profile: Profile,
    asked: Asked,
    watch: Stopwatch,
) -> Result<Start, StepFailed> {
    let name = match spec.name() {
        Some(name) => name.clone(),
        None => made_up_name()?,
    };
    let first = plan.steps.first().filter(|step| matches!(step.action, Action::ReserveName { .. }));
    let first = first.ok_or_else(|| StepFailed::because("plan", "it does not begin with a name"))?;
    Start::reserve(config, name, first, profile, asked, watch)
}

fn made_up_name() -> Result<SandboxId, StepFailed> {
    const STAGE: &str = "make up a name";
    let mut bytes = [0u8; 5];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| StepFailed::stage(STAGE, std::io::Error::from(e)))?;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    SandboxId::parse(&format!("sb-{hex}")).map_err(|e| StepFailed::because(STAGE, e))
}

/// All the jailer's steps, then the clone. The child never returns from here.
fn launch(spec: &SandboxSpec, plan: &Plan, start: &mut Start) -> Result<(Child, RolePlan), StepFailed> {
    start.guest_config(guest::config(spec, start.name.as_str())?);
    for step in plan.steps_of(Role::Jailer).filter(|s| !matches!(s.action, Action::CloneRunner { .. })) {
        start.apply(step, plan)?;
        // The name was reserved, and timed, before there was a journal.
        if !matches!(step.action, Action::ReserveName { .. }) {
            start.watch.lap(&step.what);
        }
    }
    start.posture = start.judged_posture(spec, plan)?;
    let bound = bind(plan, start)?;
    start.watch.lap("bind descriptors and plan for the runner");
    let clone = plan.steps.iter().find(|s| matches!(s.action, Action::CloneRunner { .. }));
    let clone = clone.ok_or_else(|| StepFailed::because("plan", "it has no clone"))?;
    let Action::CloneRunner { namespaces, into_cgroup } = &clone.action else { unreachable!("found by this pattern") };
    let namespaces = casemate_confine::namespaces::flags(namespaces);
    let cgroup = start.cgroup.as_ref().filter(|_| *into_cgroup).and_then(|c| c.birthplace());
    match clone3(&CloneOptions { namespaces, cgroup }).map_err(|e| StepFailed::at(clone, e))? {
        Cloned::Child => child::run(plan, bound, start),
        // What the runner now holds is closed here with `bound`: its death frees images and their locks.
        Cloned::Parent(child) => {
            start.watch.lap(&clone.what);
            start.watch.become_role("warden");
            start.child_clock = Some(bound.clock);
            Ok((child, bound.role))
        }
    }
}

/// Puts every descriptor of the plan's table in order, and the sealed RolePlan at its head.
fn bind(plan: &Plan, start: &mut Start) -> Result<Bound, StepFailed> {
    const STAGE: &str = "bind the plan";
    let failed = |e: casemate_sys::Error| StepFailed::stage(STAGE, e);
    let uid = start.uid.ok_or_else(|| StepFailed::because(STAGE, "no uid is leased"))?;
    let mut bound = Vec::with_capacity(plan.fds.len());
    let mut table = Vec::with_capacity(plan.fds.len());
    // The plan names its own memfd, so that is made first and filled last.
    let memfd = memfd::create(names::PLAN).map_err(failed)?;
    start.to_own_level(&memfd)?;
    start.fds.insert(names::PLAN.into(), memfd);
    for slot in plan.fds.iter() {
        let fd = start.fds.remove(&slot.name);
        let fd = fd.ok_or_else(|| StepFailed::because(STAGE, format!("'{}' was not made", slot.name)))?;
        let path::Identity { dev, ino, .. } = path::identity(&fd).map_err(failed)?;
        table.push(fd);
        bound.push(BoundFd {
            number: slot.number,
            name: slot.name.clone(),
            kind: slot.kind,
            access: slot.access,
            dev,
            ino,
        });
    }
    let role = RolePlan {
        version: casemate_plan::role::VERSION,
        sandbox: start.name.to_string(),
        fds: bound,
        uid,
        gid: uid,
        label: start.label.as_ref().map(ToString::to_string),
        landlock_abi: plan.landlock_abi,
        seccomp: plan.seccomp,
        rlimits: plan.rlimits.clone(),
        vm: plan.vm.clone(),
    };
    let bytes = casemate_wire::codec::encode(&role).map_err(|e| StepFailed::stage(STAGE, e))?;
    let head = table.remove(0);
    table.insert(0, memfd::seal(names::PLAN, head, &bytes).map_err(failed)?);
    let clock = ChildClock::new().map_err(|e| StepFailed::stage(STAGE, e))?;
    Ok(Bound { role, table, program: child::runner_program()?, null: child::null_device()?, clock })
}

fn serve(
    spec: &SandboxSpec,
    plan: &Plan,
    role: RolePlan,
    mut start: Start,
    child: Child,
    client: Channel,
    signals: OwnedFd,
) -> Result<(), NotStarted> {
    let name = Some(start.name.to_string());
    let mut warden = match warden(spec, plan, role, &mut start, child, signals) {
        Ok(warden) => warden,
        Err((failed, child)) => {
            let left = end(&child, start);
            return Err(NotStarted { client, name, failed, left });
        }
    };
    warden.client = Some(client);
    if let Err(failed) = narrow(plan, &mut warden.watch).and_then(|()| warden.prove()) {
        let client = warden.client.take();
        let console = start.dir.console_tail(2048);
        let profile = start.relabeler.profile().clone();
        let left = end(&warden.child, start);
        let Some(client) = client else { return Ok(()) };
        let why = explained(plan, &failed, &profile);
        let failed = StepFailed { error: with_console(failed.error + &why, console), ..failed };
        return Err(NotStarted { client, name, failed, left });
    }
    warden.watch.append(start.child_clock.take().map(|clock| clock.read(plan)).unwrap_or_default());
    let started = Event::Started(Box::new(warden.record.clone()));
    tell(&warden, &started);
    finish(warden, start);
    Ok(())
}

/// The warden's own step before it listens to a runner: its filter, and the filter's word that it is the live one.
fn narrow(plan: &Plan, watch: &mut Stopwatch) -> Result<(), StepFailed> {
    for step in plan.steps_of(Role::Warden).filter(|step| step.action == Action::NarrowWarden) {
        let token = casemate_confine::seccomp::apply(casemate_confine::seccomp::Filter::Warden);
        token.map(drop).map_err(|e| StepFailed::at(step, e))?;
        watch.lap(&step.what);
    }
    Ok(())
}

/// What SELinux has against the exec that failed: the kernel says EACCES or EPERM whatever the reason.
fn explained(plan: &Plan, failed: &StepFailed, profile: &Profile) -> String {
    let exec = plan.steps.iter().find(|step| step.action == Action::ExecRunner);
    if !plan.selinux || exec.is_none_or(|step| step.what != failed.step) {
        return String::new();
    }
    let mut facts = mode::probe_profile(profile);
    match child::runner_program() {
        Ok(program) => mode::foresee(&mut facts, profile, program.as_fd()),
        Err(missing) => return format!("; {missing}"),
    }
    let told: Vec<String> = facts.transition.iter().map(ToString::to_string).collect();
    match told.is_empty() {
        true => "; the loaded policy has nothing against it now: see `ausearch -m avc -ts recent`, and the file's mode"
            .into(),
        false => format!("; {}", told.join("; ")),
    }
}

fn with_console(error: String, console: Option<String>) -> String {
    console.map_or(error.clone(), |tail| format!("{error}\nconsole:\n{tail}"))
}

/// Kills a runner that never got to run a guest, reaps it, takes everything back.
fn end(child: &Child, start: Start) -> Vec<String> {
    let mut left = Vec::new();
    left.extend(child.kill().err().map(|e| e.report()));
    // It may be reaped already, when its death was the failure.
    let _reaped = child.wait();
    left.extend(start.undo(false));
    left
}

fn warden(
    spec: &SandboxSpec,
    plan: &Plan,
    role: RolePlan,
    start: &mut Start,
    child: Child,
    signals: OwnedFd,
) -> Result<Warden, (StepFailed, Child)> {
    let made = (|| {
        let record = record::record(spec, plan, &role, start, &child)?;
        start.dir.write_record(STATE, &record)?;
        start.watch.lap("write the sandbox's record");
        start.dir.write_record(KEPT, &record::kept(plan, &role, start)?)?;
        start.watch.lap("keep specification and plan for evidence");
        let attest = attest::outside(plan, role, start, child.pid())?;
        let policy = match &start.label {
            Some(label) => PolicyGuard::open(start.relabeler.profile(), label)?,
            None => None,
        };
        let agent = agent(spec, plan, start)?;
        let (runner, control) = start
            .runner
            .take()
            .zip(start.control.take())
            .ok_or_else(|| StepFailed::because("prepare the warden", "its sockets were not made"))?;
        start.watch.lap("prepare the warden");
        let watch = std::mem::replace(&mut start.watch, Stopwatch::start("warden"));
        Ok((record, (attest, policy, agent), runner, control, start.dir.try_clone()?, watch))
    })();
    match made {
        Ok((record, (attest, policy, agent), runner, control, dir, watch)) => Ok(Warden {
            dir,
            record,
            child,
            runner,
            client: None,
            control,
            attest,
            policy,
            agent,
            boot_timeout: plan.vm.agent.then(|| Duration::from_millis(plan.vm.boot_timeout_ms)),
            timeout: spec.timeout(),
            signals,
            waiting: Vec::new(),
            watch,
            timed: false,
        }),
        Err(failed) => Err((failed, child)),
    }
}

/// Where a changed policy is to end the sandbox, the guest's agent will be asked to: the connection is made now, since a
/// narrowed warden makes none. It waits in the runner until then. What the runner accepts has its own type and our level,
/// so that is the sandbox's alone: MCS would keep the runner from any other.
fn agent(spec: &SandboxSpec, plan: &Plan, start: &Start) -> Result<Option<UnixStream>, StepFailed> {
    if spec.selinux().on_policy_change != PolicyChange::Stop || start.label.is_none() || !plan.vm.agent {
        return Ok(None);
    }
    const STEP: &str = "connect to the guest's socket";
    let own = VerifiedProc::open_host().and_then(|proc| proc.own_label()).map_err(|e| StepFailed::stage(STEP, e))?;
    let label = start.level.map(|level| own.with_level(level));
    start::with_label(Attribute::Socket, label.as_ref(), || {
        let path = start.dir.path().join(VSOCK);
        // Non-blocking from here on: a narrowed warden has no ioctl, and must never wait for a guest.
        let made = UnixStream::connect(path).and_then(|agent| agent.set_nonblocking(true).map(|()| agent));
        made.map(Some).map_err(|e| StepFailed::stage(STEP, e))
    })
}

/// A client that is gone is no failure here: the loop sees the hang-up and decides by whether the sandbox is detached.
fn tell(warden: &Warden, event: &Event) {
    if let Some(client) = &warden.client {
        let _gone = client.send(event);
    }
}

/// Serves to the end, gives the host back, leaves the record.
fn finish(mut warden: Warden, mut start: Start) {
    let report = warden.serve().unwrap_or_else(|failed| {
        let _killed = warden.child.kill();
        let _reaped = warden.child.wait();
        let detail = Some(failed.to_string());
        ExitReport { cause: ExitCause::InternalError, status: None, detail }
    });
    warden.watch.lap("serve until the runner is reaped");
    let left = start.finish();
    warden.watch.lap("give the host back");
    warden.record.timings = warden.watch.laps();
    warden.record.phase = Phase::Stopped;
    warden.record.exit = Some(report.clone());
    warden.record.labels = start.labels_now();
    warden.record.warnings.extend(left.iter().map(|what| format!("not undone, see `casemate repair`: {what}")));
    let written = warden.dir.write_record(EXIT, &warden.record).and_then(|()| {
        let kept = [EXIT, KEPT, casemate_label::journal::JOURNAL];
        let logs = names::CONSOLE_LOG.into_iter().chain(names::OUTPUT_LOG);
        let keep: Vec<&str> = kept
            .into_iter()
            .filter(|k| *k != casemate_label::journal::JOURNAL || !left.is_empty())
            .chain(logs)
            .collect();
        warden.dir.empty(&keep)
    });
    if let Err(failed) = written {
        eprintln!("casemate-jailer: {failed}");
    }
    warden.answer_waiting(&report);
    tell(&warden, &Event::Exited(report));
}
