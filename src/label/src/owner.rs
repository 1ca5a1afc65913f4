//! Who holds a lease or a label: a process, named so that it cannot be mistaken for another.
//!
//! Trust: reads /proc. A pid alone is reused; with its start time and the boot id it is not.
//! Called by `ledger`, `relabel` and `journal`.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

/// The sandbox and its warden process. Written into leases, xattrs and journals.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// Sandbox id, or a name in `<angle brackets>` for a holder that is no sandbox.
    pub sandbox: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: clock ticks since boot.
    pub start: u64,
}

impl Owner {
    /// The owner record for the living process `pid`.
    pub fn of_process(sandbox: &str, pid: u32) -> io::Result<Self> {
        Ok(Self { sandbox: sandbox.to_owned(), boot: boot_id()?, pid, start: start_time(pid)? })
    }

    pub fn of_self(sandbox: &str) -> io::Result<Self> {
        Self::of_process(sandbox, std::process::id())
    }

    /// False only when the process is certainly gone: other boot, no such pid, or the pid
    /// belongs to a process with another start time. Doubt keeps the owner alive.
    pub fn is_alive(&self) -> bool {
        if boot_id().is_ok_and(|b| b != self.boot) {
            return false;
        }
        match start_time(self.pid) {
            Ok(start) => start == self.start,
            Err(e) => e.kind() != io::ErrorKind::NotFound,
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sandbox {} (pid {})", self.sandbox, self.pid)
    }
}

pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim_end().to_owned())
}

/// Start time of a process in clock ticks since boot; NotFound when there is no such
/// process, or only a zombie, which holds nothing any more.
pub fn start_time(pid: u32) -> io::Result<u64> {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        // ESRCH: it died between open and read
        Err(e) if e.raw_os_error() == Some(nix::libc::ESRCH) => return Err(io::ErrorKind::NotFound.into()),
        other => other?,
    };
    // comm may hold spaces and brackets: the fields start after the last ')'
    let rest = stat.rsplit_once(") ").ok_or(io::ErrorKind::InvalidData)?.1;
    let mut fields = rest.split(' ');
    if matches!(fields.next(), Some("Z" | "X")) {
        return Err(io::ErrorKind::NotFound.into());
    }
    fields.nth(18).and_then(|s| s.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_lives_as_long_as_its_process() {
        let me = Owner::of_self("a").unwrap();
        assert!(me.is_alive());
        assert!(!Owner { boot: "another".into(), ..me.clone() }.is_alive());
        assert!(!Owner { start: me.start + 1, ..me.clone() }.is_alive(), "a reused pid");

        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let owner = Owner::of_process("b", child.id()).unwrap();
        assert!(owner.is_alive());
        child.kill().unwrap();
        // not reaped yet: a zombie holds nothing
        for _ in 0..200 {
            if !owner.is_alive() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(!owner.is_alive());
        child.wait().unwrap();
        assert!(!owner.is_alive());
        assert!(Owner::of_process("c", u32::MAX).is_err());
    }
}
