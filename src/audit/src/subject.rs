//! What is judged: a plan, a policy, a live VM, any process, a host, all in one form, so that one rule judges them alike.
//!
//! A thing that could not be looked at is [`Known::Unseen`] with the reason: a rule answers "unknown" to it, never "passed".

mod capabilities;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use capabilities::{ALL_CAPABILITIES, Capabilities, capabilities_said, capability_names};

/// Seen, or why it could not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Known<T> {
    Seen(T),
    Unseen(String),
}

impl<T> Known<T> {
    pub fn seen(&self) -> Option<&T> {
        match self {
            Known::Seen(value) => Some(value),
            Known::Unseen(_) => None,
        }
    }

    /// Why it could not be seen.
    pub fn why(&self) -> Option<&str> {
        match self {
            Known::Seen(_) => None,
            Known::Unseen(why) => Some(why),
        }
    }

    /// What is made of it, if it was seen.
    pub fn map<U>(self, make: impl FnOnce(T) -> U) -> Known<U> {
        match self {
            Known::Seen(value) => Known::Seen(make(value)),
            Known::Unseen(why) => Known::Unseen(why),
        }
    }

    pub fn unseen(why: impl Into<String>) -> Self {
        Known::Unseen(why.into())
    }
}

impl<T, E: std::fmt::Display> From<Result<T, E>> for Known<T> {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(value) => Known::Seen(value),
            Err(error) => Known::Unseen(error.to_string()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A planned start; nothing runs.
    Plan,
    /// A SELinux policy and one family's VMs in it.
    Policy,
    /// A live sandbox.
    Vm,
    /// Any process, as another VMM's.
    Process,
    Host,
}

/// One thing that is judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    pub kind: Kind,
    /// Untrusted where it is a foreign process's: reports escape it.
    pub name: String,
    /// The file that was judged, as its user named it: a specification, a policy. `None` for what runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// As planned or as seen; none for a policy.
    pub processes: Vec<Process>,
    /// Kernel, initramfs, disks, logs, sockets.
    pub objects: Vec<Object>,
    /// What the policy answers for the VM's labels.
    pub separation: Known<Separation>,
    pub standing: Known<Standing>,
    pub host: Known<Host>,
    /// Who else has a level within reach (libvirt's, podman's, files at rest): one sentence each.
    pub neighbours: Known<Vec<String>>,
    /// Leases, labels and records that nobody alive holds: one sentence each.
    pub leftovers: Known<Vec<String>>,
}

/// Posture and resources of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// `planned`, `starting`, `running`, `paused`, `exited`, `lost` (its warden died without cleaning up).
    pub phase: String,
    /// `enforced`, `hardened`, `reduced`.
    pub posture: String,
    pub allow_reduced: Option<String>,
    pub warnings: Vec<String>,
    /// Why a planned start would be refused.
    pub blockers: Vec<String>,
    /// vCPUs and guest memory in bytes.
    pub cpus: u32,
    pub memory: u64,
    /// What the proof said before the first guest instruction, where it did not hold.
    pub unproven: Vec<String>,
    pub level_shared: bool,
}

/// A process that serves a VM, or any.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// `runner`, `warden`, or `process` for a foreign one.
    pub role: String,
    /// `None` in a plan.
    pub pid: Option<u32>,
    pub parent: Option<u32>,
    /// Field 22 of /proc/PID/stat: tells a reused pid apart.
    pub start_time: Option<u64>,
    pub exe: Known<String>,
    /// SELinux context; `None` where the host has no SELinux.
    pub label: Known<Option<String>>,
    pub threads: Known<Vec<Thread>>,
    /// By name as in /proc/PID/ns.
    pub namespaces: Known<BTreeMap<String, NamespaceOf>>,
    pub cgroups: Known<Vec<CgroupOf>>,
    /// By name as in /proc/PID/limits.
    pub rlimits: Known<BTreeMap<String, Limit>>,
    pub fds: Known<Vec<Fd>>,
    pub mounts: Known<Vec<Mount>>,
    /// Names of variables; values may be secrets.
    pub environment: Known<Vec<String>>,
    pub memory: Known<Memory>,
    pub landlock: Known<Landlock>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Thread {
    pub tid: Option<u32>,
    pub name: String,
    /// A kernel thread that bears our credentials (kvm-nx-lpage-recovery).
    pub kernel: bool,
    /// Real, effective, saved, file system.
    pub uid: [u32; 4],
    pub gid: [u32; 4],
    pub groups: Vec<u32>,
    pub capabilities: Capabilities,
    pub no_new_privs: bool,
    /// 0 none, 1 strict, 2 filter (/proc/PID/status).
    pub seccomp_mode: u8,
    pub filter_count: u32,
    /// Shared: most threads of a host have the same filters.
    pub filters: Known<std::sync::Arc<crate::seccomp::Verdicts>>,
    /// As /proc/PID/status words them: `thread vulnerable`, `thread force mitigated`, …
    pub speculation_store_bypass: String,
    pub speculation_indirect_branch: String,
}

