//! Posture (DESIGN rule 2): what holds on this host, said aloud.

use casemate_spec::{Posture, SandboxSpec};
use serde::{Deserialize, Serialize};

use crate::config::HostConfig;
use crate::facts::{CgroupFacts, HostFacts, SelinuxMode, Shortcoming};
use crate::step::Layer;

/// A layer that does not hold, or holds less than it could.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    pub layer: Layer,
    /// The layer is missing: the posture is reduced.
    pub missing: bool,
    pub text: String,
    pub remedy: String,
}

fn missing(layer: Layer, text: &str, remedy: &str) -> Warning {
    Warning { layer, missing: true, text: text.into(), remedy: remedy.into() }
}

fn weaker(layer: Layer, text: String, remedy: &str) -> Warning {
    Warning { layer, missing: false, text, remedy: remedy.into() }
}

/// Every layer that is missing or weaker than the newest kernel would give.
pub fn warnings(facts: &HostFacts, config: &HostConfig) -> Vec<Warning> {
    let mut found = Vec::new();
    found.extend(selinux(facts));
    found.extend(family(facts));
    found.extend(landlock(facts, config));
    if !facts.seccomp {
        found.push(missing(
            Layer::Seccomp,
            "the kernel takes no seccomp filter",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        ));
    }
    found.extend(cgroup(facts));
    found
}

/// A level that several sandboxes have on purpose is still a separation given up.
pub(crate) fn shared_level(spec: &SandboxSpec, facts: &HostFacts) -> Option<Warning> {
    let asked = spec.selinux();
    let level = asked.level.as_ref().filter(|_| asked.level_shared && crate::make::uses_selinux(facts))?;
    let text = format!("the level {} is shared: SELinux does not keep its sandboxes apart", level.as_str());
    Some(weaker(Layer::Selinux, text, "leave 'level_shared' out"))
}

/// The posture that these warnings leave.
pub fn posture(facts: &HostFacts, warnings: &[Warning]) -> Posture {
    if warnings.iter().any(|w| w.missing) {
        Posture::Reduced
    } else if facts.selinux.mode == SelinuxMode::Disabled {
        Posture::Hardened
    } else {
        Posture::Enforced
    }
}

/// What was found by asking the policy; where nothing was asked, what the bare facts say.
fn selinux(facts: &HostFacts) -> Vec<Warning> {
    let selinux = &facts.selinux;
    let told = |s: &Shortcoming| missing(Layer::Selinux, &s.text, &s.remedy);
    let mut found: Vec<Warning> = selinux.shortcomings.iter().map(told).collect();
    if found.is_empty() {
        found.extend(bare_selinux(facts));
    }
    if selinux.mode != SelinuxMode::Disabled {
        found.extend(selinux.transition.iter().map(told));
    }
    found
}

fn bare_selinux(facts: &HostFacts) -> Option<Warning> {
    let selinux = &facts.selinux;
    let layer = Layer::Selinux;
    let own = selinux.family.as_ref().is_none_or(|family| family.own);
    let remedy = if own {
        "install Casemate's module: `casemate policy install`"
    } else {
        "`casemate policy install` brings the rules that other families lack; or leave --selinux-profile out"
    };
    let runner = selinux.runner();
    let misfits = selinux.family.as_ref().map(|family| family.misfits.join("; ")).filter(|m| !own && !m.is_empty());
    match selinux.mode {
        SelinuxMode::Disabled => Some(weaker(
            layer,
            "the host has no SELinux: nothing but uid, Landlock and seccomp keeps two guests apart".into(),
            "boot with security=selinux and a policy, or accept the hardened posture",
        )),
        _ if misfits.is_some() => {
            let why = misfits.unwrap_or_default();
            Some(missing(layer, &format!("SELinux profile {} cannot be used: {why}", selinux.profile()), remedy))
        }
        _ if !selinux.module => {
            let others =
                selinux.family.as_ref().filter(|f| !f.asked).map(|f| format!("; {}", f.why)).unwrap_or_default();
            Some(missing(layer, &format!("the loaded policy does not know {runner}{others}"), remedy))
        }
        _ if !selinux.mls || !selinux.mcs_constrained => {
            let text = format!("the loaded policy does not constrain {runner} by category (MCS)");
            Some(missing(layer, &text, remedy))
        }
        SelinuxMode::Permissive => {
            Some(missing(layer, "SELinux is permissive: it logs and denies nothing", "`setenforce 1`"))
        }
        SelinuxMode::Enforcing if selinux.domain_permissive => {
            let remedy = format!("`semanage permissive -d {runner}`");
            Some(missing(layer, &format!("{runner} is a permissive domain"), &remedy))
        }
        SelinuxMode::Enforcing => None,
    }
}

/// Another manager's types are said aloud: what they leave open, and that its domain may do more than ours.
fn family(facts: &HostFacts) -> Option<Warning> {
    let family = facts.selinux.family.as_ref().filter(|family| !family.own && facts.selinux.module)?;
    let open = match &family.not_separated[..] {
        [] => "nothing that was asked of the policy".to_owned(),
        open => open.join(", "),
    };
    let text = format!(
        "SELinux profile {}: {}; {} may do more than casemate_runner_t, and other managers use its types; categories do \
         not hold back: {open}",
        family.name, family.why, family.runner
    );
    Some(weaker(Layer::Selinux, text, "`casemate policy install`, and leave --selinux-profile out"))
}

fn landlock(facts: &HostFacts, config: &HostConfig) -> Option<Warning> {
    let remedy = "boot a newer kernel, with landlock in lsm=";
    if facts.landlock_abi < config.landlock_floor.max(1) {
        let text =
            format!("Landlock ABI {} is below the floor of {}", facts.landlock_abi, config.landlock_floor.max(1));
        return Some(missing(Layer::Landlock, &text, remedy));
    }
    let lacks = match facts.landlock_abi {
        1 | 2 => "truncate, TCP, device ioctl, abstract sockets and signals",
        3 => "TCP, device ioctl, abstract sockets and signals",
        4 => "device ioctl, abstract sockets and signals",
        5 => "abstract sockets and signals",
        _ => return None,
    };
    Some(weaker(Layer::Landlock, format!("Landlock ABI {} does not cover {lacks}", facts.landlock_abi), remedy))
}

fn cgroup(facts: &HostFacts) -> Option<Warning> {
    let has = |name: &str| match &facts.cgroup {
        CgroupFacts::V2 { controllers, .. } => controllers.iter().any(|c| c == name),
        CgroupFacts::V1 { controllers } => controllers.contains_key(name),
        CgroupFacts::None => false,
    };
    let absent: Vec<&str> = ["memory", "pids", "cpu"].into_iter().filter(|c| !has(c)).collect();
    if absent.is_empty() {
        return None;
    }
    let text = format!("no cgroup controller for: {}", absent.join(", "));
    Some(missing(Layer::Cgroup, &text, "mount cgroup2 at /sys/fs/cgroup with these controllers"))
}
