//! What verbs print: text for people, JSON for programs. A closed output ends the program quietly.

use std::io::{ErrorKind, IsTerminal, Write};

use casemate_client::Dirs;
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::args::Format;
use crate::failure::{Failure, Result};

/// What every verb knows of its caller.
#[derive(Debug, Clone)]
pub struct Context {
    pub format: Format,
    pub dirs: Dirs,
}

/// How a cell or a word is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Head,
    Good,
    Bad,
    Weak,
    Dim,
}

impl Context {
    pub fn json(&self) -> bool {
        self.format == Format::Json
    }

    pub fn print(&self, text: &str) -> Result<()> {
        let mut out = std::io::stdout().lock();
        written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
    }

    pub fn print_json(&self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(|e| Failure::from_error(&e))?;
        self.print(&(text + "\n"))
    }

    /// A table without lines. Its rows are never wrapped: columns stay columns.
    pub fn table(&self, head: &[&str]) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if colour(&std::io::stdout()) {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table.set_header(head.iter().map(|text| cell(text, Tone::Head)));
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        table
    }
}

/// The result of writing to stdout: a reader that left wants no more, and no complaint.
pub fn written(result: std::io::Result<()>) -> Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {
            let mut failure = Failure::new("the output is closed").code(0);
            failure.silent = true;
            Err(failure)
        }
        Err(error) => Err(Failure::io("writing the output", error)),
    }
}

/// A table's text, without spaces at the ends of lines.
pub fn table_text(table: &Table) -> String {
    let mut text = String::new();
    for line in table.to_string().lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

pub fn cell(text: impl ToString, tone: Tone) -> Cell {
    let cell = Cell::new(text);
    match tone {
        Tone::Plain => cell,
        Tone::Head => cell.add_attribute(Attribute::Bold),
        Tone::Good => cell.fg(Color::Green),
        Tone::Bad => cell.fg(Color::Red).add_attribute(Attribute::Bold),
        Tone::Weak => cell.fg(Color::Yellow),
        Tone::Dim => cell.add_attribute(Attribute::Dim),
    }
}

/// Colours go to a terminal whose user did not refuse them (NO_COLOR).
pub fn colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A word in its tone, for stdout.
pub fn paint(text: &str, tone: Tone) -> String {
    if !colour(&std::io::stdout()) {
        return text.to_owned();
    }
    let code = match tone {
        Tone::Plain => return text.to_owned(),
        Tone::Head => "1",
        Tone::Good => "32",
        Tone::Bad => "1;31",
        Tone::Weak => "33",
        Tone::Dim => "2",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Columns of the terminal that stdout is; `None` for a file or a terminal that does not know.
pub fn width() -> Option<usize> {
    casemate_client::terminal::size(std::io::stdout()).map(|size| usize::from(size.cols))
}

/// A line on stderr for the person at the terminal. Nobody there is nobody to tell.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "casemate: {text}");
}

/// Bytes in the largest unit that keeps them whole enough.
pub fn size(bytes: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift {
            let tenths = (u128::from(bytes) * 10) >> shift;
            return if tenths % 10 == 0 {
                format!("{} {unit}", tenths / 10)
            } else {
                format!("{}.{} {unit}", tenths / 10, tenths % 10)
            };
        }
    }
    format!("{bytes} B")
}

/// Seconds as people say them.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

pub fn seconds_since(epoch: u64) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    now.saturating_sub(epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_read_well() {
        assert_eq!((size(256 << 20).as_str(), size(1536), size(7)), ("256 MiB", "1.5 KiB".into(), "7 B".into()));
        assert_eq!((span(59).as_str(), span(61), span(90000)), ("59 s", "1 min".into(), "1 d".into()));
    }
}
