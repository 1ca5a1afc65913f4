//! Reads a log of a sandbox: two files, each of half the log's size, used in turn. When one is full the writer empties the other
//! and goes on there; so the file that was changed last is the current one, the other holds what came before.
//!
//! Trust: the content is the guest's; only bytes are handled here. Called by: cli (`logs`, bare `run`).

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use rustix::fs::fstat;

use crate::error::{Attempt, Error, Result};
use crate::store::SandboxDir;

/// Which log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// What the workload wrote while nobody was attached.
    Output,
    /// The guest's serial console.
    Console,
}

/// Follows a log from its oldest byte on.
#[derive(Debug)]
pub struct LogReader {
    files: [File; 2],
    at: usize,
    offset: u64,
    /// The other file as it was when we last looked: if it has changed while ours is still the current one, the writer
    /// has been through both.
    other: Signature,
    /// The bytes before `offset`: if they are others now, the file was emptied and filled again. A log that repeats itself
    /// can hide a gap; what is shown is in order all the same.
    last: Vec<u8>,
    begun: bool,
}

/// Most bytes that are compared.
const COMPARED: usize = 64;

/// Time of change and length.
type Signature = (i64, i64, u64);

/// What one look brought.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub bytes: u64,
    /// The writer was faster: something between the last look and this one is lost.
    pub gap: bool,
}

impl LogReader {
    pub fn open(dir: &SandboxDir, log: Log) -> Result<LogReader> {
        let names = match log {
            Log::Output => casemate_plan::names::OUTPUT_LOG,
            Log::Console => casemate_plan::names::CONSOLE_LOG,
        };
        let open = |name: &str| match dir.open_file(name) {
            Ok(fd) => Ok(File::from(fd)),
            Err(rustix::io::Errno::NOENT) => {
                Err(Error::Record { name: dir.name.to_string(), problem: format!("it has no file '{name}'") })
            }
            Err(error) => Err(error).attempt(|| format!("opening '{name}' of sandbox '{}'", dir.name)),
        };
        Ok(LogReader::new([open(names[0])?, open(names[1])?]))
    }

    pub fn new(files: [File; 2]) -> LogReader {
        LogReader { files, at: 0, offset: 0, other: (0, 0, 0), last: Vec::new(), begun: false }
    }

    fn signature(&self, file: usize) -> Result<Signature> {
        let stat = fstat(&self.files[file]).attempt(|| "looking at a log".into())?;
        #[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
        Ok((stat.st_mtime as i64, stat.st_mtime_nsec as i64, u64::try_from(stat.st_size).unwrap_or(0)))
    }

    /// Index of the file that is written to now. Clocks are coarse: at the same time the shorter one was just begun.
    fn current(&self) -> Result<usize> {
        let (a, b) = (self.signature(0)?, self.signature(1)?);
        Ok(if a.2 == 0 || b.2 == 0 {
            // One that was never written to, or was emptied this moment.
            usize::from(a.2 == 0 && (b.2 != 0) || (a.2 != 0 && b.2 == 0 && (b.0, b.1) > (a.0, a.1)))
        } else if (a.0, a.1) != (b.0, b.1) {
            usize::from((b.0, b.1) > (a.0, a.1))
        } else {
            usize::from(b.2 < a.2)
        })
    }

    /// Hands everything new to `sink`.
    pub fn read_new(&mut self, sink: &mut dyn Write) -> Result<Progress> {
        let mut progress = Progress::default();
        let current = self.current()?;
        let wrapped = self.begun
            && ((current == self.at && self.signature(1 - self.at)? != self.other) || !self.is_where_we_left());
        if !self.begun || wrapped {
            progress.gap = wrapped;
            self.go_to(1 - current);
        }
        if current != self.at {
            let left = self.signature(self.at)?;
            self.drain(sink, &mut progress)?;
            self.go_to(current);
            self.other = left;
        }
        self.drain(sink, &mut progress)?;
        // Both empty: the next look begins anew.
        self.begun |= progress.bytes > 0;
        Ok(progress)
    }

    fn go_to(&mut self, file: usize) {
        self.at = file;
        self.offset = 0;
        self.last.clear();
    }

