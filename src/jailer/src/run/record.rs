//! What is written down of a sandbox when it starts: its record, and what evidence of it is made from.

use casemate_evidence::parts::{self, Kept, Planned};
use casemate_plan::{BoundFd, FdAccess, Layer, Plan, RolePlan};
use casemate_spec::{Posture, SandboxSpec};
use casemate_sys::process::Child;
use casemate_sys::procfs;
use casemate_wire::record::{self, Phase, ProcessName, SandboxRecord};

use crate::clock;
use crate::error::StepFailed;
use crate::start::Start;

/// The sandbox as it starts; its runner stands in the journal from here on.
pub(super) fn record(
    spec: &SandboxSpec,
    plan: &Plan,
    role: &RolePlan,
    start: &mut Start,
    child: &Child,
) -> Result<SandboxRecord, StepFailed> {
    const STAGE: &str = "write the sandbox's record";
    let failed = |e: casemate_sys::Error| StepFailed::stage(STAGE, e);
    let proc = procfs::Proc::host().map_err(failed)?;
    let name = |pid: i32| -> Result<ProcessName, StepFailed> {
        let is = proc.start_of(pid).map_err(failed)?;
        Ok(ProcessName { pid: is.pid as u32, start_time: is.ticks })
    };
    let runner = name(child.pid())?;
    start.note_process("runner", runner)?;
    let mut warnings: Vec<String> = plan.warnings.iter().map(|w| w.text.clone()).collect();
    warnings.append(&mut start.warnings);
    Ok(SandboxRecord {
        version: record::VERSION,
        name: start.name.to_string(),
        phase: Phase::Starting,
        posture: start.posture,
        allow_reduced: spec.allow_reduced().filter(|_| start.posture == Posture::Reduced).map(String::from),
        warnings,
        created: clock::now(),
        boot_id: start.journal.owner().boot.clone(),
        command: spec.file().command.clone(),
        detached: spec.detached(),
        cpus: plan.vm.cpus,
        memory: plan.vm.memory,
        warden: name(casemate_sys::process::own_pid())?,
        runner: Some(runner),
        uid: start.uid.unwrap_or_default(),
        categories: start.level.map(|level| level.categories.to_string()),
        label: start.label.as_ref().map(ToString::to_string),
        profile: plan.family.as_ref().filter(|_| start.label.is_some()).map(|family| family.name.clone()),
        labels: start.labels.clone(),
        selinux: start.label.as_ref().map(|_| policy_state(spec, plan, start.posture)),
        findings: Vec::new(),
        cgroups: start
            .cgroup
            .as_ref()
            .map(|c| c.paths().iter().map(|p| p.display().to_string()).collect())
            .unwrap_or_default(),
        landlock_abi: plan.landlock_abi,
        descriptors: role.fds.iter().map(descriptor).collect(),
        rlimits: plan.rlimits.iter().map(|limit| (limit.name.clone(), limit.value)).collect(),
        timings: Vec::new(),
        exit: None,
    })
}

/// What evidence of this sandbox is made from, later.
pub(super) fn kept(plan: &Plan, role: &RolePlan, start: &Start) -> Result<Kept, StepFailed> {
    let spec = String::from_utf8(start.asked.bytes.clone());
    Ok(Kept {
        version: parts::VERSION,
        spec: spec.map_err(|e| StepFailed::stage("keep the specification", e))?,
        planned: Planned {
            facts: start.asked.facts.clone(),
            config: start.config.clone(),
            plan: plan.clone(),
            role: role.clone(),
        },
    })
}

fn descriptor(fd: &BoundFd) -> record::Descriptor {
    record::Descriptor {
        number: fd.number,
        name: fd.name.clone(),
        read: fd.access != FdAccess::WriteOnly,
        write: fd.access != FdAccess::ReadOnly,
        dev: fd.dev,
        ino: fd.ino,
    }
}

/// As the facts were that the plan was made from; asked once more before Go.
fn policy_state(spec: &SandboxSpec, plan: &Plan, posture: Posture) -> record::PolicyState {
    let separates = !plan.warnings.iter().any(|w| w.missing && w.layer == Layer::Selinux);
    record::PolicyState {
        posture_at_start: posture,
        separated_at_start: separates,
        separates,
        why: Vec::new(),
        since: clock::now(),
        seqno_at_start: 0,
        seqno: 0,
        changes: 0,
        on_change: spec.selinux().on_policy_change,
        held: false,
        accepted: None,
        history: Vec::new(),
    }
}
