//! SHA-256 digests, as 64 lower-case hexadecimal digits.

use std::fmt;
use std::io::Read;

use serde::{Deserialize, Deserializer, Serialize};

const CHUNK: usize = 1 << 17;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Digest(String);

impl Digest {
    pub fn of(bytes: &[u8]) -> Digest {
        Digest::from(ring::digest::digest(&ring::digest::SHA256, bytes))
    }

    /// Of all that is read, and how many bytes that was.
    pub fn of_reader(mut from: impl Read) -> std::io::Result<(Digest, u64)> {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        let (mut buffer, mut length) = (vec![0; CHUNK], 0);
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return Ok((Digest::from(context.finish()), length)),
                Ok(n) => {
                    context.update(&buffer[..n]);
                    length += n as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Of a salt and bytes: it confirms what is known, and is looked up in no table.
    pub fn salted(salt: &str, bytes: &[u8]) -> Digest {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        context.update(salt.as_bytes());
        context.update(b"\0");
        context.update(bytes);
        Digest::from(context.finish())
    }

    pub fn parse(text: &str) -> Option<Digest> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 64 && text.bytes().all(hex)).then(|| Digest(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first digits, for people.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

/// Hexadecimal digits of bytes.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl From<ring::digest::Digest> for Digest {
    fn from(digest: ring::digest::Digest) -> Digest {
        Digest(hex(digest.as_ref()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Digest::parse(&text).ok_or_else(|| serde::de::Error::custom("a digest is 64 lower-case hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_everybody() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").as_str(), empty);
        let (digest, length) = Digest::of_reader(&[b'a'; 300_000][..]).unwrap();
        assert_eq!((digest, length), (Digest::of(&[b'a'; 300_000]), 300_000));
        for bad in ["", &empty[1..], &empty.to_uppercase(), &format!("{empty}0"), &empty.replace('e', "g")] {
            assert_eq!(Digest::parse(bad), None, "{bad}");
        }
        assert_ne!(Digest::salted("a", b"bc"), Digest::salted("ab", b"c"));
    }
}
