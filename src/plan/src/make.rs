//! [`plan`]: from what was asked and what the host has, to the ordered steps.
//!
//! The order is the security argument; `order_tests` holds the facts that bite:
//! leases and labels before privileges go; namespaces, then mounts and pivot_root, before Landlock (a landlocked
//! task may not mount); the exec label before Landlock (which would refuse the write to procfs); Landlock and the
//! coarse filter while CAP_SYS_ADMIN is held and without NNP (NNP would make the SELinux transition fail at exec);
//! bounding set, groups, gid, uid, capabilities in that order; descriptors last; then the runner narrows again.

use casemate_spec::{Boot, Posture, RebootPolicy, SandboxSpec};
use serde::{Deserialize, Serialize};

use crate::config::HostConfig;
use crate::facts::{HostFacts, KvmFacts, SelinuxFamily, SelinuxMode};
use crate::fds::FdTable;
use crate::images;
use crate::posture::{self, Warning};
use crate::role::VmPlan;
use crate::step::{Rlimit, Role, Step};
use crate::steps::Maker;

/// What our guests' kernels are told before the user's part: serial console, no probing of what does not exist,
/// and a panic that ends the VM at once.
const BASE_CMDLINE: &str =
    "console=ttyS0 panic=-1 reboot=k pci=off i8042.noaux i8042.nomux i8042.dumbkbd tsc=reliable quiet";

/// The whole start of one sandbox, as data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Name of the sandbox; `None` where the jailer is to make one up.
    pub sandbox: Option<String>,
    pub posture: Posture,
    /// Why the start would be refused; empty for a plan that can be applied.
    pub blockers: Vec<String>,
    pub warnings: Vec<Warning>,
    pub steps: Vec<Step>,
    pub fds: FdTable,
    pub vm: VmPlan,
    pub landlock_abi: u32,
    pub seccomp: bool,
    pub selinux: bool,
    /// Whose SELinux types; `None` where the host has no SELinux.
    pub family: Option<SelinuxFamily>,
    pub rlimits: Vec<Rlimit>,
}

/// Why a plan cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this sandbox cannot start here: {}", .0.join("; "))]
pub struct PlanError(pub Vec<String>);

impl Plan {
    /// `Err` with every blocker, if there is one.
    pub fn check(&self) -> Result<(), PlanError> {
        if self.blockers.is_empty() { Ok(()) } else { Err(PlanError(self.blockers.clone())) }
    }

    /// The steps that a role takes, in order.
    pub fn steps_of(&self, role: Role) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(move |step| step.role == role)
    }
}

/// Plans. Never fails: what stands in the way is in [`Plan::blockers`], so that it can be printed with the rest.
pub fn plan(spec: &SandboxSpec, facts: &HostFacts, config: &HostConfig) -> Plan {
    let mut warnings = posture::warnings(facts, config);
    warnings.extend(posture::shared_level(spec, facts));
    let posture = posture::posture(facts, &warnings);
    let maker = Maker::new(spec, facts, config);
    let vm = vm(spec);
    let rlimits = rlimits(spec);
    let (steps, fds) = maker.make(&rlimits);
    Plan {
        sandbox: spec.name().map(|n| n.to_string()),
        posture,
        blockers: blockers(spec, facts, posture, &warnings),
        warnings,
        steps,
        fds,
        vm,
        landlock_abi: facts.landlock_abi,
        seccomp: facts.seccomp,
        selinux: uses_selinux(facts),
        family: facts.selinux.family.clone(),
        rlimits,
    }
}

/// Labels are set wherever the policy knows our types, also under a permissive SELinux.
pub(crate) fn uses_selinux(facts: &HostFacts) -> bool {
    facts.selinux.mode != SelinuxMode::Disabled && facts.selinux.module
}

fn blockers(spec: &SandboxSpec, facts: &HostFacts, posture: Posture, warnings: &[Warning]) -> Vec<String> {
    let mut blockers = Vec::new();
    if let KvmFacts::Unusable(why) = &facts.kvm {
        blockers.push(format!("KVM: {why}"));
    }
    blockers.extend(unfit_profile(spec, facts));
    blockers.extend(no_transition(facts));
    blockers.extend(host_disks(spec, facts));
    blockers.extend(fixed_level(spec, facts));
    blockers.extend(given_labels(spec, facts));
    blockers.extend(foreign_memory(spec, facts));
    let reasons = || {
        let told: Vec<String> = warnings.iter().map(|w| format!("{} ({})", w.text, w.remedy)).collect();
        told.join("; ")
    };
    if let Some(required) = spec.require().filter(|required| posture < *required) {
        blockers.push(format!("posture {required} is required, this host gives {posture}: {}", reasons()));
    } else if posture == Posture::Reduced && spec.allow_reduced().is_none() {
        blockers.push(format!("the posture would be reduced: {}; or accept it with --allow-reduced REASON", reasons()));
    }
    blockers
}

