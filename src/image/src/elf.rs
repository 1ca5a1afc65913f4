//! What we read from ELF files and bzImages: the packed kernel, its PVH note, a module's description.
use crate::compress::{self, Bounded};
use object::LittleEndian;
use object::elf::{FileHeader64, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Object, ObjectSection};
use std::io::{self, Read};

/// Largest unpacked kernel.
const MAX_VMLINUX: usize = 512 << 20;
/// XEN_ELFNOTE_PHYS32_ENTRY (xen/include/public/elfnote.h): the 32-bit entry point of the PVH boot protocol.
const PHYS32_ENTRY: u32 = 18;

pub(crate) fn is_elf64(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF\x02\x01")
}

/// Linux' boot header: Documentation/arch/x86/boot.rst.
pub(crate) fn is_bzimage(bytes: &[u8]) -> bool {
    bytes.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) && bytes.get(0x202..0x206) == Some(b"HdrS")
}

/// The version text of a bzImage ("6.12.95-cloud-amd64 (...)").
pub(crate) fn bzimage_version(bytes: &[u8]) -> Option<String> {
    let offset = usize::from(u16::from_le_bytes(bytes.get(0x20e..0x210)?.try_into().ok()?));
    let text = bytes.get(offset + 0x200..)?;
    let end = text.iter().take(256).position(|&b| b == 0)?;
    let text = String::from_utf8_lossy(&text[..end]).into_owned();
    text.split_whitespace().next().map(str::to_owned)
}

/// The ELF kernel inside a bzImage.
pub(crate) fn unpack_bzimage(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let u32_at = |at: usize| {
        let bytes = bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).ok_or_else(|| bad("a cut header"))?;
        Ok::<usize, io::Error>(u32::from_le_bytes(bytes) as usize)
    };
    let setup_sectors = match bytes.get(0x1f1) {
        Some(0) => 4,
        Some(&n) => usize::from(n),
        None => return Err(bad("a cut header")),
    };
    let start = (setup_sectors + 1) * 512 + u32_at(0x248)?;
    let payload = bytes.get(start..).and_then(|b| b.get(..u32_at(0x24c).ok()?));
    let payload = payload.ok_or_else(|| bad("the payload lies outside of the file"))?;
    let reader: Box<dyn Read> = match payload {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::GzDecoder::new(payload)),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Box::new(lzma_rust2::XzReader::new(payload, false)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => compress::zstd_frame(payload)?,
        [0x02, 0x21, 0x4c, 0x18, ..] => Box::new(io::Cursor::new(compress::lz4_legacy(payload, MAX_VMLINUX)?)),
        _ => return Err(bad("packed in a way that is not known here (gzip, xz, zstd and LZ4 are)")),
    };
    let mut kernel = Vec::new();
    Bounded::new(reader, MAX_VMLINUX as u64).read_to_end(&mut kernel)?;
    if !is_elf64(&kernel) {
        return Err(bad("what is packed in it is no 64-bit ELF file"));
    }
    Ok(kernel)
}

/// True if the kernel can be entered by the PVH protocol.
pub(crate) fn has_pvh_note(kernel: &[u8]) -> bool {
    let look = || -> object::Result<bool> {
        let header = FileHeader64::<LittleEndian>::parse(kernel)?;
        let endian = header.endian()?;
        for segment in header.program_headers(endian, kernel)? {
            if segment.p_type(endian) != PT_NOTE {
                continue;
            }
            let Some(mut notes) = segment.notes(endian, kernel)? else { continue };
            while let Some(note) = notes.next()? {
                if note.name() == b"Xen" && note.n_type(endian) == PHYS32_ENTRY {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    };
    look().unwrap_or(false)
}

/// The `key=value` texts of a kernel module's .modinfo section.
pub(crate) fn modinfo(module: &[u8]) -> Option<Vec<(String, String)>> {
    let file = object::File::parse(module).ok()?;
    let data = file.section_by_name(".modinfo")?.data().ok()?;
    let texts = data.split(|&b| b == 0).map(String::from_utf8_lossy);
    Some(texts.filter_map(|t| t.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn headers_that_lie() {
        let mut image = vec![0u8; 4096];
        assert!(!is_bzimage(&image));
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(is_bzimage(&image));
        image[0x1f1] = 255;
        image[0x248..0x24c].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(unpack_bzimage(&image).is_err());
        assert!(unpack_bzimage(&image[..0x1f0]).is_err());
        assert!(!has_pvh_note(b"\x7fELF\x02\x01"));
        assert!(modinfo(b"\x7fELF").is_none());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let _ = (is_bzimage(&bytes), bzimage_version(&bytes), unpack_bzimage(&bytes));
            if bytes.len() > 64 {
                bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
            }
            let _ = (has_pvh_note(&bytes), modinfo(&bytes));
        }
    }
}
