use std::fs;
use std::io::Write as _;

use super::*;

#[test]
fn a_fifo_in_the_place_of_a_journal_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(JOURNAL);
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, Mode::from(0o600), 0).unwrap();
    assert!(Journal::peek(&path).is_err() && Journal::open(&path).is_err());
}

fn owner() -> Owner {
    Owner::of_self("a").unwrap()
}

fn fresh() -> (tempfile::TempDir, Journal) {
    let dir = tempfile::tempdir().unwrap();
    let fd = fs::File::open(dir.path()).unwrap();
    let journal = Journal::create(fd.as_fd(), dir.path(), owner()).unwrap();
    (dir, journal)
}

fn file(name: &str) -> Intent {
    Intent::File { path: PathBuf::from(name) }
}

#[test]
fn what_was_written_is_read_back() {
    let (dir, mut j) = fresh();
    let a = j.intend(file("/a")).unwrap();
    j.done(a).unwrap();
    let label = "system_u:object_r:casemate_image_t:s0:c1,c2".parse().unwrap();
    let b = j.intend(Intent::Relabel { path: "/b".into(), dev: 1, ino: 2, file: None, before: None, label }).unwrap();
    let c = j.intend(Intent::Lease { lease: LeaseKey::Uid(7) }).unwrap();
    j.undone(c).unwrap();
    let written = j.entries().to_vec();
    drop(j);
    let j = Journal::open(&dir.path().join(JOURNAL)).unwrap();
    assert_eq!(j.entries(), written);
    assert_eq!(j.owner(), &owner());
    assert_eq!(j.pending().iter().map(|e| e.n).collect::<Vec<_>>(), [b, a], "newest first, without the undone");
}

#[test]
fn a_torn_last_line_is_dropped_and_later_records_are_whole() {
    let (dir, mut j) = fresh();
    j.intend(file("/a")).unwrap();
    drop(j);
    let path = dir.path().join(JOURNAL);
    let whole = fs::read(&path).unwrap();
    for cut in 1..60 {
        let mut torn = whole.clone();
        torn.extend_from_slice(&br#"{"n":2,"at":17,"intent":{"kind":"file","path":"/bbbbbbbbbbbbbbbbbbb"}}"#[..cut]);
        fs::write(&path, &torn).unwrap();
        let mut j = Journal::open(&path).unwrap();
        assert_eq!((j.entries().len(), j.unreadable), (1, 0));
        j.intend(file("/c")).unwrap();
        drop(j);
        let j = Journal::open(&path).unwrap();
        assert_eq!((j.entries().len(), j.unreadable), (2, 0), "cut at {cut}");
    }
}

#[test]
fn lines_that_do_not_parse_are_counted_and_never_acted_upon() {
    let (dir, mut j) = fresh();
    j.intend(file("/a")).unwrap();
    drop(j);
    let path = dir.path().join(JOURNAL);
    let mut f = fs::OpenOptions::new().append(true).open(&path).unwrap();
    f.write_all(b"garbage\n{\"n\":9,\"intent\":{\"kind\":\"rm-rf\",\"path\":\"/\"}}\n\xff\xfe\n").unwrap();
    let j = Journal::open(&path).unwrap();
    assert_eq!((j.entries().len(), j.unreadable), (1, 3));
}

#[test]
fn an_empty_or_foreign_file_is_no_journal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(JOURNAL);
    for bad in [&b""[..], b"x\n", br#"{"casemate_journal":2}"#] {
        fs::write(&path, bad).unwrap();
        assert!(matches!(Journal::open(&path), Err(JournalError::Header { .. })));
    }
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    assert!(matches!(Journal::open(&path), Err(JournalError::Io { .. })));
}

#[test]
fn a_living_wardens_journal_cannot_be_opened_for_repair() {
    let (dir, j) = fresh();
    let path = dir.path().join(JOURNAL);
    assert!(matches!(Journal::open(&path), Err(JournalError::Held(_))));
    drop(j);
    Journal::open(&path).unwrap();
    let fd = fs::File::open(dir.path()).unwrap();
    assert!(Journal::create(fd.as_fd(), dir.path(), owner()).is_err(), "an old journal is never overwritten");
}
