//! The CPUID template: what a guest may know about the processor.
//!
//! It starts from what KVM supports on this host and removes, by allow-lists:
//! - what is unsafe for neighbours: TSX (RTM, HLE), performance counters, processor trace, branch records, SGX,
//!   nested virtualisation, user-level waits (UMWAIT, MONITORX), thermal and power interfaces;
//! - what is not stable between runs and hosts: brand string, cache and TLB descriptions of the real package, AMX and
//!   its large state, leaves that this program does not know.
//!
//! The topology is ours: one package, one thread per core, APIC id = vCPU number. Leaves above those listed in
//! [`BASIC`] and [`EXTENDED`] do not exist. Sources: Intel SDM volume 2A CPUID, AMD APM volume 3 appendix E, Linux
//! Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Basic leaves that are passed on, all filtered below.
const BASIC: [u32; 8] = [0, 1, 2, 4, 6, 7, 0xb, 0xd];
/// Extended leaves that are passed on.
const EXTENDED: [u32; 9] = [
    0x8000_0000,
    0x8000_0001,
    0x8000_0002,
    0x8000_0003,
    0x8000_0004,
    0x8000_0006,
    0x8000_0007,
    0x8000_0008,
    0x8000_0021,
];
const KVM_SIGNATURE: u32 = 0x4000_0000;
const KVM_FEATURES: u32 = 0x4000_0001;
const TIMING: u32 = 0x4000_0010;
/// KVM's local APIC timer runs at 1 GHz (arch/x86/kvm/lapic.h, APIC_BUS_CYCLE_NS).
const APIC_BUS_KHZ: u32 = 1_000_000;
const BRAND: &[u8; 48] = b"Casemate virtual CPU\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// Bits of a feature word, by number.
const fn bits<const N: usize>(numbers: [u32; N]) -> u32 {
    let mut word = 0;
    let mut i = 0;
    while i < N {
        word |= 1 << numbers[i];
        i += 1;
    }
    word
}

/// Leaf 1 ecx without DTES64, MONITOR, DS-CPL, VMX, SMX, EIST, TM2, CNXT-ID, SDBG, xTPR, PDCM, DCA and OSXSAVE
/// (KVM follows CR4 for that one).
const LEAF1_ECX: u32 = bits([0, 1, 9, 12, 13, 17, 19, 20, 21, 22, 23, 25, 26, 28, 29, 30]);
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 edx without PSN, DS, ACPI, SS, HTT, TM and PBE.
const LEAF1_EDX: u32 = bits([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26]);
const HTT: u32 = 1 << 28;
/// Leaf 7.0 ebx without SGX, HLE, RTM, resource director, MPX and processor trace.
const LEAF7_EBX: u32 = bits([0, 1, 3, 5, 6, 7, 8, 9, 10, 13, 16, 17, 18, 19, 20, 21, 23, 24, 26, 27, 28, 29, 30, 31]);
/// Leaf 7.0 ecx without WAITPKG, CET, TME, LA57, SGX_LC, KL, ENQCMD, PKS.
const LEAF7_ECX: u32 = bits([1, 2, 3, 6, 8, 9, 10, 11, 12, 14, 22, 25, 27, 28]);
/// Leaf 7.0 edx: vector extras, short rep, the speculation controls and what enumerates immunity.
const LEAF7_EDX: u32 = bits([2, 3, 4, 8, 10, 14, 23, 26, 27, 28, 29, 30, 31]);
/// Leaf 7.1 eax: AVX-VNNI, AVX512-BF16, fast zero-length and short string operations.
const LEAF71_EAX: u32 = bits([4, 5, 10, 11, 12]);
/// Leaf 7.2 edx: the enumeration of predictor controls.
const LEAF72_EDX: u32 = bits([0, 1, 2, 3, 4, 5]);
/// Leaf 0xd.0 eax without AMX tile state (17, 18) and PKRU kept.
const XCR0: u32 = bits([0, 1, 2, 5, 6, 7, 9]);
/// Leaf 0xd.1 eax: XSAVEOPT, XSAVEC, XGETBV1, XSAVES.
const LEAFD1_EAX: u32 = bits([0, 1, 2, 3]);
/// Leaf 0x80000001 ecx without SVM, ExtApicSpace, IBS, SKINIT, WDT, LWP, TCE, NodeId, TopologyExtensions, counters
/// and MWAITX.
const EXT1_ECX: u32 = bits([0, 4, 5, 6, 7, 8, 11, 16, 21, 26]);
const CMP_LEGACY: u32 = 1 << 1;
/// Leaf 0x80000001 edx: everything architectural.
const EXT1_EDX: u32 = LEAF1_EDX & 0x0183_f3ff | bits([11, 20, 22, 25, 26, 27, 29]);
/// Leaf 0x80000007 edx: invariant TSC.
const EXT7_EDX: u32 = 1 << 8;
/// Leaf 0x80000008 ebx: CLZERO, XSAVEERPTR, WBNOINVD, the speculation controls.
const EXT8_EBX: u32 = bits([0, 2, 9, 12, 14, 15, 16, 17, 18, 19, 24, 25, 26, 28, 29, 30]);
/// Leaf 0x80000021 eax: LFENCE serialising, null selector clears base, automatic IBRS, predictor immunity.
const EXT21_EAX: u32 = bits([0, 2, 6, 8, 27, 28, 29, 30, 31]);
/// kvmclock (old and new MSRs), NOP I/O delay, steal time, PV EOI, PV unhalt, TLB flush, IPIs, poll control, yield,
/// stable clock. No asynchronous page faults: nothing swaps guests here without saying so.
const KVM_EAX: u32 = bits([0, 1, 3, 5, 6, 7, 9, 11, 12, 13, 24]);

