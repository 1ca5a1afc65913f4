//! The logic, on a store in memory. What the kernel does with real labels is the kvm and
//! testbed tiers' to show.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use super::*;
use crate::context::CategoryPair;
use crate::guard::LibvirtLock;
use crate::store::LIBVIRT;

/// xattrs by (ino, name), and errors to come.
#[derive(Default)]
pub(crate) struct Memory {
    values: Mutex<HashMap<(u64, String), Vec<u8>>>,
    /// The errno of every label that is set; 0 for none.
    pub(crate) fail_label: AtomicI32,
    pub(crate) no_trusted: AtomicBool,
}

impl Memory {
    pub(crate) fn put(&self, f: &Fixture, name: &str, value: &[u8]) {
        self.values.lock().unwrap().insert((ino(f.file.as_fd()), name.to_owned()), value.to_vec());
    }
}

fn ino(fd: BorrowedFd<'_>) -> u64 {
    rustix::fs::fstat(fd).unwrap().st_ino
}

impl LabelStore for &Memory {
    fn get(&self, fd: BorrowedFd<'_>, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.values.lock().unwrap().get(&(ino(fd), name.to_owned())).cloned())
    }
    fn set(&self, fd: BorrowedFd<'_>, name: &str, value: &[u8]) -> io::Result<()> {
        let errno = match name {
            LABEL => Some(self.fail_label.load(Ordering::Relaxed)).filter(|e| *e != 0),
            _ => self.no_trusted.load(Ordering::Relaxed).then_some(nix::libc::EOPNOTSUPP),
        };
        if let Some(e) = errno {
            return Err(io::Error::from_raw_os_error(e));
        }
        self.values.lock().unwrap().insert((ino(fd), name.to_owned()), value.to_vec());
        Ok(())
    }
    fn remove(&self, fd: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        self.values.lock().unwrap().remove(&(ino(fd), name.to_owned()));
        Ok(())
    }
}

const HOME: &str = "u:object_r:user_home_t:s0";

pub(crate) fn relabeler(store: &Memory) -> Relabeler<&Memory> {
    Relabeler::with_store(store, Profile::casemate(), Box::new(|_, _| None))
}

pub(crate) struct Fixture {
    _dir: tempfile::TempDir,
    pub(crate) path: PathBuf,
    pub(crate) file: File,
}

/// A file with `label` in `store`.
pub(crate) fn image(store: &Memory, label: Option<&str>) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    if let Some(l) = label {
        store.values.lock().unwrap().insert((ino(file.as_fd()), LABEL.into()), l.into());
    }
    Fixture { _dir: dir, path, file }
}

pub(crate) fn pair(a: u16, b: u16) -> CategoryPair {
    CategoryPair::try_from((a, b)).unwrap()
}

pub(crate) fn me(sandbox: &str) -> Owner {
    Owner::of_self(sandbox).unwrap()
}

pub(crate) fn dead(sandbox: &str) -> Owner {
    Owner { boot: "an earlier boot".into(), ..me(sandbox) }
}

pub(crate) fn take(
    store: &Memory,
    f: &Fixture,
    class: LabelClass,
    p: CategoryPair,
    o: &Owner,
) -> Result<Held, RelabelError> {
    relabeler(store).acquire(f.file.as_fd(), &f.path, class, p, o, &mut |_| Ok(()))
}

pub(crate) fn give(store: &Memory, f: &Fixture, o: &Owner) -> Restored {
    relabeler(store).release(f.file.as_fd(), &f.path, o).unwrap()
}

pub(crate) fn label(store: &Memory, f: &Fixture) -> String {
    relabeler(store).label_of(f.file.as_fd(), &f.path).unwrap().unwrap().to_string()
}

pub(crate) fn record(store: &Memory, f: &Fixture) -> Option<OwnersRecord> {
    relabeler(store).record_of(f.file.as_fd(), &f.path).unwrap()
}

