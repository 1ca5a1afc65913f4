//! Arguments that are made of flags, and of one of several kinds in their lowest bits (asm-generic/mman-common.h,
//! linux/mman.h, linux/sched.h, linux/net.h, linux/memfd.h, asm-generic/fcntl.h, asm-generic/signal.h).

struct Flags {
    calls: &'static [&'static str],
    arg: u8,
    /// Bits in which one of `kinds` stands.
    kind: u64,
    kinds: Names,
    bits: Names,
}

type Names = &'static [(u64, &'static str)];

/// What `argument & mask == value` says of flags, or of the whole argument; `None` where a bit of it has no name.
pub(super) fn meaning(call: &str, arg: u8, mask: Option<u64>, value: u64) -> Option<String> {
    let flags = FLAGS.iter().find(|flags| flags.arg == arg && flags.calls.contains(&call))?;
    let looked = mask.unwrap_or(u64::MAX);
    let name = |names: Names, bit: u64| names.iter().find(|(known, _)| *known == bit).map(|(_, name)| *name);
    let mut set = Vec::new();
    if flags.kind != 0 && looked & flags.kind != 0 {
        // Half a kind has no name.
        if looked & flags.kind != flags.kind {
            return None;
        }
        set.extend(name(flags.kinds, value & flags.kind));
        if set.is_empty() && value & flags.kind != 0 {
            return None;
        }
    }
    let bits = || (0..64).map(|bit| 1u64 << bit).filter(|bit| bit & flags.kind == 0);
    for bit in bits().filter(|bit| value & bit != 0) {
        set.push(name(flags.bits, bit)?);
    }
    let mut told = set.join("|");
    if let Some(mask) = mask {
        let clear: Option<Vec<&str>> =
            bits().filter(|bit| mask & !value & bit != 0).map(|bit| name(flags.bits, bit)).collect();
        let clear = clear?;
        if !clear.is_empty() {
            told = format!("{told}{}no {}", if told.is_empty() { "" } else { ", " }, clear.join("|"));
        }
    }
    (!told.is_empty()).then_some(told)
}

const PROT: Names = &[(1, "PROT_READ"), (2, "PROT_WRITE"), (4, "PROT_EXEC")];
const MSG: Names = &[(0x40, "MSG_DONTWAIT"), (0x4000, "MSG_NOSIGNAL"), (0x4000_0000, "MSG_CMSG_CLOEXEC")];
const NONBLOCK: (u64, &str) = (0x800, "SOCK_NONBLOCK");
const CLOEXEC: (u64, &str) = (0x8_0000, "SOCK_CLOEXEC");
const NONE: Names = &[];

const fn plain(calls: &'static [&'static str], arg: u8, bits: Names) -> Flags {
    Flags { calls, arg, kind: 0, kinds: NONE, bits }
}

const FLAGS: &[Flags] = &[
    plain(&["mmap", "mmap2", "mprotect", "pkey_mprotect"], 2, PROT),
    Flags {
        calls: &["mmap", "mmap2"],
        arg: 3,
        kind: 0xf,
        kinds: &[(1, "MAP_SHARED"), (2, "MAP_PRIVATE"), (3, "MAP_SHARED_VALIDATE")],
        bits: &[
            (0x10, "MAP_FIXED"),
            (0x20, "MAP_ANONYMOUS"),
            (0x40, "MAP_32BIT"),
            (0x100, "MAP_GROWSDOWN"),
            (0x800, "MAP_DENYWRITE"),
            (0x1000, "MAP_EXECUTABLE"),
            (0x2000, "MAP_LOCKED"),
            (0x4000, "MAP_NORESERVE"),
            (0x8000, "MAP_POPULATE"),
            (0x1_0000, "MAP_NONBLOCK"),
            (0x2_0000, "MAP_STACK"),
            (0x4_0000, "MAP_HUGETLB"),
            (0x8_0000, "MAP_SYNC"),
            (0x10_0000, "MAP_FIXED_NOREPLACE"),
        ],
    },
    plain(&["mremap"], 3, &[(1, "MREMAP_MAYMOVE"), (2, "MREMAP_FIXED"), (4, "MREMAP_DONTUNMAP")]),
    plain(&["msync"], 2, &[(1, "MS_ASYNC"), (2, "MS_INVALIDATE"), (4, "MS_SYNC")]),
    Flags {
        calls: &["socket", "socketpair"],
        arg: 1,
        kind: 0xf,
        kinds: &[(1, "SOCK_STREAM"), (2, "SOCK_DGRAM"), (3, "SOCK_RAW"), (5, "SOCK_SEQPACKET")],
        bits: &[NONBLOCK, CLOEXEC],
    },
    plain(&["accept4"], 3, &[NONBLOCK, CLOEXEC]),
    plain(&["sendto", "recvfrom"], 3, MSG),
    plain(&["sendmsg", "recvmsg"], 2, MSG),
    plain(&["sendmmsg", "recvmmsg"], 3, MSG),
    plain(
        &["memfd_create"],
        1,
        &[(1, "MFD_CLOEXEC"), (2, "MFD_ALLOW_SEALING"), (4, "MFD_HUGETLB"), (8, "MFD_NOEXEC_SEAL"), (16, "MFD_EXEC")],
    ),
    plain(&["timerfd_create"], 1, &[(0x800, "TFD_NONBLOCK"), (0x8_0000, "TFD_CLOEXEC")]),
    plain(&["timerfd_settime"], 1, &[(1, "TFD_TIMER_ABSTIME"), (2, "TFD_TIMER_CANCEL_ON_SET")]),
    plain(&["eventfd2"], 1, &[(1, "EFD_SEMAPHORE"), (0x800, "EFD_NONBLOCK"), (0x8_0000, "EFD_CLOEXEC")]),
    plain(&["epoll_create1"], 0, &[(0x8_0000, "EPOLL_CLOEXEC")]),
    plain(&["pipe2"], 1, &[(0x800, "O_NONBLOCK"), (0x8_0000, "O_CLOEXEC")]),
    plain(&["dup3"], 2, &[(0x8_0000, "O_CLOEXEC")]),
    Flags { calls: &["open"], arg: 1, kind: 3, kinds: ACCESS, bits: OPEN },
    Flags { calls: &["openat"], arg: 2, kind: 3, kinds: ACCESS, bits: OPEN },
    Flags { calls: &["clone"], arg: 0, kind: 0xff, kinds: SIGNALS, bits: CLONE },
    plain(&["unshare"], 0, CLONE),
    Flags { calls: &["kill", "tkill", "rt_sigqueueinfo"], arg: 1, kind: 0x7f, kinds: SIGNALS, bits: NONE },
    Flags { calls: &["tgkill", "rt_tgsigqueueinfo"], arg: 2, kind: 0x7f, kinds: SIGNALS, bits: NONE },
    Flags { calls: &["rt_sigaction"], arg: 0, kind: 0x7f, kinds: SIGNALS, bits: NONE },
];

