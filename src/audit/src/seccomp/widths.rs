//! How much of an argument the kernel looks at: where that is the lower half, a filter need not compare the upper one.
//!
//! From the calls' definitions (SYSCALL_DEFINE in kernel/, mm/, fs/, net/ and ipc/ of Linux 6.12).

use super::diagram::{Bounded, Diagrams, Field, Node};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// An int, or a long whose upper half is dropped or refused.
    Lower,
    /// Addresses, sizes and offsets.
    Whole,
    /// Not in our tables.
    Unknown,
}

/// How much the kernel looks at of an argument, as far as a condition depends on it.
pub(super) fn width(d: &mut Diagrams, condition: Node, call: &str, arg: u8) -> Bounded<Width> {
    let listed = |table: &[(&str, &[u8])]| table.iter().any(|(name, args)| *name == call && args.contains(&arg));
    if (call, arg) == ("fcntl", 2) {
        let mut others = condition;
        for command in INT_COMMANDS {
            let is = d.equals(Field::Argument(1), u32::MAX.into(), *command)?;
            others = d.choose(is, super::diagram::FALSE, others)?;
        }
        let depends = d.depends(others, |variable| Field::of(variable).0 == Field::Argument(arg));
        return Ok(if depends { Width::Whole } else { Width::Lower });
    }
    Ok(match () {
        () if listed(LOWER) => Width::Lower,
        () if listed(WHOLE) => Width::Whole,
        () => Width::Unknown,
    })
}

/// Commands of fcntl with an int: F_DUPFD, F_SETFD, F_SETFL, F_SETOWN, F_SETSIG, F_SETLEASE, F_NOTIFY,
/// F_DUPFD_CLOEXEC, F_SETPIPE_SZ, F_ADD_SEALS.
const INT_COMMANDS: &[u64] = &[0, 2, 4, 8, 10, 1024, 1026, 1030, 1031, 1033];

const WHOLE: &[(&str, &[u8])] = &[
    ("read", &[1, 2]),
    ("write", &[1, 2]),
    ("readv", &[1, 2]),
    ("writev", &[1, 2]),
    ("pread64", &[1, 2, 3]),
    ("pwrite64", &[1, 2, 3]),
    ("lseek", &[1]),
    ("mmap", &[0, 1, 5]),
    ("munmap", &[0, 1]),
    ("mprotect", &[0, 1]),
    ("pkey_mprotect", &[0, 1]),
    ("madvise", &[0, 1]),
    ("mremap", &[0, 1, 2, 4]),
    ("msync", &[0, 1]),
    ("mlock", &[0, 1]),
    ("munlock", &[0, 1]),
    ("brk", &[0]),
    ("ioctl", &[2]),
    ("prctl", &[1, 2, 3, 4]),
    ("arch_prctl", &[1]),
    ("clone", &[1, 2, 3, 4]),
    ("ftruncate", &[1]),
    ("fallocate", &[2, 3]),
    ("futex", &[0, 3, 4]),
    ("memfd_create", &[0]),
    ("getrandom", &[0, 1]),
    ("sendto", &[1, 2, 4]),
    ("recvfrom", &[1, 2, 4, 5]),
    ("sendmsg", &[1]),
    ("recvmsg", &[1]),
    ("rt_sigaction", &[1, 2, 3]),
    ("rt_sigprocmask", &[1, 2, 3]),
    ("splice", &[1, 3, 4]),
    ("keyctl", &[1, 2, 3, 4]),
];

const LOWER: &[(&str, &[u8])] = &[
    ("read", &[0]),
    ("write", &[0]),
    ("readv", &[0]),
    ("writev", &[0]),
    ("pread64", &[0]),
    ("pwrite64", &[0]),
    ("close", &[0]),
    ("close_range", &[0, 1, 2]),
    ("lseek", &[0, 2]),
    ("open", &[1, 2]),
    ("openat", &[0, 2, 3]),
    ("openat2", &[0]),
    ("newfstatat", &[0, 3]),
    ("statx", &[0, 2, 3]),
    ("unlinkat", &[0, 2]),
    ("faccessat", &[0, 2]),
    ("faccessat2", &[0, 2, 3]),
    ("readlinkat", &[0, 3]),
    ("execveat", &[0, 4]),
    ("dup", &[0]),
    ("dup2", &[0, 1]),
    ("dup3", &[0, 1, 2]),
    ("pipe2", &[1]),
    ("fcntl", &[0, 1]),
    ("ioctl", &[0, 1]),
    ("fallocate", &[0, 1]),
    ("ftruncate", &[0]),
    ("fsync", &[0]),
    ("fdatasync", &[0]),
    ("fadvise64", &[0, 3]),
    ("splice", &[0, 2, 5]),
    ("mmap", &[2, 3, 4]),
    ("mprotect", &[2]),
    ("pkey_mprotect", &[2, 3]),
    ("madvise", &[2]),
    ("mremap", &[3]),
    ("msync", &[2]),
    ("memfd_create", &[1]),
    ("socket", &[0, 1, 2]),
    ("socketpair", &[0, 1, 2]),
    ("accept", &[0]),
    ("accept4", &[0, 3]),
    ("bind", &[0, 2]),
    ("connect", &[0, 2]),
    ("listen", &[0, 1]),
    ("shutdown", &[0, 1]),
    ("setsockopt", &[0, 1, 2, 4]),
    ("getsockopt", &[0, 1, 2]),
    ("sendto", &[0, 3, 5]),
    ("recvfrom", &[0, 3]),
    ("sendmsg", &[0, 2]),
    ("recvmsg", &[0, 2]),
    ("sendmmsg", &[0, 2, 3]),
    ("recvmmsg", &[0, 2, 3]),
    ("epoll_create1", &[0]),
    ("epoll_ctl", &[0, 1, 2]),
    ("epoll_wait", &[0, 2, 3]),
    ("epoll_pwait", &[0, 2, 3]),
    ("eventfd2", &[0, 1]),
    ("timerfd_create", &[0, 1]),
    ("timerfd_settime", &[0, 1]),
    ("signalfd4", &[0, 3]),
    ("poll", &[1, 2]),
    ("clock_gettime", &[0]),
    ("clock_nanosleep", &[0, 1]),
    ("futex", &[1, 2, 5]),
    ("kill", &[0, 1]),
    ("tkill", &[0, 1]),
    ("tgkill", &[0, 1, 2]),
    ("rt_sigaction", &[0]),
    ("rt_sigprocmask", &[0]),
    ("prctl", &[0]),
    ("arch_prctl", &[0]),
    ("personality", &[0]),
    ("clone", &[0]),
    ("unshare", &[0]),
    ("setns", &[0, 1]),
    ("wait4", &[0, 2]),
    ("waitid", &[0, 1, 3]),
    ("exit", &[0]),
    ("exit_group", &[0]),
    ("sched_setscheduler", &[0, 1]),
    ("prlimit64", &[0, 1]),
    ("getrandom", &[2]),
    ("seccomp", &[0, 1]),
    ("bpf", &[0, 2]),
    ("kcmp", &[0, 1, 2]),
    ("membarrier", &[0, 1, 2]),
    ("rseq", &[1, 2, 3]),
    ("io_uring_setup", &[0]),
    ("io_uring_enter", &[0, 1, 2, 3]),
    ("io_uring_register", &[0, 1, 3]),
    ("keyctl", &[0]),
    ("landlock_create_ruleset", &[2]),
    ("landlock_add_rule", &[0, 1, 3]),
    ("landlock_restrict_self", &[0, 1]),
];