/// Filters what KVM supports into the template for a VM with `vcpus` vCPUs.
pub fn template(supported: &[kvm_cpuid_entry2], vcpus: u8, deadline_timer: bool) -> Vec<kvm_cpuid_entry2> {
    let mut out: Vec<_> = supported.iter().filter_map(|entry| filter(*entry, vcpus, deadline_timer)).collect();
    out.extend(topology(vcpus));
    out
}

/// Puts one vCPU's identity and the TSC frequency into a template.
pub fn specialise(template: &mut [kvm_cpuid_entry2], index: u8, tsc_khz: Option<u32>) {
    for entry in template {
        match entry.function {
            1 => entry.ebx = (entry.ebx & 0x00ff_ffff) | (u32::from(index) << 24),
            0xb => entry.edx = index.into(),
            TIMING => (entry.eax, entry.ebx) = tsc_khz.map_or((0, 0), |khz| (khz, APIC_BUS_KHZ)),
            _ => {}
        }
    }
}

/// Bits of APIC id that number the vCPUs.
fn id_width(vcpus: u8) -> u32 {
    u32::from(vcpus.max(1)).next_power_of_two().trailing_zeros()
}

fn filter(entry: kvm_cpuid_entry2, vcpus: u8, deadline_timer: bool) -> Option<kvm_cpuid_entry2> {
    match entry.function {
        0xb => None, // made by `topology`
        KVM_SIGNATURE..=KVM_FEATURES => Some(filter_kvm(entry)),
        function if BASIC.contains(&function) => filter_basic(entry, vcpus, deadline_timer),
        function if EXTENDED.contains(&function) => Some(filter_extended(entry, vcpus)),
        _ => None,
    }
}

fn filter_kvm(mut entry: kvm_cpuid_entry2) -> kvm_cpuid_entry2 {
    match entry.function {
        KVM_SIGNATURE => entry.eax = TIMING,
        _ => {
            entry.eax &= KVM_EAX;
            entry.edx = 0; // no KVM_HINTS_REALTIME
        }
    }
    entry
}

