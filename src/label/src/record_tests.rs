//! The record against copies, other hosts, other versions, other managers, and many owners.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use super::*;
use crate::relabel::tests::{Fixture, Memory, dead, give, image, label, me, pair, record, relabeler, take};
use crate::relabel::{LabelClass, Outcome, RelabelError, Relabeler, Restored};
use crate::store::{LABEL, LIBVIRT, LabelStore, OWNERS};

const HOME: &str = "u:object_r:user_home_t:s0";
const LEAKED: &str = "system_u:object_r:casemate_image_t:s0:c1,c2";

fn raw(store: &Memory, f: &Fixture, name: &str) -> Option<Vec<u8>> {
    LabelStore::get(&store, f.file.as_fd(), name).unwrap()
}

fn on_host<'a>(store: &'a Memory, id: &str) -> Relabeler<&'a Memory> {
    relabeler(store).on_host(id.into())
}

/// What `cp -a` and `rsync -X` make of a held image when root runs them: all attributes on another file.
fn copy_of(store: &Memory, f: &Fixture) -> Fixture {
    let copy = image(store, None);
    for name in [LABEL, OWNERS] {
        store.put(&copy, name, &raw(store, f, name).unwrap());
    }
    copy
}

#[test]
fn svirt_33_a_copied_record_names_no_owner_and_restores_nothing() {
    let store = Memory::default();
    let f = image(&store, Some(HOME));
    take(&store, &f, LabelClass::Exclusive, pair(1, 2), &me("a")).unwrap();
    let copy = copy_of(&store, &f);
    // the living owner of the original does not hold the copy, and giving it back there changes no label
    assert!(matches!(give(&store, &copy, &me("a")), Restored::Left(why) if why.contains("copied")));
    assert_eq!(label(&store, &copy), LEAKED);
    assert!(record(&store, &copy).is_none());
    // a start takes the copy, and does not believe the copied original: file_contexts tells
    let copy = copy_of(&store, &f);
    let held = take(&store, &copy, LabelClass::Exclusive, pair(3, 4), &me("b")).unwrap();
    assert_eq!((held.before, held.outcome), (None, Outcome::Relabelled));
    assert_eq!(record(&store, &copy).unwrap().owners, [me("b")]);
    let r = Relabeler::with_store(&store, crate::Profile::casemate(), Box::new(|_, _| "u:r:by_path_t:s0".parse().ok()));
    let restored = r.release(copy.file.as_fd(), &copy.path, &me("b")).unwrap();
    assert_eq!(restored, Restored::To("u:r:by_path_t:s0".parse().unwrap()));
    // and the original is as it was
    assert_eq!(record(&store, &f).unwrap().owners, [me("a")]);
    assert_eq!(give(&store, &f, &me("a")), Restored::To(HOME.parse().unwrap()));
}

#[test]
fn svirt_33_another_hosts_record_is_refused_and_ours_is_known_by_its_boot() {
    let store = Memory::default();
    let f = image(&store, Some(HOME));
    let r = on_host(&store, "host-one");
    let (class, p) = (LabelClass::Exclusive, pair(1, 2));
    r.acquire(f.file.as_fd(), &f.path, class, p, &dead("far"), &mut |_| Ok(())).unwrap();
    let here = on_host(&store, "host-two");
    let refused = here.acquire(f.file.as_fd(), &f.path, class, pair(3, 4), &me("b"), &mut |_| Ok(()));
    assert!(matches!(&refused, Err(RelabelError::OtherHost { host, .. }) if host == "host-one"));
    assert!(refused.unwrap_err().to_string().contains("setfattr -x"), "it says what to do");
    let left = here.release(f.file.as_fd(), &f.path, &dead("far")).unwrap();
    assert!(matches!(left, Restored::Left(why) if why.contains("another host")));
    assert_eq!(record(&store, &f).unwrap().owners, [dead("far")], "nothing of it was touched");
    // the host itself takes a dead owner's label over
    r.acquire(f.file.as_fd(), &f.path, class, pair(3, 4), &me("b"), &mut |_| Ok(())).unwrap();
    // two state directories on one host: the boot id proves it
    let refused = here.acquire(f.file.as_fd(), &f.path, class, p, &me("c"), &mut |_| Ok(()));
    assert!(matches!(refused, Err(RelabelError::InUse { .. })));
}