/// Where SELinux enforces, an exec that it would refuse is not tried; a reduced posture would not help.
fn no_transition(facts: &HostFacts) -> impl Iterator<Item = String> {
    let enforcing = facts.selinux.mode == SelinuxMode::Enforcing && uses_selinux(facts);
    facts.selinux.transition.iter().filter(move |_| enforcing).map(|found| format!("SELinux: {found}"))
}

/// Devices below /dev are the host's: the policy opens them by a boolean.
fn host_disks(spec: &SandboxSpec, facts: &HostFacts) -> Option<String> {
    const BOOLEAN: &str = "casemate_use_host_disks";
    let off = facts.selinux.mode == SelinuxMode::Enforcing && facts.selinux.booleans.get(BOOLEAN) == Some(&false);
    let disk = spec.disks().iter().find(|disk| disk.path.as_path().starts_with("/dev")).filter(|_| off)?;
    Some(format!(
        "SELinux: disk '{}' is a device of the host ({}), and the boolean {BOOLEAN} is off (`setsebool -P {BOOLEAN} on`, \
         which opens every disk of the host to the jailer)",
        disk.id.as_str(),
        disk.path.as_path().display()
    ))
}

/// A level that was asked for is honoured or the start is refused.
fn fixed_level(spec: &SandboxSpec, facts: &HostFacts) -> Option<String> {
    let level = spec.selinux().level.as_ref()?.as_str();
    let why =
        "the host has no SELinux, or the loaded policy lacks the runner's types; install it, or leave the level out";
    (!uses_selinux(facts)).then(|| format!("'selinux.level' {level} cannot be honoured: {why}"))
}

/// Only our own module has a type for guest memory in a file; another family's runners could not map it, or all could.
fn foreign_memory(spec: &SandboxSpec, facts: &HostFacts) -> Option<String> {
    let family = facts.selinux.family.as_ref().filter(|family| family.name != "casemate")?;
    let text = format!("'hugepages' has no type in the {} family; use --selinux-profile casemate", family.name);
    (spec.hugepages().is_some() && uses_selinux(facts)).then_some(text)
}

/// Likewise a label that a disk is to have.
fn given_labels(spec: &SandboxSpec, facts: &HostFacts) -> Vec<String> {
    let why =
        "the host has no SELinux, or the loaded policy lacks the runner's types; install it, or leave the label out";
    let refused = |at: usize, label: &str| format!("'disks[{at}].label' {label} cannot be honoured: {why}");
    let given = spec.disks().iter().enumerate().filter_map(|(at, d)| Some((at, d.label.label.as_ref()?)));
    if uses_selinux(facts) { Vec::new() } else { given.map(|(at, label)| refused(at, label.as_str())).collect() }
}

/// A family that was asked for by name is not replaced, and not done without either.
fn unfit_profile(spec: &SandboxSpec, facts: &HostFacts) -> Option<String> {
    let asked = spec.selinux().profile?;
    let Some(family) = &facts.selinux.family else {
        return Some(format!("SELinux profile {asked} was asked for, and SELinux is off; leave --selinux-profile out"));
    };
    if family.misfits.is_empty() {
        return None;
    }
    let why = family.misfits.join("; ");
    let remedy = "`casemate policy install`, or leave --selinux-profile out";
    Some(format!("SELinux profile {asked} was asked for and cannot be used: {why} ({remedy})"))
}

fn rlimits(spec: &SandboxSpec) -> Vec<Rlimit> {
    let limit = |name: &str, value: u64| Rlimit { name: name.into(), value };
    vec![
        limit("core", 0),
        limit("memlock", 0),
        limit("msgqueue", 0),
        limit("nofile", 512),
        // main, io and the vCPU threads.
        limit("nproc", u64::from(spec.cpus().get()) + 4),
    ]
}

fn vm(spec: &SandboxSpec) -> VmPlan {
    let mut disks = Vec::new();
    let mut cmdline = String::new();
    let agent = match spec.boot() {
        Boot::Agent { root, .. } => {
            disks.push(images::root_plan(root));
            cmdline.push_str(BASE_CMDLINE);
            true
        }
        Boot::Bare { .. } => false,
    };
    disks.extend(spec.disks().iter().map(images::disk_plan));
    if !spec.cmdline().is_empty() {
        if !cmdline.is_empty() {
            cmdline.push(' ');
        }
        cmdline.push_str(spec.cmdline());
    }
    VmPlan {
        cpus: spec.cpus().get(),
        memory: spec.memory().bytes(),
        hugepage: spec.hugepages().map(|page| page.bytes()),
        cmdline,
        disks,
        vsock_cid: spec.vsock().then_some(3),
        console: agent,
        rng: agent,
        agent,
        boot_timeout_ms: 120_000,
        log_bytes: spec.limits().log.bytes(),
        restart_on_reboot: spec.on_reboot() == RebootPolicy::Restart,
    }
}

#[cfg(test)]
#[path = "make_tests.rs"]
mod tests;
