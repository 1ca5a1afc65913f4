//! bzImage kernels, entered at their 64-bit entry point (Linux Documentation/arch/x86/boot.rst).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use linux_loader::loader::KernelLoader;
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::bzimage::BzImage;
use vm_memory::GuestAddress;

use super::{Entry, Loaded, Protocol, layout, low_ram, reading};
use crate::error::BootError;
use crate::memory::Memory;

const MAGIC_AT: u64 = 0x202;
/// Boot protocol 2.12 brought `xloadflags`.
const PROTOCOL_2_12: u16 = 0x020c;
const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry lies this far into the loaded kernel.
const ENTRY_64: u64 = 0x200;

pub(super) fn load(memory: &Memory, kernel: &mut File, file_len: u64) -> Result<Loaded, BootError> {
    let mut magic = [0u8; 4];
    kernel.seek(SeekFrom::Start(MAGIC_AT)).map_err(reading("kernel"))?;
    kernel.read_exact(&mut magic).map_err(|_| BootError::UnknownFormat)?;
    if &magic != b"HdrS" {
        return Err(BootError::UnknownFormat);
    }
    if file_len > low_ram(memory) {
        return Err(BootError::NoRoom { what: "the kernel", needed: file_len, available: low_ram(memory) });
    }
    let at = GuestAddress(layout::HIGH_RAM);
    let loaded = BzImage::load(memory, Some(at), kernel, None).map_err(BootError::Loader)?;
    let header = loaded.setup_header.ok_or(BootError::Malformed("its setup header is missing"))?;
    let end = check(&header, loaded.kernel_end, low_ram(memory))?;
    let entry = Entry { address: layout::HIGH_RAM + ENTRY_64, protocol: Protocol::BzImage };
    Ok(Loaded { entry, end, header })
}

/// Returns where the unpacked kernel will end.
fn check(header: &setup_header, image_end: u64, ram: u64) -> Result<u64, BootError> {
    let (version, flags) = (header.version, header.xloadflags);
    if version < PROTOCOL_2_12 || flags & XLF_KERNEL_64 == 0 {
        return Err(BootError::No64BitEntry);
    }
    if header.relocatable_kernel == 0 {
        return Err(BootError::Malformed("it is not relocatable"));
    }
    if image_end <= layout::HIGH_RAM + ENTRY_64 {
        return Err(BootError::Malformed("it ends before its entry point"));
    }
    // The kernel moves itself to its preferred address if it was loaded below, and unpacks there.
    let start = { header.pref_address }.max(layout::HIGH_RAM);
    let needed = u64::from(header.init_size);
    match start.checked_add(needed) {
        Some(end) if end <= ram => Ok(end.max(image_end)),
        _ => Err(BootError::NoRoom { what: "the kernel", needed, available: ram.saturating_sub(start) }),
    }
}
