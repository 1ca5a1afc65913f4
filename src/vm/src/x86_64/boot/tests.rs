//! Malformed and well-formed images; none needs /dev/kvm.

use std::io::Write;

use super::*;

const RAM: u64 = 32 << 20;

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn boot(kernel: &[u8]) -> Result<(Memory, Entry), BootError> {
    boot_with(kernel, None, &[], "console=ttyS0")
}

fn boot_with(kernel: &[u8], initrd: Option<&[u8]>, tail: &[u8], line: &str) -> Result<(Memory, Entry), BootError> {
    let memory = crate::guest_memory(RAM).unwrap();
    let (mut kernel, mut initrd) = (file(kernel), initrd.map(file));
    let mut image = Image { kernel: &mut kernel, initrd: initrd.as_mut(), initrd_tail: tail, command_line: line };
    let entry = load(&memory, &mut image, &Platform::default(), 1)?;
    Ok((memory, entry))
}

/// A PVH ELF: header, one loadable segment at 1 MiB, one note.
fn elf() -> Vec<u8> {
    let mut elf = vec![0u8; 0x200];
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1]);
    put(24, &0x10_0000u64.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 2, 0]);
    for (at, kind, offset, addr, len) in [(64, 1u32, 0x100u64, 0x10_0000u64, 0x100u64), (120, 4, 0xc0, 0, 20)] {
        put(at, &kind.to_le_bytes());
        put(at + 8, &offset.to_le_bytes());
        put(at + 24, &addr.to_le_bytes());
        put(at + 32, &len.to_le_bytes());
        put(at + 40, &len.to_le_bytes());
    }
    for (i, word) in [4u32, 4, 18, 0x006e_6558, 0x10_0010].iter().enumerate() {
        put(0xc0 + i * 4, &word.to_le_bytes());
    }
    elf
}

/// A bzImage header with one setup sector and a 4 KiB payload.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0x90u8; 1024 + 4096];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &0x10_0000u32.to_le_bytes());
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x234, &[1]);
    put(0x236, &1u16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x250, &0xffff_0000u64.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x10_0000u32.to_le_bytes());
    image
}

#[test]
fn a_pvh_elf_gets_start_info_and_modules() {
    let (memory, entry) = boot_with(&elf(), Some(b"initrd"), b"tail", "quiet").unwrap();
    assert_eq!(entry, Entry { address: 0x10_0010, protocol: Protocol::Pvh });
    let read = |at: u64| memory.read_obj::<u32>(GuestAddress(layout::PVH_START_INFO + at)).unwrap();
    assert_eq!((read(0), read(4), read(12)), (0x336e_c578, 1, 1));
    assert_eq!(read(32), layout::ACPI as u32);
    let mut bytes = [0u8; 12];
    memory.read_slice(&mut bytes, GuestAddress(RAM - 4096)).unwrap();
    assert_eq!(&bytes, b"initrd\0\0tail");
    let mut line = [0u8; 6];
    memory.read_slice(&mut line, GuestAddress(layout::COMMAND_LINE)).unwrap();
    assert_eq!(&line, b"quiet\0");
}

#[test]
fn an_elf_without_note_is_entered_in_long_mode() {
    let mut image = elf();
    image[56] = 1;
    assert_eq!(boot(&image).unwrap().1, Entry { address: 0x10_0000, protocol: Protocol::Elf64 });
}

#[test]
fn a_bzimage_gets_a_zero_page() {
    let (memory, entry) = boot_with(&bzimage(), Some(&[7; 5000]), &[], "quiet").unwrap();
    assert_eq!(entry, Entry { address: 0x10_0200, protocol: Protocol::BzImage });
    let byte = |at: u64| memory.read_obj::<u8>(GuestAddress(layout::ZERO_PAGE + at)).unwrap();
    let word = |at: u64| memory.read_obj::<u32>(GuestAddress(layout::ZERO_PAGE + at)).unwrap();
    assert_eq!(byte(0x1e8), 3, "e820 entries");
    assert_eq!((word(0x2d0), word(0x2d8)), (0, layout::LOW_RAM_END as u32));
    assert_eq!((word(0x2d0 + 40), word(0x2d8 + 40)), (layout::HIGH_RAM as u32, (RAM - layout::HIGH_RAM) as u32));
    assert_eq!((word(0x218), word(0x21c)), ((RAM - 8192) as u32, 5000));
    assert_eq!((word(0x70), word(0x228)), (layout::ACPI as u32, layout::COMMAND_LINE as u32));
    assert_eq!((word(0x250), word(0x254)), (0, 0), "no setup_data from the image");
}