#[test]
fn svirt_17_33_an_exclusive_image_gets_the_pair_and_its_old_label_back() {
    let store = Memory::default();
    let f = image(&store, Some(HOME));
    let held = take(&store, &f, LabelClass::Exclusive, pair(9, 4), &me("a")).unwrap();
    assert_eq!(held.outcome, Outcome::Relabelled);
    assert_eq!(label(&store, &f), "system_u:object_r:casemate_image_t:s0:c4,c9");
    assert_eq!(record(&store, &f).unwrap().owners, [me("a")]);
    assert_eq!(give(&store, &f, &me("a")), Restored::To(HOME.parse().unwrap()));
    assert_eq!(label(&store, &f), HOME);
    assert!(record(&store, &f).is_none());
    assert!(matches!(give(&store, &f, &me("a")), Restored::Left(_)), "a second restore changes nothing");
}

#[test]
fn a_second_sandbox_is_refused_an_exclusive_image() {
    let store = Memory::default();
    let f = image(&store, Some(HOME));
    take(&store, &f, LabelClass::Exclusive, pair(1, 2), &me("a")).unwrap();
    for class in [LabelClass::Exclusive, LabelClass::Content, LabelClass::SharedWritable] {
        let refused = take(&store, &f, class, pair(3, 4), &me("b"));
        assert!(matches!(refused, Err(RelabelError::InUse { .. })), "{class:?}");
    }
    assert_eq!(label(&store, &f), "system_u:object_r:casemate_image_t:s0:c1,c2");
}

#[test]
fn svirt_19_36_shared_content_is_restored_by_the_last_owner_only() {
    let store = Memory::default();
    let f = image(&store, Some(HOME));
    take(&store, &f, LabelClass::Content, pair(1, 2), &me("a")).unwrap();
    take(&store, &f, LabelClass::Content, pair(3, 4), &me("b")).unwrap();
    assert_eq!(label(&store, &f), "system_u:object_r:casemate_content_t:s0");
    assert_eq!(give(&store, &f, &me("a")), Restored::StillHeldBy(vec![me("b").to_string()]));
    assert_eq!(label(&store, &f), "system_u:object_r:casemate_content_t:s0");
    assert_eq!(give(&store, &f, &me("b")), Restored::To(HOME.parse().unwrap()));
}

#[test]
fn svirt_20_32_content_that_is_labelled_already_is_not_touched() {
    let store = Memory::default();
    let f = image(&store, Some("system_u:object_r:casemate_content_t:s0"));
    let held = take(&store, &f, LabelClass::Content, pair(1, 2), &me("a")).unwrap();
    assert_eq!(held.outcome, Outcome::AlreadyRight);
    assert!(record(&store, &f).is_none());
    // by another user it is right as well, and what is told is what it carries: an attestation compares with it
    let carried = "unconfined_u:object_r:casemate_content_t:s0";
    let f = image(&store, Some(carried));
    let held = take(&store, &f, LabelClass::Content, pair(1, 2), &me("a")).unwrap();
    assert_eq!((held.outcome, held.label.to_string()), (Outcome::AlreadyRight, carried.to_owned()));
}

#[test]
fn svirt_33_a_dead_owners_label_is_taken_over_and_the_original_survives() {
    let store = Memory::default();
    let f = image(&store, Some(HOME));
    take(&store, &f, LabelClass::Exclusive, pair(1, 2), &dead("crashed")).unwrap();
    take(&store, &f, LabelClass::Exclusive, pair(3, 4), &me("b")).unwrap();
    assert_eq!(record(&store, &f).unwrap().gen_, 2);
    assert_eq!(give(&store, &f, &me("b")), Restored::To(HOME.parse().unwrap()));
}

#[test]
fn svirt_35_a_label_that_the_administrator_changed_stays() {
    let store = Memory::default();
    let f = image(&store, Some(HOME));
    take(&store, &f, LabelClass::Exclusive, pair(1, 2), &me("a")).unwrap();
    store.put(&f, LABEL, b"u:object_r:etc_t:s0");
    assert!(matches!(give(&store, &f, &me("a")), Restored::Left(_)));
    assert_eq!(label(&store, &f), "u:object_r:etc_t:s0");
    assert!(record(&store, &f).is_none());
}

