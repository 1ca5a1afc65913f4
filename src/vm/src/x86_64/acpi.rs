//! ACPI tables of a hardware-reduced machine (ACPI 6.5): RSDP, XSDT, FADT, MADT, DSDT.
//!
//! No legacy hardware is announced: no PIT, no PIC, no keyboard controller, no VGA, no CMOS clock. Power-off and
//! reset go through the FADT's sleep control and reset registers, devices are found by the DSDT alone.

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, ONE, Package, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress};

use super::layout;
use crate::BootError;
use crate::memory::Memory;

const OEM: [u8; 6] = *b"CSMATE";
const TABLE: [u8; 8] = *b"CASEMATE";
const REVISION: u32 = 1;
/// FADT iapc_boot_arch: no VGA, no PCIe ASPM, no CMOS clock; 8042 and legacy bits stay clear.
const BOOT_ARCH: u16 = (1 << 2) | (1 << 4) | (1 << 5);

/// One virtio-mmio device that the guest shall find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioMmio {
    /// Start of its window.
    pub addr: u64,
    /// Length of its window.
    pub len: u64,
    /// Its interrupt line.
    pub gsi: u32,
}

impl VirtioMmio {
    /// The standard place of device `n`; `None` when there are too many.
    pub fn nth(n: u32) -> Option<Self> {
        (n < layout::VIRTIO_MAX).then(|| Self {
            addr: layout::VIRTIO_MMIO + u64::from(n) * layout::VIRTIO_MMIO_STRIDE,
            len: layout::VIRTIO_MMIO_STRIDE,
            gsi: layout::VIRTIO_GSI + n,
        })
    }
}

/// What the machine consists of, as far as firmware tables tell.
#[derive(Debug, Clone, Default)]
pub struct Platform {
    /// Devices in the DSDT.
    pub virtio: Vec<VirtioMmio>,
    /// Whether there is a serial port COM1.
    pub serial: bool,
    /// Whether there is a pvpanic port.
    pub pvpanic: bool,
}

/// Writes all tables. Returns the address of the RSDP.
pub(crate) fn write_tables(memory: &Memory, platform: &Platform, vcpus: u8) -> Result<u64, BootError> {
    let blob = build(platform, vcpus);
    if blob.len() as u64 > layout::RESET_VECTOR - layout::ACPI {
        return Err(BootError::Table("ACPI tables"));
    }
    memory.write_slice(&blob, GuestAddress(layout::ACPI)).map_err(|_| BootError::Table("ACPI tables"))?;
    Ok(layout::ACPI)
}

/// All tables as they lie from [`layout::ACPI`] on, the RSDP first.
fn build(platform: &Platform, vcpus: u8) -> Vec<u8> {
    let mut blob = vec![0u8; Rsdp::len().next_multiple_of(16)];
    let dsdt = append(&mut blob, dsdt(platform, vcpus).as_slice());
    let fadt = append_aml(&mut blob, &fadt(dsdt));
    let madt = append_aml(&mut blob, &madt(vcpus));
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = append_aml(&mut blob, &xsdt);
    let rsdp = to_bytes(&Rsdp::new(OEM, xsdt));
    blob[..rsdp.len()].copy_from_slice(&rsdp);
    blob
}

fn append(blob: &mut Vec<u8>, table: &[u8]) -> u64 {
    blob.resize(blob.len().next_multiple_of(16), 0);
    let addr = layout::ACPI + blob.len() as u64;
    blob.extend_from_slice(table);
    addr
}

fn append_aml(blob: &mut Vec<u8>, table: &dyn Aml) -> u64 {
    append(blob, &to_bytes(table))
}

fn to_bytes(aml: &dyn Aml) -> Vec<u8> {
    struct Sink(Vec<u8>);
    impl AmlSink for Sink {
        fn byte(&mut self, byte: u8) {
            self.0.push(byte);
        }
        fn vec(&mut self, bytes: &[u8]) {
            self.0.extend_from_slice(bytes);
        }
    }
    let mut sink = Sink(Vec::new());
    aml.to_aml_bytes(&mut sink);
    sink.0
}

fn fadt(dsdt: u64) -> impl Aml {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = port(layout::RESET_PORT);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_STATUS_PORT);
    fadt.finalize()
}

fn madt(vcpus: u8) -> impl Aml {
    let mut madt = MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(layout::LOCAL_APIC as u32));
    for cpu in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC as u32, 0));
    madt
}

fn dsdt(platform: &Platform, vcpus: u8) -> Sdt {
    let mut sdt = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, REVISION);
    let mut aml = Vec::new();
    (0..vcpus).for_each(|cpu| aml.extend(processor(cpu)));
    platform.virtio.iter().enumerate().for_each(|(n, device)| aml.extend(virtio(n, device)));
    if platform.serial {
        aml.extend(serial());
    }
    if platform.pvpanic {
        aml.extend(pvpanic());
    }
    sdt.append_slice(&Scope::raw(Path::new("_SB_"), aml));
    let s5 = Package::new(vec![&layout::S5_TYPE, &ZERO, &ZERO, &ZERO]);
    sdt.append_slice(&to_bytes(&Name::new(Path::new("_S5_"), &s5)));
    sdt
}

