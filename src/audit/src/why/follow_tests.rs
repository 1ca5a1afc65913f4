//! Streams as they come: in pieces, rotated, from two sources at once, without end.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use super::*;

const CALL: &str =
    "uid=10000001 pid=90 comm=\"io\" exe=\"/x/casemate-runner\" sig=31 arch=c000003e syscall=101 code=0x80000000";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn line(serial: u64) -> String {
    format!("type=SECCOMP msg=audit({}.000:{serial}): {CALL}\n", now())
}

fn sources(dir: &Path) -> Sources {
    Sources { since: now() - 100, until: now(), auditd: Some(dir.to_owned()), journalctl: None, kmsg: None }
}

fn append(path: &Path, text: &str) {
    File::options().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

/// The serial numbers of what is told, until so many were or nothing comes any more.
fn told(follower: &mut Follower, many: usize) -> Vec<u64> {
    let mut serials = Vec::new();
    let until = Instant::now() + SETTLE * 100;
    // What has been told must not come again: look on for longer than an event takes to settle.
    let mut quiet = Instant::now();
    while Instant::now() < until && (serials.len() < many || quiet.elapsed() < SETTLE * 2) {
        let found = follower.look();
        if !found.is_empty() {
            quiet = Instant::now();
        }
        serials.extend(found.keys().map(|stamp| stamp.serial));
        std::thread::sleep(SETTLE / 10);
    }
    serials
}

fn start(sources: &Sources) -> (Follower, Events) {
    let mut follower = Follower::start(sources);
    let (history, _) = follower.history();
    (follower, history)
}

#[test]
fn what_is_written_between_history_and_stream_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("audit.log");
    append(&log, &format!("type=SECCOMP msg=audit({}.000:1): {CALL}\n", now() - 50));
    append(&log, &line(2));
    let mut follower = Follower::start(&sources(dir.path()));
    append(&log, &line(3));
    let (mut history, _) = sources::gather(&follower.sources);
    append(&log, &line(4));
    follower.begin(&mut history);
    assert_eq!(history.iter().map(|(stamp, _)| stamp.serial).collect::<Vec<_>>(), [1]);
    assert_eq!(told(&mut follower, 3), [2, 3, 4]);
    assert_eq!(follower.notes(), [""; 0]);
}

/// Time passes between the question and the first look: a policy is loaded, a long history read.
#[test]
fn the_end_of_the_question_is_not_the_streams() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("audit.log");
    let asked = Sources { until: now() - 50, ..sources(dir.path()) };
    append(&log, &format!("type=SECCOMP msg=audit({}.000:1): {CALL}\n", now() - 20));
    let (mut follower, history) = start(&asked);
    assert_eq!(history.iter().map(|(stamp, _)| stamp.serial).collect::<Vec<_>>(), [1]);
    append(&log, &line(2));
    assert_eq!(told(&mut follower, 1), [2]);
}

#[test]
fn a_line_in_pieces_and_an_event_of_several_records_are_one() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("audit.log");
    append(&log, "type=AVC msg=audit(");
    let (mut follower, _) = start(&sources(dir.path()));
    assert!(follower.can_see());
    let at = now();
    append(&log, &format!("{at}.000:7): avc:  denied  {{ read }} for  pid=7 scontext=a tcontext=b tclass=file\n"));
    assert!(follower.look().is_empty(), "its other records may be to come");
    append(&log, &format!("type=SYSCALL msg=audit({at}.000:7): arch=c000003e syscall=2 pid=7\n"));
    let until = Instant::now() + SETTLE * 10;
    let mut found = BTreeMap::new();
    while found.is_empty() && Instant::now() < until {
        found = follower.look();
    }
    assert_eq!(found.values().map(|event| event.records.len()).collect::<Vec<_>>(), [2]);
}

/// auditd renames audit.log.N to audit.log.N+1, audit.log to audit.log.1, and opens a new one.
fn rotate(dir: &Path) {
    for n in (1..9).rev() {
        let from = dir.join(format!("audit.log.{n}"));
        if from.exists() {
            std::fs::rename(from, dir.join(format!("audit.log.{}", n + 1))).unwrap();
        }
    }
    std::fs::rename(dir.join("audit.log"), dir.join("audit.log.1")).unwrap();
}

