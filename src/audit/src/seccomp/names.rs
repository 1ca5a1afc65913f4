//! Names of system calls per ABI, and of the argument values that filters ask for.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use casemate_filters::Filter as Ours;

use super::Abi;

/// Numbers beyond every table of today's kernels, counted from the table's first.
const BEYOND: u32 = 1024;
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
pub(super) fn value(call: &str, arg: u8, value: u64) -> Option<&'static str> {
    let ours = || {
        let rules = Ours::ALL.into_iter().flat_map(|filter| filter.rules()).filter(|rule| rule.syscall == call);
        let mut conditions = rules.flat_map(|rule| rule.conditions);
        conditions.find(|c| c.arg == arg && c.value == value && c.constant.is_some())?.constant
    };
    let known = VALUES.iter().find(|(calls, at, _)| *at == arg && calls.contains(&call));
    known.and_then(|(_, _, names)| names.iter().find(|(known, _)| *known == value)).map(|(_, name)| *name).or_else(ours)
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

const IOCTLS: &[(u64, &str)] = &[
    (0x5401, "TCGETS"),
    (0x5402, "TCSETS"),
    (0x5403, "TCSETSW"),
    (0x5412, "TIOCSTI"),
    (0x5413, "TIOCGWINSZ"),
    (0x541b, "FIONREAD"),
    (0x541c, "TIOCLINUX"),
    (0x5421, "FIONBIO"),
    (0x5451, "FIOCLEX"),
    (0x400454ca, "TUNSETIFF"),
    (0x400454d0, "TUNSETOFFLOAD"),
    (0x400454d8, "TUNSETVNETHDRSZ"),
    (0xae00, "KVM_GET_API_VERSION"),
    (0xae01, "KVM_CREATE_VM"),
    (0xae03, "KVM_CHECK_EXTENSION"),
    (0xae04, "KVM_GET_VCPU_MMAP_SIZE"),
    (0xae41, "KVM_CREATE_VCPU"),
    (0x4010ae42, "KVM_GET_DIRTY_LOG"),
    (0x4020ae46, "KVM_SET_USER_MEMORY_REGION"),
    (0xae47, "KVM_SET_TSS_ADDR"),
    (0xae60, "KVM_CREATE_IRQCHIP"),
    (0x4008ae61, "KVM_IRQ_LINE"),
    (0xc208ae62, "KVM_GET_IRQCHIP"),
    (0x8208ae63, "KVM_SET_IRQCHIP"),
    (0x4008ae6a, "KVM_SET_GSI_ROUTING"),
    (0x4020ae76, "KVM_IRQFD"),
    (0x4040ae77, "KVM_CREATE_PIT2"),
    (0x4040ae79, "KVM_IOEVENTFD"),
    (0x4030ae7b, "KVM_SET_CLOCK"),
    (0x8030ae7c, "KVM_GET_CLOCK"),
    (0xae80, "KVM_RUN"),
    (0x8090ae81, "KVM_GET_REGS"),
    (0x4090ae82, "KVM_SET_REGS"),
    (0x8138ae83, "KVM_GET_SREGS"),
    (0x4138ae84, "KVM_SET_SREGS"),
    (0xc008ae88, "KVM_GET_MSRS"),
    (0x4008ae89, "KVM_SET_MSRS"),
    (0x8400ae8e, "KVM_GET_LAPIC"),
    (0x4400ae8f, "KVM_SET_LAPIC"),
    (0x4008ae90, "KVM_SET_CPUID2"),
    (0xc008ae91, "KVM_GET_CPUID2"),
    (0x8004ae98, "KVM_GET_MP_STATE"),
    (0x4004ae99, "KVM_SET_MP_STATE"),
    (0x8040ae9f, "KVM_GET_VCPU_EVENTS"),
    (0x4040aea0, "KVM_SET_VCPU_EVENTS"),
    (0x8080aea1, "KVM_GET_DEBUGREGS"),
    (0x4080aea2, "KVM_SET_DEBUGREGS"),
    (0x4068aea3, "KVM_ENABLE_CAP"),
    (0x9000aea4, "KVM_GET_XSAVE"),
    (0x5000aea5, "KVM_SET_XSAVE"),
    (0x4020aea5, "KVM_SIGNAL_MSI"),
    (0x8188aea6, "KVM_GET_XCRS"),
    (0x4188aea7, "KVM_SET_XCRS"),
    (0xaea3, "KVM_GET_TSC_KHZ"),
    (0xaea2, "KVM_SET_TSC_KHZ"),
    (0xaead, "KVM_KVMCLOCK_CTRL"),
    (0xc00caee0, "KVM_CREATE_DEVICE"),
    (0x4018aee1, "KVM_SET_DEVICE_ATTR"),
    (0x80081272, "BLKGETSIZE64"),
    (0x1277, "BLKDISCARD"),
    (0x127f, "BLKZEROOUT"),
    (0x1268, "BLKSSZGET"),
];
