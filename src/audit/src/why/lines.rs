//! Lines of a stream that may stop anywhere and go on later.

use std::io::{self, ErrorKind, Read};

use super::record::MAX_LINE;

/// Whether there may be more at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum More {
    /// Everything that is there now was read.
    End,
    /// As many bytes were read as were asked for.
    Rest,
}

/// The beginning of a line whose end is still to come. Longer ones than any record are left out.
#[derive(Debug, Default)]
pub struct Lines {
    begun: Vec<u8>,
    /// What comes until the next line is the rest of an overlong one.
    skipping: bool,
}

impl Lines {
    /// Each line that ends in what can be read now, without its end; at most `most` bytes.
    pub fn read(&mut self, mut from: impl Read, most: u64, mut each: impl FnMut(&[u8])) -> io::Result<More> {
        let mut bytes = [0; 64 << 10];
        let mut left = most;
        while left > 0 {
            let room = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
            let got = match from.read(&mut bytes[..room]) {
                Ok(0) => return Ok(More::End),
                Ok(got) => got,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(More::End),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            left -= got as u64;
            self.feed(&bytes[..got], &mut each);
        }
        Ok(More::Rest)
    }

    fn feed(&mut self, bytes: &[u8], each: &mut impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let ended = piece.strip_suffix(b"\n");
            if !self.skipping {
                self.begun.extend_from_slice(ended.unwrap_or(piece));
                self.skipping = self.begun.len() > MAX_LINE;
            }
            if self.skipping {
                self.begun.clear();
            }
            if ended.is_some() {
                if !self.skipping {
                    each(&self.begun);
                }
                self.begun.clear();
                self.skipping = false;
            }
        }
    }

    /// There is no more: a last line may lack its end. What comes next begins a line.
    pub fn end(&mut self, mut each: impl FnMut(&[u8])) {
        if !std::mem::take(&mut self.skipping) && !self.begun.is_empty() {
            each(&self.begun);
        }
        self.begun.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endless_line_is_left_out_and_what_follows_is_read() {
        let text = format!("a\n{}\nb", "x".repeat(3 * MAX_LINE));
        let mut seen = Vec::new();
        let mut lines = Lines::default();
        assert_eq!(lines.read(text.as_bytes(), u64::MAX, |line| seen.push(line.len())).unwrap(), More::End);
        assert!(lines.begun.capacity() <= 2 * (MAX_LINE + (64 << 10)), "{}", lines.begun.capacity());
        lines.end(|line| seen.push(line.len()));
        assert_eq!(seen, [1, 1]);
    }

    #[test]
    fn a_line_may_come_in_pieces() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for piece in ["one\ntw", "o", "\n", "\nthree"] {
            let more = lines.read(piece.as_bytes(), 100, |line| seen.push(String::from_utf8_lossy(line).into_owned()));
            assert_eq!(more.unwrap(), More::End);
        }
        assert_eq!(seen, ["one", "two", ""]);
        assert_eq!(lines.read(&b"abc"[..], 2, |_| ()).unwrap(), More::Rest);
    }
}
