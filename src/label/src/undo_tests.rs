use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::Ordering;

use super::*;
use crate::context::CategoryPair;
use crate::context::CategorySet;
use crate::in_use::InUse;
use crate::relabel::LabelClass;
use crate::relabel::tests::{Memory, image, relabeler};
use crate::transaction::Transaction;

struct World {
    dir: tempfile::TempDir,
    ledger: Ledger,
    journal: Journal,
    owner: Owner,
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    let vm = dir.path().join("vm");
    fs::create_dir(&vm).unwrap();
    let owner = Owner::of_self("a").unwrap();
    let journal = Journal::create(fs::File::open(&vm).unwrap().as_fd(), &vm, owner.clone()).unwrap();
    World { dir, ledger, journal, owner }
}

fn undo(w: &mut World, store: &Memory) -> Vec<UndoReport> {
    let relabeler = relabeler(store);
    Undoer { ledger: &w.ledger, relabeler: &relabeler }.undo(&mut w.journal).unwrap()
}

fn outcomes(reports: &[UndoReport]) -> Vec<&UndoOutcome> {
    reports.iter().map(|r| &r.outcome).collect()
}

#[test]
fn svirt_37_everything_goes_in_reverse_and_a_second_undo_finds_nothing() {
    let store = Memory::default();
    let mut w = world();
    let at = |n: &str| w.dir.path().join(n);
    let (jail, pid_file, socket) = (at("jail"), at("jail/pid"), at("jail/s.sock"));
    let (pair, lease) = w.ledger.lease_pair(&w.owner, &CategorySet::ALL, &InUse::none()).unwrap();
    let n = w.journal.intend(Intent::Lease { lease: lease.key }).unwrap();
    w.journal.done(n).unwrap();
    let n = w.journal.intend(Intent::Dir { path: jail.clone() }).unwrap();
    fs::create_dir(&jail).unwrap();
    w.journal.done(n).unwrap();
    w.journal.intend(Intent::File { path: pid_file.clone() }).unwrap();
    fs::write(&pid_file, "1").unwrap();
    w.journal.intend(Intent::Socket { path: socket.clone() }).unwrap();
    let _listener = UnixListener::bind(&socket).unwrap();
    w.journal.intend(Intent::File { path: at("never-made") }).unwrap();
    let f = image(&store, Some("u:object_r:user_home_t:s0"));
    let r = relabeler(&store);
    let mut t = Transaction::new(&r, &mut w.journal, pair);
    t.label(f.file.as_fd(), &f.path, LabelClass::Exclusive).unwrap();
    t.commit();
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let start = owner::start_time(child.id()).unwrap();
    w.journal.intend(Intent::Process { role: "runner".into(), pid: child.id(), start }).unwrap();

    let reports = undo(&mut w, &store);
    let order: Vec<_> = reports.iter().map(|r| r.n).collect();
    assert!(order.is_sorted_by(|a, b| a > b), "{order:?}");
    assert_eq!(reports[0].outcome, UndoOutcome::Undone("killed".into()));
    assert_eq!(reports[1].outcome, UndoOutcome::Undone("restored to u:object_r:user_home_t:s0".into()));
    assert_eq!(reports[2].outcome, UndoOutcome::Absent);
    assert!(reports[3..].iter().all(|r| matches!(r.outcome, UndoOutcome::Undone(_))), "{reports:#?}");
    assert!(!jail.exists() && w.ledger.list().unwrap().is_empty());
    assert!(undo(&mut w, &store).is_empty());
    child.wait().unwrap();
}

