//! Boot: from kernel, initrd and command line to guest memory and an entry point.
//!
//! Trust: the images are hostile. Headers are checked here before the loader library (rust-vmm linux-loader, a version
//! with the fix for GHSA-52h2-m2cf-9jh6) reads on: counts and sizes are bounded by the file and by guest memory, so
//! that loading ends after at most one pass over the file. Everything is written into guest memory only.
//!
//! ```text
//! ELF with PVH note -> Pvh      ELF without -> Elf64 (zero page)      bzImage -> BzImage (64-bit entry, zero page)
//! ```

mod bzimage;
mod elf;
mod initrd;
mod linux;
mod pvh;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::acpi::{self, Platform};
use super::layout;
use crate::error::BootError;
use crate::memory::Memory;

/// What to boot. The files are read from their start.
#[derive(Debug)]
pub struct Image<'a> {
    /// bzImage or ELF.
    pub kernel: &'a mut File,
    /// Initial RAM disk, any format the kernel knows.
    pub initrd: Option<&'a mut File>,
    /// Bytes that follow the initrd, aligned to four: one more cpio segment. Alone if there is no initrd.
    pub initrd_tail: &'a [u8],
    /// Kernel command line, printable ASCII.
    pub command_line: &'a str,
}

/// How the kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// bzImage, 64-bit Linux boot protocol.
    BzImage,
    /// ELF entered at its 64-bit entry point with a zero page.
    Elf64,
    /// ELF entered through its PVH note.
    Pvh,
}

/// Where the boot processor starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) address: u64,
    pub(crate) protocol: Protocol,
}

/// A kernel in guest memory.
struct Loaded {
    entry: Entry,
    /// First byte after everything the kernel needs before it reads its memory map.
    end: u64,
    /// The bzImage's own header, zeroed for an ELF.
    header: linux::Header,
}

/// The initrd in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Initrd {
    addr: u64,
    len: u64,
}

/// Loads everything; see the room's [`crate::Vm::boot`].
pub(crate) fn load(memory: &Memory, image: &mut Image<'_>, platform: &Platform, vcpus: u8) -> Result<Entry, BootError> {
    let loaded = load_kernel(memory, image.kernel)?;
    check_command_line(image.command_line, linux::command_line_max(&loaded.header))?;
    let highest = linux::initrd_max(&loaded.header).min(low_ram(memory));
    let initrd = initrd::load(memory, image.initrd.as_deref_mut(), image.initrd_tail, loaded.end, highest)?;
    write_command_line(memory, image.command_line)?;
    let rsdp = acpi::write_tables(memory, platform, vcpus)?;
    write_reset_vector(memory)?;
    match loaded.entry.protocol {
        Protocol::Pvh => pvh::write_start_info(memory, rsdp, initrd)?,
        Protocol::BzImage | Protocol::Elf64 => linux::write_zero_page(memory, loaded.header, rsdp, initrd)?,
    }
    Ok(loaded.entry)
}

fn load_kernel(memory: &Memory, kernel: &mut File) -> Result<Loaded, BootError> {
    let len = kernel.metadata().map_err(reading("kernel"))?.len();
    let mut magic = [0u8; 4];
    kernel.seek(SeekFrom::Start(0)).map_err(reading("kernel"))?;
    kernel.read_exact(&mut magic).map_err(|_| BootError::UnknownFormat)?;
    if &magic == b"\x7fELF" { elf::load(memory, kernel, len) } else { bzimage::load(memory, kernel, len) }
}

fn reading(what: &'static str) -> impl FnOnce(std::io::Error) -> BootError {
    move |source| BootError::Read { what, source }
}

/// End of the RAM that starts at zero.
fn low_ram(memory: &Memory) -> u64 {
    memory.find_region(GuestAddress(0)).map_or(0, |region| region.len())
}

fn check_command_line(text: &str, max: usize) -> Result<(), BootError> {
    if text.len() > max {
        return Err(BootError::CommandLineTooLong { length: text.len(), max });
    }
    match text.bytes().find(|byte| !(0x20..0x7f).contains(byte)) {
        Some(byte) => Err(BootError::CommandLineByte(byte)),
        None => Ok(()),
    }
}

fn write_command_line(memory: &Memory, text: &str) -> Result<(), BootError> {
    let mut bytes = Vec::with_capacity(text.len() + 1);
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    memory.write_slice(&bytes, GuestAddress(layout::COMMAND_LINE)).map_err(|_| BootError::Table("kernel command line"))
}

/// A Linux guest with EFI support on hardware-reduced ACPI reboots through the firmware's real-mode entry unless its
/// command line says otherwise. There is no firmware: these instructions write the reset register instead.
fn write_reset_vector(memory: &Memory) -> Result<(), BootError> {
    let [low, high] = layout::RESET_PORT.to_le_bytes();
    // mov al, RESET_VALUE; mov dx, RESET_PORT; out dx, al; 1: hlt; jmp 1b
    let code = [0xb0, layout::RESET_VALUE, 0xba, low, high, 0xee, 0xf4, 0xeb, 0xfd];
    memory.write_slice(&code, GuestAddress(layout::RESET_VECTOR)).map_err(|_| BootError::Table("reset vector"))
}

/// One range of the guest's memory map.
struct MapEntry {
    start: u64,
    len: u64,
    ram: bool,
}

/// The memory map, the same for both protocols.
fn memory_map(memory: &Memory) -> Vec<MapEntry> {
    let mut map = vec![
        MapEntry { start: 0, len: layout::LOW_RAM_END, ram: true },
        MapEntry { start: layout::ACPI, len: layout::ACPI_END - layout::ACPI, ram: false },
    ];
    for region in memory.iter() {
        let start = region.start_addr().0.max(layout::HIGH_RAM);
        let end = region.start_addr().0 + region.len();
        map.push(MapEntry { start, len: end - start, ram: true });
    }
    map
}

#[cfg(test)]
mod tests;