#[test]
fn files_that_are_no_kernel() {
    for bytes in [&b""[..], b"\x7fEL", b"#!/bin/sh\n", &[0; 8192]] {
        assert!(matches!(boot(bytes), Err(BootError::UnknownFormat)), "{} bytes", bytes.len());
    }
}

#[test]
fn each_elf_field_is_bounded() {
    let broken = |at: usize, bytes: &[u8]| {
        let mut image = elf();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        boot(&image).err()
    };
    assert!(matches!(broken(4, &[1]), Some(BootError::No64BitEntry)), "32 bit");
    assert!(matches!(broken(18, &[183]), Some(BootError::No64BitEntry)), "aarch64");
    assert!(matches!(broken(54, &[32]), Some(BootError::Malformed(_))), "header size");
    assert!(matches!(broken(56, &[0xff, 0xff]), Some(BootError::Malformed(_))), "65535 segments");
    assert!(matches!(broken(56, &[0, 0]), Some(BootError::Malformed(_))), "no segment");
    assert!(matches!(broken(32, &[0xff; 8]), Some(BootError::Malformed(_))), "headers beyond the file");
    assert!(broken(32, &[0; 8]).is_some(), "headers inside the ELF header");
    assert!(matches!(broken(64 + 8, &[0xff; 8]), Some(BootError::Malformed(_))), "offset");
    assert!(matches!(broken(64 + 32, &[0xff; 8]), Some(BootError::Malformed(_))), "file size");
    assert!(matches!(broken(64 + 40, &[0xff; 8]), Some(BootError::NoRoom { .. })), "memory size");
    assert!(matches!(broken(64 + 40, &[0; 8]), Some(BootError::Malformed(_))), "memory below file size");
    assert!(matches!(broken(64 + 24, &[0; 8]), Some(BootError::Malformed(_))), "below 1 MiB");
    assert!(matches!(broken(64 + 24, &[0, 0, 0, 0xe0]), Some(BootError::NoRoom { .. })), "above memory");
    assert!(matches!(broken(120 + 32, &[0xff; 4]), Some(BootError::Malformed(_))), "note size");
    assert!(matches!(broken(0xc0 + 16, &[0xff; 4]), Some(BootError::Malformed(_))), "entry point");
    assert!(matches!(broken(0xc0, &[0xff; 8]), Some(BootError::Loader(_))), "note sizes that overflow");
    assert!(broken(0xc0, &[0xf0, 0xff, 0, 0]).is_none(), "a note beyond the segment ends the search, no PVH entry");
}

#[test]
fn every_truncation_ends() {
    for whole in [elf(), bzimage()] {
        for len in (0..whole.len()).step_by(7) {
            let _ = boot(&whole[..len]);
        }
    }
    assert!(matches!(boot(&bzimage()[..1100]), Err(BootError::Malformed(_))));
}

#[test]
fn each_bzimage_field_is_bounded() {
    let broken = |at: usize, bytes: &[u8]| {
        let mut image = bzimage();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        boot(&image).err()
    };
    assert!(matches!(broken(0x206, &[0x0b, 2]), Some(BootError::No64BitEntry)), "old protocol");
    assert!(matches!(broken(0x236, &[0]), Some(BootError::No64BitEntry)), "32 bit");
    assert!(matches!(broken(0x211, &[0]), Some(BootError::Loader(_))), "zImage");
    assert!(matches!(broken(0x234, &[0]), Some(BootError::Malformed(_))), "fixed address");
    assert!(matches!(broken(0x1f1, &[0xff]), Some(BootError::Loader(_))), "setup longer than the file");
    assert!(matches!(broken(0x260, &[0xff; 4]), Some(BootError::NoRoom { .. })), "init size");
    assert!(matches!(broken(0x258, &[0xff; 8]), Some(BootError::NoRoom { .. })), "preferred address");
}

#[test]
fn initrd_and_command_line_are_bounded() {
    let err = |initrd: Option<&[u8]>, line: &str| boot_with(&bzimage(), initrd, &[], line).err();
    assert!(matches!(err(Some(&vec![0; 16 << 20]), ""), Some(BootError::NoRoom { what: "the initrd", .. })));
    assert!(matches!(err(None, &"x".repeat(2048)), Some(BootError::CommandLineTooLong { max: 2047, .. })));
    assert!(err(None, &"x".repeat(2047)).is_none());
    for bad in ["a\0b", "a\nb", "caf\u{e9}", "\x7f"] {
        assert!(matches!(err(None, bad), Some(BootError::CommandLineByte(_))), "{bad:?}");
    }
}
