//! Where audit records come to rest: auditd's files, the journal, the kernel's ring. Each is read as far as it goes, and
//! says what it could not tell.
//!
//! Trust: the files are root's; what is in them is not (see `record`). A line of the ring or of the journal counts only
//! if the kernel itself wrote it: root's programs may write there too, and pass on what others told them.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use casemate_sys::rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::event::Events;
use super::lines::{Lines, More};
use super::record::{self, Record};

/// Most bytes that are read of one source.
const MAX_BYTES: u64 = 512 << 20;
/// auditd keeps 5 files unless told otherwise, and 999 at most (auditd.conf(5) num_logs).
pub(super) const MAX_FILES: u32 = 999;
/// More records than any ring holds.
const MAX_RING: usize = 200_000;

/// What to read, and of which time.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Seconds since the epoch, both ends included; the greatest number is no end.
    pub since: u64,
    pub until: u64,
    /// Directory of auditd's files.
    pub auditd: Option<PathBuf>,
    /// The program that reads the journal.
    pub journalctl: Option<PathBuf>,
    pub kmsg: Option<PathBuf>,
}

impl Sources {
    /// This host's.
    pub fn host(since: u64, until: u64) -> Self {
        Sources {
            since,
            until,
            auditd: Some("/var/log/audit".into()),
            journalctl: Some("/usr/bin/journalctl".into()),
            kmsg: Some("/dev/kmsg".into()),
        }
    }
}

/// What one source gave.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    pub name: String,
    /// Records of the asked time that no other source had given before.
    pub records: u64,
    /// Records that the kernel says that it did not write there.
    pub suppressed: u64,
    /// Why it gave less than there may have been.
    pub notes: Vec<String>,
}

/// Reads all sources.
pub fn gather(sources: &Sources) -> (Events, Vec<Account>) {
    let mut events = Events::default();
    let mut read = Vec::new();
    if let Some(dir) = &sources.auditd {
        read.push(auditd(dir, sources, &mut events));
    }
    if let Some(program) = &sources.journalctl {
        read.push(journal(program, sources, &mut events));
    }
    if let Some(path) = &sources.kmsg {
        read.push(kmsg(path, sources, &mut events));
    }
    (events, read)
}

/// Adds a record of the asked time; a domain is of use whenever it was told.
fn take(record: Record, sources: &Sources, events: &mut Events, read: &mut Account) {
    let at = record.stamp.seconds;
    if (sources.since..=sources.until).contains(&at) {
        read.records += u64::from(events.add(record));
    } else {
        events.note(&record);
    }
}

/// audit.log.N … audit.log.1, audit.log: oldest first.
fn auditd(dir: &Path, sources: &Sources, events: &mut Events) -> Account {
    let mut read = Account { name: dir.display().to_string(), ..Account::default() };
    let numbered = (1..=MAX_FILES).rev().map(|n| dir.join(format!("audit.log.{n}")));
    let mut found = false;
    for path in numbered.chain([dir.join("audit.log")]) {
        match file(&path, sources.since) {
            Ok(Some(file)) => {
                found = true;
                let result = lines(file, |line| auditd_line(line, sources, events, &mut read));
                read.notes.extend(result.err().map(|e| format!("{}: {e}", path.display())));
            }
            // Older than what was asked for.
            Ok(None) => found = true,
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => {
                found = true;
                read.notes.push(format!("{}: {e}; ask as root", path.display()));
                break;
            }
        }
    }
    if !found {
        read.notes.push("no audit.log: auditd is not installed or has written nothing".into());
    }
    read
}

pub(super) fn auditd_line(line: &[u8], sources: &Sources, events: &mut Events, read: &mut Account) {
    if let Some(record) = Record::of_auditd(line) {
        take(record, sources, events, read);
    }
}

/// A regular file that was written to since then; `None` for an older one.
fn file(path: &Path, since: u64) -> io::Result<Option<File>> {
    let file = open(path)?;
    let written = file.metadata()?.modified()?.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    Ok((written >= since).then_some(file))
}

