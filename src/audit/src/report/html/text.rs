//! Text that somebody else wrote: names, paths, what a kernel file said.
//!
//! maud escapes what has a meaning in HTML. What is left is text that deceives the eye: control characters, direction
//! overrides, characters without a picture, spaces that are none. They are shown by their code point, and text that is not
//! ASCII is isolated, so that it cannot reorder what stands beside it (Unicode TR 36, TR 9 section 2.7).

use maud::{Markup, PreEscaped, Render, html};
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

use crate::report::visible::hidden;

/// Most characters of one text that a page shows; it says how many it leaves out.
const LONGEST: usize = 8192;

/// Marks that may stand on one letter; more climb into the lines above.
const MARKS: usize = 2;

/// Untrusted text as content of an element.
pub struct Text<'a>(pub &'a str);

impl Render for Text<'_> {
    fn render_to(&self, out: &mut String) {
        if self.0.is_ascii() && !self.0.bytes().any(|b| b.is_ascii_control()) && self.0.len() <= LONGEST {
            self.0.render_to(out);
            return;
        }
        let isolate = !self.0.is_ascii();
        if isolate {
            out.push_str("<bdi dir=\"ltr\">");
        }
        let mut run = String::new();
        for piece in pieces(self.0) {
            match piece {
                Piece::Shown(c) => run.push(c),
                Piece::Coded(c) => {
                    run.render_to(out);
                    run.clear();
                    html! { span.ctl title=(format!("U+{:04X}", c as u32)) { (code(c)) } }.render_to(out);
                }
                Piece::Cut(left) => {
                    run.render_to(out);
                    run.clear();
                    html! { span.ctl { "… " (left) " characters more" } }.render_to(out);
                }
            }
        }
        run.render_to(out);
        if isolate {
            out.push_str("</bdi>");
        }
    }
}

/// Untrusted text as the value of an attribute or of an SVG title, where no markup can be.
pub fn plain(text: &str) -> String {
    let mut out = String::new();
    for piece in pieces(text) {
        match piece {
            Piece::Shown(c) => out.push(c),
            Piece::Coded(c) => out.push_str(&code(c)),
            Piece::Cut(left) => out.push_str(&format!("… {left} characters more")),
        }
    }
    out
}

/// At most `most` characters, for labels in a picture.
pub fn short(text: &str, most: usize) -> String {
    let text = plain(text);
    match text.char_indices().nth(most) {
        None => text,
        Some(_) => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// Sentences, each a line of a list; a single one without the list.
pub fn lines<S: AsRef<str>>(lines: &[S]) -> Markup {
    match lines {
        [] => html! { span.none { "none" } },
        [one] => html! { (Text(one.as_ref())) },
        many => html! { ul.lines { @for line in many { li { (Text(line.as_ref())) } } } },
    }
}

/// A sentence with commands between backticks.
pub fn prose(text: &str) -> Markup {
    let parts: Vec<&str> = text.split('`').collect();
    // An odd backtick is only that.
    let paired = parts.len() % 2 == 1;
    html! {
        @if !paired { (Text(text)) } @else { @for (at, part) in parts.iter().enumerate() {
            @if at % 2 == 1 { code.said { (Text(part)) } } @else { (Text(part)) }
        } }
    }
}

/// A number with thin gaps between thousands.
pub fn number(value: usize) -> PreEscaped<String> {
    let digits = value.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    PreEscaped(out)
}

/// `1 thread`, `4 threads`.
pub fn count(value: usize, one: &str) -> Markup {
    html! { (number(value)) " " (one) @if value != 1 { "s" } }
}

enum Piece {
    Shown(char),
    Coded(char),
    Cut(usize),
}

fn pieces(text: &str) -> impl Iterator<Item = Piece> + '_ {
    let mut marks = 0;
    let left = text.chars().count().saturating_sub(LONGEST);
    let shown = text.chars().take(LONGEST).map(move |c| {
        let mark = c.general_category_group() == GeneralCategoryGroup::Mark;
        marks = if mark { marks + 1 } else { 0 };
        if hidden(c) || marks > MARKS { Piece::Coded(c) } else { Piece::Shown(c) }
    });
    shown.chain((left > 0).then_some(Piece::Cut(left)))
}

fn code(c: char) -> String {
    match c {
        '\n' => "\\n".into(),
        '\t' => "\\t".into(),
        '\r' => "\\r".into(),
        '\0'..='\x1f' => format!("^{}", char::from(c as u8 + 0x40)),
        '\x7f' => "^?".into(),
        _ => format!("<U+{:04X}>", c as u32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        html! { (Text(text)) }.into_string()
    }

    #[test]
    fn plain_names_stay_as_they_are() {
        assert_eq!(shown("/var/lib/casemate/web.img"), "/var/lib/casemate/web.img");
        assert_eq!(shown("grün 日本"), "<bdi dir=\"ltr\">grün 日本</bdi>");
        assert_eq!(shown("</script><b a=\"x\">&"), "&lt;/script&gt;&lt;b a=&quot;x&quot;&gt;&amp;");
    }

    #[test]
    fn what_has_no_picture_is_shown_by_its_code() {
        for (c, code) in [
            ('\n', "\\n"),
            ('\u{1b}', "^["),
            ('\u{9b}', "<U+009B>"),
            ('\u{202e}', "<U+202E>"),
            ('\u{2066}', "<U+2066>"),
            ('\u{200b}', "<U+200B>"),
            ('\u{feff}', "<U+FEFF>"),
            ('\u{a0}', "<U+00A0>"),
            ('\u{3000}', "<U+3000>"),
            ('\u{3164}', "<U+3164>"),
            ('\u{e0041}', "<U+E0041>"),
            ('\u{2028}', "<U+2028>"),
            ('\u{e000}', "<U+E000>"),
        ] {
            let text = format!("a{c}b");
            let escaped = code.replace('<', "&lt;").replace('>', "&gt;");
            assert!(shown(&text).contains(&format!(">{escaped}</span>b")), "{}", shown(&text));
            assert!(!shown(&text).contains(c), "{code}");
            assert_eq!(plain(&text), format!("a{code}b"));
        }
    }

    #[test]
    fn marks_do_not_pile_up() {
        let tower = format!("a{}", "\u{301}".repeat(50));
        assert_eq!(plain(&tower).matches('\u{301}').count(), MARKS);
        assert_eq!(plain("e\u{301}a\u{308}"), "e\u{301}a\u{308}");
    }

    #[test]
    fn the_endless_is_cut_and_says_so() {
        let long = "x".repeat(LONGEST + 7);
        assert!(shown(&long).ends_with("… 7 characters more</span>"));
        assert!(plain(&long).ends_with("… 7 characters more"));
        assert_eq!(short("casemate", 5), "case…");
        assert_eq!(short("case", 4), "case");
    }

    #[test]
    fn commands_stand_out() {
        assert_eq!(prose("run `a <b>`, then").into_string(), "run <code class=\"said\">a &lt;b&gt;</code>, then");
        assert_eq!(prose("5` `x` of").into_string(), "5` `x` of");
    }

    #[test]
    fn numbers_have_gaps() {
        assert_eq!(number(39_800).into_string(), "39\u{202f}800");
        assert_eq!(number(7).into_string(), "7");
        assert_eq!(count(1, "thread").into_string(), "1 thread");
    }
}
