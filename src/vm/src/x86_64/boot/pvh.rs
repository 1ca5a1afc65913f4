//! The start info of the PVH boot protocol (Xen docs/misc/pvh.pandoc).

use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED, XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry,
    hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress};

use super::{Initrd, layout, memory_map};
use crate::error::BootError;
use crate::memory::Memory;

const MODULES: u64 = layout::PVH_START_INFO + 0x40;
const MEMORY_MAP: u64 = layout::PVH_START_INFO + 0x80;

/// Writes start info, module list and memory map.
pub(super) fn write_start_info(memory: &Memory, rsdp: u64, initrd: Option<Initrd>) -> Result<(), BootError> {
    let failed = |_| BootError::Table("PVH start info");
    let map = memory_map(memory);
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: rsdp,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry { paddr: initrd.addr, size: initrd.len, ..Default::default() };
        memory.write_obj(module, GuestAddress(MODULES)).map_err(failed)?;
        (info.nr_modules, info.modlist_paddr) = (1, MODULES);
    }
    for (n, range) in map.iter().enumerate() {
        let type_ = if range.ram { XEN_HVM_MEMMAP_TYPE_RAM } else { XEN_HVM_MEMMAP_TYPE_RESERVED };
        let entry = hvm_memmap_table_entry { addr: range.start, size: range.len, type_, reserved: 0 };
        let at = MEMORY_MAP + (n * size_of_val(&entry)) as u64;
        memory.write_obj(entry, GuestAddress(at)).map_err(failed)?;
    }
    memory.write_obj(info, GuestAddress(layout::PVH_START_INFO)).map_err(failed)
}
