//! What is kept of a sandbox: `state.json` while it lives, `exit.json` after, in `RUN/vms/<name>/`.
//! Written by the warden by rename, read by clients; versioned, unknown fields refused.

use std::collections::BTreeMap;

use casemate_spec::{PolicyChange, Posture};
use serde::{Deserialize, Serialize};

/// Where a sandbox stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Starting,
    Running,
    Paused,
    Stopped,
}

/// A process, named so that a reused pid is not taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessName {
    pub pid: u32,
    /// Field 22 of /proc/PID/stat, in clock ticks since boot.
    pub start_time: u64,
}

/// The label of an object that the sandbox uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectLabel {
    pub fd: String,
    pub path: String,
    /// The runner has it for reading only.
    pub read_only: bool,
    /// Before the start; `None` on a file system without labels.
    pub before: Option<String>,
    pub during: Option<String>,
    pub after: Option<String>,
}

/// A descriptor of the runner's, as planned and opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descriptor {
    pub number: i32,
    /// As in the plan: `kvm`, `disk.root`.
    pub name: String,
    pub read: bool,
    pub write: bool,
    /// As fstat(2) shows them.
    pub dev: u64,
    pub ino: u64,
}

/// One line of a proof: what the plan says of a layer, and what was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// Name of the layer, as in the plan.
    pub layer: String,
    /// What was looked at, as `Seccomp of thread vcpu0`.
    pub what: String,
    pub expected: String,
    pub seen: String,
    pub ok: bool,
}

/// What a step took. The runner's are its own word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    /// `jailer`, `child`, `runner` or `warden`.
    pub role: String,
    /// As the plan names it, or a stage beside the plan.
    pub step: String,
    pub micros: u32,
}

/// A sandbox, for `ps` and `inspect`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxRecord {
    pub version: u32,
    pub name: String,
    pub phase: Phase,
    pub posture: Posture,
    /// The reason given for a reduced posture.
    pub allow_reduced: Option<String>,
    pub warnings: Vec<String>,
    /// Seconds since the epoch.
    pub created: u64,
    pub boot_id: String,
    pub command: Vec<String>,
    pub detached: bool,
    pub cpus: u8,
    /// Guest memory in bytes.
    pub memory: u64,
    pub warden: ProcessName,
    pub runner: Option<ProcessName>,
    pub uid: u32,
    /// `c12,c345`.
    pub categories: Option<String>,
    pub label: Option<String>,
    /// Whose SELinux types: `casemate`, `svirt` or `container`.
    #[serde(default)]
    pub profile: Option<String>,
    pub labels: Vec<ObjectLabel>,
    /// The loaded policy, as the warden last asked it; `None` for a sandbox without a label.
    #[serde(default)]
    pub selinux: Option<PolicyState>,
    /// What both attestations found, before the first guest instruction.
    pub findings: Vec<Finding>,
    /// cgroup directories.
    pub cgroups: Vec<String>,
    pub landlock_abi: u32,
    /// The runner's planned descriptors, as opened.
    #[serde(default)]
    pub descriptors: Vec<Descriptor>,
    /// Limits that the runner was given, soft and hard alike, by name as `nofile`.
    #[serde(default)]
    pub rlimits: BTreeMap<String, u64>,
    /// What each step took; complete at the end.
    #[serde(default)]
    pub timings: Vec<Timing>,
    pub exit: Option<ExitReport>,
}

pub const VERSION: u32 = 1;

/// What is kept, for a while, of what left no record of its own: `RUN/past/*.json`. So that a denial can be told to have
/// been its.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Past {
    /// A start that failed; everything of it was taken back.
    Failed(FailedStart),
    /// A sandbox that ended and whose record was removed.
    Ended(Ended),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedStart {
    /// Seconds since the epoch.
    pub at: u64,
    pub name: String,
    /// The jailer's.
    pub pid: u32,
    pub step: String,
    pub layer: String,
    pub error: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub name: String,
    pub uid: u32,
    pub label: Option<String>,
    pub warden: ProcessName,
    pub runner: Option<ProcessName>,
    /// Seconds since the epoch, both.
    pub created: u64,
    pub ended: u64,
}

/// What the loaded policy does for a running sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyState {
    /// The posture that the sandbox was started with; that of the record is the one of now.
    pub posture_at_start: Posture,
    pub separated_at_start: bool,
    /// It is kept apart from every other sandbox by the loaded policy, enforced.
    pub separates: bool,
    /// What is in the way; empty while it separates.
    pub why: Vec<String>,
    /// Since when `separates` is what it is, in seconds since the epoch.
    pub since: u64,
    /// Loads of a policy and changes of booleans since boot.
    pub seqno_at_start: u32,
    pub seqno: u32,
    /// How often the policy was asked again.
    pub changes: u32,
    pub on_change: PolicyChange,
    /// Paused for it: resumed only when it separates again, or when that is accepted.
    pub held: bool,
    /// The reason given for a resume without separation.
    pub accepted: Option<String>,
    /// The last turns, oldest first; at most 16.
    pub history: Vec<PolicyNews>,
}

/// One turn of the policy, in a sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyNews {
    /// Seconds since the epoch.
    pub at: u64,
    pub separates: bool,
    pub text: String,
}

/// How a sandbox ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitReport {
    pub cause: ExitCause,
    /// Exit status of the workload, as its agent reports it (untrusted).
    pub status: Option<u8>,
    /// A sentence, when there is more to say (bounded, control characters removed).
    pub detail: Option<String>,
}

/// Why a VM is gone. Told apart, because each asks for something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitCause {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset and the policy is to stop.
    Reboot,
    /// Triple fault: the CPU shut down.
    TripleFault,
    /// The guest's kernel said that it panicked.
    GuestPanic,
    /// No agent answered within the boot timeout.
    BootTimeout,
    /// The agent said that it cannot run the workload.
    AgentFailed,
    /// `--timeout` passed.
    Timeout,
    /// Killed on request.
    Killed,
    /// The client of a foreground sandbox went away.
    ClientGone,
    /// The loaded policy stopped separating it, and that was to end it (`--on-policy-change`).
    PolicyChanged,
    /// The runner ended without a word: a signal, SIGSYS of a filter.
    RunnerDied,
    /// KVM or the runner failed.
    InternalError,
}