#[test]
fn svirt_33_records_of_the_first_version_are_read_and_replaced() {
    let store = Memory::default();
    let f = image(&store, Some(LEAKED));
    let owner = serde_json::to_string(&dead("old")).unwrap();
    let old = format!(r#"{{"v":1,"orig":"{HOME}","label":"{LEAKED}","owners":[{owner}],"gen":7}}"#);
    store.put(&f, OWNERS, old.as_bytes());
    take(&store, &f, LabelClass::Exclusive, pair(3, 4), &me("b")).unwrap();
    let now = record(&store, &f).unwrap();
    assert_eq!((now.gen_, now.owners), (8, vec![me("b")]));
    assert!(String::from_utf8(raw(&store, &f, OWNERS).unwrap()).unwrap().starts_with(r#"{"v":2"#));
    assert_eq!(give(&store, &f, &me("b")), Restored::To(HOME.parse().unwrap()));
}

#[test]
fn svirt_33_hostile_records_are_refused_whole() {
    let store = Memory::default();
    let many: Vec<_> = (0..=MAX_OWNERS).map(|n| (format!("s{n}"), n as u32, 1u64)).collect();
    let many = serde_json::to_string(&many).unwrap();
    let v2 = |owners: &str, rest: &str| {
        format!(r#"{{"v":2,"orig":null,"label":"u:r:t:s0","boot":"b","owners":{owners},"gen":1{rest}}}"#)
    };
    for bad in [
        v2(&many, ""),
        v2("[]", r#","surprise":1"#),
        v2(r#"[["a",-1,1]]"#, ""),
        v2(r#"[["a",1]]"#, ""),
        v2("[]", r#","file":{"fs":1,"ino":-1}"#),
        v2("[]", "").replace("u:r:t:s0", "u:r:t:s0:c2000"),
        v2("[]", "").replace(r#""v":2"#, r#""v":4294967296"#),
        format!("{}1{}", "[".repeat(8000), "]".repeat(8000)),
        format!(r#"{{"v":2{}}}"#, " ".repeat(MAX_RECORD)),
    ] {
        assert!(OwnersRecord::parse(bad.as_bytes()).is_err(), "{bad:.100}");
        let f = image(&store, Some(HOME));
        store.put(&f, OWNERS, bad.as_bytes());
        let refused = take(&store, &f, LabelClass::Exclusive, pair(1, 2), &me("a"));
        assert!(matches!(refused, Err(RelabelError::Record { .. })));
        assert_eq!(raw(&store, &f, OWNERS).unwrap(), bad.as_bytes(), "evidence is kept");
        assert_eq!(label(&store, &f), HOME);
    }
    assert!(OwnersRecord::parse(v2("[]", "").as_bytes()).is_ok(), "the positive twin");
}

/// A record may name any living process; it is believed, said by name, and ends with that process.
#[test]
fn svirt_33_a_record_that_names_a_living_stranger_refuses_until_it_is_gone() {
    let store = Memory::default();
    let f = image(&store, Some(HOME));
    let mut stranger = Command::new("sleep").arg("60").spawn().unwrap();
    let owner = Owner::of_process("stranger", stranger.id()).unwrap();
    take(&store, &f, LabelClass::Exclusive, pair(1, 2), &owner).unwrap();
    let refused = take(&store, &f, LabelClass::Exclusive, pair(3, 4), &me("b")).unwrap_err();
    assert!(refused.to_string().contains(&format!("sandbox stranger (pid {})", stranger.id())));
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    take(&store, &f, LabelClass::Exclusive, pair(3, 4), &me("b")).unwrap();
    assert_eq!(give(&store, &f, &me("b")), Restored::To(HOME.parse().unwrap()));
}

#[test]
fn svirt_34_the_owner_list_is_bounded_and_drops_the_dead() {
    let store = Memory::default();
    let f = image(&store, Some(HOME));
    for n in 0..500 {
        take(&store, &f, LabelClass::Content, pair(1, 2), &dead(&format!("dead-{n}"))).unwrap();
        assert!(record(&store, &f).unwrap().owners.len() <= 1, "a dead owner was kept");
    }
    for n in 0..MAX_OWNERS {
        take(&store, &f, LabelClass::Content, pair(1, 2), &me(&format!("sb-{n:010x}"))).unwrap();
    }
    let bytes = raw(&store, &f, OWNERS).unwrap().len();
    assert!(bytes < 3800, "{bytes} bytes do not fit into ext4's xattr block");
    let refused = take(&store, &f, LabelClass::Content, pair(1, 2), &me("one-more"));
    assert!(matches!(refused, Err(RelabelError::TooManyOwners { owners: MAX_OWNERS, .. })));
    for n in 0..MAX_OWNERS {
        give(&store, &f, &me(&format!("sb-{n:010x}")));
    }
    assert_eq!((label(&store, &f).as_str(), record(&store, &f)), (HOME, None));
}

#[test]
fn svirt_38_libvirts_xattrs_that_appear_meanwhile_are_honoured_and_the_original_is_kept() {
    let store = Memory::default();
    let f = image(&store, Some(HOME));
    take(&store, &f, LabelClass::Exclusive, pair(1, 2), &me("a")).unwrap();
    // libvirt starts a guest on it: it remembers our label, and sets its own
    let theirs = "system_u:object_r:svirt_image_t:s0:c7,c8";
    for (name, value) in LIBVIRT.iter().zip([LEAKED, "1", "1700000000"]) {
        store.put(&f, name, value.as_bytes());
    }
    store.put(&f, LABEL, theirs.as_bytes());
    let verdict = relabeler(&store).give_back(f.file.as_fd(), &f.path, &me("a"), None).unwrap();
    assert!(matches!(&verdict.next, crate::restore::Next::Wait(why) if why.contains("libvirt")), "{verdict:?}");
    assert_eq!(label(&store, &f), theirs);
    assert_eq!(raw(&store, &f, LIBVIRT[1]).unwrap(), b"1");
    let kept = record(&store, &f).unwrap();
    assert_eq!((kept.owners.len(), kept.orig.unwrap().to_string()), (0, HOME.to_owned()));
    // libvirt ends: our label again, its xattrs gone; now the true original comes back
    LIBVIRT.iter().for_each(|name| LabelStore::remove(&&store, f.file.as_fd(), name).unwrap());
    store.put(&f, LABEL, LEAKED.as_bytes());
    assert_eq!(give(&store, &f, &me("a")), Restored::To(HOME.parse().unwrap()));
    assert!(record(&store, &f).is_none());
}

#[test]
fn a_host_has_one_name_whoever_asks_first() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let all = std::sync::Barrier::new(4);
    let ids: Vec<String> = std::thread::scope(|scope| {
        let ask = || {
            all.wait();
            host_id(&state).unwrap()
        };
        let asked: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        asked.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0] && id.len() == 32), "{ids:?}");
    std::fs::write(state.join("host-id"), "torn").unwrap();
    let new = host_id(&state).unwrap();
    assert!(new.len() == 32 && new == host_id(&state).unwrap());
}

/// Real xattrs and processes that are killed: this test starts itself again (see `holder`). `trusted.*` needs root.
#[test]
fn svirt_34_killed_holders_of_one_file_leak_no_count() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = dir.path().join("shared.raw");
    std::fs::write(&path, "content").unwrap();
    let file = File::open(&path).unwrap();
    let kernel = Relabeler::with_store(crate::store::XattrStore, crate::Profile::casemate(), Box::new(|_, _| None));
    if rustix::fs::fsetxattr(&file, OWNERS, b"", rustix::fs::XattrFlags::empty()).is_err() {
        eprintln!("skipped: trusted xattrs need root and a file system that keeps them");
        return;
    }
    rustix::fs::fremovexattr(&file, OWNERS).unwrap();
    let original: Context = HOME.parse().unwrap();
    if kernel.write_label(file.as_fd(), &path, &original).is_err() {
        eprintln!("skipped: a host that enforces does not take any label");
        return;
    }
    let start = || {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "record::tests::holder", "--nocapture"]).env("CASEMATE_HOLD", &path);
        child.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    };
    for round in 0..3 {
        let mut holders: Vec<_> = (0..8).map(|_| start()).collect();
        // killed while some still take it, and some hold it
        let mut byte = [0];
        let _ = holders[round].stdout.as_mut().unwrap().read(&mut byte);
        holders.iter_mut().for_each(|h| h.kill().unwrap());
        for holder in &mut holders {
            holder.wait().unwrap();
        }
        // one more comes and goes: the dead are dropped, the original is what the first of all found
        kernel.acquire(file.as_fd(), &path, LabelClass::Content, pair(1, 2), &me("last"), &mut |_| Ok(())).unwrap();
        assert_eq!(kernel.record_of(file.as_fd(), &path).unwrap().unwrap().owners, [me("last")]);
        kernel.release(file.as_fd(), &path, &me("last")).unwrap();
        assert_eq!(kernel.label_of(file.as_fd(), &path).unwrap(), Some(original.clone()));
        assert!(kernel.record_of(file.as_fd(), &path).unwrap().is_none());
    }
}

/// The process behind the test above: takes and gives a file until it is killed.
#[test]
fn holder() {
    let Some(path) = std::env::var_os("CASEMATE_HOLD").map(std::path::PathBuf::from) else { return };
    let file = File::open(&path).unwrap();
    let kernel = Relabeler::with_store(crate::store::XattrStore, crate::Profile::casemate(), Box::new(|_, _| None));
    let owner = me(&format!("h{}", std::process::id()));
    loop {
        let taken = kernel.acquire(file.as_fd(), &path, LabelClass::Content, pair(1, 2), &owner, &mut |_| Ok(()));
        if taken.is_ok() {
            println!("held");
            kernel.release(file.as_fd(), &path, &owner).unwrap();
        }
    }
}

#[test]
fn svirt_33_a_boot_that_cannot_be_read_proves_no_host() {
    let file = FileId { fs: 1, ino: 2, handle: None };
    let owner = Owner { sandbox: "a".into(), boot: "b1".into(), pid: 1, start: 1 };
    let of = |boot: &str| OwnersRecord {
        file: Some(file.clone()),
        host: Some("theirs".into()),
        ..OwnersRecord::new(None, LEAKED.parse().unwrap(), vec![Owner { boot: boot.into(), ..owner.clone() }], 1)
    };
    let unread = || Err(std::io::Error::other("no procfs"));
    assert!(of("b1").standing_in(&file, Some("ours"), unread).is_err());
    // A record whose owners name no boot at all is not ours because ours is not known either.
    let empty = of("").standing_in(&file, Some("ours"), || Ok(String::new())).unwrap();
    assert_eq!(empty, Standing::OtherHost("theirs".into()));
    assert_eq!(of("b1").standing_in(&file, Some("ours"), || Ok("b1".into())).unwrap(), Standing::Good);
    assert_eq!(of("b1").standing_in(&file, Some("theirs"), unread).unwrap(), Standing::Good, "no question of boots");
}
