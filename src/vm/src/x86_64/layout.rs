//! Where everything is in the guest's physical address space and port space. The only file with these numbers.
//!
//! ```text
//! 0x0000_0500 GDT            0x0000_9000 PML4, PDPT, 4 x PD (identity map of 4 GiB)
//! 0x0000_6000 PVH start info 0x0002_0000 command line
//! 0x0000_7000 zero page      0x0009_fc00 end of conventional memory
//! 0x0000_8ff0 boot stack     0x000e_0000 RSDP and ACPI tables (128 KiB, reserved in e820), reset vector at its end
//! 0x0010_0000 kernel ... initrd as high as allowed ... end of low RAM (at most 3.25 GiB)
//! 0xd000_0000 virtio-mmio windows    0xfec0_0000 IOAPIC    0xfee0_0000 local APICs
//! 0x1_0000_0000 the rest of RAM
//! ```

/// Global descriptor table of the 64-bit and PVH boot.
pub const GDT: u64 = 0x500;
/// PVH start info, followed by its module list and memory map in the same page.
pub const PVH_START_INFO: u64 = 0x6000;
/// Linux boot parameters ("zero page").
pub const ZERO_PAGE: u64 = 0x7000;
/// Stack pointer at entry.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Top page table; the tables below it follow in the next pages.
pub const PAGE_TABLES: u64 = 0x9000;
/// Kernel command line, NUL-terminated.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Most bytes of command line that are ever passed, with the final NUL.
pub const COMMAND_LINE_MAX: usize = 0x1000;
/// End of conventional memory in e820.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// RSDP; the other ACPI tables follow it.
pub const ACPI: u64 = 0xe_0000;
/// End of the ACPI area.
pub const ACPI_END: u64 = 0x10_0000;
/// Where a PC's firmware starts in real mode (f000:fff0): a few instructions that reset, inside the ACPI area.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Kernels are loaded from here upward.
pub const HIGH_RAM: u64 = 0x10_0000;

/// Start of the hole below 4 GiB: no RAM from here to [`RAM_ABOVE_HOLE`].
pub const MMIO_HOLE: u64 = 0xd000_0000;
/// RAM continues here.
pub const RAM_ABOVE_HOLE: u64 = 0x1_0000_0000;
/// First virtio-mmio window.
pub const VIRTIO_MMIO: u64 = MMIO_HOLE;
/// Size of, and distance between, virtio-mmio windows.
pub const VIRTIO_MMIO_STRIDE: u64 = 0x1000;
/// IOAPIC register window.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Size of the IOAPIC window.
pub const IOAPIC_LEN: u64 = 0x1000;
/// Local APICs.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// Three pages that KVM on Intel needs for real mode.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// Pins of the IOAPIC, GSI 0 to 23.
pub const IOAPIC_PINS: u32 = 24;
/// Interrupt of COM1.
pub const COM1_GSI: u32 = 4;
/// First GSI of a virtio-mmio device; device `n` has `VIRTIO_GSI + n`.
pub const VIRTIO_GSI: u32 = 5;
/// Most virtio-mmio devices: one IOAPIC pin each.
pub const VIRTIO_MAX: u32 = IOAPIC_PINS - VIRTIO_GSI;

/// First port of COM1, eight ports long.
pub const COM1_PORT: u16 = 0x3f8;
/// ACPI sleep control register (FADT), one byte.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register (FADT), one byte.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI reset register (FADT), one byte.
pub const RESET_PORT: u16 = 0x602;
/// Value that resets when written to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 1;
/// SLP_TYP of S5 in the sleep control register.
pub const S5_TYPE: u8 = 5;
/// What a guest writes to [`SLEEP_CONTROL_PORT`] to power off: SLP_EN and SLP_TYP (ACPI 6.5, 4.8.3.7).
pub const SLEEP_S5: u8 = (1 << 5) | (S5_TYPE << 2);
/// pvpanic device, one byte.
pub const PVPANIC_PORT: u16 = 0x505;
/// Reset control register of a PC chipset.
pub const PC_RESET_PORT: u16 = 0xcf9;
/// Keyboard controller command port: 0xfe pulses the reset line.
pub const I8042_COMMAND_PORT: u16 = 0x64;

/// Smallest guest memory: the tables above, a tiny kernel and its stack.
pub const MEMORY_MIN: u64 = 4 << 20;
/// Largest guest memory, a limit of our own (address arithmetic is checked anyway).
pub const MEMORY_MAX: u64 = 1 << 40;
/// Most vCPUs: one byte of APIC id, 0xff is broadcast.
pub const VCPU_MAX: u8 = 254;

const PAGE: u64 = 4096;

/// The RAM ranges `(start, length)` of a guest with `bytes` of memory.
pub fn ram_ranges(bytes: u64) -> Vec<(u64, u64)> {
    ram_ranges_of(bytes, PAGE)
}

/// The same for memory that is made of pages of `page` bytes: no page lies on both sides of the hole.
pub fn ram_ranges_of(bytes: u64, page: u64) -> Vec<(u64, u64)> {
    let bytes = bytes & !(page - 1);
    let low = bytes.min(MMIO_HOLE & !(page - 1));
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((RAM_ABOVE_HOLE, bytes - low));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_never_reaches_into_the_hole() {
        assert_eq!(ram_ranges(128 << 20), [(0, 128 << 20)]);
        assert_eq!(ram_ranges(MMIO_HOLE), [(0, MMIO_HOLE)]);
        assert_eq!(ram_ranges(MMIO_HOLE + PAGE), [(0, MMIO_HOLE), (RAM_ABOVE_HOLE, PAGE)]);
        assert_eq!(ram_ranges((4 << 20) + 5), [(0, 4 << 20)]);
        assert_eq!(ram_ranges_of(4 << 30, 1 << 30), [(0, 3 << 30), (RAM_ABOVE_HOLE, 1 << 30)]);
        assert_eq!(ram_ranges_of(4 << 30, 2 << 20), [(0, MMIO_HOLE), (RAM_ABOVE_HOLE, (4 << 30) - MMIO_HOLE)]);
    }

    #[test]
    fn windows_do_not_overlap() {
        let end = VIRTIO_MMIO + u64::from(VIRTIO_MAX) * VIRTIO_MMIO_STRIDE;
        assert!(end <= IOAPIC && IOAPIC + IOAPIC_LEN <= LOCAL_APIC && LOCAL_APIC < KVM_TSS);
        const { assert!(PVH_START_INFO < ZERO_PAGE && ZERO_PAGE < BOOT_STACK && BOOT_STACK < PAGE_TABLES) };
        const { assert!(PAGE_TABLES + 6 * PAGE <= COMMAND_LINE) };
        assert!(COMMAND_LINE + COMMAND_LINE_MAX as u64 <= LOW_RAM_END);
        assert_eq!(SLEEP_S5, 0x34);
    }
}
