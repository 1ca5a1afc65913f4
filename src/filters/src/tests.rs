//! Every rule of every filter, run through an interpreter of the compiled BPF: what is written is
//! allowed, its neighbour is not, and the deny twins are denied. The kernel's own verdict on some of
//! them is in tests/kvm/confine.rs.

use super::*;
use casemate_sys::seccomp::{RET_ALLOW, RET_ERRNO, RET_KILL_PROCESS};

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const X32_BIT: i64 = 0x4000_0000;

/// Runs a program on one system call, as the kernel's BPF would (the instructions seccompiler emits).
fn run(program: &[Instruction], arch: u32, number: i64, args: [u64; 6]) -> u32 {
    let word = |offset: u32| -> u32 {
        match offset {
            0 => number as u32,
            4 => arch,
            8 | 12 => 0,
            _ => {
                let index = (offset - 16) / 8;
                let arg = args[index as usize];
                if (offset - 16).is_multiple_of(8) { arg as u32 } else { (arg >> 32) as u32 }
            }
        }
    };
    let (mut pc, mut acc) = (0usize, 0u32);
    loop {
        let i = program[pc];
        pc += 1;
        let mut jump = |taken: bool| pc += usize::from(if taken { i.jt } else { i.jf });
        match i.code {
            0x20 => acc = word(i.k),
            0x15 => jump(acc == i.k),
            0x25 => jump(acc > i.k),
            0x35 => jump(acc >= i.k),
            0x54 => acc &= i.k,
            0x05 => pc += i.k as usize,
            0x06 => return i.k,
            other => panic!("instruction {other:#x} is not known to this test"),
        }
    }
}

fn verdict(filter: Filter, number: i64, args: [u64; 6]) -> u32 {
    run(filter.program(), X86_64, number, args)
}

/// Arguments that satisfy a rule.
fn fitting(rule: &Rule) -> [u64; 6] {
    let mut args = [0; 6];
    for condition in rule.conditions {
        args[usize::from(condition.arg)] = condition.value;
    }
    args
}

/// Does any rule of the filter allow this call?
fn written(filter: Filter, number: i64, args: [u64; 6]) -> bool {
    filter
        .rules()
        .iter()
        .filter(|rule| rule.number == number && rule.refused.is_none())
        .any(|rule| rule.conditions.iter().all(|c| args[usize::from(c.arg)] & c.mask == c.value))
}

#[test]
fn every_rule_is_live() {
    for filter in Filter::ALL {
        assert!(!filter.rules().is_empty());
        for rule in filter.rules() {
            let want = match rule.refused {
                None => RET_ALLOW,
                Some(errno) => RET_ERRNO | errno,
            };
            let seen = verdict(filter, rule.number, fitting(rule));
            assert_eq!(seen, want, "{}: {} ({})", filter.name(), rule.syscall, rule.why);
        }
    }
}

#[test]
fn a_condition_that_fails_kills() {
    for filter in Filter::ALL {
        for rule in filter.rules() {
            for condition in rule.conditions {
                for bit in (0..64).filter(|bit| condition.mask >> bit & 1 == 1) {
                    let mut args = fitting(rule);
                    args[usize::from(condition.arg)] ^= 1 << bit;
                    if written(filter, rule.number, args) {
                        continue;
                    }
                    let seen = verdict(filter, rule.number, args);
                    assert_eq!(seen, RET_KILL_PROCESS, "{}: {} {args:x?}", filter.name(), rule.syscall);
                }
            }
        }
    }
}

#[test]
fn everything_unwritten_kills() {
    for filter in Filter::ALL {
        for number in -1..700 {
            let known = filter.rules().iter().any(|rule| rule.number == number);
            if known || number == libc_kcmp() {
                continue;
            }
            assert_eq!(verdict(filter, number, [0; 6]), RET_KILL_PROCESS, "{}: {number}", filter.name());
        }
    }
}

/// kcmp, the marker.
fn libc_kcmp() -> i64 {
    312
}

#[test]
fn each_filter_has_a_marker_of_its_own() {
    let mut seen: Vec<i32> = Filter::ALL.iter().map(|filter| filter.marker()).collect();
    for filter in Filter::ALL {
        assert_eq!(verdict(filter, libc_kcmp(), [0; 6]), RET_ERRNO | filter.marker() as u32);
        assert!((1000..4096).contains(&filter.marker()), "above real errnos, below MAX_ERRNO");
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), Filter::ALL.len());
}

#[test]
fn other_architectures_are_killed_whatever_the_number() {
    for filter in Filter::ALL {
        for number in 0..500 {
            assert_eq!(run(filter.program(), I386, number, [0; 6]), RET_KILL_PROCESS, "i386 {number}");
            assert_eq!(verdict(filter, number | X32_BIT, [0; 6]), RET_KILL_PROCESS, "x32 {number}");
        }
    }
}

#[test]
fn what_passes_a_thread_filter_passes_the_coarse_one() {
    // Filters stack: a rule that the coarse filter lacks would be dead.
    for filter in [Filter::RunnerMain, Filter::RunnerVcpu, Filter::RunnerIo] {
        for rule in filter.rules().iter().filter(|rule| rule.refused.is_none()) {
            let seen = verdict(Filter::JailerExec, rule.number, fitting(rule));
            assert_eq!(seen, RET_ALLOW, "{}: {}", filter.name(), rule.syscall);
        }
    }
}

