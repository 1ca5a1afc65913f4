//! Return values of filters as the kernel reads them (kernel/seccomp.c, seccomp_run_filters and __seccomp_filter).

use std::fmt;

use super::Action;

const ACTION: u32 = 0xffff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0x0000_0000;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const USER_NOTIFY: u32 = 0x7fc0_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;
/// What no filter says is allowed: the kernel begins with this value.
pub(super) const NO_FILTER: u32 = ALLOW;
const MAX_ERRNO: u16 = 4095;

/// The lowest wins; KILL_PROCESS is negative.
pub(super) fn rank(value: u32) -> i32 {
    (value & ACTION).cast_signed()
}

/// Does the kernel know this action?
pub(super) fn is_known(value: u32) -> bool {
    matches!(value & ACTION, KILL_PROCESS | KILL_THREAD | TRAP | ERRNO | USER_NOTIFY | TRACE | LOG | ALLOW)
}

impl Action {
    /// What a return value does. One that the kernel does not know kills the process.
    pub fn of(value: u32) -> Self {
        let data = (value & 0xffff) as u16;
        match value & ACTION {
            KILL_THREAD => Self::KillThread,
            TRAP => Self::Trap(data),
            ERRNO => Self::Errno(data.min(MAX_ERRNO)),
            USER_NOTIFY => Self::UserNotify,
            TRACE => Self::Trace(data),
            LOG => Self::Log,
            ALLOW => Self::Allow,
            _ => Self::KillProcess,
        }
    }

    /// One return value of those that do this.
    pub(super) fn value(self) -> u32 {
        match self {
            Self::KillProcess => KILL_PROCESS,
            Self::KillThread => KILL_THREAD,
            Self::Trap(data) => TRAP | u32::from(data),
            Self::Errno(errno) => ERRNO | u32::from(errno),
            Self::UserNotify => USER_NOTIFY,
            Self::Trace(data) => TRACE | u32::from(data),
            Self::Log => LOG,
            Self::Allow => ALLOW,
        }
    }

    /// Is the call run, and nobody else asked?
    pub fn passes(self) -> bool {
        matches!(self, Self::Allow | Self::Log)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillProcess => write!(f, "kill process"),
            Self::KillThread => write!(f, "kill thread"),
            Self::Trap(0) => write!(f, "SIGSYS"),
            Self::Trap(data) => write!(f, "SIGSYS ({data})"),
            Self::Errno(0) => write!(f, "not run, looks like success (errno 0)"),
            Self::Errno(errno) => {
                let name = casemate_sys::process::errno_name(i32::from(*errno));
                if name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit()) {
                    write!(f, "{name}")
                } else {
                    write!(f, "errno {errno}")
                }
            }
            Self::UserNotify => write!(f, "a supervisor decides"),
            Self::Trace(data) => write!(f, "a tracer decides ({data})"),
            Self::Log => write!(f, "allow and log"),
            Self::Allow => write!(f, "allow"),
        }
    }
}
