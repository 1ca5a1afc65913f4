//! The facts of this host, gathered once per start from `sys` and `label` probes.

use std::os::fd::AsFd;

use casemate_label::{Chosen, ProfileName, SelinuxMode, choose};
use casemate_plan::{CgroupFacts, HostFacts, KvmFacts, SelinuxFacts, Shortcoming};
use casemate_spec::SelinuxProfile;
use casemate_sys::facts::{cgroup, kernel, kvm};
use casemate_sys::procfs;

use crate::child;
use crate::error::StepFailed;

/// The host as the planner sees it, and the labelling family that goes with it.
pub struct Gathered {
    pub host: HostFacts,
    pub choice: Chosen,
}

/// Probes everything the planner wants to know, for the SELinux profile that is asked for. Changes nothing.
pub fn gather(asked: Option<SelinuxProfile>) -> Result<Gathered, StepFailed> {
    // Whatever is read of a forged /proc is its forger's.
    procfs::Proc::host().map_err(|e| {
        StepFailed::because(
            "look at /proc",
            format!("{}: not a procfs, so nothing it says counts; umount what covers it", e.report()),
        )
    })?;
    let seccomp = kernel::seccomp();
    let choice = family(asked);
    let host = HostFacts {
        kernel_release: kernel::release(),
        kvm: kvm_facts(),
        selinux: SelinuxFacts::from(&choice),
        landlock_abi: kernel::landlock_abi(),
        seccomp: seccomp.kill_process && seccomp.errno,
        cgroup: cgroups()?,
        cpus: u32::try_from(kernel::cpus()).unwrap_or(u32::MAX),
    };
    Ok(Gathered { host, choice })
}

/// The family for this caller and for the runner's program as it is labelled. A missing program is the start's error.
pub fn family(asked: Option<SelinuxProfile>) -> Chosen {
    let asked = asked.map(|profile| match profile {
        SelinuxProfile::Casemate => ProfileName::Casemate,
        SelinuxProfile::Svirt => ProfileName::Svirt,
        SelinuxProfile::Container => ProfileName::Container,
    });
    let program = child::runner_program();
    let mut choice = choose(asked, program.as_ref().ok().map(AsFd::as_fd));
    // A file that the jailer may not even open leads nowhere: its label is at fault. Every other failure is the start's.
    if let Some(failed) = program.err().filter(|failed| failed.error.contains("Permission denied"))
        && choice.facts.mode != SelinuxMode::Disabled
    {
        let text = format!("{}: its label is no entry point of {}", failed.error, choice.profile.runner);
        let remedy =
            "restorecon -v the file: a copy takes the label of its new place, and only known places have a rule";
        choice.facts.transition.push(Shortcoming { code: "entrypoint".into(), text, remedy: remedy.into() });
    }
    choice
}

fn kvm_facts() -> KvmFacts {
    match kvm::open() {
        kvm::Kvm::Usable { .. } => KvmFacts::Usable,
        kvm::Kvm::Absent => KvmFacts::Unusable(
            "/dev/kvm does not exist; load kvm_intel or kvm_amd, and enable virtualization in the firmware".into(),
        ),
        kvm::Kvm::Unusable(why) => KvmFacts::Unusable(why),
    }
}

/// v2 where its root offers what is needed, else v1: a hybrid host keeps its controllers on v1.
fn cgroups() -> Result<CgroupFacts, StepFailed> {
    let layout = cgroup::layout().map_err(|e| StepFailed::stage("read the cgroup layout", e))?;
    let needed = ["memory", "pids"];
    if let Some(v2) = &layout.v2
        && needed.iter().all(|name| v2.controllers.iter().any(|c| c == name))
    {
        return Ok(CgroupFacts::V2 { mount: v2.mount.clone(), controllers: v2.controllers.clone() });
    }
    Ok(if layout.v1.is_empty() {
        match layout.v2 {
            Some(v2) => CgroupFacts::V2 { mount: v2.mount, controllers: v2.controllers },
            None => CgroupFacts::None,
        }
    } else {
        CgroupFacts::V1 { controllers: layout.v1 }
    })
}