    fn is_where_we_left(&self) -> bool {
        let mut now = vec![0; self.last.len()];
        let at = self.offset - self.last.len() as u64;
        self.files[self.at].read_exact_at(&mut now, at).is_ok() && now == self.last
    }

    fn remember(&mut self, read: &[u8]) {
        self.last.extend_from_slice(&read[read.len().saturating_sub(COMPARED)..]);
        let surplus = self.last.len().saturating_sub(COMPARED);
        self.last.drain(..surplus);
    }

    fn drain(&mut self, sink: &mut dyn Write, progress: &mut Progress) -> Result<()> {
        let mut buffer = [0; 16 << 10];
        // What is written meanwhile is for the next look: a guest must not keep us here.
        let end = self.signature(self.at)?.2;
        while self.offset < end {
            let most = usize::try_from(end - self.offset).map_or(buffer.len(), |left| left.min(buffer.len()));
            let read = self.files[self.at].read_at(&mut buffer[..most], self.offset);
            let read = read.attempt(|| "reading a log".into())?;
            if read == 0 {
                return Ok(());
            }
            sink.write_all(&buffer[..read]).attempt(|| "writing the log".into())?;
            self.offset += read as u64;
            progress.bytes += read as u64;
            self.remember(&buffer[..read]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::time::{Duration, SystemTime};

    /// A writer as the runner's: fills one file, empties the other, goes on.
    struct Writer {
        files: [File; 2],
        half: u64,
        at: usize,
        clock: SystemTime,
    }

    impl Writer {
        fn new(dir: &std::path::Path, half: u64) -> (Writer, LogReader) {
            let paths = [dir.join("log.0"), dir.join("log.1")];
            let files = paths.each_ref().map(|p| File::create(p).unwrap());
            let reader = LogReader::new(paths.each_ref().map(|p| File::open(p).unwrap()));
            (Writer { files, half, at: 0, clock: SystemTime::now() }, reader)
        }

        fn write(&mut self, text: &str) {
            for byte in text.bytes() {
                self.clock += Duration::from_micros(1);
                if self.files[self.at].metadata().unwrap().size() == self.half {
                    self.at = 1 - self.at;
                    self.files[self.at].set_len(0).unwrap();
                }
                let file = &self.files[self.at];
                file.write_all_at(&[byte], file.metadata().unwrap().size()).unwrap();
                file.set_modified(self.clock).unwrap();
            }
        }
    }

    fn look(reader: &mut LogReader) -> (String, bool) {
        let mut out = Vec::new();
        let progress = reader.read_new(&mut out).unwrap();
        assert_eq!(progress.bytes, out.len() as u64);
        (String::from_utf8(out).unwrap(), progress.gap)
    }

    #[test]
    fn everything_comes_once_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, mut reader) = Writer::new(dir.path(), 8);
        assert_eq!(look(&mut reader), (String::new(), false));
        let mut seen = String::new();
        let mut all = String::new();
        for at in 0..60 {
            let text = format!("{at:03}:");
            writer.write(&text);
            all.push_str(&text);
            let (new, gap) = look(&mut reader);
            assert!(!gap);
            seen.push_str(&new);
        }
        assert_eq!(seen, all);
    }

    #[test]
    fn a_late_reader_gets_the_last_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, mut reader) = Writer::new(dir.path(), 4);
        writer.write("abcdefghij");
        assert_eq!(look(&mut reader), ("efghij".into(), false));
    }

    #[test]
    fn a_flood_between_two_looks_is_a_gap_not_a_mix_up() {
        for length in 5..40 {
            let dir = tempfile::tempdir().unwrap();
            let (mut writer, mut reader) = Writer::new(dir.path(), 4);
            writer.write("#");
            look(&mut reader);
            let flood: String = ('a'..='z').cycle().take(length).collect();
            writer.write(&flood);
            let (new, gap) = look(&mut reader);
            assert!(flood.ends_with(&new), "{length}: {new}");
            assert_eq!(gap, new != flood, "{length}: {new}");
            writer.write("!");
            assert_eq!(look(&mut reader).0, "!", "{length}");
        }
    }
}