pub(super) fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(file)
}

/// Each line of a whole file.
fn lines(file: impl Read, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut lines = Lines::default();
    match lines.read(file, MAX_BYTES, &mut each)? {
        More::Rest => Err(io::Error::other(format!("more than {MAX_BYTES} bytes; the rest was not read"))),
        More::End => {
            lines.end(each);
            Ok(())
        }
    }
}

/// An entry of `journalctl --output=json`. Text that is not UTF-8 is an array of bytes.
#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "MESSAGE", default)]
    message: Message,
    #[serde(rename = "_TRANSPORT", default)]
    transport: String,
    #[serde(rename = "SYSLOG_FACILITY", default)]
    facility: Option<String>,
    #[serde(rename = "_AUDIT_TYPE", default)]
    kind: Option<String>,
    #[serde(rename = "_AUDIT_ID", default)]
    serial: Option<String>,
    #[serde(rename = "_SOURCE_REALTIME_TIMESTAMP", default)]
    source_time: Option<String>,
    #[serde(rename = "__REALTIME_TIMESTAMP", default)]
    time: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(untagged)]
enum Message {
    Text(String),
    Bytes(Vec<u8>),
    #[default]
    None,
}

impl Message {
    fn bytes(&self) -> &[u8] {
        match self {
            Message::Text(text) => text.as_bytes(),
            Message::Bytes(bytes) => bytes,
            Message::None => &[],
        }
    }
}

fn journal(program: &Path, sources: &Sources, events: &mut Events) -> Account {
    let mut read = Account { name: "journal".into(), ..Account::default() };
    let result = (|| -> io::Result<Option<String>> {
        let mut command = journalctl(program, sources.since);
        if let Some(end) = sources.until.checked_add(1) {
            command.arg(format!("--until=@{end}"));
        }
        let mut child = command.spawn()?;
        let told = child.stdout.take().map(|out| lines(out, |line| journal_line(line, sources, events, &mut read)));
        let status = child.wait()?;
        told.transpose()?;
        Ok((!status.success()).then(|| format!("{} ended with {status}", program.display())))
    })();
    match result {
        Ok(note) => read.notes.extend(note),
        Err(e) => read.notes.push(no_journal(program, &e)),
    }
    read
}

pub(super) fn no_journal(program: &Path, error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "there is no journal (no journalctl)".into(),
        _ => format!("{}: {error}", program.display()),
    }
}

/// What writes the journal's entries to its standard output.
pub(super) fn journalctl(program: &Path, since: u64) -> Command {
    let fields = "--output-fields=MESSAGE,_TRANSPORT,SYSLOG_FACILITY,_AUDIT_TYPE,_AUDIT_ID,_SOURCE_REALTIME_TIMESTAMP";
    let mut command = Command::new(program);
    command
        .args(["--output=json", fields, "--all", "--no-pager", "--quiet"])
        .arg(format!("--since=@{since}"))
        .args(["_TRANSPORT=audit", "+", "_TRANSPORT=kernel"])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

pub(super) fn journal_line(line: &[u8], sources: &Sources, events: &mut Events, read: &mut Account) {
    let Ok(entry) = serde_json::from_slice::<Entry>(line) else { return };
    match of_entry(&entry) {
        Some(record) => take(record, sources, events, read),
        None => read.suppressed += lost(&entry),
    }
}

fn is_kernels(entry: &Entry) -> bool {
    // The kernel's own facility; what a program writes to /dev/kmsg has another.
    entry.transport == "kernel" && entry.facility.as_deref().is_none_or(|facility| facility == "0")
}

fn of_entry(entry: &Entry) -> Option<Record> {
    if is_kernels(entry) {
        return Record::of_kernel(entry.message.bytes());
    }
    if entry.transport != "audit" {
        return None;
    }
    let number = |text: &Option<String>| text.as_deref().and_then(|t| t.parse::<u64>().ok());
    let kind = u16::try_from(number(&entry.kind)?).ok()?;
    let micros = number(&entry.source_time).or_else(|| number(&entry.time))?;
    Record::of_journal(entry.message.bytes(), kind, micros, number(&entry.serial)?)
}

fn lost(entry: &Entry) -> u64 {
    if !is_kernels(entry) {
        return 0;
    }
    record::lost(&String::from_utf8_lossy(entry.message.bytes())).unwrap_or(0)
}

/// The ring, which the kernel overwrites: the first record's number tells whether something is gone.
fn kmsg(path: &Path, sources: &Sources, events: &mut Events) -> Account {
    let mut read = Account { name: path.display().to_string(), ..Account::default() };
    match ring(path) {
        Ok(mut log) => {
            let Passed { first, overtaken } = ring_records(&mut log, sources, events, &mut read);
            if overtaken || first.is_some_and(|number| number > 0) {
                let number = first.unwrap_or_default();
                read.notes.push(format!(
                    "the ring has been overwritten: its first {number} lines are gone (boot with a larger log_buf_len, or run auditd)"
                ));
            }
        }
        Err(e) => read.notes.push(no_ring(&e)),
    }
    read
}

pub(super) fn ring(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)
}