#[test]
fn what_is_not_ours_any_more_is_left() {
    let store = Memory::default();
    let mut w = world();
    let file = w.dir.path().join("f");
    // the name was taken before the intent: the change cannot have been ours
    fs::write(&file, "theirs").unwrap();
    std::thread::sleep(Duration::from_millis(60));
    w.journal.intend(Intent::File { path: file.clone() }).unwrap();
    // a directory stands where the socket was to be
    let n = w.journal.intend(Intent::Socket { path: w.dir.path().join("vm") }).unwrap();
    w.journal.done(n).unwrap();
    // a directory that somebody filled
    let full = w.dir.path().join("full");
    w.journal.intend(Intent::Dir { path: full.clone() }).unwrap();
    fs::create_dir(&full).unwrap();
    fs::write(full.join("x"), "").unwrap();
    // a pid that another process has now
    let pid = std::process::id();
    w.journal.intend(Intent::Process { role: "runner".into(), pid, start: 1 }).unwrap();
    let reports = undo(&mut w, &store);
    use UndoOutcome::*;
    assert!(matches!(outcomes(&reports)[..], [Absent, Failed(_), Left(_), Left(_)]), "{reports:#?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "theirs");
    fs::remove_file(full.join("x")).unwrap();
    assert!(matches!(outcomes(&undo(&mut w, &store))[..], [Undone(_)]), "only the failed one is tried again");
}

#[test]
fn a_replaced_image_is_left_and_a_moved_one_is_found() {
    let store = Memory::default();
    let mut w = world();
    let pair = CategoryPair::try_from((1, 2)).unwrap();
    let r = relabeler(&store);
    let f = image(&store, Some("u:object_r:user_home_t:s0"));
    let g = image(&store, Some("u:object_r:user_home_t:s0"));
    let mut t = Transaction::new(&r, &mut w.journal, pair);
    t.label(f.file.as_fd(), &f.path, LabelClass::Exclusive).unwrap();
    t.label(g.file.as_fd(), &g.path, LabelClass::Content).unwrap();
    t.commit();
    fs::remove_file(&f.path).unwrap();
    fs::write(f.path.with_extension("keep-the-inode-busy"), "").unwrap();
    fs::write(&f.path, "another").unwrap();
    fs::rename(&g.path, g.path.with_extension("moved")).unwrap();
    let reports = undo(&mut w, &store);
    let found = |o: &UndoOutcome| match rustix::process::geteuid().is_root() {
        true => matches!(o, UndoOutcome::Undone(how) if how.contains("moved")),
        false => matches!(o, UndoOutcome::Failed(_)),
    };
    assert!(found(&reports[0].outcome), "{reports:#?}");
    assert!(
        matches!(&reports[1].outcome, UndoOutcome::Left(why) if why.contains("another file"))
            || !rustix::process::geteuid().is_root()
    );
}

#[test]
fn svirt_12_a_lease_stays_while_its_label_could_not_be_restored() {
    let store = Memory::default();
    let mut w = world();
    let (pair, lease) = w.ledger.lease_pair(&w.owner, &CategorySet::ALL, &InUse::none()).unwrap();
    w.journal.intend(Intent::Lease { lease: lease.key }).unwrap();
    let r = relabeler(&store);
    let f = image(&store, Some("u:object_r:user_home_t:s0"));
    let mut t = Transaction::new(&r, &mut w.journal, pair);
    t.label(f.file.as_fd(), &f.path, LabelClass::Exclusive).unwrap();
    t.commit();
    store.fail_label.store(nix::libc::EIO, Ordering::Relaxed);
    assert!(matches!(outcomes(&undo(&mut w, &store))[..], [UndoOutcome::Failed(_), UndoOutcome::Waiting(_)]));
    assert_eq!(w.ledger.list().unwrap().len(), 1);
    store.fail_label.store(0, Ordering::Relaxed);
    assert!(matches!(outcomes(&undo(&mut w, &store))[..], [UndoOutcome::Undone(_), UndoOutcome::Undone(_)]));
    assert!(w.ledger.list().unwrap().is_empty());
}

#[test]
fn svirt_30_a_transaction_that_is_dropped_takes_all_back() {
    let store = Memory::default();
    let mut w = world();
    let r = relabeler(&store);
    let (f, g) = (image(&store, Some("u:object_r:a_t:s0")), image(&store, Some("u:object_r:b_t:s0")));
    let busy = image(&store, Some("u:object_r:container_file_t:s0:c1,c2"));
    let mut t = Transaction::new(&r, &mut w.journal, CategoryPair::try_from((1, 2)).unwrap());
    t.label(f.file.as_fd(), &f.path, LabelClass::Exclusive).unwrap();
    t.label(g.file.as_fd(), &g.path, LabelClass::Content).unwrap();
    assert!(t.label(busy.file.as_fd(), &busy.path, LabelClass::Exclusive).is_err());
    drop(t);
    for (f, was) in [(&f, "u:object_r:a_t:s0"), (&g, "u:object_r:b_t:s0")] {
        assert_eq!(r.label_of(f.file.as_fd(), &f.path).unwrap().unwrap().to_string(), was);
        assert!(r.record_of(f.file.as_fd(), &f.path).unwrap().is_none());
    }
    assert!(w.journal.pending().is_empty());
}

#[test]
fn svirt_30_what_a_rollback_could_not_restore_stays_in_the_journal() {
    let store = Memory::default();
    let mut w = world();
    let r = relabeler(&store);
    let (f, g) = (image(&store, Some("u:object_r:a_t:s0")), image(&store, Some("u:object_r:b_t:s0")));
    let mut t = Transaction::new(&r, &mut w.journal, CategoryPair::try_from((1, 2)).unwrap());
    t.label(f.file.as_fd(), &f.path, LabelClass::Exclusive).unwrap();
    store.fail_label.store(nix::libc::EIO, Ordering::Relaxed);
    assert!(t.label(g.file.as_fd(), &g.path, LabelClass::Exclusive).is_err(), "the second fails");
    drop(t);
    let pending = w.journal.pending();
    assert_eq!(pending.len(), 1, "the first could not go back: {pending:?}");
    assert!(matches!(&pending[0].intent, Intent::Relabel { path, .. } if *path == f.path));
    store.fail_label.store(0, Ordering::Relaxed);
    assert!(matches!(outcomes(&undo(&mut w, &store))[..], [UndoOutcome::Undone(_)]), "repair mends it");
    assert_eq!(r.label_of(f.file.as_fd(), &f.path).unwrap().unwrap().to_string(), "u:object_r:a_t:s0");
}

#[test]
fn without_trusted_xattrs_the_journal_alone_restores() {
    let store = Memory::default();
    store.no_trusted.store(true, Ordering::Relaxed);
    let mut w = world();
    let r = relabeler(&store);
    let f = image(&store, Some("u:object_r:nfs_like_t:s0"));
    let mut t = Transaction::new(&r, &mut w.journal, CategoryPair::try_from((1, 2)).unwrap());
    t.label(f.file.as_fd(), &f.path, LabelClass::Exclusive).unwrap();
    t.commit();
    assert!(matches!(outcomes(&undo(&mut w, &store))[..], [UndoOutcome::Undone(_)]));
    assert_eq!(r.label_of(f.file.as_fd(), &f.path).unwrap().unwrap().to_string(), "u:object_r:nfs_like_t:s0");
}
