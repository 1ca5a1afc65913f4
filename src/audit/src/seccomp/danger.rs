//! Calls that widen what somebody can do who has taken over the process, each with its reason.

use crate::rule::Severity::{self, High, Info, Low, Medium};

/// Whatever the arguments: names, how bad, why.
pub(super) const CALLS: &[(&str, Severity, &str)] = &[
    ("ptrace", High, "reads and writes other processes' memory and registers"),
    ("process_vm_readv", High, "reads other processes' memory"),
    ("process_vm_writev", High, "writes other processes' memory"),
    ("pidfd_getfd", High, "takes descriptors out of other processes"),
    ("process_madvise", Low, "changes other processes' memory"),
    ("kcmp", Low, "compares other processes' kernel objects: addresses leak"),
    (
        "mount umount umount2 move_mount open_tree open_tree_attr fsopen fsconfig fsmount fspick mount_setattr pivot_root chroot",
        High,
        "changes what paths mean",
    ),
    ("unshare", High, "new namespaces: a new user namespace opens kernel code that checks no capability"),
    ("setns", High, "enters other namespaces"),
    ("clone3", Medium, "its flags lie in memory, where no filter sees them: new namespaces are among them"),
    ("fork vfork", Low, "new processes"),
    ("bpf", High, "loads programs into the kernel"),
    ("io_uring_setup io_uring_enter io_uring_register", High, "does what other calls do, past every filter"),
    ("userfaultfd", High, "stops the kernel in the middle of a copy: makes races in it winnable"),
    ("perf_event_open", High, "a large attack surface, and watches other processes"),
    ("keyctl add_key request_key", High, "kernel keyrings, which no namespace separates"),
    ("kexec_load kexec_file_load", High, "replaces the kernel"),
    ("init_module finit_module create_module delete_module", High, "loads kernel code"),
    ("open_by_handle_at", High, "opens files past every directory and mount"),
    ("name_to_handle_at", Low, "names files for open_by_handle_at"),
    ("modify_ldt", Medium, "segments of one's own: rarely used kernel code with a history"),
    ("iopl ioperm", High, "ports of the hardware"),
    ("execve execveat", Medium, "starts programs"),
    ("open openat openat2 creat", Low, "opens files by name"),
    ("socketcall", Medium, "its arguments lie in memory, where no filter sees them: every family of sockets"),
    ("ipc", Low, "System V objects; its arguments partly lie in memory"),
    (
        "acct quotactl quotactl_fd swapon swapoff reboot sethostname setdomainname syslog",
        Medium,
        "administers the host",
    ),
    ("settimeofday clock_settime clock_adjtime adjtimex stime", Medium, "changes the host's clock"),
    (
        "setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset",
        Low,
        "changes its own rights",
    ),
    ("fanotify_init fanotify_mark", Low, "watches and decides others' file accesses"),
    ("kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal", Info, "signals to others of its uid"),
    ("mknod mknodat", Low, "device nodes"),
    ("vmsplice", Low, "pages in pipes: a history of privilege escalation"),
    ("lookup_dcookie uselib nfsservctl _sysctl sysfs ustat vm86 vm86old", Low, "obsolete kernel code"),
    ("migrate_pages move_pages", Low, "moves other processes' memory"),
];

/// A call that is dangerous under some arguments only.
pub(super) struct Guarded {
    pub call: &'static str,
    pub arg: u8,
    /// The masked argument is (or is not) the value.
    pub mask: u64,
    pub value: u64,
    pub is: bool,
    pub severity: Severity,
    pub why: &'static str,
}

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
const NAMESPACES: u64 = 0x7e02_0000;
/// READ_IMPLIES_EXEC
const READ_IMPLIES_EXEC: u64 = 0x0040_0000;
/// PROT_WRITE and PROT_EXEC
const WRITE_EXECUTE: u64 = 6;

pub(super) const GUARDED: &[Guarded] = &[
    Guarded {
        call: "clone",
        arg: 0,
        mask: NAMESPACES,
        value: 0,
        is: false,
        severity: High,
        why: "with flags that make new namespaces",
    },
    Guarded {
        call: "personality",
        arg: 0,
        // 0xffffffff only asks; it is left out by the highest bit, which no personality has.
        mask: READ_IMPLIES_EXEC | 0x8000_0000,
        value: READ_IMPLIES_EXEC,
        is: true,
        severity: Medium,
        why: "with READ_IMPLIES_EXEC: all readable memory becomes executable",
    },
    Guarded { call: "mmap", arg: 2, mask: WRITE_EXECUTE, value: WRITE_EXECUTE, is: true, severity: Low, why: W_X },
    Guarded { call: "mprotect", arg: 2, mask: WRITE_EXECUTE, value: WRITE_EXECUTE, is: true, severity: Low, why: W_X },
    Guarded {
        call: "pkey_mprotect",
        arg: 2,
        mask: WRITE_EXECUTE,
        value: WRITE_EXECUTE,
        is: true,
        severity: Low,
        why: W_X,
    },
];

const W_X: &str = "for memory that is writable and executable at once";

/// Socket families: number, name, why.
pub(super) const FAMILIES: &[(u64, &str, &str)] = &[
    (16, "AF_NETLINK", "configures the host's network and talks to many kernel parsers"),
    (17, "AF_PACKET", "raw frames"),
    (38, "AF_ALG", "the kernel's cryptography, with a history"),
    (40, "AF_VSOCK", "reaches the host and other guests past every network rule"),
];

/// ioctl commands that type into a terminal.
pub(super) const TERMINAL: &[(u64, &str)] = &[(0x5412, "TIOCSTI"), (0x541c, "TIOCLINUX")];
