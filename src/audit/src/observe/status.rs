//! /proc/PID/task/TID/status and stat (proc_pid_status(5), proc_pid_stat(5)).

use crate::subject::{Capabilities, Known, Thread};

/// Bits of the flags in stat, field 9 (include/linux/sched.h): threads that never run the process's own code, though
/// they bear its credentials. A name proves nothing: any thread may call itself kvm-nx-lpage-recovery.
const PF_IO_WORKER: u64 = 0x10;
const PF_USER_WORKER: u64 = 0x4000;
const PF_KTHREAD: u64 = 0x20_0000;

/// The lines of a status file. The kernel escapes newlines in the name, so a name cannot forge a line.
pub(super) struct Status<'a>(&'a str);

impl<'a> Status<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Status(text)
    }

    fn field(&self, key: &str) -> Option<&'a str> {
        self.0.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
    }

    fn needed(&self, key: &str) -> Result<&'a str, String> {
        self.field(key).ok_or_else(|| format!("its status has no line {key}"))
    }

    fn four(&self, key: &str) -> Result<[u32; 4], String> {
        let numbers: Vec<u32> = self.needed(key)?.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        numbers.try_into().map_err(|_| format!("the line {key} of its status does not hold four ids"))
    }

    fn set(&self, key: &str) -> Result<u64, String> {
        u64::from_str_radix(self.needed(key)?, 16).map_err(|_| format!("the line {key} of its status is no set"))
    }

    fn number<T: std::str::FromStr>(&self, key: &str) -> Result<T, String> {
        self.needed(key)?.parse().map_err(|_| format!("the line {key} of its status is no number"))
    }

    pub(super) fn parent(&self) -> Option<u32> {
        self.field("PPid")?.parse().ok()
    }

    /// Bytes; none for a kernel thread, which has no memory.
    pub(super) fn locked(&self) -> u64 {
        let kib = self.field("VmLck").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
        kib.unwrap_or_default().saturating_mul(1024)
    }

    /// Everything of the thread but its filters.
    ///
    /// # Errors
    /// A sentence with the line that is missing or unreadable: a thread half seen would look better than it is.
    pub(super) fn thread(&self, tid: u32, stat: &str) -> Result<Thread, String> {
        let flags = stat_flags(stat).ok_or("its stat has no field 9")?;
        let groups = self.needed("Groups")?.split_whitespace().map(|group| group.parse().ok());
        Ok(Thread {
            tid: Some(tid),
            name: self.needed("Name")?.to_owned(),
            kernel: flags & (PF_KTHREAD | PF_USER_WORKER | PF_IO_WORKER) != 0,
            uid: self.four("Uid")?,
            gid: self.four("Gid")?,
            groups: groups.collect::<Option<_>>().ok_or("the line Groups of its status holds no ids")?,
            capabilities: Capabilities {
                inheritable: self.set("CapInh")?,
                permitted: self.set("CapPrm")?,
                effective: self.set("CapEff")?,
                bounding: self.set("CapBnd")?,
                ambient: self.set("CapAmb")?,
            },
            no_new_privs: self.number::<u8>("NoNewPrivs")? == 1,
            seccomp_mode: self.number("Seccomp")?,
            // Linux 5.9 and later.
            filter_count: self.number("Seccomp_filters").unwrap_or_default(),
            filters: Known::unseen("not read"),
            speculation_store_bypass: self.field("Speculation_Store_Bypass").unwrap_or("unknown").to_owned(),
            speculation_indirect_branch: self.field("SpeculationIndirectBranch").unwrap_or("unknown").to_owned(),
        })
    }
}

/// Past the point where the kernel takes its memory and descriptors from it, and not yet ended for its pidfd.
pub(super) fn is_exiting(stat: &str) -> bool {
    const PF_EXITING: u64 = 0x4;
    stat_flags(stat).is_none_or(|flags| flags & PF_EXITING != 0)
}

/// Field 9. The name, field 2, may hold anything, a parenthesis too: the last one ends it.
fn stat_flags(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(6)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tevil\\nUid:\t0 <\nPPid:\t7\nUid:\t1\t2\t3\t4\nGid:\t5\t5\t5\t5\nGroups:\t9 10 \n\
        VmLck:\t      12 kB\nCapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t0000000000000001\n\
        CapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t3\n\
        Speculation_Store_Bypass:\tthread vulnerable\nSpeculationIndirectBranch:\tconditional enabled\n";

    #[test]
    fn a_thread_is_read_whatever_its_name() {
        let thread = Status::new(STATUS).thread(8, "8 (a) 0 0 (b)) S 7 8 8 0 -1 4194304 9 9").unwrap();
        assert_eq!((thread.uid, thread.groups.as_slice()), ([1, 2, 3, 4], [9, 10].as_slice()));
        assert_eq!(thread.capabilities.permitted, 0xa804_25fb);
        assert!(thread.no_new_privs && !thread.kernel);
        assert_eq!((thread.seccomp_mode, thread.filter_count), (2, 3));
        assert_eq!(Status::new(STATUS).locked(), 12288);
        assert_eq!(Status::new(STATUS).parent(), Some(7));
    }

    #[test]
    fn who_is_leaving_is_told() {
        assert!(!is_exiting("8 (x) S 7 8 8 0 -1 4194304 9"));
        assert!(is_exiting("8 (x) S 7 8 8 0 -1 4194308 9"));
        assert!(is_exiting("8 (x"));
    }

    #[test]
    fn a_kernels_thread_is_told_by_its_flags_and_not_by_its_name() {
        let renamed = STATUS.replace("evil", "kvm-nx-lpage-recovery");
        let flags = |flags: u64| format!("8 (x) S 7 8 8 0 -1 {flags} 9");
        assert!(!Status::new(&renamed).thread(8, &flags(0x40_0000)).unwrap().kernel);
        for kernel in [PF_KTHREAD, PF_USER_WORKER, PF_IO_WORKER] {
            assert!(Status::new(STATUS).thread(8, &flags(kernel)).unwrap().kernel);
        }
    }

    #[test]
    fn half_a_status_is_no_thread() {
        for line in ["Uid", "Groups", "CapBnd", "NoNewPrivs", "Seccomp"] {
            let cut: String =
                STATUS.lines().filter(|l| !l.starts_with(&format!("{line}:"))).map(|l| format!("{l}\n")).collect();
            let error = Status::new(&cut).thread(8, "8 (x) S 7 8 8 0 -1 0 9").unwrap_err();
            assert!(error.contains(line), "{error}");
        }
        assert!(Status::new(STATUS).thread(8, "8 (x").is_err());
    }
}