fn filter_basic(mut e: kvm_cpuid_entry2, vcpus: u8, deadline_timer: bool) -> Option<kvm_cpuid_entry2> {
    match (e.function, e.index) {
        (0, _) => e.eax = e.eax.min(0xd),
        (1, _) => {
            let threads = if vcpus > 1 { u32::from(vcpus) << 16 } else { 0 };
            e.ebx = (e.ebx & 0xff00) | threads;
            e.ecx = (e.ecx & LEAF1_ECX) | HYPERVISOR | if deadline_timer { TSC_DEADLINE } else { 0 };
            e.edx = (e.edx & LEAF1_EDX) | if vcpus > 1 { HTT } else { 0 };
        }
        (4, _) => {
            // Bits 31:26 cores per package, 25:14 threads sharing this cache: all share level 3, nothing else.
            let level = (e.eax >> 5) & 7;
            let span = (1u32 << id_width(vcpus)) - 1;
            let sharing = if level >= 3 { span } else { 0 };
            e.eax = (e.eax & 0x3fff) | (sharing << 14) | (span.min(0x3f) << 26);
        }
        (6, _) => (e.eax, e.ebx, e.ecx, e.edx) = (e.eax & (1 << 2), 0, 0, 0), // ARAT only
        (7, 0) => {
            e.eax = e.eax.min(2);
            (e.ebx, e.ecx, e.edx) = (e.ebx & LEAF7_EBX, e.ecx & LEAF7_ECX, e.edx & LEAF7_EDX);
        }
        (7, 1) => (e.eax, e.ebx, e.ecx, e.edx) = (e.eax & LEAF71_EAX, 0, 0, 0),
        (7, 2) => (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, 0, e.edx & LEAF72_EDX),
        (7, _) => return None,
        (0xd, 0) => (e.eax, e.edx) = (e.eax & XCR0, 0),
        (0xd, 1) => (e.eax, e.ecx, e.edx) = (e.eax & LEAFD1_EAX, 0, 0),
        (0xd, component) if component >= 32 || XCR0 & (1 << component) == 0 => return None,
        _ => {}
    }
    Some(e)
}

fn filter_extended(mut e: kvm_cpuid_entry2, vcpus: u8) -> kvm_cpuid_entry2 {
    match e.function {
        0x8000_0000 => e.eax = e.eax.min(0x8000_0021),
        0x8000_0001 => {
            e.ecx = (e.ecx & EXT1_ECX) | if vcpus > 1 { CMP_LEGACY } else { 0 };
            e.edx &= EXT1_EDX;
        }
        leaf @ 0x8000_0002..=0x8000_0004 => {
            let at = (leaf - 0x8000_0002) as usize * 16;
            let word = |i: usize| {
                let at = at + i * 4;
                u32::from_le_bytes([BRAND[at], BRAND[at + 1], BRAND[at + 2], BRAND[at + 3]])
            };
            (e.eax, e.ebx, e.ecx, e.edx) = (word(0), word(1), word(2), word(3));
        }
        0x8000_0007 => (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, 0, e.edx & EXT7_EDX),
        0x8000_0008 => {
            e.ebx &= EXT8_EBX;
            // Bits 15:12 APIC id size, 7:0 cores minus one (AMD; zero on Intel anyway when there is one vCPU).
            e.ecx = (id_width(vcpus) << 12) | (u32::from(vcpus) - 1);
            e.edx = 0;
        }
        0x8000_0021 => (e.eax, e.ebx, e.ecx, e.edx) = (e.eax & EXT21_EAX, 0, 0, 0),
        _ => {}
    }
    e
}

