//! Guest bytes for a terminal that the guest was not given: control characters are shown, not sent.
//!
//! Passed: printable Unicode, newline, tab, carriage return. All else (escape sequences in both their encodings,
//! direction overrides, broken UTF-8) becomes visible text. A single line for people, as a name or a message, is [`line`]'s.

pub use casemate_visible::line;

/// Works across reads: a character that is cut off waits for its rest.
#[derive(Debug, Default)]
pub struct Sanitizer {
    pending: Vec<u8>,
}

impl Sanitizer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends what `bytes` look like to `out`.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut joined = std::mem::take(&mut self.pending);
        joined.extend_from_slice(bytes);
        let mut rest = joined.as_slice();
        while !rest.is_empty() {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    show(text, out);
                    return;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    show(&String::from_utf8_lossy(valid), out);
                    let Some(bad) = error.error_len() else {
                        // At most three bytes: the beginning of a character.
                        self.pending = after.to_vec();
                        return;
                    };
                    for byte in &after[..bad] {
                        out.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
                    }
                    rest = &after[bad..];
                }
            }
        }
    }

    /// What still waits, at the end of the stream.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        for byte in std::mem::take(&mut self.pending) {
            out.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
        }
    }
}

fn show(text: &str, out: &mut Vec<u8>) {
    for c in text.chars() {
        match c {
            '\n' | '\t' | '\r' => out.push(c as u8),
            '\0'..='\x1f' => out.extend_from_slice(&[b'^', c as u8 + 0x40]),
            '\x7f' => out.extend_from_slice(b"^?"),
            '\u{80}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.extend_from_slice(format!("<U+{:04X}>", c as u32).as_bytes());
            }
            _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(pieces: &[&[u8]]) -> String {
        let mut sanitizer = Sanitizer::new();
        let mut out = Vec::new();
        for piece in pieces {
            sanitizer.feed(piece, &mut out);
        }
        sanitizer.finish(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn escape_sequences_in_all_encodings_become_text() {
        assert_eq!(whole(&[b"\x1b]0;owned\x07"]), "^[]0;owned^G");
        assert_eq!(whole(&["\u{9b}31m".as_bytes()]), "<U+009B>31m");
        assert_eq!(whole(&[b"\x9b31m"]), "\\x9b31m");
        assert_eq!(whole(&["a\u{202e}b".as_bytes()]), "a<U+202E>b");
        assert_eq!(whole(&[b"a\r\nb\tc\x7f\x08"]), "a\r\nb\tc^?^H");
    }

    #[test]
    fn characters_survive_being_cut() {
        let text = "grün 日本 🦀\n".as_bytes();
        for at in 0..text.len() {
            assert_eq!(whole(&[&text[..at], &text[at..]]).as_bytes(), text);
        }
        assert_eq!(whole(&[b"\xf0\x9f"]), "\\xf0\\x9f");
    }

    proptest::proptest! {
        #[test]
        fn nothing_gets_through(pieces in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 0..40), 0..6)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let shown = whole(&pieces);
            proptest::prop_assert!(shown.chars().all(|c| !c.is_control() || "\n\t\r".contains(c)));
        }
    }
}
