//! Installing a compiled seccomp filter, and what the kernel's seccomp can do.
//! The filters themselves are compiled by the `confine` room.

use crate::error::check;
use crate::{Attempt, Result};

/// One classic BPF instruction (`struct sock_filter`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// Installs a filter on the calling thread; threads and programs started later inherit it.
/// Needs no_new_privs or CAP_SYS_ADMIN; sets neither.
pub fn install(program: &[Instruction]) -> Result<()> {
    const ATTEMPT: &str = "install a seccomp filter";
    if program.is_empty() {
        return Err(crate::Error::because(ATTEMPT, "the filter is empty"));
    }
    let len = u16::try_from(program.len()).map_err(std::io::Error::other).attempt(ATTEMPT)?;
    let prog = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: `prog` describes a live slice of `len` instructions with sock_filter's layout; the
    // kernel copies and checks them.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const prog) };
    check(result).attempt(ATTEMPT)?;
    Ok(())
}

/// Is this action (`SECCOMP_RET_*`) known to the kernel?
pub fn has_action(action: u32) -> bool {
    // SAFETY: the kernel reads one u32 through a live pointer.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    result == 0
}

/// KILL_PROCESS.
pub const RET_KILL_PROCESS: u32 = libc::SECCOMP_RET_KILL_PROCESS;
/// ERRNO (with the errno in the low 16 bits).
pub const RET_ERRNO: u32 = libc::SECCOMP_RET_ERRNO;
/// ALLOW.
pub const RET_ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

/// The signal that a killed process shows.
pub const SIGSYS: i32 = libc::SIGSYS;

/// Asks the filters of the calling thread who they are: Casemate's filters answer one unused system
/// call (kcmp) with an errno of their own, above any real one. None where the kernel itself answers.
pub fn ask_marker() -> Option<i32> {
    // SAFETY: kcmp(2) takes numbers only; pid 0 exists nowhere, so it cannot even compare.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, 0, 0, 0, 0, 0) };
    let errno = check(result).err()?.raw_os_error()?;
    (errno >= 1000).then_some(errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_filter_is_refused_before_the_kernel_sees_it() {
        assert!(install(&[]).is_err());
    }

    #[test]
    fn the_kernel_knows_the_actions_that_we_use() {
        assert!(has_action(RET_KILL_PROCESS));
        assert!(has_action(RET_ERRNO));
        assert!(!has_action(0x1234_0000));
    }
}
