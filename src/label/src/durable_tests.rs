//! Labels after a crash *and* a reboot: RUN is gone, the owners are of another boot, files were moved, replaced, copied,
//! or their file system is not there yet.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use super::*;
use crate::ledger::Ledger;
use crate::relabel::LabelClass;
use crate::relabel::tests::{Fixture, Memory, image, label, me, pair, record, relabeler};
use crate::transaction::Transaction;
use crate::undo::{Change, UndoOutcome, UndoReport, Undoer, foresee_labels, undo_labels};

const HOME: &str = "u:object_r:user_home_t:s0";
const PRIVATE: &str = "system_u:object_r:casemate_image_t:s0:c1,c2";

struct Host {
    dir: tempfile::TempDir,
    store: Memory,
}

impl Host {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), store: Memory::default() }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn journal(&self, run: &str, owner: Owner) -> Journal {
        let run = self.dir.path().join(run);
        fs::create_dir(&run).unwrap();
        let mut journal = Journal::create(File::open(&run).unwrap().as_fd(), &run, owner).unwrap();
        journal.keep_labels_in(&self.state().join(HELD)).unwrap();
        journal
    }

    fn hold(&self, journal: &mut Journal, f: &Fixture, class: LabelClass) {
        let r = relabeler(&self.store);
        let mut t = Transaction::new(&r, journal, pair(1, 2));
        t.label(f.file.as_fd(), &f.path, class).unwrap();
        t.commit();
    }

    /// A sandbox of another boot that held `files`, and whose RUN is gone.
    fn crashed(&self, files: &[&Fixture]) -> Owner {
        let owner = Owner { boot: "11111111-2222-3333-4444-555555555555".into(), ..me("crashed") };
        let mut journal = self.journal("run", owner.clone());
        files.iter().for_each(|f| self.hold(&mut journal, f, LabelClass::Exclusive));
        drop(journal);
        fs::remove_dir_all(self.dir.path().join("run")).unwrap();
        owner
    }

    fn dead(&self) -> Vec<Found> {
        of_the_dead(&self.state()).unwrap()
    }

    /// Foresees, repairs, and the two must agree.
    fn repair(&self) -> Vec<UndoReport> {
        let r = relabeler(&self.store);
        let mut all = Vec::new();
        for found in self.dead() {
            let would = foresee_labels(&r, &Journal::peek(&found.path).unwrap());
            let mut journal = Journal::open(&found.path).unwrap();
            let did = undo_labels(&r, &mut journal).unwrap();
            let as_done = |mut report: UndoReport| {
                if let UndoOutcome::Would(how) = report.outcome {
                    report.outcome = UndoOutcome::Undone(how);
                }
                report
            };
            assert_eq!(would.into_iter().map(as_done).collect::<Vec<_>>(), did, "a dry run says what is then done");
            if journal.pending().is_empty() {
                discard(&found).unwrap();
            }
            all.extend(did);
        }
        all
    }
}

#[test]
fn svirt_34_a_label_of_an_earlier_boot_is_found_and_restored() {
    let host = Host::new();
    let (f, g) = (image(&host.store, Some(HOME)), image(&host.store, Some("u:object_r:var_t:s0")));
    let owner = host.crashed(&[&f, &g]);
    assert_eq!(label(&host.store, &f), PRIVATE);
    assert_eq!(host.dead().iter().map(|d| &d.owner).collect::<Vec<_>>(), [&owner]);
    let did = host.repair();
    assert_eq!(did.len(), 2);
    let change = Change { from: Some(PRIVATE.into()), to: HOME.into(), why: "remembered".into() };
    assert_eq!(did[1].label, Some(change));
    assert_eq!((label(&host.store, &f).as_str(), label(&host.store, &g).as_str()), (HOME, "u:object_r:var_t:s0"));
    assert!(record(&host.store, &f).is_none() && record(&host.store, &g).is_none());
    assert!(host.dead().is_empty() && host.repair().is_empty(), "a second repair finds nothing");
}

#[test]
fn svirt_12_a_pair_that_a_file_still_carries_is_not_given_out_after_a_reboot() {
    let host = Host::new();
    let f = image(&host.store, Some(HOME));
    host.crashed(&[&f]);
    let mut in_use = InUse::none();
    add_held(&host.state(), &mut in_use).unwrap();
    let conflicts = |in_use: &InUse, p: crate::CategoryPair| in_use.in_reach_of(&p.set()).count() > 0;
    assert!(conflicts(&in_use, pair(1, 2)) && !conflicts(&in_use, pair(3, 4)));
    host.repair();
    let mut in_use = InUse::none();
    add_held(&host.state(), &mut in_use).unwrap();
    assert!(!conflicts(&in_use, pair(1, 2)), "free again once the file has its own label");
}

