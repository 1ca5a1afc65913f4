//! Seccomp: filters compiled at build time from `seccomp-filters/*.json`.
//!
//! The coarse filter goes in before exec, without NNP, while CAP_SYS_ADMIN is held; the runner stacks
//! one per thread on top. Everything that is not allowed kills the process (SIGSYS, logged by the
//! kernel). Each filter answers one unused system call with an errno of its own, so that a thread can
//! show which filter is live: a filter that is missing, empty or another one gives itself away.

use crate::confined::{Finding, held};
use crate::{Confined, Error, Result};
use casemate_plan::Layer;
use casemate_sys as sys;
use casemate_sys::seccomp::Instruction;

/// A compiled filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filter {
    /// Coarse: the jailer's child from here on, the runner for life.
    JailerExec,
    RunnerMain,
    RunnerVcpu,
    RunnerIo,
    Warden,
}

/// A rule as written, for tests and reports.
#[cfg(any(test, feature = "rules"))]
#[derive(Debug)]
pub struct Rule {
    pub syscall: &'static str,
    pub number: i64,
    /// (argument, mask, value): the masked argument must equal the value.
    pub conditions: &'static [(u8, u64, u64)],
    /// Not allowed but answered with this errno.
    pub refused: Option<u32>,
    pub why: &'static str,
}

mod compiled {
    use super::Instruction;
    #[cfg(any(test, feature = "rules"))]
    use super::Rule;

    const fn i(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
        Instruction { code, jt, jf, k }
    }

    include!(concat!(env!("OUT_DIR"), "/filters.rs"));
}

impl Filter {
    pub const ALL: [Self; 5] = [Self::JailerExec, Self::RunnerMain, Self::RunnerVcpu, Self::RunnerIo, Self::Warden];

    /// As its file is named.
    pub fn name(self) -> &'static str {
        match self {
            Self::JailerExec => "jailer.exec",
            Self::RunnerMain => "runner.main",
            Self::RunnerVcpu => "runner.vcpu",
            Self::RunnerIo => "runner.io",
            Self::Warden => "warden",
        }
    }

    /// The BPF that the kernel gets.
    pub fn program(self) -> &'static [Instruction] {
        match self {
            Self::JailerExec => &compiled::JAILER_EXEC,
            Self::RunnerMain => &compiled::RUNNER_MAIN,
            Self::RunnerVcpu => &compiled::RUNNER_VCPU,
            Self::RunnerIo => &compiled::RUNNER_IO,
            Self::Warden => &compiled::WARDEN,
        }
    }

    /// The errno by which the filter shows that it is the live one.
    pub fn marker(self) -> i32 {
        match self {
            Self::JailerExec => compiled::JAILER_EXEC_MARKER,
            Self::RunnerMain => compiled::RUNNER_MAIN_MARKER,
            Self::RunnerVcpu => compiled::RUNNER_VCPU_MARKER,
            Self::RunnerIo => compiled::RUNNER_IO_MARKER,
            Self::Warden => compiled::WARDEN_MARKER,
        }
    }

    /// Every rule with its reason.
    #[cfg(any(test, feature = "rules"))]
    pub fn rules(self) -> &'static [Rule] {
        match self {
            Self::JailerExec => compiled::JAILER_EXEC_RULES,
            Self::RunnerMain => compiled::RUNNER_MAIN_RULES,
            Self::RunnerVcpu => compiled::RUNNER_VCPU_RULES,
            Self::RunnerIo => compiled::RUNNER_IO_RULES,
            Self::Warden => compiled::WARDEN_RULES,
        }
    }
}

/// Can this kernel run our filters?
pub fn probe() -> bool {
    let seccomp = sys::facts::kernel::seccomp();
    seccomp.kill_process && seccomp.errno
}

/// Installs a filter on the calling thread and asks it who it is. Needs CAP_SYS_ADMIN or NNP.
pub fn apply(filter: Filter) -> Result<Confined> {
    sys::seccomp::install(filter.program()).map_err(Error::call(Layer::Seccomp))?;
    held(Layer::Seccomp, vec![attest(filter)])
}

/// Is this filter the newest one on the calling thread?
pub fn attest(filter: Filter) -> Finding {
    let seen = match sys::seccomp::ask_marker() {
        Some(errno) => {
            Filter::ALL.into_iter().find(|filter| filter.marker() == errno).map_or("no filter of ours", Filter::name)
        }
        None => "no filter",
    };
    Finding::equal(Layer::Seccomp, "newest filter of the thread", filter.name(), seen)
}

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;