#[test]
fn svirt_35_our_label_without_a_record_falls_back_to_file_contexts() {
    let store = Memory::default();
    let f = image(&store, Some("system_u:object_r:casemate_image_t:s0:c5,c6"));
    take(&store, &f, LabelClass::Exclusive, pair(1, 2), &me("a")).unwrap();
    let with_contexts =
        Relabeler::with_store(&store, Profile::casemate(), Box::new(|_, _| "u:object_r:var_lib_t:s0".parse().ok()));
    let restored = with_contexts.release(f.file.as_fd(), &f.path, &me("a")).unwrap();
    assert_eq!(restored, Restored::To("u:object_r:var_lib_t:s0".parse().unwrap()));

    take(&store, &f, LabelClass::Exclusive, pair(1, 2), &me("a")).unwrap();
    let lost = image(&store, Some("system_u:object_r:casemate_image_t:s0:c5,c6"));
    take(&store, &lost, LabelClass::Exclusive, pair(1, 2), &me("a")).unwrap();
    assert!(matches!(give(&store, &lost, &me("a")), Restored::Left(_)), "neither source names a label");
}

#[test]
fn svirt_21_38_another_managers_private_label_or_xattr_is_refused() {
    let store = Memory::default();
    let f = image(&store, Some("u:object_r:container_file_t:s0:c1,c2"));
    assert!(matches!(take(&store, &f, LabelClass::Exclusive, pair(1, 2), &me("a")), Err(RelabelError::Foreign { .. })));
    let f = image(&store, Some(HOME));
    store.put(&f, LIBVIRT[1], b"1");
    assert!(matches!(take(&store, &f, LabelClass::Exclusive, pair(1, 2), &me("a")), Err(RelabelError::Libvirt { .. })));
    assert_eq!(label(&store, &f), HOME);
}

#[test]
fn svirt_22_25_28_29_hard_links_directories_fifos_devices_and_system_trees_are_refused() {
    let store = Memory::default();
    let r = relabeler(&store);
    let f = image(&store, Some(HOME));
    std::fs::hard_link(&f.path, f.path.with_extension("2")).unwrap();
    assert!(matches!(r.check(f.file.as_fd(), &f.path), Err(RelabelError::Links { links: 2, .. })));

    let dir = File::open(f.path.parent().unwrap()).unwrap();
    assert!(matches!(r.check(dir.as_fd(), &f.path), Err(RelabelError::Kind { found: "a directory", .. })));
    let null = File::open("/dev/null").unwrap();
    assert!(matches!(r.check(null.as_fd(), Path::new("/dev/null")), Err(RelabelError::Kind { .. })));
    let (pipe, _w) = std::io::pipe().unwrap();
    assert!(matches!(r.check(pipe.as_fd(), Path::new("p")), Err(RelabelError::Kind { found: "a FIFO", .. })));
    // the name given does not matter, the place of the open file does
    let passwd = File::open("/etc/passwd").unwrap();
    let lie = Path::new("/tmp/innocent");
    assert!(matches!(r.check(passwd.as_fd(), lie), Err(RelabelError::Denied { .. })));

    let home = tempfile::tempdir().unwrap();
    let ssh = home.path().join(".ssh");
    std::fs::create_dir(&ssh).unwrap();
    std::fs::write(ssh.join("id"), "").unwrap();
    let key = File::open(ssh.join("id")).unwrap();
    assert!(matches!(r.check(key.as_fd(), &ssh.join("id")), Err(RelabelError::Denied { .. })));
}