#[test]
fn svirt_34_the_record_is_there_before_the_label_and_goes_with_the_last_one() {
    let host = Host::new();
    let (f, g) = (image(&host.store, Some(HOME)), image(&host.store, Some(HOME)));
    let mut journal = host.journal("run", me("a"));
    assert!(!host.state().join(HELD).exists(), "a start that labels nothing writes nothing there");
    // the label fails: the record was written before, and is gone after
    host.store.fail_label.store(nix::libc::EIO, Ordering::Relaxed);
    let r = relabeler(&host.store);
    let mut t = Transaction::new(&r, &mut journal, pair(1, 2));
    assert!(t.label(f.file.as_fd(), &f.path, LabelClass::Exclusive).is_err());
    drop(t);
    assert_eq!(fs::read_dir(host.state().join(HELD)).unwrap().count(), 0);
    host.store.fail_label.store(0, Ordering::Relaxed);
    host.hold(&mut journal, &f, LabelClass::Exclusive);
    host.hold(&mut journal, &g, LabelClass::Content);
    let file = host.state().join(HELD).join(file_name(&me("a")));
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(host.dead().is_empty(), "a living sandbox's record is not for repair");
    assert!(Journal::open(&file).is_err(), "and it is locked");
    let ledger = Ledger::open(host.dir.path()).unwrap();
    Undoer { ledger: &ledger, relabeler: &r }.undo(&mut journal).unwrap();
    assert!(!file.exists());
    assert_eq!((label(&host.store, &f).as_str(), label(&host.store, &g).as_str()), (HOME, HOME));
}

#[test]
fn svirt_34_a_record_that_cannot_be_written_stops_the_label() {
    let host = Host::new();
    let f = image(&host.store, Some(HOME));
    let mut journal = host.journal("run", me("a"));
    fs::write(host.state(), "a file where the directory should be").unwrap();
    let r = relabeler(&host.store);
    let mut t = Transaction::new(&r, &mut journal, pair(1, 2));
    let refused = t.label(f.file.as_fd(), &f.path, LabelClass::Exclusive).unwrap_err();
    let cause = std::error::Error::source(&refused).unwrap().to_string();
    assert!(cause.contains("outlive a reboot"), "{cause}");
    drop(t);
    assert_eq!(label(&host.store, &f), HOME);
    assert!(record(&host.store, &f).is_none() && journal.pending().is_empty());
}

#[test]
fn svirt_34_a_renamed_image_is_found_by_its_handle() {
    let host = Host::new();
    let f = image(&host.store, Some(HOME));
    host.crashed(&[&f]);
    let moved = f.path.parent().unwrap().join("deeper");
    fs::create_dir(&moved).unwrap();
    fs::rename(&f.path, moved.join("renamed.raw")).unwrap();
    if !is_root() {
        assert!(matches!(&host.repair()[0].outcome, UndoOutcome::Failed(_)), "open_by_handle_at is root's");
        return;
    }
    let did = host.repair();
    assert!(matches!(&did[0].outcome, UndoOutcome::Undone(how) if how.contains("deeper/renamed.raw now")), "{did:?}");
    assert_eq!(label(&host.store, &f), HOME);
}

#[test]
fn svirt_34_another_file_in_its_place_is_not_touched() {
    let host = Host::new();
    let f = image(&host.store, Some(HOME));
    host.crashed(&[&f]);
    if !is_root() {
        return;
    }
    // restored from a backup: the same name, label and owner record, another file; the first one deleted
    let copy = image(&host.store, Some(PRIVATE));
    let old = crate::store::LabelStore::get(&&host.store, f.file.as_fd(), crate::store::OWNERS);
    host.store.put(&copy, crate::store::OWNERS, &old.unwrap().unwrap());
    fs::rename(&copy.path, &f.path).unwrap();
    let did = host.repair();
    assert!(matches!(&did[0].outcome, UndoOutcome::Left(why) if why.contains("another file has its name")), "{did:?}");
    assert_eq!(label(&host.store, &copy), PRIVATE, "its label says nothing about this record's file");
    assert!(host.dead().is_empty());
}