/// Leaf 0xb (one thread per core, all cores in one package) and the timing leaf.
fn topology(vcpus: u8) -> [kvm_cpuid_entry2; 4] {
    let level = |index: u32, shift: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | (kind << 8),
        ..Default::default()
    };
    [
        level(0, 0, 1, 1),
        level(1, id_width(vcpus), vcpus.into(), 2),
        level(2, 0, 0, 0),
        kvm_cpuid_entry2 { function: TIMING, ..Default::default() },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_ones(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, flags: 0, eax: !0, ebx: !0, ecx: !0, edx: !0, padding: [0; 3] }
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> Option<kvm_cpuid_entry2> {
        entries.iter().find(|e| (e.function, e.index) == (function, index)).copied()
    }

    /// A processor that claims everything.
    fn everything() -> Vec<kvm_cpuid_entry2> {
        let mut all: Vec<_> = (0..0x24).flat_map(|f| (0..34).map(move |i| all_ones(f, i))).collect();
        all.extend((0x4000_0000..0x4000_0010).map(|f| all_ones(f, 0)));
        all.extend((0x8000_0000..0x8000_0030).map(|f| all_ones(f, 0)));
        all
    }

    #[test]
    fn unsafe_features_are_gone() {
        let t = template(&everything(), 2, true);
        let leaf1 = find(&t, 1, 0).unwrap();
        for (bit, name) in [(2, "DTES64"), (3, "MONITOR"), (5, "VMX"), (15, "PDCM"), (27, "OSXSAVE")] {
            assert_eq!(leaf1.ecx >> bit & 1, 0, "{name}");
        }
        assert_eq!(leaf1.edx >> 21 & 1, 0, "debug store");
        let leaf7 = find(&t, 7, 0).unwrap();
        for (bit, name) in [(2, "SGX"), (4, "HLE"), (11, "RTM"), (12, "PQM"), (25, "PT")] {
            assert_eq!(leaf7.ebx >> bit & 1, 0, "{name}");
        }
        assert_eq!(leaf7.ecx >> 5 & 1, 0, "WAITPKG");
        assert_eq!(leaf7.edx >> 24 & 1, 0, "AMX");
        assert_eq!(find(&t, 0x8000_0001, 0).unwrap().ecx >> 2 & 1, 0, "SVM");
        assert_eq!(find(&t, 0x8000_0001, 0).unwrap().ecx >> 29 & 1, 0, "MWAITX");
        for absent in [0x5, 0xa, 0xf, 0x10, 0x12, 0x14, 0x1c, 0x1d, 0x1f, 0x8000_000a, 0x8000_001e, 0x8000_001f] {
            assert!(t.iter().all(|e| e.function != absent), "{absent:#x}");
        }
    }

    #[test]
    fn no_leaf_is_announced_that_does_not_exist() {
        let t = template(&everything(), 1, true);
        assert_eq!(find(&t, 0, 0).unwrap().eax, 0xd);
        assert_eq!(find(&t, 0x8000_0000, 0).unwrap().eax, 0x8000_0021);
        assert_eq!(find(&t, 0x4000_0000, 0).unwrap().eax, TIMING);
        assert!(find(&t, 0xd, 17).is_none() && find(&t, 0xd, 18).is_none(), "no AMX state");
        assert!(find(&t, 0xd, 2).is_some());
    }

    #[test]
    fn needed_features_stay() {
        let t = template(&everything(), 1, true);
        let leaf1 = find(&t, 1, 0).unwrap();
        assert_ne!(leaf1.ecx & HYPERVISOR, 0);
        assert_ne!(leaf1.ecx & TSC_DEADLINE, 0);
        assert_ne!(leaf1.ecx & (1 << 21), 0, "x2APIC");
        assert_ne!(leaf1.edx & (1 << 9), 0, "APIC");
        let extended = find(&t, 0x8000_0001, 0).unwrap();
        assert_ne!(extended.edx & (1 << 29), 0, "long mode");
        assert_ne!(extended.edx & (1 << 20), 0, "NX");
        assert_ne!(extended.edx & (1 << 11), 0, "syscall");
        assert_ne!(find(&t, 0x4000_0001, 0).unwrap().eax & 1, 0, "kvmclock");
        assert_eq!(find(&template(&everything(), 1, false), 1, 0).unwrap().ecx & TSC_DEADLINE, 0);
    }

    #[test]
    fn topology_is_one_package_of_single_thread_cores() {
        let mut t = template(&everything(), 3, true);
        specialise(&mut t, 2, Some(2_400_000));
        let leaf1 = find(&t, 1, 0).unwrap();
        assert_eq!((leaf1.ebx >> 24, (leaf1.ebx >> 16) & 0xff), (2, 3));
        assert_ne!(leaf1.edx & HTT, 0);
        let cores = find(&t, 0xb, 1).unwrap();
        assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 3, 0x201, 2));
        assert_eq!(find(&t, 0xb, 0).unwrap().ebx, 1);
        assert_eq!(find(&t, 0x8000_0008, 0).unwrap().ecx, 0x2002);
        let timing = find(&t, TIMING, 0).unwrap();
        assert_eq!((timing.eax, timing.ebx), (2_400_000, APIC_BUS_KHZ));
        let single = template(&everything(), 1, true);
        assert_eq!(find(&single, 1, 0).unwrap().edx & HTT, 0);
    }

    #[test]
    fn the_template_is_stable() {
        let once = template(&everything(), 2, true);
        let mut noisy = everything();
        noisy.iter_mut().filter(|e| e.function == 1).for_each(|e| e.ebx ^= 0xff00_0000);
        noisy.iter_mut().filter(|e| e.function == 0xb).for_each(|e| e.edx = 7);
        assert!(once.iter().zip(template(&noisy, 2, true)).all(|(a, b)| *a == b));
        assert!(template(&[], 1, true).iter().all(|e| e.function == 0xb || e.function == TIMING));
    }

    #[test]
    fn the_brand_says_nothing_about_the_host() {
        let t = template(&everything(), 1, true);
        let first = find(&t, 0x8000_0002, 0).unwrap();
        assert_eq!(first.eax.to_le_bytes(), *b"Case");
        assert_eq!(find(&t, 0x8000_0004, 0).unwrap().edx, 0);
    }
}
