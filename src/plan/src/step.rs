//! Steps: the whole start as ordered data.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::fds::{FdAccess, FdKind};

/// The process that takes a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The jailer before it clones.
    Jailer,
    /// The jailer's child, between clone3 and exec.
    Child,
    Runner,
    Warden,
}

/// The confinement layer that a step builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    Selinux,
    Landlock,
    Seccomp,
    Capabilities,
    Namespaces,
    Mounts,
    Uid,
    Cgroup,
    Rlimits,
    Fds,
    /// Not a layer of its own: preparation, the VM, the proof.
    None,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layer::Selinux => "selinux",
            Layer::Landlock => "landlock",
            Layer::Seccomp => "seccomp",
            Layer::Capabilities => "capabilities",
            Layer::Namespaces => "namespaces",
            Layer::Mounts => "mounts",
            Layer::Uid => "uid",
            Layer::Cgroup => "cgroup",
            Layer::Rlimits => "rlimits",
            Layer::Fds => "fds",
            Layer::None => "-",
        })
    }
}

/// How an image is labelled (svirt.md 17).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageClass {
    /// `casemate_image_t:s0:cA,cB`, restored at the end.
    Exclusive,
    /// `casemate_image_t:s0`: every runner may write.
    Shared,
    /// `casemate_content_t:s0`: every runner may read.
    Content,
}

/// Which label an object gets (svirt.md 21, 55). `field` is the user's word for what asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelChoice {
    /// That of its class.
    #[default]
    OfClass,
    /// This one, if the loaded policy lets the runner use it and others not.
    Given { label: String, field: String },
    /// None: what it carries must fit.
    Keep { field: String },
}

impl LabelChoice {
    fn is_of_class(&self) -> bool {
        *self == LabelChoice::OfClass
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Namespace {
    Mount,
    Pid,
    Net,
    Ipc,
    Uts,
    Cgroup,
}

/// A resource limit, soft and hard alike (setrlimit(2)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `nofile`, `core`, `fsize`, `nproc`, `msgqueue`, `memlock`.
    pub name: String,
    pub value: u64,
}

/// Where the cgroup is and what it limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPlan {
    /// Directories to make, one on v2, one per controller on v1, below the parent.
    pub layout: crate::facts::CgroupFacts,
    pub parent: String,
    /// In hundredths of a CPU.
    pub cpu_percent: Option<u32>,
    /// Guest memory and overhead, in bytes.
    pub memory: u64,
    pub pids: u32,
    /// Where the host has the hugetlb controller: the most that may be had of each size of huge pages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hugetlb: Vec<HugetlbLimit>,
}

/// A limit of the hugetlb controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugetlbLimit {
    /// Page size, in bytes.
    pub page: u64,
    pub bytes: u64,
}

/// What a step does. The jailer, the runner and the warden each match on it; there is no other list of steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "action")]
pub enum Action {
    ReserveName {
        run_dir: String,
    },
    LeaseUid {
        first: u32,
        last: u32,
    },
    LeaseMcs,
    /// Reserve the level that the user fixed; `shared` allows it beside sandboxes with the equal level (a pod).
    LeaseLevel {
        level: String,
        shared: bool,
    },
    OpenFile {
        fd: String,
        path: String,
        kind: FdKind,
        access: FdAccess,
    },
    LockImage {
        fd: String,
        exclusive: bool,
    },
    Relabel {
        fd: String,
        class: ImageClass,
        #[serde(default, skip_serializing_if = "LabelChoice::is_of_class")]
        choice: LabelChoice,
    },
    CreateLogs {
        bytes: u64,
    },
    CreateSockets,
    /// Guest memory on huge pages of `page` bytes, as a memfd.
    CreateMemory {
        bytes: u64,
        page: u64,
    },
    CreateCgroup(CgroupPlan),
    CloneRunner {
        namespaces: Vec<Namespace>,
        into_cgroup: bool,
    },
    JoinCgroup,
    EmptyRoot,
    SetRlimits {
        limits: Vec<Rlimit>,
    },
    SetExecLabel,
    RestrictLandlock {
        abi: u32,
    },
    InstallExecFilter,
    DropBoundingSet,
    DropGroups,
    SetGid,
    SetUid,
    DropCapabilities,
    ArrangeFds,
    ExecRunner,
    CheckFds,
    SetNoNewPrivs,
    RestrictLandlockFully {
        abi: u32,
    },
    CreateVm,
    InstallThreadFilters,
    AttestInside,
    /// The warden keeps root's rights for the end; its system calls are those of its filter from here on.
    NarrowWarden,
    AttestOutside,
    Go,
}

/// A step with its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub role: Role,
    pub layer: Layer,
    #[serde(flatten)]
    pub action: Action,
    /// What it does, for people.
    pub what: String,
    /// Why it is there, and why here.
    pub why: String,
    /// What takes it back, if it changes the host.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub undo: Option<String>,
}
