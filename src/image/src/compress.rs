//! Decompression, always bounded: hostile archives expand.
use std::io::{self, Read};

/// Refuses to deliver more than its limit, instead of ending early.
pub(crate) struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Bounded<R> {
    pub fn new(inner: R, limit: u64) -> Self {
        Bounded { inner, left: limit }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.left == 0 {
            return match self.inner.read(&mut [0u8; 1])? {
                0 => Ok(0),
                _ => Err(io::Error::new(io::ErrorKind::FileTooLarge, "more data than the limit")),
            };
        }
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.inner.read(&mut buffer[..want])?;
        self.left -= n as u64;
        Ok(n)
    }
}

pub(crate) fn gzip<'a>(reader: impl Read + 'a) -> Box<dyn Read + 'a> {
    Box::new(flate2::read::MultiGzDecoder::new(reader))
}

pub(crate) fn xz<'a>(reader: impl Read + 'a) -> Box<dyn Read + 'a> {
    Box::new(lzma_rust2::XzReader::new(reader, true))
}

pub(crate) fn zstd<'a>(reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut decoder = zstd::stream::read::Decoder::new(reader)?;
    // 128 MiB, what `zstd --ultra -22` makes (kernels are packed so).
    decoder.window_log_max(27)?;
    Ok(Box::new(decoder))
}

/// One zstd frame; what follows it is not looked at (a kernel's payload ends with its unpacked size).
pub(crate) fn zstd_frame(bytes: &[u8]) -> io::Result<Box<dyn Read + '_>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes)?.single_frame();
    decoder.window_log_max(27)?;
    Ok(Box::new(decoder))
}

/// The LZ4 "legacy" frame of the kernel build: magic, then blocks of at most 8 MiB each with its packed size.
pub(crate) fn lz4_legacy(mut bytes: &[u8], limit: usize) -> io::Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut out = Vec::new();
    let mut block = vec![0; BLOCK];
    bytes = bytes.get(4..).ok_or_else(|| bad("no LZ4 magic"))?;
    // The last four bytes are the unpacked size, added by the kernel build.
    while bytes.len() > 4 {
        let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| bad("a cut LZ4 block"))?;
        let size = u32::from_le_bytes(*size) as usize;
        let packed = rest.get(..size).ok_or_else(|| bad("a cut LZ4 block"))?;
        let n = lz4_flex::block::decompress_into(packed, &mut block).map_err(io::Error::other)?;
        if out.len() + n > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        out.extend_from_slice(&block[..n]);
        bytes = &rest[size..];
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_an_error_not_an_end() {
        let data = [7u8; 100];
        let mut out = Vec::new();
        assert_eq!(Bounded::new(&data[..], 100).read_to_end(&mut out).unwrap(), 100);
        let error = Bounded::new(&data[..], 99).read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn lz4_blocks() {
        let data: Vec<u8> = (0..100_000u32).map(|i| (i / 100) as u8).collect();
        let mut packed = 0x184C_2102u32.to_le_bytes().to_vec();
        for half in data.chunks(50_000) {
            let block = lz4_flex::block::compress(half);
            packed.extend((block.len() as u32).to_le_bytes());
            packed.extend(block);
        }
        packed.extend((data.len() as u32).to_le_bytes());
        assert_eq!(lz4_legacy(&packed, 1 << 20).unwrap(), data);
        assert!(lz4_legacy(&packed, 1000).is_err());
        assert!(lz4_legacy(&packed[..packed.len() - 100], 1 << 20).is_err());
        assert!(lz4_legacy(&[], 10).is_err());
    }
}
