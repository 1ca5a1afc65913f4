//! The zero page of the Linux boot protocol.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress};

use super::{Initrd, layout, memory_map};
use crate::error::BootError;
use crate::memory::Memory;

/// The setup header, from the bzImage or made for an ELF.
pub(super) type Header = setup_header;

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const LOADER_UNDEFINED: u8 = 0xff;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// COMMAND_LINE_SIZE of x86 Linux, for kernels whose header does not say.
const DEFAULT_COMMAND_LINE: u32 = 2047;

/// A header for kernels that have none.
pub(super) fn elf_header() -> Header {
    Header { version: 0x020c, kernel_alignment: 0x20_0000, ..Default::default() }
}

/// Longest command line, final zero left out.
pub(super) fn command_line_max(header: &Header) -> usize {
    let kernel = match header.cmdline_size {
        0 => DEFAULT_COMMAND_LINE,
        size => size,
    };
    (kernel as usize).min(layout::COMMAND_LINE_MAX - 1)
}

/// First address that an initrd must not reach.
pub(super) fn initrd_max(header: &Header) -> u64 {
    match header.initrd_addr_max {
        0 => layout::MMIO_HOLE,
        max => u64::from(max) + 1,
    }
}

/// Writes the zero page.
pub(super) fn write_zero_page(
    memory: &Memory,
    mut header: Header,
    rsdp: u64,
    initrd: Option<Initrd>,
) -> Result<(), BootError> {
    header.boot_flag = BOOT_FLAG;
    header.header = HEADER_MAGIC;
    header.type_of_loader = LOADER_UNDEFINED;
    header.cmd_line_ptr = layout::COMMAND_LINE as u32;
    // Pointers that firmware or a boot loader would have set; an image must not bring its own.
    header.setup_data = 0;
    let mut params = boot_params { acpi_rsdp_addr: rsdp, ..Default::default() };
    if let Some(initrd) = initrd {
        // Below 4 GiB by construction: low RAM ends at the MMIO hole.
        header.ramdisk_image = initrd.addr as u32;
        header.ramdisk_size = initrd.len as u32;
    }
    params.hdr = header;
    for (slot, range) in params.e820_table.iter_mut().zip(memory_map(memory)) {
        let kind = if range.ram { E820_RAM } else { E820_RESERVED };
        *slot = boot_e820_entry { addr: range.start, size: range.len, r#type: kind };
        params.e820_entries += 1;
    }
    memory.write_obj(params, GuestAddress(layout::ZERO_PAGE)).map_err(|_| BootError::Table("zero page"))
}