const ACCESS: Names = &[(0, "O_RDONLY"), (1, "O_WRONLY"), (2, "O_RDWR")];

const OPEN: Names = &[
    (0x40, "O_CREAT"),
    (0x80, "O_EXCL"),
    (0x100, "O_NOCTTY"),
    (0x200, "O_TRUNC"),
    (0x400, "O_APPEND"),
    (0x800, "O_NONBLOCK"),
    (0x1000, "O_DSYNC"),
    (0x4000, "O_DIRECT"),
    (0x8000, "O_LARGEFILE"),
    (0x1_0000, "O_DIRECTORY"),
    (0x2_0000, "O_NOFOLLOW"),
    (0x4_0000, "O_NOATIME"),
    (0x8_0000, "O_CLOEXEC"),
    (0x20_0000, "O_PATH"),
];

const CLONE: Names = &[
    (0x80, "CLONE_NEWTIME"),
    (0x100, "CLONE_VM"),
    (0x200, "CLONE_FS"),
    (0x400, "CLONE_FILES"),
    (0x800, "CLONE_SIGHAND"),
    (0x1000, "CLONE_PIDFD"),
    (0x2000, "CLONE_PTRACE"),
    (0x4000, "CLONE_VFORK"),
    (0x8000, "CLONE_PARENT"),
    (0x1_0000, "CLONE_THREAD"),
    (0x2_0000, "CLONE_NEWNS"),
    (0x4_0000, "CLONE_SYSVSEM"),
    (0x8_0000, "CLONE_SETTLS"),
    (0x10_0000, "CLONE_PARENT_SETTID"),
    (0x20_0000, "CLONE_CHILD_CLEARTID"),
    (0x40_0000, "CLONE_DETACHED"),
    (0x80_0000, "CLONE_UNTRACED"),
    (0x100_0000, "CLONE_CHILD_SETTID"),
    (0x200_0000, "CLONE_NEWCGROUP"),
    (0x400_0000, "CLONE_NEWUTS"),
    (0x800_0000, "CLONE_NEWIPC"),
    (0x1000_0000, "CLONE_NEWUSER"),
    (0x2000_0000, "CLONE_NEWPID"),
    (0x4000_0000, "CLONE_NEWNET"),
    (0x8000_0000, "CLONE_IO"),
];

const SIGNALS: Names = &[
    (1, "SIGHUP"),
    (2, "SIGINT"),
    (3, "SIGQUIT"),
    (4, "SIGILL"),
    (5, "SIGTRAP"),
    (6, "SIGABRT"),
    (7, "SIGBUS"),
    (8, "SIGFPE"),
    (9, "SIGKILL"),
    (10, "SIGUSR1"),
    (11, "SIGSEGV"),
    (12, "SIGUSR2"),
    (13, "SIGPIPE"),
    (14, "SIGALRM"),
    (15, "SIGTERM"),
    (17, "SIGCHLD"),
    (18, "SIGCONT"),
    (19, "SIGSTOP"),
    (31, "SIGSYS"),
];