#[test]
fn svirt_33_a_malformed_record_is_an_error_and_nothing_changes() {
    let store = Memory::default();
    for bad in
        [&b"{}"[..], b"\xff", b"-1", br#"{"v":3,"orig":null,"label":"u:r:t","owners":[],"gen":1}"#, &[b' '; 20000]]
    {
        let f = image(&store, Some(HOME));
        store.put(&f, OWNERS, bad);
        let refused = take(&store, &f, LabelClass::Exclusive, pair(1, 2), &me("a"));
        assert!(matches!(refused, Err(RelabelError::Record { .. })));
        assert_eq!(label(&store, &f), HOME);
    }
}

#[test]
fn svirt_32_a_label_that_the_kernel_refuses_is_an_error_and_leaves_no_record() {
    let store = Memory::default();
    let f = image(&store, Some(HOME));
    let refused = |errno| {
        store.fail_label.store(errno, Ordering::Relaxed);
        let e = take(&store, &f, LabelClass::Exclusive, pair(1, 2), &me("a")).unwrap_err();
        assert!(record(&store, &f).is_none(), "the record went back with the failed label");
        e
    };
    let e = refused(nix::libc::EACCES);
    assert!(matches!(e, RelabelError::NotRelabelable { .. }), "{e}");
    assert!(e.to_string().contains("casemate_relabelable"), "the remedy: {e}");
    assert!(matches!(refused(nix::libc::EPERM), RelabelError::Immutable { .. }));
    assert!(matches!(refused(nix::libc::ENOENT), RelabelError::Io { verb: "set", what: "label", .. }));
    store.fail_label.store(0, Ordering::Relaxed);
    take(&store, &f, LabelClass::Exclusive, pair(1, 2), &me("a")).unwrap();
}

#[test]
fn a_journal_that_cannot_be_written_stops_the_change() {
    let store = Memory::default();
    let f = image(&store, Some(HOME));
    let failed =
        relabeler(&store).acquire(f.file.as_fd(), &f.path, LabelClass::Exclusive, pair(1, 2), &me("a"), &mut |_| {
            Err(io::ErrorKind::StorageFull.into())
        });
    assert!(matches!(failed, Err(RelabelError::Journal { .. })));
    assert_eq!(label(&store, &f), HOME);
    assert!(record(&store, &f).is_none());
}

#[test]
fn svirt_31_libvirts_lock_byte_is_respected_and_let_go() {
    let store = Memory::default();
    let f = image(&store, Some(HOME));
    let libvirt = File::options().read(true).write(true).open(&f.path).unwrap();
    let held = LibvirtLock::take(libvirt.as_fd(), &f.path, LabelClass::Exclusive).unwrap();
    assert!(matches!(take(&store, &f, LabelClass::Exclusive, pair(1, 2), &me("a")), Err(RelabelError::Locked { .. })));
    drop(held);
    take(&store, &f, LabelClass::Exclusive, pair(1, 2), &me("a")).unwrap();
    LibvirtLock::take(libvirt.as_fd(), &f.path, LabelClass::Exclusive).expect("our lock is held for the change only");
}

#[test]
fn svirt_31_only_byte_1_is_locked_and_for_the_moment_of_change() {
    let store = Memory::default();
    let f = image(&store, Some(HOME));
    let other = File::options().read(true).write(true).open(&f.path).unwrap();
    let lock = |start, kind: i32| {
        let l_type = kind as _;
        let byte = nix::libc::flock { l_type, l_whence: nix::libc::SEEK_SET as _, l_start: start, l_len: 1, l_pid: 0 };
        nix::fcntl::fcntl(&other, nix::fcntl::FcntlArg::F_OFD_SETLK(&byte)).is_ok()
    };
    // QEMU's and our own image locks are elsewhere: they are not in the way
    assert!(lock(0, nix::libc::F_WRLCK) && lock(2, nix::libc::F_WRLCK) && lock(100, nix::libc::F_WRLCK));
    let mut free = None;
    let mut during = |_: &Held| {
        free = Some((lock(1, nix::libc::F_WRLCK), lock(3, nix::libc::F_WRLCK)));
        Ok(())
    };
    relabeler(&store)
        .acquire(f.file.as_fd(), &f.path, LabelClass::Exclusive, pair(1, 2), &me("a"), &mut during)
        .unwrap();
    assert_eq!(free, Some((false, true)), "byte 1 is ours while the label changes");
    assert!(lock(1, nix::libc::F_WRLCK), "and free again");
}

#[test]
fn svirt_28_a_swap_between_open_and_label_reaches_the_opened_file_alone() {
    let store = Memory::default();
    let (f, victim) = (image(&store, Some(HOME)), image(&store, Some("u:object_r:etc_t:s0")));
    // the opened file loses its only name to another file: there is nothing left to label
    let keep = File::open(&victim.path).unwrap();
    std::fs::rename(&victim.path, &f.path).unwrap();
    let refused = take(&store, &f, LabelClass::Exclusive, pair(1, 2), &me("a"));
    assert!(matches!(refused, Err(RelabelError::Links { links: 0, .. })), "{refused:?}");
    assert_eq!(relabeler(&store).label_of(keep.as_fd(), &f.path).unwrap().unwrap().type_(), "etc_t");

    // the name leads to the victim now, by a symlink
    let (f, victim) = (image(&store, Some(HOME)), image(&store, Some("u:object_r:etc_t:s0")));
    std::fs::rename(&f.path, f.path.with_extension("moved")).unwrap();
    std::os::unix::fs::symlink(&victim.path, &f.path).unwrap();
    take(&store, &f, LabelClass::Exclusive, pair(1, 2), &me("a")).unwrap();
    assert_eq!(label(&store, &victim), "u:object_r:etc_t:s0");
    assert_eq!(label(&store, &f), "system_u:object_r:casemate_image_t:s0:c1,c2");
    // a link that somebody makes afterwards does not keep the label from going back
    std::fs::hard_link(f.path.with_extension("moved"), f.path.with_extension("link")).unwrap();
    assert_eq!(give(&store, &f, &me("a")), Restored::To(HOME.parse().unwrap()));
}

#[test]
fn svirt_28_a_descriptor_that_gives_no_access_is_refused() {
    let store = Memory::default();
    let f = image(&store, Some(HOME));
    let fd = rustix::fs::open(&f.path, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    let class = LabelClass::Exclusive;
    let refused = relabeler(&store).acquire(fd.as_fd(), &f.path, class, pair(1, 2), &me("a"), &mut |_| Ok(()));
    assert!(matches!(refused, Err(RelabelError::Io { verb: "lock", .. })), "{refused:?}");
    assert_eq!(label(&store, &f), HOME);
}

#[test]
fn svirt_34_many_sandboxes_share_one_file_and_none_is_forgotten() {
    let store = Memory::default();
    let f = image(&store, Some(HOME));
    let all = std::sync::Barrier::new(8);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (store, path, all) = (&store, &f.path, &all);
            scope.spawn(move || {
                let owner = me(&format!("s{n}"));
                let file = File::open(path).unwrap();
                let r = relabeler(store);
                all.wait();
                r.acquire(file.as_fd(), path, LabelClass::Content, pair(1, 2), &owner, &mut |_| Ok(())).unwrap();
                all.wait();
                assert_eq!(r.record_of(file.as_fd(), path).unwrap().unwrap().owners.len(), 8, "an owner was lost");
                all.wait();
                r.release(file.as_fd(), path, &owner).unwrap();
            });
        }
    });
    assert_eq!(label(&store, &f), HOME);
    assert!(record(&store, &f).is_none());
}

