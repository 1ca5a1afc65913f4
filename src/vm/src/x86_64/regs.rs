//! Registers at entry: 64-bit Linux boot protocol or PVH, MSRs, local APIC lines.
//!
//! Sources: Linux Documentation/arch/x86/boot.rst (64-bit boot protocol), Xen docs/misc/pvh.pandoc.

use kvm_bindings::{Msrs, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::boot::{Entry, Protocol};
use super::layout;
use crate::memory::Memory;
use crate::{BootError, Error, Result};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 1 << 1;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE_WRITE_BACK: u64 = (1 << 11) | 6;

const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
const DELIVERY_EXTINT: u32 = 7 << 8;
const DELIVERY_NMI: u32 = 4 << 8;

/// Selectors that the Linux boot protocol asks for: __BOOT_CS and __BOOT_DS, then a task segment.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;
const CODE_64: u16 = 0xa09b;
const CODE_32: u16 = 0xc09b;
const DATA_32: u16 = 0xc093;
const TASK_32: u16 = 0x008b;

/// MSRs as firmware leaves them: memory is write-back by default, string operations are fast.
pub(crate) fn set_boot_msrs(fd: &VcpuFd) -> Result<()> {
    set_msrs(fd, &[(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING), (MSR_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK)])
}

/// Sets MSRs and insists that KVM took every one.
pub(crate) fn set_msrs(fd: &VcpuFd, values: &[(u32, u64)]) -> Result<()> {
    let entries: Vec<_> =
        values.iter().map(|(index, data)| kvm_msr_entry { index: *index, data: *data, ..Default::default() }).collect();
    let msrs = Msrs::from_entries(&entries)
        .map_err(|_| Error::io("build the MSR list")(std::io::ErrorKind::InvalidInput.into()))?;
    let taken = fd.set_msrs(&msrs).map_err(Error::kvm("set MSRs (KVM_SET_MSRS)"))?;
    match values.get(taken) {
        None => Ok(()),
        Some((index, _)) => Err(Error::Msr { index: *index }),
    }
}

/// LINT0 takes the legacy controller's interrupts, LINT1 the NMI, as MP firmware leaves them.
pub(crate) fn set_local_apic(fd: &VcpuFd) -> Result<()> {
    let mut lapic = fd.get_lapic().map_err(Error::kvm("read a local APIC (KVM_GET_LAPIC)"))?;
    set_delivery(&mut lapic, APIC_LVT_LINT0, DELIVERY_EXTINT);
    set_delivery(&mut lapic, APIC_LVT_LINT1, DELIVERY_NMI);
    fd.set_lapic(&lapic).map_err(Error::kvm("set a local APIC (KVM_SET_LAPIC)"))
}

fn set_delivery(lapic: &mut kvm_lapic_state, register: usize, delivery: u32) {
    // Bits 10:8 are the delivery mode; they lie in the register's second byte.
    let byte = &mut lapic.regs[register + 1];
    *byte = (*byte as u8 & !7 | (delivery >> 8) as u8) as _;
}

/// Puts the boot processor at the kernel's entry.
pub(crate) fn set_entry(fd: &VcpuFd, memory: &Memory, entry: &Entry) -> Result<()> {
    let mut sregs = fd.get_sregs().map_err(Error::kvm("read system registers (KVM_GET_SREGS)"))?;
    let long_mode = entry.protocol != Protocol::Pvh;
    write_gdt(memory, &mut sregs, if long_mode { CODE_64 } else { CODE_32 })?;
    if long_mode {
        write_page_tables(memory)?;
        sregs.cr3 = layout::PAGE_TABLES;
        sregs.cr4 |= CR4_PAE;
        sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
        sregs.efer |= EFER_LME | EFER_LMA;
    } else {
        sregs.cr0 = CR0_PE | CR0_ET;
        sregs.cr4 = 0;
    }
    fd.set_sregs(&sregs).map_err(Error::kvm("set system registers (KVM_SET_SREGS)"))?;
    fd.set_regs(&entry_regs(entry)).map_err(Error::kvm("set registers (KVM_SET_REGS)"))
}

fn entry_regs(entry: &Entry) -> kvm_regs {
    let regs = kvm_regs { rip: entry.address, rflags: RFLAGS_RESERVED, ..Default::default() };
    match entry.protocol {
        Protocol::Pvh => kvm_regs { rbx: layout::PVH_START_INFO, ..regs },
        Protocol::BzImage | Protocol::Elf64 => {
            kvm_regs { rsi: layout::ZERO_PAGE, rsp: layout::BOOT_STACK, rbp: layout::BOOT_STACK, ..regs }
        }
    }
}

/// A flat segment and its descriptor: base 0, limit 4 GiB (or 0x67 for the task segment).
fn segment(selector: u16, flags: u16, limit: u32) -> (kvm_segment, u64) {
    let bit = |n: u16| ((flags >> n) & 1) as u8;
    let granular = bit(15) == 1;
    let raw_limit = u64::from(if granular { limit >> 12 } else { limit });
    let descriptor = (raw_limit & 0xffff)
        | (u64::from(flags & 0xff) << 40)
        | ((raw_limit >> 16) << 48)
        | (u64::from(flags >> 12) << 52);
    let segment = kvm_segment {
        base: 0,
        limit,
        selector,
        type_: (flags & 0xf) as u8,
        present: bit(7),
        dpl: ((flags >> 5) & 3) as u8,
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        padding: 0,
        unusable: 0,
    };
    (segment, descriptor)
}

fn write_gdt(memory: &Memory, sregs: &mut kvm_sregs, code_flags: u16) -> Result<()> {
    let (code, code_entry) = segment(CODE, code_flags, u32::MAX);
    let (data, data_entry) = segment(DATA, DATA_32, u32::MAX);
    let (task, task_entry) = segment(TASK, TASK_32, 0x67);
    let table = [0u64, 0, code_entry, data_entry, task_entry, 0];
    memory.write_obj(table, GuestAddress(layout::GDT)).map_err(|_| BootError::Table("segment descriptors"))?;
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = size_of_val(&table) as u16 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task;
    Ok(())
}

/// Identity map of the first 4 GiB in 2 MiB pages: kernel, initrd and zero page all lie below.
fn write_page_tables(memory: &Memory) -> Result<()> {
    const PRESENT_WRITE: u64 = 3;
    const HUGE: u64 = 1 << 7;
    const PAGE: u64 = 4096;
    let write = |value: u64, addr: u64| {
        memory.write_obj(value, GuestAddress(addr)).map_err(|_| BootError::Table("page tables"))
    };
    let pointers = layout::PAGE_TABLES + PAGE;
    write(pointers | PRESENT_WRITE, layout::PAGE_TABLES)?;
    for gib in 0..4u64 {
        let directory = pointers + PAGE * (1 + gib);
        write(directory | PRESENT_WRITE, pointers + gib * 8)?;
        let entries: [u64; 512] = std::array::from_fn(|i| (gib << 30) | ((i as u64) << 21) | PRESENT_WRITE | HUGE);
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        memory.write_slice(&bytes, GuestAddress(directory)).map_err(|_| BootError::Table("page tables"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_well_known_ones() {
        assert_eq!(segment(CODE, CODE_64, u32::MAX).1, 0x00af_9b00_0000_ffff);
        assert_eq!(segment(CODE, CODE_32, u32::MAX).1, 0x00cf_9b00_0000_ffff);
        assert_eq!(segment(DATA, DATA_32, u32::MAX).1, 0x00cf_9300_0000_ffff);
        assert_eq!(segment(TASK, TASK_32, 0x67).1, 0x0000_8b00_0000_0067);
        let (code, _) = segment(CODE, CODE_64, u32::MAX);
        assert_eq!((code.l, code.db, code.g, code.s, code.present, code.type_), (1, 0, 1, 1, 1, 0xb));
    }

    #[test]
    fn page_tables_map_four_gib_identically() {
        let memory = crate::guest_memory(layout::MEMORY_MIN).unwrap();
        write_page_tables(&memory).unwrap();
        let read = |addr: u64| memory.read_obj::<u64>(GuestAddress(addr)).unwrap();
        assert_eq!(read(layout::PAGE_TABLES), 0xa003);
        assert_eq!(read(0xa000), 0xb003);
        assert_eq!(read(0xa018), 0xe003);
        assert_eq!(read(0xe000 + 511 * 8), 0xffe0_0083);
    }

    #[test]
    fn local_apic_lines() {
        let mut lapic = kvm_lapic_state::default();
        set_delivery(&mut lapic, APIC_LVT_LINT0, DELIVERY_EXTINT);
        set_delivery(&mut lapic, APIC_LVT_LINT1, DELIVERY_NMI);
        assert_eq!((lapic.regs[0x351], lapic.regs[0x361]), (7, 4));
    }
}
