//! Attributes of a process that prctl(2) sets.

use crate::{Attempt, Result};
use rustix::process as proc;
use rustix::thread as thr;
use std::ffi::CString;

/// No program executed from now on can gain privilege. Cannot be undone.
pub fn set_no_new_privs() -> Result<()> {
    thr::set_no_new_privs(true).attempt("set no_new_privs")
}

/// Is no_new_privs set?
pub fn no_new_privs() -> Result<bool> {
    thr::no_new_privs().attempt("read no_new_privs")
}

/// Nobody of the same uid may ptrace us, read our memory or our /proc; no core dump.
pub fn set_not_dumpable() -> Result<()> {
    proc::set_dumpable_behavior(proc::DumpableBehavior::NotDumpable).attempt("make the process not dumpable")
}

/// May the process be dumped or traced by its own uid?
pub fn is_dumpable() -> Result<bool> {
    let behavior = proc::dumpable_behavior().attempt("read whether the process is dumpable")?;
    Ok(behavior == proc::DumpableBehavior::Dumpable)
}

/// SIGKILL when the parent dies. Cleared by the kernel at an exec that changes the SELinux domain
/// and by any change of credentials: set it after those, then check that the parent still lives.
pub fn die_with_parent() -> Result<()> {
    proc::set_parent_process_death_signal(Some(proc::Signal::KILL)).attempt("ask to die with the parent")
}

/// Is [`die_with_parent`] in force?
pub fn dies_with_parent() -> Result<bool> {
    let signal = proc::parent_process_death_signal().attempt("read the parent death signal")?;
    Ok(signal == Some(proc::Signal::KILL))
}

/// Names the calling thread (15 bytes; longer names are cut by the kernel).
pub fn set_thread_name(name: &str) -> Result<()> {
    let attempt = || format!("name a thread {name}");
    let text = CString::new(name).map_err(std::io::Error::from).attempt_with(attempt)?;
    thr::set_name(&text).attempt_with(attempt)
}

/// 0 no filter, 1 strict, 2 filter (as `Seccomp:` in /proc/PID/status).
pub fn seccomp_mode() -> Result<u32> {
    let mode = thr::secure_computing_mode().attempt("read the seccomp mode")?;
    Ok(mode as u32)
}

/// What a processor does ahead of time, and a process may forbid it (prctl(2), Documentation/userspace-api/spec_ctrl.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speculation {
    /// Loads before older stores (Spectre 4).
    StoreBypass,
    /// Indirect branches predicted from what others trained: with it the kernel clears predictions when this thread
    /// comes and goes, and keeps a sibling hyperthread's apart (Spectre 2 between processes).
    IndirectBranch,
}

/// Turns a speculation off for good, for the calling thread and those that it starts.
/// Returns false where the CPU is not affected or the kernel leaves no choice.
pub fn disable_speculation(what: Speculation) -> Result<bool> {
    let feature = match what {
        Speculation::StoreBypass => proc::SpeculationFeature::SpeculativeStoreBypass,
        Speculation::IndirectBranch => proc::SpeculationFeature::IndirectBranchSpeculation,
    };
    match proc::control_speculative_feature(feature, proc::SpeculationFeatureControl::FORCE_DISABLE) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::NXIO | rustix::io::Errno::NODEV | rustix::io::Errno::PERM) => Ok(false),
        Err(error) => Err(error).attempt_with(|| format!("disable speculation: {what:?}")),
    }
}

/// Memory of this process can never become executable again (Linux 6.3). False where unknown.
pub fn deny_write_execute() -> Result<bool> {
    const PR_SET_MDWE: libc::c_int = 65;
    const PR_MDWE_REFUSE_EXEC_GAIN: libc::c_ulong = 1;
    // SAFETY: PR_SET_MDWE takes a flag word and no pointer.
    let result = unsafe { libc::prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) };
    match crate::error::check(result.into()) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error).attempt("deny writable executable memory"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_can_be_read() {
        no_new_privs().unwrap();
        is_dumpable().unwrap();
        assert!(!dies_with_parent().unwrap());
        assert!(seccomp_mode().unwrap() <= 2);
    }

    #[test]
    fn a_name_with_nul_is_refused() {
        assert!(set_thread_name("a\0b").is_err());
    }
}