#[test]
fn svirt_10_38_another_managers_private_label_is_never_taken_for_our_own_leak() {
    for (now, foreign) in
        [("system_u:object_r:svirt_image_t:s0:c7,c8", true), ("system_u:object_r:virt_content_t:s0", false)]
    {
        let store = Memory::default();
        let f = image(&store, Some(now));
        let relabeler = Relabeler::with_store(&store, Profile::svirt(), Box::new(|_, _| None));
        let taken =
            relabeler.acquire(f.file.as_fd(), &f.path, LabelClass::Exclusive, pair(1, 2), &me("a"), &mut |_| Ok(()));
        assert_eq!(matches!(taken, Err(RelabelError::Foreign { .. })), foreign, "{taken:?}");
        assert_eq!(label(&store, &f) == now, foreign);
    }
}

#[test]
fn svirt_17_content_that_another_family_reads_is_not_taken_from_it() {
    let ours = "system_u:object_r:casemate_content_t:s0";
    let profile = Profile { content_also: vec!["casemate_content_t".into()], ..Profile::svirt() };
    let store = Memory::default();
    let relabeler = Relabeler::with_store(&store, profile, Box::new(|_, _| None));
    let take_content = |f: &Fixture, sandbox: &str| {
        relabeler.acquire(f.file.as_fd(), &f.path, LabelClass::Content, pair(1, 2), &me(sandbox), &mut |_| Ok(()))
    };
    let f = image(&store, Some(ours));
    assert_eq!(take_content(&f, "b").unwrap().outcome, Outcome::AlreadyRight);
    // a kernel of the user's that a sandbox of ours has labelled: both hold it, the last to leave gives it back
    let f = image(&store, Some(HOME));
    take(&store, &f, LabelClass::Content, pair(3, 4), &me("a")).unwrap();
    take_content(&f, "b").unwrap();
    assert_eq!(label(&store, &f), ours);
    assert!(matches!(give(&store, &f, &me("a")), Restored::StillHeldBy(_)));
    assert_eq!(give(&store, &f, &me("b")), Restored::To(HOME.parse().unwrap()));
    // a private one is not content
    let f = image(&store, Some("system_u:object_r:casemate_content_t:s0:c1,c2"));
    assert!(take_content(&f, "b").is_err());
}
