//! Sets of capabilities, and their names.

use serde::{Deserialize, Serialize};

/// Sets as in capabilities(7), one bit per capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capabilities {
    pub inheritable: u64,
    pub permitted: u64,
    pub effective: u64,
    pub bounding: u64,
    pub ambient: u64,
}

/// Names as in capabilities(7), by bit (include/uapi/linux/capability.h).
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Names of the capabilities in a set; one that is newer than this program is `CAP_41`, as capsh(1) says it.
pub fn capability_names(set: u64) -> Vec<String> {
    (0..u64::BITS as usize)
        .filter(|bit| set & (1 << bit) != 0)
        .map(|bit| CAPABILITIES.get(bit).map_or_else(|| format!("CAP_{bit}"), |name| (*name).to_owned()))
        .collect()
}

/// For people: `all`, `all but …`, or their names.
pub fn capabilities_said(set: u64) -> String {
    const FEW: u32 = 4;
    let missing = ALL_CAPABILITIES & !set;
    match (set, missing.count_ones()) {
        (0, _) => "none".into(),
        (_, 0) => "all".into(),
        (_, 1..=FEW) => format!("all but {}", capability_names(missing).join(" ")),
        _ => capability_names(set).join(" "),
    }
}

/// All capabilities that this program knows by name.
pub const ALL_CAPABILITIES: u64 = (1 << CAPABILITIES.len()) - 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_named_by_bit() {
        assert_eq!(capability_names(1 << 21 | 1), ["CAP_CHOWN", "CAP_SYS_ADMIN"]);
        assert_eq!(capability_names(1 << 40 | 1 << 63), ["CAP_CHECKPOINT_RESTORE", "CAP_63"]);
        assert_eq!(capability_names(ALL_CAPABILITIES).len(), 41);
        assert!(capability_names(0).is_empty());
        let said = [0, 1 << 12, ALL_CAPABILITIES, ALL_CAPABILITIES & !(1 << 16)].map(capabilities_said);
        assert_eq!(said, ["none", "CAP_NET_ADMIN", "all", "all but CAP_SYS_MODULE"]);
    }
}
