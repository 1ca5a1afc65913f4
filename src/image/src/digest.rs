//! SHA-256 of content.
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Lower-case hexadecimal SHA-256.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Digest(String);

impl Digest {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn of_file(path: &Path) -> Result<Digest> {
        let mut file = File::open(path).map_err(Error::io("opening", path))?;
        let mut hasher = Hasher::default();
        hasher.read_all(&mut file).map_err(Error::io("reading", path))?;
        Ok(hasher.finish())
    }

    pub fn of(bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::default();
        hasher.raw(bytes);
        hasher.finish()
    }
}

impl TryFrom<String> for Digest {
    type Error = &'static str;

    fn try_from(text: String) -> std::result::Result<Self, &'static str> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == 64 && text.bytes().all(hex) { Ok(Digest(text)) } else { Err("not a SHA-256 in hexadecimal") }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Hashes fields so that no two different lists of fields give the same bytes.
#[derive(Default)]
pub(crate) struct Hasher(Sha256);

impl Hasher {
    /// Length first.
    pub fn field(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    pub fn number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// All of a reader, without its length: hash that before.
    pub fn read_all(&mut self, reader: &mut impl Read) -> std::io::Result<u64> {
        let mut buffer = vec![0; 256 * 1024];
        let mut total = 0;
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(total),
                Ok(n) => {
                    self.raw(&buffer[..n]);
                    total += n as u64;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    pub fn finish(self) -> Digest {
        use std::fmt::Write;
        let mut text = String::with_capacity(64);
        for byte in self.0.finalize() {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Digest(text)
    }
}
