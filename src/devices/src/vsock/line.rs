//! The line by which a host client says what it wants; see this crate's README.

/// A line with its newline, at most.
pub const LINE_MAX: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Connect(u32),
    Listen(u32),
}

/// What has been read so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Line {
    bytes: [u8; LINE_MAX],
    len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    Incomplete,
    Bad,
    /// The wish, and how many bytes of the buffer it took.
    Wish(Wish, usize),
}

impl Line {
    /// Room for more input; empty only after [`Parsed::Bad`].
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.len..]
    }

    pub fn took(&mut self, n: usize) {
        self.len = (self.len + n).min(LINE_MAX);
    }

    /// Bytes after the line: the client's first data.
    pub fn rest(&self, used: usize) -> &[u8] {
        &self.bytes[used.min(self.len)..self.len]
    }

    pub fn parse(&self) -> Parsed {
        let Some(end) = self.bytes[..self.len].iter().position(|&b| b == b'\n') else {
            return if self.len == LINE_MAX { Parsed::Bad } else { Parsed::Incomplete };
        };
        let wish = std::str::from_utf8(&self.bytes[..end]).ok().and_then(|line| {
            let (verb, port) = line.split_once(' ')?;
            // u32's parser also takes a sign.
            let port = port.bytes().all(|b| b.is_ascii_digit()).then(|| port.parse().ok())??;
            match verb {
                "CONNECT" => Some(Wish::Connect(port)),
                "LISTEN" => Some(Wish::Listen(port)),
                _ => None,
            }
        });
        wish.map_or(Parsed::Bad, |wish| Parsed::Wish(wish, end + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Parsed {
        let mut line = Line::default();
        line.room()[..text.len()].copy_from_slice(text.as_bytes());
        line.took(text.len());
        line.parse()
    }

    #[test]
    fn wishes() {
        assert_eq!(parse("CONNECT 1024\nhello"), Parsed::Wish(Wish::Connect(1024), 13));
        assert_eq!(parse("LISTEN 4294967295\n"), Parsed::Wish(Wish::Listen(u32::MAX), 18));
        assert_eq!(parse("CONNECT 10"), Parsed::Incomplete);
        for bad in
            ["\n", "CONNECT\n", "CONNECT +1\n", "CONNECT 4294967296\n", "connect 1\n", "CONNECT 1 \n", "LISTEN ../x\n"]
        {
            assert_eq!(parse(bad), Parsed::Bad, "{bad:?}");
        }
        assert_eq!(parse(&"C".repeat(LINE_MAX)), Parsed::Bad);
    }
}
