//! A log of bounded size over two files handed in as fds.
//!
//! Format, for readers: each file holds at most half of the capacity. The one that is being written is always shorter
//! than half; when it reaches half, the other is emptied and becomes the one being written. So: if a file is exactly
//! half long it is the older part, and the other one follows it; if neither is, only one of them has content.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::traits::ByteSink;

/// Two files of at most `half` bytes each.
pub struct RingLog {
    files: [File; 2],
    active: usize,
    len: u64,
    half: u64,
}

impl RingLog {
    /// Takes over two files that are empty or hold an earlier log, which is discarded. `capacity` is for both together.
    pub fn new(files: [File; 2], capacity: u64) -> io::Result<Self> {
        for file in &files {
            file.set_len(0)?;
        }
        Ok(Self { files, active: 0, len: 0, half: (capacity / 2).max(1) })
    }

    fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        // Of a flood larger than the log only the end can survive: skip what would be overwritten in this call.
        let keep = usize::try_from(self.half.saturating_mul(2)).unwrap_or(usize::MAX);
        bytes = &bytes[bytes.len().saturating_sub(keep)..];
        while !bytes.is_empty() {
            let room = usize::try_from(self.half - self.len).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.files[self.active].write_all_at(now, self.len)?;
            self.len += now.len() as u64;
            bytes = later;
            if self.len == self.half {
                let other = 1 - self.active;
                self.files[other].set_len(0)?;
                self.active = other;
                self.len = 0;
            }
        }
        Ok(())
    }
}

impl ByteSink for RingLog {
    fn write(&mut self, bytes: &[u8]) {
        // A full disk loses log lines, not the VM; the next write tries again at the same place.
        let _ = self.append(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;

    fn content(file: &File) -> Vec<u8> {
        let mut out = Vec::new();
        let len = file.metadata().unwrap().len();
        out.resize(len as usize, 0);
        file.read_exact_at(&mut out, 0).unwrap();
        out
    }

    fn joined(log: &RingLog) -> Vec<u8> {
        let [a, b] = [content(&log.files[0]), content(&log.files[1])];
        if b.len() as u64 == log.half { [b, a].concat() } else { [a, b].concat() }
    }

    fn new(capacity: u64) -> RingLog {
        RingLog::new([tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()], capacity).unwrap()
    }

    #[test]
    fn a_write_error_is_swallowed() {
        let mut dir = tempfile::NamedTempFile::new().unwrap();
        let read_only = File::open(dir.path()).unwrap();
        let mut log = new(16);
        log.files[0] = read_only;
        log.write(b"lost");
        let mut s = String::new();
        dir.read_to_string(&mut s).unwrap();
        assert_eq!(s, "");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn svirt_50_it_stays_bounded_and_keeps_the_end(writes in proptest::collection::vec(0usize..70, 0..40)) {
            let mut log = new(64);
            let mut all = Vec::new();
            for (i, n) in writes.into_iter().enumerate() {
                let chunk: Vec<u8> = (0..n).map(|j| (i * 31 + j) as u8).collect();
                log.write(&chunk);
                all.extend_from_slice(&chunk);
                let kept = joined(&log);
                prop_assert!(kept.len() < 64);
                prop_assert!(all.ends_with(&kept));
                prop_assert!(kept.len() >= 32.min(all.len()));
            }
        }
    }
}
