//! Installing a compiled seccomp filter, and what the kernel's seccomp can do.
//! The filters themselves are compiled by the `confine` room.

use crate::error::check;
use crate::{Attempt, Result};
use std::ffi::CStr;

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

/// Makes a system call by number with register arguments only, for negative controls and the
/// filter tests. Arguments that the kernel would take as pointers must be null or invalid there.
pub(crate) fn raw_call(number: i64, args: [u64; 6]) -> std::io::Result<i64> {
    let [a, b, c, d, e, f] = args;
    // SAFETY: callers in this room pass no pointer into our memory (see `provoke`).
    check(unsafe { libc::syscall(number, a, b, c, d, e, f) })
}

/// System calls that a probe provokes with harmless arguments (nulls and zeros): denied they prove
/// a layer, allowed they change nothing (each fails on its arguments first).
/// Returns Err with the errno for "not allowed or failed", Ok for success.
pub fn provoke(name: &CStr) -> Option<std::io::Result<i64>> {
    let number = match name.to_bytes() {
        b"mount" => libc::SYS_mount,
        b"umount2" => libc::SYS_umount2,
        b"fsopen" => libc::SYS_fsopen,
        b"open_tree" => libc::SYS_open_tree,
        b"bpf" => libc::SYS_bpf,
        b"keyctl" => libc::SYS_keyctl,
        b"add_key" => libc::SYS_add_key,
        b"perf_event_open" => libc::SYS_perf_event_open,
        b"io_uring_setup" => libc::SYS_io_uring_setup,
        b"userfaultfd" => libc::SYS_userfaultfd,
        b"init_module" => libc::SYS_init_module,
        b"finit_module" => libc::SYS_finit_module,
        b"kexec_load" => libc::SYS_kexec_load,
        b"open_by_handle_at" => libc::SYS_open_by_handle_at,
        b"name_to_handle_at" => libc::SYS_name_to_handle_at,
        b"swapon" => libc::SYS_swapon,
        b"acct" => libc::SYS_acct,
        b"quotactl" => libc::SYS_quotactl,
        b"syslog" => libc::SYS_syslog,
        b"fanotify_init" => libc::SYS_fanotify_init,
        b"pivot_root" => libc::SYS_pivot_root,
        b"memfd_secret" => libc::SYS_memfd_secret,
        _ => return None,
    };
    // userfaultfd and memfd_secret would succeed with 0: an invalid flag makes them fail on it.
    let first = match name.to_bytes() {
        b"userfaultfd" | b"memfd_secret" => u64::from(u32::MAX),
        b"bpf" | b"keyctl" => u64::from(u16::MAX),
        b"syslog" => u64::from(u16::MAX),
        _ => 0,
    };
    Some(raw_call(number, [first, 0, 0, 0, 0, 0]))
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