pub(super) fn no_ring(error: &io::Error) -> String {
    format!("it cannot be read ({error}): ask as root, or sysctl kernel.dmesg_restrict=0")
}

/// What a pass over the ring met.
pub(super) struct Passed {
    /// Number of the first record.
    pub first: Option<u64>,
    /// Records were overwritten while it was read.
    pub overtaken: bool,
}

/// All records that are there now.
pub(super) fn ring_records(log: &mut File, sources: &Sources, events: &mut Events, read: &mut Account) -> Passed {
    let mut record = [0; 8192];
    let mut passed = Passed { first: None, overtaken: false };
    for _ in 0..MAX_RING {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(n) => {
                let Some((number, text)) = ring_line(&record[..n]) else { continue };
                passed.first = passed.first.or(Some(number));
                if let Some(text) = text {
                    ring_text(text, sources, events, read);
                }
            }
            // Reading goes on with what is there.
            Err(e) if e.kind() == ErrorKind::BrokenPipe => passed.overtaken = true,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) => {
                read.notes.push(e.to_string());
                break;
            }
        }
    }
    passed
}

/// `priority,sequence,microseconds,flags[,…];text` and further lines with what belongs to it
/// (Documentation/ABI/testing/dev-kmsg). The text of the kernel's own facility only.
fn ring_line(record: &[u8]) -> Option<(u64, Option<&[u8]>)> {
    let at = record.iter().position(|b| *b == b';')?;
    let head = std::str::from_utf8(&record[..at]).ok()?;
    let mut head = head.split(',');
    let priority: u64 = head.next()?.parse().ok()?;
    let number = head.next()?.parse().ok()?;
    let text = record[at + 1..].split(|b| *b == b'\n').next()?;
    Some((number, (priority >> 3 == 0).then_some(text)))
}

