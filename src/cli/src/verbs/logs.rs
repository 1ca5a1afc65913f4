//! `logs`: the bounded logs of a sandbox, to the end or followed.

use std::collections::VecDeque;
use std::io::Write;
use std::time::Duration;

use casemate_client::ring::{Log, LogReader};
use casemate_client::sanitize::Sanitizer;
use casemate_client::store;
use casemate_client::terminal;

use crate::args::LogsArgs;
use crate::failure::{Failure, Result};
use crate::output::{Context, say, written};

const LOOK: Duration = Duration::from_millis(100);

pub fn logs(context: &Context, args: &LogsArgs) -> Result<()> {
    let dir = store::open(&context.dirs, &args.name)?;
    let mut reader = LogReader::open(&dir, if args.console { Log::Console } else { Log::Output })?;
    let mut sink = Sink::new(args.raw);
    let mut first = Vec::new();
    reader.read_new(&mut first)?;
    match args.tail {
        Some(lines) => sink.show(tail(&first, lines))?,
        None => sink.show(&first)?,
    }
    if args.follow {
        follow(context, &args.name, &mut reader, &mut sink)?;
    }
    sink.finish()
}

/// Until the sandbox has ended.
fn follow(context: &Context, name: &str, reader: &mut LogReader, sink: &mut Sink) -> Result<()> {
    loop {
        // Asked before reading: what a sandbox wrote last is there when it is seen to have ended.
        let alive = store::load(&context.dirs, name).is_ok_and(|entry| entry.status.is_alive());
        let mut new = Vec::new();
        let progress = reader.read_new(&mut new)?;
        if progress.gap {
            say("the log was written faster than it was read; some of it is lost");
        }
        sink.show(&new)?;
        if !alive {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

/// The last lines of `bytes`.
fn tail(bytes: &[u8], lines: usize) -> &[u8] {
    let mut starts = VecDeque::from([0]);
    for (at, _) in bytes.iter().enumerate().filter(|(at, b)| **b == b'\n' && at + 1 < bytes.len()) {
        if starts.len() >= lines.max(1) {
            starts.pop_front();
        }
        starts.push_back(at + 1);
    }
    if lines == 0 { &[] } else { &bytes[starts.front().copied().unwrap_or(0)..] }
}

struct Sink(Option<Sanitizer>);

impl Sink {
    fn new(raw: bool) -> Sink {
        Sink((!raw && terminal::is_terminal(std::io::stdout())).then(Sanitizer::new))
    }

    fn show(&mut self, bytes: &[u8]) -> Result<()> {
        let mut shown = Vec::new();
        match &mut self.0 {
            Some(sanitizer) => sanitizer.feed(bytes, &mut shown),
            None => shown.extend_from_slice(bytes),
        }
        let mut out = std::io::stdout().lock();
        written(out.write_all(&shown).and_then(|()| out.flush()))
    }

    fn finish(mut self) -> Result<()> {
        let Some(mut sanitizer) = self.0.take() else { return Ok(()) };
        let mut rest = Vec::new();
        sanitizer.finish(&mut rest);
        written(std::io::stdout().write_all(&rest)).map_err(|failure: Failure| failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_counts_lines() {
        assert_eq!(tail(b"a\nb\nc\n", 2), b"b\nc\n");
        assert_eq!(tail(b"a\nb\nc", 1), b"c");
        assert_eq!(tail(b"a\n", 9), b"a\n");
        assert_eq!(tail(b"a\n", 0), b"");
        assert_eq!(tail(b"", 3), b"");
    }
}
