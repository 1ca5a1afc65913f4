//! Text from anybody, made harmless for every form of output: one line, nothing that a terminal, an XML parser or a reader's
//! eye takes for something else.

/// Longest text that a report repeats, in characters.
pub const MAX: usize = 2000;

/// Control characters as `^[` and `\u{9b}`, direction overrides and invisible characters by number, and no more than [`MAX`].
/// The result holds no character that XML 1.0 forbids.
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.chars().enumerate() {
        if at == MAX {
            out.push('…');
            break;
        }
        match c {
            '\n' | '\r' | '\t' => out.push(' '),
            '\0'..='\x1f' => {
                out.push('^');
                out.push(char::from(c as u8 + 0x40));
            }
            '\x7f' => out.push_str("^?"),
            _ if hidden(c) => out.push_str(&format!("<U+{:04X}>", c as u32)),
            _ => out.push(c),
        }
    }
    out
}

/// C1 controls, format characters (direction, joiners, tags, line separators), the byte order mark, noncharacters.
fn hidden(c: char) -> bool {
    matches!(c,
        '\u{80}'..='\u{9f}' | '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
        || (c as u32) & 0xfffe == 0xfffe
        || matches!(c, '\u{fdd0}'..='\u{fdef}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_that_acts() {
        assert_eq!(visible("\x1b]0;x\x07\u{9b}31m"), "^[]0;x^G<U+009B>31m");
        assert_eq!(visible("a\nb\tc\u{202e}d\u{200b}\u{feff}"), "a b c<U+202E>d<U+200B><U+FEFF>");
        assert_eq!(visible("grün 日本 🦀"), "grün 日本 🦀");
        assert_eq!(visible("\u{ffff}\u{0}\u{1fffe}"), "<U+FFFF>^@<U+1FFFE>");
        assert_eq!(visible(&"x".repeat(MAX + 5)).chars().count(), MAX + 1);
        let every = (0..=0x10_ffff).filter_map(char::from_u32).map(|c| visible(&c.to_string()));
        for text in every {
            assert!(text.chars().all(|c| !c.is_control()), "{text:?}");
        }
    }
}