#[test]
fn svirt_34_a_deleted_image_is_forgotten() {
    let host = Host::new();
    let f = image(&host.store, Some(HOME));
    host.crashed(&[&f]);
    if !is_root() {
        return;
    }
    // its last descriptor too: the handle is stale then
    let Fixture { path, file, .. } = &f;
    fs::remove_file(path).unwrap();
    let still_open = host.repair();
    assert!(matches!(&still_open[0].outcome, UndoOutcome::Left(why) if why.contains("deleted")), "{still_open:?}");
    assert!(file.metadata().is_ok() && host.dead().is_empty());
}

#[test]
fn svirt_34_a_file_system_that_is_not_mounted_is_waited_for() {
    let host = Host::new();
    let f = image(&host.store, Some(HOME));
    host.crashed(&[&f]);
    // the record of a file on a file system that is not there: nothing at its place, another fsid around it
    let found = host.dead().remove(0);
    let text = fs::read_to_string(&found.path).unwrap();
    let id = crate::record::FileId::of(&f.file).unwrap();
    let away = text.replace(&format!(r#""fs":{}"#, id.fs), r#""fs":1"#);
    fs::write(&found.path, &away).unwrap();
    let hidden = f.path.with_extension("unmounted");
    fs::rename(&f.path, &hidden).unwrap();
    for _twice in 0..2 {
        let did = host.repair();
        assert!(matches!(&did[0].outcome, UndoOutcome::Waiting(why) if why.contains("not mounted")), "{did:?}");
        assert_eq!(host.dead().len(), 1, "it is kept");
    }
    // mounted again, perhaps with another device number: the handle proves the file
    fs::rename(&hidden, &f.path).unwrap();
    assert!(matches!(&host.repair()[0].outcome, UndoOutcome::Undone(_)));
    assert_eq!(label(&host.store, &f), HOME);
    assert!(host.dead().is_empty());
}

#[test]
fn svirt_35_what_the_administrator_changed_since_stays() {
    let host = Host::new();
    let f = image(&host.store, Some(HOME));
    host.crashed(&[&f]);
    host.store.put(&f, crate::store::LABEL, b"u:object_r:etc_t:s0");
    let did = host.repair();
    assert!(matches!(&did[0].outcome, UndoOutcome::Left(why) if why.contains("was changed to")), "{did:?}");
    assert_eq!(label(&host.store, &f), "u:object_r:etc_t:s0");
    assert!(record(&host.store, &f).is_none() && host.dead().is_empty());
}

/// The next start on the file came before the repair: the file is its, and the repair leaves it so.
#[test]
fn svirt_34_a_repair_after_the_next_start_leaves_its_label() {
    let host = Host::new();
    let f = image(&host.store, Some(HOME));
    host.crashed(&[&f]);
    let mut journal = host.journal("run2", me("next"));
    let r = relabeler(&host.store);
    let mut t = Transaction::new(&r, &mut journal, pair(5, 6));
    t.label(f.file.as_fd(), &f.path, LabelClass::Exclusive).unwrap();
    t.commit();
    let did = host.repair();
    assert!(matches!(&did[0].outcome, UndoOutcome::Left(why) if why.contains("still held by")), "{did:?}");
    assert_eq!(label(&host.store, &f), "system_u:object_r:casemate_image_t:s0:c5,c6");
    let ledger = Ledger::open(host.dir.path()).unwrap();
    Undoer { ledger: &ledger, relabeler: &r }.undo(&mut journal).unwrap();
    assert_eq!(label(&host.store, &f), HOME, "the original came through both");
}

#[test]
fn names_of_records_are_read_back_and_nothing_else_is() {
    let owner = me("a.b-c_d");
    assert_eq!(owner_of(&file_name(&owner)), Some(owner));
    for bad in ["", "a", "a.b.c.d", ".boot.1.2", "a.boot.-1.2", "a.boot.1."] {
        assert_eq!(owner_of(bad), None, "{bad}");
    }
}

#[test]
fn an_interrupted_making_of_a_record_is_seen_as_such() {
    let host = Host::new();
    fs::create_dir_all(host.state().join(HELD)).unwrap();
    let dead = Owner { boot: "gone".into(), ..me("a") };
    fs::write(host.state().join(HELD).join(format!("{NEW}{}", file_name(&dead))), "{\"casem").unwrap();
    fs::write(host.state().join(HELD).join(format!("{NEW}{}", file_name(&me("living")))), "").unwrap();
    let found = host.dead();
    assert!(found.len() == 1 && found[0].unfinished && lock(&found[0]).unwrap().is_some(), "{found:?}");
    discard(&found[0]).unwrap();
    assert!(host.dead().is_empty());
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
