//! Guest memory: anonymous, or a file of huge pages that was handed over; private to this process, never dumped.
//!
//! Nothing here is shared with another process; a page is allocated when the guest (or the loader) first touches it.

use std::fs::File;
use std::sync::Arc;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

use crate::{Error, Result, layout};

/// Guest memory as all rooms see it.
pub type Memory = GuestMemoryMmap<()>;

/// Maps the RAM of a guest with `bytes` of memory, rounded down to a page.
///
/// # Errors
/// Size outside the machine's limits, or the host refuses the mapping.
pub fn guest_memory(bytes: u64) -> Result<Memory> {
    if !(layout::MEMORY_MIN..=layout::MEMORY_MAX).contains(&bytes) {
        let (min, max) = (layout::MEMORY_MIN, layout::MEMORY_MAX);
        return Err(Error::Range { what: "guest memory in bytes", value: bytes, min, max });
    }
    let regions =
        layout::ram_ranges(bytes).into_iter().map(|(start, len)| map_region(start, len)).collect::<Result<Vec<_>>>()?;
    Memory::from_regions(regions).map_err(|e| Error::io("arrange guest memory")(std::io::Error::other(e)))
}

/// Maps the RAM of a guest with `bytes` of memory from `file`, which is made of pages of `page` bytes and holds just
/// that much. The mapping reserves the pages: what the host has not got is an error here and no SIGBUS later.
///
/// # Errors
/// Size outside the machine's limits, a file of another size, or too few huge pages.
pub fn huge_memory(file: File, bytes: u64, page: u64) -> Result<Memory> {
    let (min, max) = (layout::MEMORY_MIN, layout::MEMORY_MAX);
    let len = file.metadata().map_err(Error::io("read the size of the guest memory's file"))?.len();
    if !(min..=max).contains(&bytes) || !page.is_power_of_two() || !bytes.is_multiple_of(page) || len != bytes {
        return Err(Error::Range { what: "the guest memory's file in bytes", value: len, min: bytes, max: bytes });
    }
    let file = Arc::new(file);
    let mut offset = 0;
    let mut regions = Vec::new();
    for (start, len) in layout::ram_ranges_of(bytes, page) {
        regions.push(map_file(&file, offset, start, len)?);
        offset += len;
    }
    Memory::from_regions(regions).map_err(|e| Error::io("arrange guest memory")(std::io::Error::other(e)))
}

/// Gives every page back: guest memory reads zero again.
pub(crate) fn forget(memory: &Memory) -> Result<()> {
    for region in memory.iter() {
        // a shared file's pages would come back as they were: a hole is punched
        let advice = if region.file_offset().is_some() { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
        // SAFETY: the range is one whole mapping that `memory` owns; after the advice it stays mapped and reads zero,
        // which volatile accessors of guest memory must expect at any time.
        let rc = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), advice) };
        if rc != 0 {
            return Err(Error::io("clear guest memory")(std::io::Error::last_os_error()));
        }
    }
    Ok(())
}

fn map_region(start: u64, len: u64) -> Result<GuestRegionMmap<()>> {
    let builder = MmapRegionBuilder::new(len as usize)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    place(builder, start, "map guest memory")
}

fn map_file(file: &Arc<File>, offset: u64, start: u64, len: u64) -> Result<GuestRegionMmap<()>> {
    let builder = MmapRegionBuilder::new(len as usize)
        .with_file_offset(FileOffset::from_arc(Arc::clone(file), offset))
        .with_mmap_flags(libc::MAP_SHARED)
        .with_hugetlbfs(true);
    place(builder, start, "map guest memory (are there enough huge pages? vm.nr_hugepages)")
}

fn place(builder: MmapRegionBuilder, start: u64, attempt: &'static str) -> Result<GuestRegionMmap<()>> {
    let attempt = Error::io(attempt);
    let mapping = builder
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .build()
        .map_err(|e| attempt(std::io::Error::other(e)))?;
    // SAFETY: the range is exactly the mapping built above, which this function owns; MADV_DONTDUMP changes no content.
    let rc = unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), libc::MADV_DONTDUMP) };
    if rc != 0 {
        return Err(Error::io("keep guest memory out of core dumps")(std::io::Error::last_os_error()));
    }
    GuestRegionMmap::new(mapping, GuestAddress(start))
        .ok_or_else(|| Error::io("arrange guest memory")(std::io::ErrorKind::InvalidInput.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn ram_ends_where_it_should() {
        let memory = guest_memory(8 << 20).unwrap();
        assert_eq!(memory.last_addr(), GuestAddress((8 << 20) - 1));
        assert!(memory.write_obj(1u32, GuestAddress((8 << 20) - 4)).is_ok());
        assert!(memory.write_obj(1u32, GuestAddress((8 << 20) - 2)).is_err());
    }

    #[test]
    fn forgotten_memory_reads_zero() {
        let memory = guest_memory(8 << 20).unwrap();
        memory.write_obj(7u64, GuestAddress(0x1000)).unwrap();
        forget(&memory).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x1000)).unwrap(), 0);
    }

    #[test]
    fn a_files_memory_is_whole_zero_after_forgetting_and_of_its_size_alone() {
        let file = || {
            let fd = unsafe { libc::memfd_create(c"m".as_ptr(), 0) };
            assert!(fd >= 0);
            // SAFETY: the descriptor was made above and nobody else has it.
            let file = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
            file.set_len(8 << 20).unwrap();
            file
        };
        let memory = huge_memory(file(), 8 << 20, 4096).unwrap();
        memory.write_obj(7u64, GuestAddress((8 << 20) - 8)).unwrap();
        forget(&memory).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress((8 << 20) - 8)).unwrap(), 0);
        assert!(huge_memory(file(), 16 << 20, 4096).is_err(), "a file that is too short");
        assert!(huge_memory(file(), 4 << 20, 4096).is_err(), "a file that is too long");
        assert!(huge_memory(file(), 8 << 20, 1 << 30).is_err(), "pages that do not divide it");
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(matches!(guest_memory(0), Err(Error::Range { .. })));
        assert!(matches!(guest_memory(u64::MAX), Err(Error::Range { .. })));
    }

    #[test]
    fn guest_memory_is_not_dumped() {
        let memory = guest_memory(64 << 20).unwrap();
        let host = memory.get_host_address(GuestAddress(0)).unwrap() as usize;
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        // the kernel may have joined it with a neighbour of equal flags
        let holds = |line: &&str| {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let ends = range.map(|(low, high)| (usize::from_str_radix(low, 16), usize::from_str_radix(high, 16)));
            matches!(ends, Some((Ok(low), Ok(high))) if (low..high).contains(&host))
        };
        let mut entry = smaps.lines().skip_while(|line| !holds(line));
        let flags = entry.find(|l| l.starts_with("VmFlags:")).expect("its mapping");
        assert!(flags.split_whitespace().any(|f| f == "dd"), "{flags}");
    }
}
