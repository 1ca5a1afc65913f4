//! Small forms that every section uses: a thing that may be unseen, facts in pairs, folded tables.

use maud::{Markup, Render, html};

use super::icon;
use super::text::{Text, number};
use crate::subject::Known;

/// What was seen, or why it was not.
pub fn known<T>(known: &Known<T>, show: impl FnOnce(&T) -> Markup) -> Markup {
    match known {
        Known::Seen(value) => show(value),
        Known::Unseen(why) => unseen(why),
    }
}

pub fn unseen(why: &str) -> Markup {
    html! { span.not-seen { (icon("unknown")) "not seen: " (Text(why)) } }
}

/// A SELinux context.
pub fn label(label: &Known<Option<String>>) -> Markup {
    known(label, |label| match label {
        Some(label) => html! { code { (Text(label)) } },
        None => html! { span.none { "no SELinux" } },
    })
}

/// A table with a caption for those who hear it; cells know their column's name for narrow screens.
pub fn table(caption: &str, head: &[&str], rows: impl IntoIterator<Item = Vec<Markup>>) -> Markup {
    html! {
        div.scroll { table.stack {
            caption.unseen { (caption) }
            thead { tr { @for name in head { th scope="col" { (name) } } } }
            tbody { @for row in rows { tr {
                @for (at, (name, cell)) in head.iter().zip(row).enumerate() {
                    @if at == 0 { th scope="row" data-l=(name) { (cell) } } @else { td data-l=(name) { (cell) } }
                }
            } } }
        } }
    }
}

/// A part that opens, with the number of things in it.
pub fn fold(title: impl Render, n: Option<usize>, body: Markup) -> Markup {
    html! { details.part { summary { span { (title) } @if let Some(n) = n { span.n { (number(n)) } } } (body) } }
}

/// Bytes as people say them.
pub fn bytes(value: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = value as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if value.fract() == 0.0 { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_are_said_in_units() {
        let said = [0, 512, 1024, 128 << 20, 3 << 29, u64::MAX].map(super::bytes);
        assert_eq!(said, ["0 B", "512 B", "1 KiB", "128 MiB", "1.5 GiB", "16777216 TiB"]);
    }
}
