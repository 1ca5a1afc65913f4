//! Names of system calls per ABI, and of the argument values that filters ask for.

mod flags;
mod ioctls;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use casemate_filters::Filter as Ours;

use super::Abi;
use ioctls::IOCTLS;

/// Numbers beyond every table of today's kernels, counted from the table's first.
const BEYOND: u32 = 1024;
/// Counted from the table's first: beyond every table, and without the bits that tell ABIs apart.
const NOBODYS: u32 = 0x3fff_fff0;
/// __X32_SYSCALL_BIT (arch/x86/include/uapi/asm/unistd.h)
const X32_BIT: u32 = 0x4000_0000;

impl Abi {
    pub const ALL: [Self; 3] = [Self::X86_64, Self::X32, Self::I386];

    /// AUDIT_ARCH_* that the kernel gives to filters; x32 is x86-64 with a bit in the number.
    pub fn arch(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::I386 => 0x4000_0003,
        }
    }

    /// The first number of its table.
    pub fn base(self) -> u32 {
        if self == Self::X32 { X32_BIT } else { 0 }
    }

    /// A number that no kernel has: what a filter answers to it is its answer to all that nobody listed.
    pub(super) fn nobodys(self) -> u32 {
        self.base() + NOBODYS
    }

    /// The name of a number, as syscall-numbers has it (Linux 6.17 and later additions of its release).
    pub fn name(self, number: u32) -> Option<&'static str> {
        let number = number.into();
        match self {
            Self::X86_64 => syscall_numbers::x86_64::sys_call_name(number),
            Self::X32 => syscall_numbers::x32::sys_call_name(number),
            Self::I386 => syscall_numbers::x86::sys_call_name(number),
        }
    }

    /// The number of a name.
    pub fn number(self, name: &str) -> Option<u32> {
        BY_NAME[self as usize].get(name).copied()
    }

    /// Names and numbers, by number.
    pub fn table(self) -> impl Iterator<Item = (u32, &'static str)> {
        (self.base()..self.base() + BEYOND).filter_map(move |number| Some((number, self.name(number)?)))
    }
}

static BY_NAME: LazyLock<[BTreeMap<&'static str, u32>; 3]> =
    LazyLock::new(|| Abi::ALL.map(|abi| abi.table().map(|(number, name)| (name, number)).collect()));

impl std::fmt::Display for Abi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::X86_64 => "x86-64",
            Self::X32 => "x32",
            Self::I386 => "i386",
        })
    }
}

/// The field's name for a value of an argument, as KVM_RUN for ioctl's second.
fn value(call: &str, arg: u8, value: u64) -> Option<&'static str> {
    let ours = || {
        let rules = Ours::ALL.into_iter().flat_map(|filter| filter.rules()).filter(|rule| rule.syscall == call);
        let mut conditions = rules.flat_map(|rule| rule.conditions);
        conditions.find(|c| c.arg == arg && c.value == value && c.constant.is_some())?.constant
    };
    let known = VALUES.iter().find(|(calls, at, _)| *at == arg && calls.contains(&call));
    known.and_then(|(_, _, names)| names.iter().find(|(known, _)| *known == value)).map(|(_, name)| *name).or_else(ours)
}

/// What `argument & mask == value` means, as `KVM_RUN`, `PROT_READ|PROT_WRITE` or `no PROT_EXEC`.
pub(super) fn meaning(call: &str, arg: u8, mask: u64, is: u64) -> Option<String> {
    let whole = mask == u64::MAX || mask == u64::from(u32::MAX);
    let named = if whole { value(call, arg, is).map(str::to_owned) } else { None };
    named.or_else(|| flags::meaning(call, arg, (!whole).then_some(mask), is))
}

type Values = (&'static [&'static str], u8, &'static [(u64, &'static str)]);

/// From the kernel's uapi headers.
const VALUES: &[Values] = &[
    (&["ioctl"], 1, IOCTLS),
    (&["socket", "socketpair"], 0, FAMILIES),
    (
        &["fcntl", "fcntl64"],
        1,
        &[
            (0, "F_DUPFD"),
            (1, "F_GETFD"),
            (2, "F_SETFD"),
            (3, "F_GETFL"),
            (4, "F_SETFL"),
            (5, "F_GETLK"),
            (6, "F_SETLK"),
            (7, "F_SETLKW"),
            (1030, "F_DUPFD_CLOEXEC"),
            (1033, "F_ADD_SEALS"),
            (1034, "F_GET_SEALS"),
        ],
    ),
    (
        &["prctl"],
        0,
        &[
            (1, "PR_SET_PDEATHSIG"),
            (4, "PR_SET_DUMPABLE"),
            (15, "PR_SET_NAME"),
            (16, "PR_GET_NAME"),
            (22, "PR_SET_SECCOMP"),
            (38, "PR_SET_NO_NEW_PRIVS"),
            (0x5356_4d41, "PR_SET_VMA"),
        ],
    ),
    (
        &["madvise"],
        2,
        &[
            (3, "MADV_WILLNEED"),
            (4, "MADV_DONTNEED"),
            (8, "MADV_FREE"),
            (9, "MADV_REMOVE"),
            (14, "MADV_HUGEPAGE"),
            (15, "MADV_NOHUGEPAGE"),
            (16, "MADV_DONTDUMP"),
        ],
    ),
    (
        &["futex"],
        1,
        &[
            (0, "FUTEX_WAIT"),
            (1, "FUTEX_WAKE"),
            (128, "FUTEX_WAIT_PRIVATE"),
            (129, "FUTEX_WAKE_PRIVATE"),
            (131, "FUTEX_REQUEUE_PRIVATE"),
            (132, "FUTEX_CMP_REQUEUE_PRIVATE"),
            (137, "FUTEX_WAIT_BITSET_PRIVATE"),
            (265, "FUTEX_WAIT_BITSET|CLOCK_REALTIME"),
            (393, "FUTEX_WAIT_BITSET_PRIVATE|CLOCK_REALTIME"),
        ],
    ),
    (&["personality"], 0, &[(0, "PER_LINUX"), (8, "PER_LINUX32"), (0xffff_ffff, "query")]),
    (&["timerfd_create", "clock_gettime"], 0, &[(0, "CLOCK_REALTIME"), (1, "CLOCK_MONOTONIC")]),
];

const FAMILIES: &[(u64, &str)] = &[
    (1, "AF_UNIX"),
    (2, "AF_INET"),
    (10, "AF_INET6"),
    (16, "AF_NETLINK"),
    (17, "AF_PACKET"),
    (38, "AF_ALG"),
    (40, "AF_VSOCK"),
    (44, "AF_XDP"),
];
