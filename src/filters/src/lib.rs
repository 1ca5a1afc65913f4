//! The seccomp filters, compiled at build time from `seccomp-filters/*.json`: one source for the rooms that install them
//! (`confine`) and that judge them (`audit`).
//!
//! Trust: data. This room installs nothing and reads nothing.
#![forbid(unsafe_code)]

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
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    pub syscall: &'static str,
    pub number: i64,
    /// All must hold.
    pub conditions: &'static [Condition],
    /// Not allowed but answered with this errno.
    pub refused: Option<u32>,
    pub why: &'static str,
}

/// The masked argument must equal the value.
#[cfg(any(test, feature = "rules"))]
#[derive(Debug, Clone, Copy)]
pub struct Condition {
    /// 0 to 5.
    pub arg: u8,
    /// A 32-bit comparison has no bit above 31 in it.
    pub mask: u64,
    pub value: u64,
    /// The value's name in `constants.json`.
    pub constant: Option<&'static str>,
}

mod compiled {
    use super::Instruction;
    #[cfg(any(test, feature = "rules"))]
    use super::{Condition, Rule};

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

    /// The filter of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|filter| filter.name() == name)
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

#[cfg(test)]
mod tests;
