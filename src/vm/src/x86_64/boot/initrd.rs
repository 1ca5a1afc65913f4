//! The initrd: as high in low RAM as the kernel allows, followed by one more cpio segment of ours.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use vm_memory::{Bytes, GuestAddress};

use super::{Initrd, reading};
use crate::error::BootError;
use crate::memory::Memory;

const PAGE: u64 = 4096;

/// Loads file and tail between `lowest` and `highest` (exclusive). `None` when there is nothing to load.
pub(super) fn load(
    memory: &Memory,
    file: Option<&mut File>,
    tail: &[u8],
    lowest: u64,
    highest: u64,
) -> Result<Option<Initrd>, BootError> {
    let file_len = match &file {
        Some(file) => file.metadata().map_err(reading("initrd"))?.len(),
        None => 0,
    };
    let place = match place(file_len, tail.len() as u64, lowest, highest)? {
        Some(place) => place,
        None => return Ok(None),
    };
    if let Some(file) = file {
        file.seek(SeekFrom::Start(0)).map_err(reading("initrd"))?;
        memory
            .read_exact_volatile_from(GuestAddress(place.addr), file, file_len as usize)
            .map_err(|e| reading("initrd")(std::io::Error::other(e)))?;
    }
    memory
        .write_slice(tail, GuestAddress(place.addr + place.len - tail.len() as u64))
        .map_err(|_| BootError::Table("initrd's last segment"))?;
    Ok(Some(place))
}

/// Where file and tail go; the tail ends the initrd and starts on a multiple of four (the kernel's cpio reader
/// skips the zeroes between).
fn place(file_len: u64, tail_len: u64, lowest: u64, highest: u64) -> Result<Option<Initrd>, BootError> {
    let available = highest.saturating_sub(lowest.next_multiple_of(PAGE));
    let no_room = |needed| BootError::NoRoom { what: "the initrd", needed, available };
    let aligned = file_len.checked_next_multiple_of(4).ok_or(no_room(file_len))?;
    let len = aligned.checked_add(tail_len).ok_or(no_room(file_len))?;
    if len == 0 {
        return Ok(None);
    }
    match highest.checked_sub(len).map(|addr| addr & !(PAGE - 1)) {
        Some(addr) if addr >= lowest => Ok(Some(Initrd { addr, len })),
        _ => Err(no_room(len)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_to_the_top_and_the_tail_is_aligned() {
        assert_eq!(place(0, 0, 0, 1 << 20).unwrap(), None);
        let initrd = place(5, 12, 0, 1 << 20).unwrap().unwrap();
        assert_eq!(initrd, Initrd { addr: (1 << 20) - 4096, len: 20 });
        assert_eq!(place(4096, 0, 0, 1 << 20).unwrap().unwrap().addr, (1 << 20) - 4096);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (file, tail) in [(8193, 0), (u64::MAX, 0), (u64::MAX - 8, 100), (8000, 200)] {
            assert!(matches!(place(file, tail, 4096, 12288), Err(BootError::NoRoom { .. })), "{file} {tail}");
        }
        assert!(place(8192, 0, 4096, 12288).unwrap().is_some());
        assert!(place(1, 0, 4096, 4096).is_err());
    }
}
