//! seccomp: what the installed filters of a thread allow, decided over every system call of every ABI.
//!
//! ```text
//! sys::installed ─> programs, newest first
//!                      │ program.rs    decode; refuse what the kernel would
//!                      │ symbolic.rs   all inputs at once, on the diagrams of diagram.rs
//!                      ▼
//!                  one diagram per filter ── action.rs: precedence ──> one for the stack
//!                      │ judge.rs      tables of all numbers, calls with conditions (conditions.rs, values.rs) and reasons
//!                      ▼ remarks.rs    what is worth a finding (danger.rs, widths.rs)
//!                  Verdicts ── outline.rs, reasons.rs, text.rs: for people
//! ```
//!
//! Trust: a program is another's and may be hostile. It costs bounded memory and time, or is [`Undecided`].

mod action;
mod conditions;
mod danger;
mod diagram;
mod judge;
mod names;
mod outline;
mod program;
mod reasons;
mod remarks;
mod symbolic;
mod text;
mod values;
mod widths;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::rule::Severity;
use crate::subject::Known;

pub use judge::{Cache, Program};
pub use outline::{Outline, closed, listed};
pub use program::{NoFilter, digest, from_hex, to_hex};
pub use reasons::{by_reason, in_one_line};
pub use symbolic::Undecided;
pub use text::render;

/// The verdicts of a live thread's installed filters, or why there are none. Stops the thread for a moment.
pub fn of_thread(pid: u32, tid: u32, cache: &Cache) -> Known<Arc<Verdicts>> {
    let (Ok(pid), Ok(tid)) = (i32::try_from(pid), i32::try_from(tid)) else {
        return Known::unseen("no such thread");
    };
    match casemate_sys::installed::installed(pid, tid) {
        Ok(stack) => cache.judge(&stack).into(),
        Err(error) => Known::unseen(format!("its filters could not be read: {error}")),
    }
}

/// What all filters of one thread together answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Verdicts {
    /// Newest first, as the kernel gives them (PTRACE_SECCOMP_GET_FILTER).
    pub filters: Vec<Filter>,
    /// Calls with a name that some input is allowed (or allowed and logged), always or under conditions.
    pub calls: Vec<Call>,
    /// Every number of every ABI, with or without a name.
    pub tables: Vec<Table>,
    /// What is worth a finding.
    pub remarks: Vec<Remark>,
}

/// One installed filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// SHA-256 of its instructions in the kernel's form (struct sock_filter), hexadecimal.
    pub digest: String,
    pub instructions: usize,
    /// Our filter that answers every input alike, as `runner.vcpu`; `None` for another.
    pub known: Option<String>,
    /// Our filter that it claims to be by its marker (kcmp's errno), while some input is answered otherwise.
    pub claims: Option<String>,
    /// Inputs on which it differs from the one that it claims to be; not all of them.
    pub differences: Vec<Difference>,
}

/// An input that two filters answer differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    pub input: Input,
    /// Name of the system call, where it has one.
    pub name: Option<String>,
    pub ours: Action,
    pub theirs: Action,
}

/// struct seccomp_data (linux/seccomp.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Input {
    /// Number of the call.
    pub nr: u32,
    /// AUDIT_ARCH_*.
    pub arch: u32,
    pub instruction_pointer: u64,
    pub args: [u64; 6],
}

/// What the kernel does with a call (seccomp(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    KillProcess,
    KillThread,
    /// SIGSYS, with its si_errno.
    Trap(u16),
    /// Not run; the caller sees this errno, at most 4095. 0 looks like success.
    Errno(u16),
    /// A supervisor decides.
    UserNotify,
    /// A tracer decides; ENOSYS without one.
    Trace(u16),
    /// Run, and logged.
    Log,
    Allow,
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

/// Every number of one ABI, in ranges that are answered alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    pub abi: Abi,
    /// Ascending and without gaps. A filter that asks for another ABI's numbers is no filter: x32 holds the numbers with
    /// bit 30 only, x86-64 all others.
    pub ranges: Vec<Range>,
}

/// Numbers that are answered alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    pub first: u32,
    pub last: u32,
    /// One: whatever the arguments. Several: it depends on them.
    pub answers: Vec<Action>,
}

/// A system call that some input is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    pub abi: Abi,
    /// As the ABI's table has it (x32: with bit 30).
    pub number: u32,
    pub name: Option<String>,
    /// Alternatives, each a conjunction, as `u32(arg1) == 0xae80 (KVM_RUN)`; empty: whatever the arguments.
    pub when: Vec<String>,
    /// Reasons of our rules, where the filter is ours.
    pub why: Vec<String>,
}

/// What is worth a finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remark {
    pub id: RemarkId,
    /// A hint; the rule that takes it up decides.
    pub severity: Severity,
    /// One sentence.
    pub text: String,
    /// Name of the call that it is about.
    pub call: Option<String>,
    /// Index into `Verdicts::filters`; `None`: of all together.
    pub filter: Option<usize>,
    /// Index into that filter's instructions.
    pub instruction: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RemarkId {
    /// The thread has no filter.
    NoFilter,
    /// A filter, or all together, that allows every input.
    AllowsEverything,
    /// A filter that allows no call at all: what runs under it did not need it, or it was never tried.
    DeniesEverything,
    /// Numbers that nobody listed are allowed: a list of what is denied, which the next kernel's calls slip past.
    DefaultAllow,
    /// i386 numbers are decided as if they were x86-64's.
    NoAbiCheck,
    /// i386 allows a call that x86-64 denies.
    I386Open,
    /// x32 allows a call that x86-64 denies.
    X32Open,
    /// A call that widens what an attacker can do; `call` names it.
    DangerousCall,
    UnconditionalIoctl,
    /// TIOCSTI or TIOCLINUX: types into the terminal.
    TerminalInjection,
    /// AF_NETLINK, AF_ALG, AF_PACKET, AF_VSOCK.
    SocketFamily,
    /// An instruction that no input reaches: a rule that another one hides, or a mistake.
    Unreachable,
    /// A comparison of the lower half of an argument whose upper half is free.
    UpperHalfUnchecked,
    /// Numbers without a name are allowed.
    UnnamedAllowed,
    /// A tracer or a supervisor decides.
    AsksOthers,
    /// An action that no kernel knows: it kills, and reads like something else.
    UnknownAction,
    /// A denied call that looks as if it had succeeded (errno 0).
    ErrnoZero,
    /// Kills the calling thread only: the others go on without it.
    KillsThreadOnly,
    /// Claims to be ours by its marker, and answers otherwise.
    DiffersFromOurs,
}

#[cfg(test)]
mod tests;
