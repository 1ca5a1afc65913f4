//! What the planner knows of the host. Gathered by `sys` and `label` probes, passed in by the jailer.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// `uname -r`.
    pub kernel_release: String,
    pub kvm: KvmFacts,
    pub selinux: SelinuxFacts,
    /// Landlock ABI of the running kernel; 0 when it has none or it is disabled.
    pub landlock_abi: u32,
    /// The kernel takes seccomp filters (`SECCOMP_SET_MODE_FILTER`).
    pub seccomp: bool,
    pub cgroup: CgroupFacts,
    /// Online CPUs.
    pub cpus: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvmFacts {
    Usable,
    /// `/dev/kvm` is absent, not permitted, or answers with another API version: why, as a sentence.
    Unusable(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SelinuxMode {
    Disabled,
    Permissive,
    Enforcing,
}

/// SELinux as the *loaded policy* answers, not as a configuration file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxFacts {
    pub mode: SelinuxMode,
    /// The policy has MLS/MCS levels.
    pub mls: bool,
    /// The policy knows the types of the family that is used.
    pub module: bool,
    /// The runner's domain is permissive (`semanage permissive -a`).
    pub domain_permissive: bool,
    /// A runner of one pair may not read an image of another pair, and may read its own (compute_av).
    pub mcs_constrained: bool,
    /// Classes and permissions that the policy does not know are denied.
    #[serde(default)]
    pub deny_unknown: bool,
    /// What keeps SELinux from separating two guests here.
    #[serde(default)]
    pub shortcomings: Vec<Shortcoming>,
    /// What keeps an exec from ending in the runner's domain.
    #[serde(default)]
    pub transition: Vec<Shortcoming>,
    /// Booleans that matter to sandboxes, as they are in force.
    #[serde(default)]
    pub booleans: BTreeMap<String, bool>,
    /// Whose types are used; `None` where SELinux is off.
    pub family: Option<SelinuxFamily>,
}

/// The labelling family that a start uses: Casemate's own, libvirt's or the container tools'.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxFamily {
    /// `casemate`, `svirt` or `container`.
    pub name: String,
    /// Type of the runner's domain.
    pub runner: String,
    /// Type of writable images.
    pub image: String,
    /// Type of read-only content.
    pub content: String,
    /// Nobody but Casemate uses these types.
    pub own: bool,
    /// The specification names it: no other is taken in its place.
    pub asked: bool,
    /// Why this one, in a sentence.
    pub why: String,
    /// What is in the way of using it; empty where it fits.
    pub misfits: Vec<String>,
    /// What one runner may do to another's objects all the same, by the loaded policy.
    pub not_separated: Vec<String>,
}

/// One thing that is not as it must be: a word for programs, a sentence, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortcoming {
    pub code: String,
    pub text: String,
    pub remedy: String,
}

impl std::fmt::Display for Shortcoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.text, self.remedy)
    }
}

impl SelinuxFacts {
    pub const DISABLED: SelinuxFacts = SelinuxFacts {
        mode: SelinuxMode::Disabled,
        mls: false,
        module: false,
        domain_permissive: false,
        mcs_constrained: false,
        family: None,
        deny_unknown: false,
        shortcomings: Vec::new(),
        transition: Vec::new(),
        booleans: BTreeMap::new(),
    };

    /// Type of the runner's domain, for messages.
    pub fn runner(&self) -> &str {
        self.family.as_ref().map_or("casemate_runner_t", |family| &family.runner)
    }

    /// `casemate`, `svirt` or `container`.
    pub fn profile(&self) -> &str {
        self.family.as_ref().map_or("casemate", |family| &family.name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CgroupFacts {
    /// One unified hierarchy, its mount point and the controllers that its root offers.
    V2 {
        mount: PathBuf,
        controllers: Vec<String>,
    },
    /// Controller to mount point of its hierarchy (also a hybrid layout).
    V1 {
        controllers: BTreeMap<String, PathBuf>,
    },
    None,
}
