//! Kernel, machine and the kernel's own confinement features.

use crate::{Attempt, Error, Result, seccomp};
use std::path::Path;

/// `uname -r`.
pub fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The architecture as `uname -m` names it.
pub fn machine() -> String {
    rustix::system::uname().machine().to_string_lossy().into_owned()
}

/// The id of this boot: leases from another boot are void.
pub fn boot_id() -> Result<String> {
    read_trimmed("/proc/sys/kernel/random/boot_id")
}

/// Bytes in a page.
pub fn page_size() -> usize {
    rustix::param::page_size()
}

/// CPUs that this process may run on.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Total and (roughly) free memory in bytes.
pub fn memory() -> (u64, u64) {
    let info = rustix::system::sysinfo();
    let unit = u64::from(info.mem_unit.max(1));
    let bytes = |count: u64| count.saturating_mul(unit);
    (bytes(info.totalram), bytes(info.freeram).saturating_add(bytes(info.bufferram)))
}

/// The Landlock ABI; 0 where Landlock is not built in or not enabled at boot.
pub fn landlock_abi() -> u32 {
    const CREATE_RULESET_VERSION: libc::c_uint = 1;
    // SAFETY: with a null attribute, size 0 and the VERSION flag the call only returns a number.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0usize,
            CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(abi).unwrap_or(0)
}

/// What seccomp can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seccomp {
    pub kill_process: bool,
    pub errno: bool,
}

/// Asks the kernel which of our actions it knows. Both are needed.
pub fn seccomp() -> Seccomp {
    Seccomp {
        kill_process: seccomp::has_action(seccomp::RET_KILL_PROCESS),
        errno: seccomp::has_action(seccomp::RET_ERRNO),
    }
}

/// May user namespaces be made at all, and by an unprivileged user?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserNamespaces {
    pub available: bool,
    pub unprivileged: bool,
}

/// Reads the three switches that distributions use.
pub fn user_namespaces() -> UserNamespaces {
    let number = |path: &str| read_trimmed(path).ok().and_then(|text| text.parse::<u64>().ok());
    let built_in = Path::new("/proc/self/ns/user").exists();
    let available = built_in && number("/proc/sys/user/max_user_namespaces") != Some(0);
    let debian_switch = number("/proc/sys/kernel/unprivileged_userns_clone") != Some(0);
    let apparmor = number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").unwrap_or(0);
    UserNamespaces { available, unprivileged: available && debian_switch && apparmor == 0 }
}

/// The active LSMs in order; None where securityfs is not mounted.
pub fn lsms() -> Option<Vec<String>> {
    let text = read_trimmed("/sys/kernel/security/lsm").ok()?;
    Some(text.split(',').map(str::to_owned).collect())
}

/// A one-line file without its newline.
pub(crate) fn read_trimmed(path: &str) -> Result<String> {
    let text = std::fs::read_to_string(path).attempt_with(|| format!("read {path}"))?;
    let text = text.trim_end_matches(['\n', '\0']);
    if text.is_empty() {
        return Err(Error::because(format!("read {path}"), "it is empty"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_answers() {
        assert!(release().contains('.'));
        assert_eq!(boot_id().unwrap().len(), 36);
        assert!(page_size() >= 4096);
        assert!(cpus() >= 1);
        assert!(memory().0 > 1 << 20);
        assert!(landlock_abi() < 100);
        let _ = (seccomp(), user_namespaces(), lsms(), machine());
    }
}