/// x86-64 numbers of what must be denied (threats.md), with arguments that would matter.
const TWINS: [(&str, i64, [u64; 6]); 40] = [
    ("ptrace", 101, [16, 1, 0, 0, 0, 0]),
    ("process_vm_readv", 310, [1, 0, 0, 0, 0, 0]),
    ("process_vm_writev", 311, [1, 0, 0, 0, 0, 0]),
    ("pidfd_getfd", 438, [3, 3, 0, 0, 0, 0]),
    ("pidfd_open", 434, [1, 0, 0, 0, 0, 0]),
    ("mount", 165, [0; 6]),
    ("umount2", 166, [0; 6]),
    ("move_mount", 429, [0; 6]),
    ("fsopen", 430, [0; 6]),
    ("mount_setattr", 442, [0; 6]),
    ("pivot_root", 155, [0; 6]),
    ("chroot", 161, [0; 6]),
    ("unshare", 272, [0x1000_0000, 0, 0, 0, 0, 0]),
    ("setns", 308, [3, 0, 0, 0, 0, 0]),
    ("clone as fork", 56, [17, 0, 0, 0, 0, 0]),
    ("clone with a namespace", 56, [0x3d0f00 | 0x1000_0000, 0, 0, 0, 0, 0]),
    ("fork", 57, [0; 6]),
    ("vfork", 58, [0; 6]),
    ("execve", 59, [0; 6]),
    ("execveat by path", 322, [3, 0, 0, 0, 0, 0]),
    ("bpf", 321, [0; 6]),
    ("io_uring_setup", 425, [1, 0, 0, 0, 0, 0]),
    ("io_uring_enter", 426, [3, 0, 0, 0, 0, 0]),
    ("userfaultfd", 323, [0; 6]),
    ("perf_event_open", 298, [0; 6]),
    ("keyctl", 250, [0; 6]),
    ("add_key", 248, [0; 6]),
    ("open", 2, [0; 6]),
    ("openat for writing", 257, [0xffff_ff9c, 0, 1, 0, 0, 0]),
    ("openat2", 437, [0; 6]),
    ("socket AF_INET", 41, [2, 1, 0, 0, 0, 0]),
    ("socket AF_NETLINK", 41, [16, 3, 0, 0, 0, 0]),
    ("socket AF_ALG", 41, [38, 5, 0, 0, 0, 0]),
    ("socket AF_VSOCK", 41, [40, 1, 0, 0, 0, 0]),
    ("socketpair AF_NETLINK", 53, [16, 3, 0, 0, 0, 0]),
    ("ioctl TIOCSTI", 16, [0, 0x5412, 0, 0, 0, 0]),
    ("ioctl KVM_SET_DEVICE_ATTR", 16, [3, 0x4018_aee1, 0, 0, 0, 0]),
    ("mmap executable", 9, [0, 4096, 7, 0x22, u64::MAX, 0]),
    ("mprotect executable", 10, [0, 4096, 5, 0, 0, 0]),
    ("kill", 62, [1, 9, 0, 0, 0, 0]),
];

#[test]
fn the_deny_twins_die_in_the_coarse_filter_already() {
    for (name, number, args) in TWINS {
        for filter in [Filter::JailerExec, Filter::RunnerMain, Filter::RunnerVcpu, Filter::RunnerIo] {
            assert_eq!(verdict(filter, number, args), RET_KILL_PROCESS, "{}: {name}", filter.name());
        }
    }
}

#[test]
fn the_threads_lose_what_only_set_up_needed() {
    let set_up: [(&str, i64, [u64; 6]); 10] = [
        ("openat", 257, [0xffff_ff9c, 0, 0x80000, 0, 0, 0]),
        ("execveat", 322, [3, 0, 0, 0, 0x1000, 0]),
        ("capset", 126, [0; 6]),
        ("setresuid", 117, [0; 6]),
        ("seccomp", 317, [1, 0, 0, 0, 0, 0]),
        ("clone of a thread", 56, [0x3d0f00, 0, 0, 0, 0, 0]),
        ("prctl PR_SET_DUMPABLE", 157, [4, 1, 0, 0, 0, 0]),
        ("ioctl KVM_CREATE_VM", 16, [3, 0xae01, 0, 0, 0, 0]),
        ("ioctl KVM_SET_USER_MEMORY_REGION", 16, [3, 0x4020_ae46, 0, 0, 0, 0]),
        ("prlimit64", 302, [0; 6]),
    ];
    for (name, number, args) in set_up {
        assert_eq!(verdict(Filter::JailerExec, number, args), RET_ALLOW, "coarse: {name}");
        for filter in [Filter::RunnerMain, Filter::RunnerVcpu, Filter::RunnerIo] {
            assert_eq!(verdict(filter, number, args), RET_KILL_PROCESS, "{}: {name}", filter.name());
        }
    }
}

#[test]
fn a_vcpu_may_run_the_guest_and_the_others_may_not() {
    let run_guest = [5, 0xae80, 0, 0, 0, 0];
    assert_eq!(verdict(Filter::RunnerVcpu, 16, run_guest), RET_ALLOW);
    assert_eq!(verdict(Filter::RunnerMain, 16, run_guest), RET_KILL_PROCESS);
    assert_eq!(verdict(Filter::RunnerIo, 16, run_guest), RET_KILL_PROCESS);
    // And a vCPU thread reads no socket's control data and accepts nobody.
    for number in [47, 288] {
        assert_eq!(verdict(Filter::RunnerVcpu, number, [0; 6]), RET_KILL_PROCESS);
    }
}