fn ring_text(text: &[u8], sources: &Sources, events: &mut Events, read: &mut Account) {
    match Record::of_kernel(text) {
        Some(record) => take(record, sources, events, read),
        None => read.suppressed += record::lost(&String::from_utf8_lossy(text)).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AVC: &str = "avc:  denied  { read } for  pid=7 scontext=a tcontext=b tclass=file";

    fn sources(since: u64) -> Sources {
        Sources { since, until: u64::MAX / 2, auditd: None, journalctl: None, kmsg: None }
    }

    #[test]
    fn auditds_files_are_read_oldest_first_and_only_of_the_asked_time() {
        let dir = tempfile::tempdir().unwrap();
        let line = |at: u64| format!("type=AVC msg=audit({at}.000:1): {AVC}\n");
        std::fs::write(dir.path().join("audit.log.1"), line(100) + &line(200)).unwrap();
        std::fs::write(
            dir.path().join("audit.log"),
            format!("torn\n{}{}\n", line(300), "x".repeat(200_000)) + &line(400),
        )
        .unwrap();
        let mut events = Events::default();
        let read = auditd(dir.path(), &sources(200), &mut events);
        assert_eq!((read.records, read.notes.len()), (3, 0), "{read:?}");
        assert_eq!(events.iter().map(|(s, _)| s.seconds).collect::<Vec<_>>(), [200, 300, 400]);
    }

    #[test]
    fn what_is_not_there_or_not_a_file_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let none = auditd(dir.path(), &sources(0), &mut Events::default());
        assert!(none.notes[0].contains("no audit.log"));
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("audit.log")).unwrap();
        let link = auditd(dir.path(), &sources(0), &mut Events::default());
        assert!(link.notes[0].contains("audit.log"), "{link:?}");
        let missing = journal(&dir.path().join("journalctl"), &sources(0), &mut Events::default());
        assert!(missing.notes[0].contains("no journal"));
        let kmsg = kmsg(&dir.path().join("kmsg"), &sources(0), &mut Events::default());
        assert!(kmsg.notes[0].contains("cannot be read"));
    }

    #[test]
    fn a_journal_is_read_by_its_transport() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("journalctl");
        let entries = [
            r#"{"_TRANSPORT":"audit","_AUDIT_TYPE":"1400","_AUDIT_ID":"1","_SOURCE_REALTIME_TIMESTAMP":"300000000","MESSAGE":"AVC AVC_TEXT"}"#,
            r#"{"_TRANSPORT":"kernel","SYSLOG_FACILITY":"0","MESSAGE":"audit: type=1400 audit(301.000:2): AVC_TEXT"}"#,
            r#"{"_TRANSPORT":"kernel","SYSLOG_FACILITY":"1","MESSAGE":"audit: type=1400 audit(302.000:3): AVC_TEXT"}"#,
            r#"{"_TRANSPORT":"syslog","SYSLOG_FACILITY":"0","MESSAGE":"audit: type=1400 audit(303.000:4): AVC_TEXT"}"#,
            r#"{"_TRANSPORT":"kernel","SYSLOG_FACILITY":"0","MESSAGE":"kauditd_printk_skb: 5 callbacks suppressed"}"#,
            r#"{"_TRANSPORT":"kernel","SYSLOG_FACILITY":"0","MESSAGE":[97,255]}"#,
            r#"{"_TRANSPORT":"kernel","MESSAGE":null}"#,
            "no json",
        ];
        let text = entries.join("\n").replace("AVC_TEXT", AVC);
        std::fs::write(&program, format!("#!/bin/sh\ncat <<'END'\n{text}\nEND\n")).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut events = Events::default();
        let read = journal(&program, &sources(0), &mut events);
        assert_eq!((read.records, read.suppressed), (2, 5), "{read:?}");
    }

    #[test]
    fn a_line_of_the_ring_counts_only_if_the_kernel_wrote_it() {
        let mut events = Events::default();
        let mut read = Account::default();
        let mut feed = |line: String| {
            if let Some((_, Some(text))) = ring_line(line.as_bytes()) {
                ring_text(text, &sources(0), &mut events, &mut read);
            }
        };
        feed(format!("5,10,99,-;audit: type=1400 audit(1.000:1): {AVC}\n SUBSYSTEM=x\n"));
        // Facility 1, user: somebody wrote it to /dev/kmsg.
        feed(format!("13,11,99,-;audit: type=1400 audit(2.000:2): {AVC}\n"));
        feed("4,12,99,-;kauditd_printk_skb: 7 callbacks suppressed\n".into());
        for torn in ["", ";", "x;y", "5;y", "5,10"] {
            feed(torn.into());
        }
        assert_eq!((read.records, read.suppressed), (1, 7));
    }
}
