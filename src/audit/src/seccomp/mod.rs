//! seccomp: what the installed filters of a thread allow, decided over every system call of every ABI.

use serde::{Deserialize, Serialize};

/// What all filters of one thread together answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Verdicts {
    /// Newest first, as the kernel gives them (PTRACE_SECCOMP_GET_FILTER).
    pub filters: Vec<Filter>,
    /// Calls that are allowed, always or under conditions; every other is answered with `otherwise`.
    pub calls: Vec<Call>,
    /// What is worth a finding: an empty filter, no ABI check, unreachable rules, unconditional ioctl.
    pub remarks: Vec<String>,
}

/// One installed filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// SHA-256 of its instructions in the kernel's form (struct sock_filter), hexadecimal.
    pub digest: String,
    pub instructions: usize,
    /// Our filter that answers every input alike, as `runner.vcpu`; `None` for another.
    pub known: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Abi {
    #[serde(rename = "x86-64")]
    X86_64,
    #[serde(rename = "x32")]
    X32,
    #[serde(rename = "i386")]
    I386,
}

/// A system call that some input is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    pub abi: Abi,
    pub number: u32,
    /// `None` for a number without a name.
    pub name: Option<String>,
    /// Alternatives, each a conjunction, as `arg1 == 0xae80 (KVM_RUN)`; empty: whatever the arguments.
    pub when: Vec<String>,
    /// Reasons of our rules, where the filter is ours.
    pub why: Vec<String>,
}
