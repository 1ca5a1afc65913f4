//! ELF kernels: bounds first, then the loader library.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{Error as LoaderError, KernelLoader};

use super::{Entry, Loaded, Protocol, layout, linux, low_ram, reading};
use crate::error::BootError;
use crate::memory::Memory;

const EHDR_LEN: usize = 64;
const PHDR_LEN: usize = 56;
/// Linux has five program headers; this is room for any kernel, not for a denial of service.
const MAX_SEGMENTS: u16 = 64;
/// Linux's notes are a few hundred bytes.
const MAX_NOTES: u64 = 0x1_0000;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const EM_X86_64: u16 = 62;

pub(super) fn load(memory: &Memory, kernel: &mut File, file_len: u64) -> Result<Loaded, BootError> {
    check(kernel, file_len, low_ram(memory))?;
    let loaded = Elf::load(memory, None, kernel, None).map_err(loader_error)?;
    let (address, protocol) = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => (entry.0, Protocol::Pvh),
        _ => (loaded.kernel_load.0, Protocol::Elf64),
    };
    if !(layout::HIGH_RAM..low_ram(memory)).contains(&address) {
        return Err(BootError::Malformed("the entry point lies outside of the loaded memory"));
    }
    let entry = Entry { address, protocol };
    Ok(Loaded { entry, end: loaded.kernel_end, header: linux::elf_header() })
}

fn loader_error(error: LoaderError) -> BootError {
    BootError::Loader(error)
}

/// Bounds what the loader will do: few segments, each inside file and low memory, in total no more than the file.
fn check(kernel: &mut File, file_len: u64, ram: u64) -> Result<(), BootError> {
    let mut ehdr = [0u8; EHDR_LEN];
    kernel.seek(SeekFrom::Start(0)).map_err(reading("kernel"))?;
    kernel.read_exact(&mut ehdr).map_err(|_| BootError::Malformed("the ELF header is cut off"))?;
    if ehdr[4] != 2 || u16_at(&ehdr, 18) != EM_X86_64 {
        return Err(BootError::No64BitEntry);
    }
    let (phoff, phentsize, phnum) = (u64_at(&ehdr, 32), u16_at(&ehdr, 54), u16_at(&ehdr, 56));
    if usize::from(phentsize) != PHDR_LEN || phnum == 0 || phnum > MAX_SEGMENTS {
        return Err(BootError::Malformed("the ELF program headers are not those of a kernel"));
    }
    kernel.seek(SeekFrom::Start(phoff)).map_err(|_| BootError::Malformed("the ELF program headers are elsewhere"))?;
    let mut loadable = 0u64;
    for _ in 0..phnum {
        let mut phdr = [0u8; PHDR_LEN];
        kernel.read_exact(&mut phdr).map_err(|_| BootError::Malformed("the ELF program headers are cut off"))?;
        loadable += check_segment(&phdr, file_len, ram)?;
    }
    match loadable {
        0 => Err(BootError::Malformed("no ELF segment is loadable")),
        n if n > file_len => Err(BootError::Malformed("the ELF segments overlap in the file")),
        _ => Ok(()),
    }
}

/// Bytes that this segment loads from the file.
fn check_segment(phdr: &[u8; PHDR_LEN], file_len: u64, ram: u64) -> Result<u64, BootError> {
    let (kind, offset, paddr) = (u32_at(phdr, 0), u64_at(phdr, 8), u64_at(phdr, 24));
    let (filesz, memsz) = (u64_at(phdr, 32), u64_at(phdr, 40));
    if kind != PT_LOAD && kind != PT_NOTE {
        return Ok(0);
    }
    if offset.checked_add(filesz).is_none_or(|end| end > file_len) {
        return Err(BootError::Malformed("an ELF segment lies outside of the file"));
    }
    if kind == PT_NOTE {
        return match filesz {
            0..=MAX_NOTES => Ok(0),
            _ => Err(BootError::Malformed("the ELF notes are too long")),
        };
    }
    if memsz < filesz || paddr < layout::HIGH_RAM {
        return Err(BootError::Malformed("an ELF segment wants memory below 1 MiB or less than it fills"));
    }
    match paddr.checked_add(memsz) {
        Some(end) if end <= ram => Ok(filesz),
        _ => Err(BootError::NoRoom { what: "the kernel", needed: memsz, available: ram.saturating_sub(paddr) }),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