#[test]
fn rotation_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("audit.log");
    append(&log, &line(1));
    let (mut follower, _) = start(&sources(dir.path()));
    assert_eq!(told(&mut follower, 1), [1]);
    // Written after the last look and rotated away, twice before the next look.
    append(&log, &line(2));
    rotate(dir.path());
    append(&log, &line(3));
    rotate(dir.path());
    append(&log, &line(4));
    assert_eq!(told(&mut follower, 3), [2, 3, 4]);
    // A moment without the file.
    rotate(dir.path());
    assert_eq!(told(&mut follower, 0), [0; 0]);
    append(&log, &line(5));
    assert_eq!(told(&mut follower, 1), [5]);
    assert_eq!(follower.notes(), [""; 0]);
}

#[test]
fn a_log_that_is_cut_off_removed_or_late_is_read_on_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("audit.log");
    let (mut follower, _) = start(&sources(dir.path()));
    assert!(!follower.can_see());
    assert!(told(&mut follower, 0).is_empty());
    append(&log, &line(1).repeat(3));
    assert_eq!(told(&mut follower, 1), [1], "auditd was started later");
    std::fs::write(&log, line(2)).unwrap();
    assert_eq!(told(&mut follower, 1), [2]);
    let notes = follower.notes();
    assert!(notes.len() == 1 && notes[0].contains("cut off"), "{notes:?}");
    std::fs::remove_file(&log).unwrap();
    append(&log, &line(3));
    assert_eq!(told(&mut follower, 1), [3]);
    assert!(follower.notes()[0].contains("gone"));
    // Not a file, and it stays so: said once.
    std::fs::remove_file(&log).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &log).unwrap();
    told(&mut follower, 0);
    assert_eq!(follower.notes().len(), 1);
}

#[test]
fn a_journal_is_followed_and_its_end_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("journalctl");
    let more = dir.path().join("more");
    // As journalctl --follow: what there is, then what comes.
    let script =
        format!("#!/bin/sh\ncase \"$*\" in *--follow*) exec tail -n +1 -F {} 2>/dev/null;; esac\n", more.display());
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let entry = |serial: u64| {
        let fields = r#""_TRANSPORT":"audit","_AUDIT_TYPE":"1326""#;
        let micros = now() * 1_000_000;
        let message = CALL.replace('"', "\\\"");
        format!(
            "{{{fields},\"_AUDIT_ID\":\"{serial}\",\"_SOURCE_REALTIME_TIMESTAMP\":\"{micros}\",\"MESSAGE\":\"SECCOMP {message}\"}}\n"
        )
    };
    let auditd = dir.path().join("audit");
    std::fs::create_dir(&auditd).unwrap();
    append(&more, &entry(1));
    let with_journal = Sources { journalctl: Some(program), ..sources(&auditd) };
    let (mut follower, _) = start(&with_journal);
    assert_eq!(told(&mut follower, 1), [1]);
    append(&more, &entry(2));
    assert_eq!(told(&mut follower, 1), [2]);
    // The same event from two sources, the one after it was told.
    append(&auditd.join("audit.log"), &line(3));
    assert_eq!(told(&mut follower, 1), [3]);
    let stamp = *follower.told.last().unwrap();
    append(&more, &entry(3).replace(&format!("{}000000", now()), &format!("{}000000", stamp.seconds)));
    append(&more, &entry(4));
    assert_eq!(told(&mut follower, 1), [4]);
    let child = follower.journal.as_mut().unwrap();
    child.child.kill().unwrap();
    told(&mut follower, 0);
    assert!(follower.journal.is_none());
    let notes = follower.notes();
    assert!(notes.len() == 1 && notes[0].contains("not followed any more"), "{notes:?}");
}

#[test]
fn a_stream_without_end_takes_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("audit.log");
    let (mut follower, _) = start(&sources(dir.path()));
    let mut serial = 0;
    let mut seen = 0;
    for _ in 0..3 {
        let many: String = (0..10_000).map(|at| line(serial + at)).collect();
        serial += 10_000;
        append(&log, &many);
        seen += told(&mut follower, 10_000).len();
        assert!(follower.told.len() <= MAX_TOLD && follower.events.is_empty() && follower.arrived.is_empty());
    }
    assert_eq!(seen, 30_000);
}