fn processor(cpu: u8) -> Vec<u8> {
    let (hid, uid) = (Name::new(Path::new("_HID"), &"ACPI0007"), Name::new(Path::new("_UID"), &cpu));
    to_bytes(&Device::new(Path::new(&format!("C{cpu:03X}")), vec![&hid, &uid]))
}

fn virtio(n: usize, device: &VirtioMmio) -> Vec<u8> {
    let hid = Name::new(Path::new("_HID"), &"LNRO0005");
    let uid = Name::new(Path::new("_UID"), &n);
    let coherent = Name::new(Path::new("_CCA"), &ONE);
    let window = Memory32Fixed::new(true, device.addr as u32, device.len as u32);
    let line = Interrupt::new(true, true, false, false, device.gsi);
    let resources = ResourceTemplate::new(vec![&window, &line]);
    let crs = Name::new(Path::new("_CRS"), &resources);
    to_bytes(&Device::new(Path::new(&format!("V{n:03X}")), vec![&hid, &uid, &coherent, &crs]))
}

fn serial() -> Vec<u8> {
    let hid = Name::new(Path::new("_HID"), &EISAName::new("PNP0501"));
    let uid = Name::new(Path::new("_UID"), &ZERO);
    let name = Name::new(Path::new("_DDN"), &"COM1");
    let line = Interrupt::new(true, true, false, false, layout::COM1_GSI);
    let ports = IO::new(layout::COM1_PORT, layout::COM1_PORT, 1, 8);
    let resources = ResourceTemplate::new(vec![&line, &ports]);
    let crs = Name::new(Path::new("_CRS"), &resources);
    to_bytes(&Device::new(Path::new("COM1"), vec![&hid, &uid, &name, &crs]))
}

fn pvpanic() -> Vec<u8> {
    let hid = Name::new(Path::new("_HID"), &"QEMU0001");
    let status = Name::new(Path::new("_STA"), &0x0fu8);
    let port = IO::new(layout::PVPANIC_PORT, layout::PVPANIC_PORT, 1, 1);
    let resources = ResourceTemplate::new(vec![&port]);
    let crs = Name::new(Path::new("_CRS"), &resources);
    to_bytes(&Device::new(Path::new("PEVT"), vec![&hid, &status, &crs]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Platform {
        let virtio = (0..layout::VIRTIO_MAX).filter_map(VirtioMmio::nth).collect();
        Platform { virtio, serial: true, pvpanic: true }
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn table(blob: &[u8], addr: u64) -> &[u8] {
        let at = (addr - layout::ACPI) as usize;
        let len = u32::from_le_bytes(blob[at + 4..at + 8].try_into().unwrap()) as usize;
        &blob[at..at + len]
    }

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn every_table_is_reachable_and_sums_to_zero() {
        let blob = build(&full(), 254);
        assert!((blob.len() as u64) < layout::RESET_VECTOR - layout::ACPI);
        assert_eq!(&blob[..8], b"RSD PTR ");
        assert_eq!((sum(&blob[..20]), sum(&blob[..36])), (0, 0));
        let xsdt = table(&blob, word(&blob, 24));
        assert_eq!((&xsdt[..4], sum(xsdt)), (&b"XSDT"[..], 0));
        let fadt = table(&blob, word(xsdt, 36));
        assert_eq!((&fadt[..4], sum(fadt)), (&b"FACP"[..], 0));
        let madt = table(&blob, word(xsdt, 44));
        assert_eq!((&madt[..4], sum(madt)), (&b"APIC"[..], 0));
        assert_eq!(madt.len(), 44 + 254 * 8 + 12);
        let dsdt = table(&blob, word(fadt, 140));
        assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
    }

    #[test]
    fn the_fadt_announces_no_legacy_hardware() {
        let bytes = to_bytes(&fadt(0x1234));
        let flags = u32::from_le_bytes(bytes[112..116].try_into().unwrap());
        assert_ne!(flags & (1 << 20), 0, "hardware-reduced");
        assert_ne!(flags & (1 << 10), 0, "reset register");
        assert_eq!(&bytes[109..111], &BOOT_ARCH.to_le_bytes());
        assert_eq!((bytes[116], word(&bytes, 120), bytes[128]), (1, layout::RESET_PORT.into(), 1));
        assert_eq!(word(&bytes, 248), u64::from(layout::SLEEP_CONTROL_PORT));
    }

    #[test]
    fn the_dsdt_names_what_is_there_and_nothing_else() {
        let has = |platform: &Platform, what: &[u8]| {
            dsdt(platform, 1).as_slice().windows(what.len()).any(|window| window == what)
        };
        assert!(has(&full(), b"LNRO0005") && has(&full(), b"QEMU0001") && has(&full(), b"COM1"));
        let bare = Platform::default();
        assert!(!has(&bare, b"LNRO0005") && !has(&bare, b"QEMU0001") && !has(&bare, b"COM1"));
        assert!(has(&bare, b"_S5_") && has(&bare, b"ACPI0007"));
    }

    #[test]
    fn device_windows_end_with_the_interrupt_pins() {
        assert_eq!(VirtioMmio::nth(0).unwrap(), VirtioMmio { addr: 0xd000_0000, len: 0x1000, gsi: 5 });
        assert_eq!(VirtioMmio::nth(18).unwrap().gsi, 23);
        assert_eq!(VirtioMmio::nth(19), None);
    }
}
