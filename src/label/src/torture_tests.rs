//! Sixteen allocators as processes of their own, killed at random: nobody ever holds what another living one holds, and
//! afterwards nothing is left.
//!
//! The judge is not the ledger: each holder keeps a flock on a file named like its lease, which the kernel gives up
//! when the process dies, and not a moment earlier. Two living holders of one name cannot be.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use crate::context::{Category, CategorySet};
use crate::in_use::InUse;
use crate::journal::{Intent, JOURNAL, Journal};
use crate::ledger::{LeaseKey, Ledger, UidRange};
use crate::owner::Owner;
use crate::profile::Profile;
use crate::random;
use crate::relabel::Relabeler;
use crate::undo::{UndoOutcome, Undoer};

const WORKERS: usize = 16;
const VMS: u64 = 2000;
const KILLS: u32 = 100;
/// Most that one worker holds at once: all of them together half of the window's 2016 pairs.
const HELD: usize = 60;
const UIDS: UidRange = UidRange { first: 3_000_000_000, count: 3000 };
const ENV: &str = "CASEMATE_TEST_ALLOCATOR";
const DOUBLE: &str = "double";
const COUNT: &str = "count";
const SELF: &str = "torture_tests::svirt_11_sixteen_allocators_killed_at_random_never_collide_and_leave_nothing";

#[test]
fn svirt_11_sixteen_allocators_killed_at_random_never_collide_and_leave_nothing() {
    if let Some(dir) = std::env::var_os(ENV) {
        return work(Path::new(&dir));
    }
    // on tmpfs, as /run is
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
    for part in ["vms", "oracle"] {
        fs::create_dir(dir.path().join(part)).unwrap();
    }
    let ledger = Ledger::open(dir.path()).unwrap();
    the_judge_sees_a_double(dir.path());

    let done = || fs::metadata(dir.path().join(COUNT)).map_or(0, |m| m.len());
    let mut workers: Vec<Child> = (0..WORKERS).map(|_| start(dir.path())).collect();
    let (begin, mut kills) = (Instant::now(), 0_u32);
    while done() < VMS || kills < KILLS {
        assert!(begin.elapsed() < Duration::from_secs(300), "stuck at {} of {VMS}", done());
        std::thread::sleep(Duration::from_millis(u64::from(random::below(15))));
        let victim = &mut workers[random::below(WORKERS as u32) as usize];
        victim.kill().unwrap();
        victim.wait().unwrap();
        kills += 1;
        *victim = start(dir.path());
        if kills.is_multiple_of(8) {
            repair(dir.path(), &ledger);
        }
    }
    for worker in &mut workers {
        worker.kill().unwrap();
        worker.wait().unwrap();
    }
    let doubles = fs::read_to_string(dir.path().join(DOUBLE)).unwrap_or_default();
    assert!(doubles.is_empty(), "two living holders of: {doubles}");
    let left = ledger.list().unwrap().len();
    assert!(left > 0, "the killed left nothing to repair: {left} leases after {kills} kills");
    assert!(repair(dir.path(), &ledger) > 0);
    assert_eq!(ledger.list().unwrap(), [], "leaked");
    assert_eq!(fs::read_dir(dir.path().join("leases/tmp")).unwrap().count(), 0, "half made leases");
    assert_eq!(repair(dir.path(), &ledger), 0, "a second repair finds nothing");
    println!("{} VMs by {WORKERS} allocators, {kills} killed, {left} leases repaired, {:?}", done(), begin.elapsed());
}

fn the_judge_sees_a_double(dir: &Path) {
    let key = LeaseKey::Uid(1);
    let first = claim(dir, &key);
    assert!(first.is_some() && claim(dir, &key).is_none());
    drop(first);
    assert!(claim(dir, &key).is_some());
}

fn start(dir: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([SELF, "--exact", "--nocapture"]).env(ENV, dir).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// The lock that says "a living process has this"; `None` when another has it.
fn claim(dir: &Path, key: &LeaseKey) -> Option<File> {
    let name = dir.join("oracle").join(key.to_string().replace('/', "-"));
    let file = File::options().create(true).truncate(false).write(true).open(name).unwrap();
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok().map(|()| file)
}

struct Vm {
    journal: Journal,
    claims: Vec<File>,
    dir: PathBuf,
}

/// Starts and ends sandboxes until it is killed.
fn work(dir: &Path) {
    let ledger = Ledger::open(dir).unwrap();
    let relabeler = Relabeler::new(Profile::casemate());
    let mut count = File::options().create(true).append(true).open(dir.join(COUNT)).unwrap();
    let mut held = Vec::new();
    for n in 0.. {
        held.push(begin(dir, &ledger, n));
        count.write_all(b".").unwrap();
        while held.len() > random::below(HELD as u32) as usize + 1 {
            let Vm { mut journal, claims, dir } = held.swap_remove(random::below(held.len() as u32) as usize);
            drop(claims);
            let undone = Undoer { ledger: &ledger, relabeler: &relabeler }.undo(&mut journal).unwrap();
            assert!(undone.iter().all(|u| matches!(u.outcome, UndoOutcome::Undone(_))), "{undone:?}");
            fs::remove_file(dir.join(JOURNAL)).unwrap();
            fs::remove_dir(dir).unwrap();
        }
    }
}

fn begin(dir: &Path, ledger: &Ledger, n: u64) -> Vm {
    let name = format!("vm-{}-{n}", std::process::id());
    let vm = dir.join("vms").join(&name);
    fs::create_dir(&vm).unwrap();
    let owner = Owner::of_self(&name).unwrap();
    let mut journal = Journal::create(File::open(&vm).unwrap().as_fd(), &vm, owner.clone()).unwrap();
    let window: CategorySet = (0..64).map(|c| Category::new(c).unwrap()).collect();
    let mut claims = Vec::new();
    let mut note = |key: LeaseKey, journal: &mut Journal| {
        match claim(dir, &key) {
            Some(claim) => claims.push(claim),
            None => {
                let mut double = File::options().create(true).append(true).open(dir.join(DOUBLE)).unwrap();
                writeln!(double, "{key} by {name}").unwrap();
            }
        }
        let number = journal.intend(Intent::Lease { lease: key }).unwrap();
        journal.done(number).unwrap();
    };
    note(ledger.lease_pair(&owner, &window, &InUse::none()).unwrap().1.key, &mut journal);
    note(ledger.lease_uid(&owner, UIDS).unwrap().1.key, &mut journal);
    Vm { journal, claims, dir: vm }
}

/// What `casemate repair` does of it: dead journals undone, then the leases of dead owners without a journal. Returns how
/// much there was to do.
fn repair(dir: &Path, ledger: &Ledger) -> usize {
    let relabeler = Relabeler::new(Profile::casemate());
    let mut did = 0;
    for entry in fs::read_dir(dir.join("vms")).unwrap().flatten() {
        // an error: alive, or between its directory and its first line, when nothing is leased yet
        if let Ok(mut journal) = Journal::open(&entry.path().join(JOURNAL)) {
            did += 1;
            Undoer { ledger, relabeler: &relabeler }.undo(&mut journal).unwrap();
            let _ = fs::remove_file(entry.path().join(JOURNAL));
            let _ = fs::remove_dir(entry.path());
        }
    }
    let journal = |name: &str| dir.join("vms").join(name).join(JOURNAL).exists();
    did + ledger.drop_dead(|lease| !journal(&lease.owner.sandbox)).unwrap().len()
}