/// A resource limit; `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceOf {
    /// `mnt:[4026531841]`; empty in a plan.
    pub id: String,
    /// The same as that of PID 1.
    pub hosts: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupOf {
    /// Directory.
    pub path: String,
    /// Controllers that limit here, with the limit as the file says it (`memory.max` to `268435456`).
    pub limits: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fd {
    pub number: i32,
    /// Link text of /proc/PID/fd/N, or the planned path.
    pub target: String,
    /// `file`, `dir`, `chr`, `blk`, `socket`, `pipe`, `anon`.
    pub kind: String,
    pub read: bool,
    pub write: bool,
    /// Its name in the plan's table; `None` for one that is in no plan.
    pub planned: Option<String>,
    /// Label of the object.
    pub label: Option<String>,
    /// Device and inode number, where they could be read: two descriptors with the same are of one object. Anonymous
    /// inodes all have the same.
    pub object: Option<(u64, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub point: String,
    pub kind: String,
    pub options: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Mappings that are writable and executable at once: their lines in /proc/PID/maps.
    pub writable_executable: Vec<String>,
    /// Bits as in core(5).
    pub coredump_filter: Option<u64>,
    /// Its /proc entries are its own, not root's: others of its uid may trace it (prctl(2) PR_SET_DUMPABLE). Unseen of a
    /// process of root's, where both look alike.
    pub dumpable: Known<bool>,
    /// Bytes that may not be swapped.
    pub locked: u64,
    /// As its mappings show.
    pub executable_stack: bool,
}

/// The kernel has no read-back of a Landlock domain: the plan's ruleset, and what a probe in the same domain saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Landlock {
    pub abi: u32,
    /// Access rights that the ruleset handles, and therefore denies where no rule allows them.
    pub handled: Vec<String>,
    /// Its rules: path or port, and what is allowed there.
    pub allowed: Vec<String>,
    /// What a probe tried in the domain, and what came of it; `None` if nothing was tried.
    pub probed: Option<Vec<Probe>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    pub attempt: String,
    /// The errno, the signal, or `allowed`.
    pub outcome: String,
    /// As it must be.
    pub ok: bool,
}

/// A file that a VM uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Its name in the plan: `kernel`, `initramfs`, `disk.root`, …
    pub name: String,
    pub path: String,
    /// The runner has it for reading only.
    pub read_only: bool,
    pub label: Known<Option<String>>,
    /// Label that it must have while the VM runs.
    pub wanted: Option<String>,
    pub inode: Known<Inode>,
    /// The path still leads to the object that the VM has open; `None` where nothing runs.
    pub unchanged: Option<Known<bool>>,
    /// Others than root may write it, or replace it in its directory: who, in a sentence.
    pub writable_by: Known<Vec<String>>,
    /// Hexadecimal, where a plan is judged or evidence is made; a live audit does not read images.
    pub sha256: Known<String>,
}

/// As in stat(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub links: u64,
}

/// What a policy answers for a VM at one level and another at another (made by `policy::ask`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Separation {
    pub origin: String,
    pub family: String,
    /// Contexts of the VM and of its images.
    pub runner: String,
    pub image: String,
    /// Contexts of another VM, at another level, and of its images.
    pub other_runner: String,
    pub other_image: String,
    pub enforcing: Option<bool>,
    pub permissive_domain: bool,
    /// `object class:permission` that the VM has on another VM's objects (`runner`, `image`).
    pub reach: Vec<String>,
    /// Classes whose permissions categories do not hold back at all.
    pub unconstrained: Vec<String>,
    /// Domains that can become the VM's.
    pub entries: Vec<String>,
    /// Domains that may write a VM's image, trace or signal its process: `domain class:permission`.
    pub others: Vec<String>,
    /// Booleans that bear on what it may do or what may be done to it: does the value now allow more than the other?
    pub booleans: BTreeMap<String, bool>,
    /// Objects through which one VM's level can tell another's something.
    pub flows: Vec<String>,
}

/// What the host is like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    pub kernel: String,
    /// `disabled`, `permissive`, `enforcing`.
    pub selinux: String,
    pub landlock_abi: u32,
    /// `v2`, `v1`, `none`.
    pub cgroup: String,
    /// /sys/devices/system/cpu/vulnerabilities: name to what the kernel says.
    pub vulnerabilities: BTreeMap<String, String>,
    pub smt: Option<bool>,
    /// /sys/kernel/mm/ksm/run.
    pub ksm: Option<bool>,
    /// Used swap areas; guest memory may end there.
    pub swap: Vec<String>,
}
