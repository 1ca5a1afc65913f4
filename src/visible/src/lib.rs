//! Text from anybody, made harmless for every form of output: one line, nothing that a terminal, an XML parser or a reader's
//! eye takes for something else. Names of processes, paths, messages of a guest's agent: everything that this program shows
//! and did not write itself comes through here.
#![forbid(unsafe_code)]

use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// Longest text that a report repeats, in characters.
pub const MAX: usize = 2000;

/// [`line`] of the length that a report repeats.
pub fn visible(text: &str) -> String {
    line(text, MAX)
}

/// Control characters as `^[` and `\u{9b}`, direction overrides and invisible characters by number, and no more than `max`
/// characters of the text. The result holds no character that XML 1.0 forbids.
pub fn line(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(4 * max));
    for (at, c) in text.chars().enumerate() {
        if at == max {
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

/// Whether a character has no picture of its own, or changes those around it.
pub fn hidden(c: char) -> bool {
    use GeneralCategory as G;
    match c {
        ' '..='~' => return false,
        // Letters and marks without a picture: Default_Ignorable_Code_Point (DerivedCoreProperties.txt) beyond Cf, and
        // the empty Braille pattern.
        '\u{034f}'
        | '\u{115f}'..='\u{1160}'
        | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}'
        | '\u{2800}'
        | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}'
        | '\u{ffa0}'
        | '\u{fffc}'
        | '\u{1d159}'
        | '\u{e0000}'..='\u{e0fff}' => return true,
        _ => {}
    }
    matches!(
        c.general_category(),
        G::Control
            | G::Format
            | G::Surrogate
            | G::PrivateUse
            | G::Unassigned
            | G::LineSeparator
            | G::ParagraphSeparator
            | G::SpaceSeparator
    )
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
        assert_eq!((line("abcdef", 3), line("abc", 3)), ("abc…".to_owned(), "abc".to_owned()));
        let every = (0..=0x10_ffff).filter_map(char::from_u32).map(|c| visible(&c.to_string()));
        for text in every {
            assert!(text.chars().all(|c| !c.is_control()), "{text:?}");
        }
    }
}
