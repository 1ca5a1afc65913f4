use std::collections::HashSet;

use super::*;
use crate::context::{CATEGORIES, Category};

fn ledger() -> (tempfile::TempDir, Ledger) {
    let run = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(run.path()).unwrap();
    (run, ledger)
}

fn me(name: &str) -> Owner {
    Owner::of_self(name).unwrap()
}

fn dead(name: &str) -> Owner {
    Owner { boot: "an earlier boot".into(), ..me(name) }
}

fn window(from: u16, to: u16) -> CategorySet {
    (from..=to).map(|c| Category::new(c).unwrap()).collect()
}

fn none() -> InUse {
    InUse::none()
}

fn in_use(labels: &[&str]) -> InUse {
    let mut in_use = none();
    labels.iter().for_each(|l| in_use.add(l.parse().unwrap(), Holder::Process { pid: 1 }));
    in_use
}

fn level(text: &str) -> Level {
    text.parse().unwrap()
}

#[test]
fn svirt_07_08_every_pair_of_a_window_is_leased_once_and_then_it_is_an_error() {
    let (_run, ledger) = ledger();
    let small = window(0, 7); // 28 pairs
    let leases: Vec<_> = (0..28).map(|_| ledger.lease_pair(&me("a"), &small, &none()).unwrap()).collect();
    let pairs: HashSet<_> = leases.iter().map(|(p, _)| *p).collect();
    assert_eq!(pairs.len(), 28, "every pair of the window was found once");
    assert!(pairs.iter().all(|p| p.low() < p.high()));
    let full = ledger.lease_pair(&me("b"), &small, &none()).unwrap_err();
    assert!(matches!(&full, LedgerError::NoPair { pairs: 28, .. }), "{full}");
    assert!(ledger.release(&leases[3].1.key, &me("a")).unwrap());
    assert!(!ledger.release(&leases[3].1.key, &me("a")).unwrap(), "gone already");
    assert_eq!(ledger.lease_pair(&me("b"), &small, &none()).unwrap().0, leases[3].0);
}

#[test]
fn svirt_08_exhaustion_says_who_has_what_and_what_to_do() {
    let (_run, ledger) = ledger();
    let small = window(0, 7);
    let others = in_use(&["u:r:svirt_t:s0:c0,c1", "u:r:elsewhere_t:s0:c900,c901"]);
    for n in 0..27 {
        let owner = if n == 0 { dead("crashed") } else { me("web") };
        ledger.lease_pair(&owner, &small, &others).unwrap();
    }
    let said = ledger.lease_pair(&me("b"), &small, &others).unwrap_err().to_string();
    for part in
        ["28 MCS pairs", "c0.c7", "27 by sandboxes", "web", "1 of which are dead", "1 by others", "svirt_t:s0:c0,c1"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(said.contains("casemate repair") && !said.contains("elsewhere_t"), "{said}");
}

#[test]
fn svirt_08_a_window_of_fewer_than_eight_categories_is_refused() {
    let (_run, ledger) = ledger();
    for narrow in [window(0, 6), window(5, 5), CategorySet::EMPTY] {
        let error = ledger.lease_pair(&me("a"), &narrow, &none()).unwrap_err();
        assert!(matches!(error, LedgerError::NarrowWindow(_)));
    }
    ledger.lease_pair(&me("a"), &window(0, 7), &none()).unwrap();
}

#[test]
fn svirt_08_a_nearly_full_window_is_as_quick() {
    let (_run, ledger) = ledger();
    let wide = window(0, 31); // 496 pairs
    let begin = std::time::Instant::now();
    for _ in 0..496 {
        ledger.lease_pair(&me("a"), &wide, &none()).unwrap();
    }
    let took = begin.elapsed();
    assert!(ledger.lease_pair(&me("a"), &wide, &none()).is_err());
    // the last ones have one chance in 496 each: a search by chance would still be at it
    assert!(took < std::time::Duration::from_secs(20), "{took:?}");
}

#[test]
fn svirt_09_10_running_and_static_levels_are_kept_apart_from() {
    let (_run, ledger) = ledger();
    // libvirt's guest, a one-category process, and a wide level over half the window
    let others = in_use(&["u:r:svirt_t:s0:c0,c1", "u:r:one_t:s0:c2", "u:r:wide_t:s0:c4.c11"]);
    ledger.lease_static(&me("fixed"), &level("s0:c0,c3"), false, &none()).unwrap();
    let mut seen = HashSet::new();
    while let Ok((pair, _)) = ledger.lease_pair(&me("a"), &window(0, 11), &others) {
        assert!(others.in_reach_of(&pair.set()).next().is_none(), "{pair}");
        assert!(!pair.set().comparable(&window(2, 2)), "{pair} holds c2");
        assert_ne!(pair, CategoryPair::try_from((0, 3)).unwrap());
        seen.insert(pair);
    }
    // {0,1,3} with each other: 3, less (0,1) and (0,3); {0,1,3} x {4..11}: 24
    assert_eq!(seen.len(), 1 + 24);
}

#[test]
fn svirt_55_a_static_level_is_reserved_and_refused_where_it_is_taken() {
    let (_run, ledger) = ledger();
    let (pair, _) = ledger.lease_pair(&me("a"), &window(0, 1023), &none()).unwrap();
    for taken in [pair.level().to_string(), format!("s0:{}", pair.low()), format!("s0:{},{}", pair, far(&pair))] {
        let error = ledger.lease_static(&me("s"), &level(&taken), false, &none()).unwrap_err();
        assert!(matches!(&error, LedgerError::Reserved { by, .. } if by.contains("sandbox a")), "{taken}: {error}");
    }
    for never in ["s0", "s0:c0.c1023"] {
        for shared in [false, true] {
            let error = ledger.lease_static(&me("s"), &level(never), shared, &none()).unwrap_err();
            assert!(matches!(error, LedgerError::BadLevel(..)), "{never}: {error}");
        }
    }
    assert!(ledger.lease_static(&me("../x"), &level("s0:c1,c2"), true, &none()).is_err(), "a sandbox id is one name");
    let running = in_use(&["u:r:svirt_t:s0:c1,c2"]);
    let error = ledger.lease_static(&me("s"), &level("s0:c1"), false, &running).unwrap_err();
    assert!(error.to_string().contains("svirt_t:s0:c1,c2"), "{error}");
}

fn far(pair: &CategoryPair) -> Category {
    (0..CATEGORIES).map(|n| Category::new(n).unwrap()).find(|c| !pair.set().contains(*c)).unwrap()
}

#[test]
fn svirt_55_a_static_level_is_honoured_exactly_and_weak_ones_are_warned_of() {
    let (_run, ledger) = ledger();
    let (lease, warnings) = ledger.lease_static(&me("s"), &level("s0:c1,c5.c9,c700"), false, &none()).unwrap();
    assert!(matches!(&lease.key, LeaseKey::Static { level, .. } if level.to_string() == "s0:c1,c5.c9,c700"));
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(ledger.list().unwrap(), [lease]);
    let (_, warnings) = ledger.lease_static(&me("one"), &level("s0:c50"), false, &none()).unwrap();
    assert!(warnings[0].contains("one category"), "{warnings:?}");
    let mut at_rest = none();
    at_rest.add("u:object_r:t:s0:c60,c61".parse().unwrap(), Holder::File { path: "/srv/a.img".into() });
    let (_, warnings) = ledger.lease_static(&me("two"), &level("s0:c60,c61"), false, &at_rest).unwrap();
    assert!(warnings[0].contains("/srv/a.img"), "a file at rest is no holder, but told: {warnings:?}");
}

#[test]
fn svirt_16_a_group_shares_one_level_only_when_all_of_it_say_so() {
    let (_run, ledger) = ledger();
    let pod = level("s0:c1,c2");
    ledger.lease_static(&me("one"), &pod, true, &none()).unwrap();
    ledger.lease_static(&me("two"), &pod, true, &none()).unwrap();
    ledger.lease_static(&me("three"), &pod, true, &in_use(&["u:r:runner_t:s0:c1,c2"])).unwrap();
    for (name, other, shared) in [("alone", "s0:c1,c2", false), ("less", "s0:c1", true), ("more", "s0:c1.c3", true)] {
        let error = ledger.lease_static(&me(name), &level(other), shared, &none()).unwrap_err();
        assert!(matches!(error, LedgerError::Reserved { .. }), "{name}: {error}");
    }
    assert!(ledger.lease_pair(&me("a"), &window(0, 7), &none()).unwrap().0 != CategoryPair::try_from((1, 2)).unwrap());
}

#[test]
fn svirt_12_only_the_owner_releases() {
    let (_run, ledger) = ledger();
    let (_, lease) = ledger.lease_pair(&me("a"), &window(0, 1023), &none()).unwrap();
    assert!(matches!(ledger.release(&lease.key, &me("b")), Err(LedgerError::NotOwner { .. })));
    assert!(ledger.release(&lease.key, &me("a")).unwrap());
}

#[test]
fn svirt_11_a_lost_lease_is_taken_up_again_and_a_duplicate_names_both() {
    let (_run, ledger) = ledger();
    let key = LeaseKey::Pair(CategoryPair::try_from((4, 9)).unwrap());
    assert_eq!(ledger.readopt(&key, &me("a")).unwrap(), Readopted::Recreated);
    assert_eq!(ledger.readopt(&key, &me("a")).unwrap(), Readopted::Held);
    let said = ledger.readopt(&key, &me("b")).unwrap_err().to_string();
    assert!(said.contains("sandbox a") && said.contains("sandbox b"), "{said}");
    let around = LeaseKey::Static { sandbox: "c".into(), level: level("s0:c4,c9,c20"), shared: false };
    let said = ledger.readopt(&around, &me("c")).unwrap_err().to_string();
    assert!(said.contains("sandbox a") && said.contains("sandbox c") && said.contains("mcs/c4,c9"), "{said}");
    assert_eq!(ledger.list().unwrap().len(), 1, "nothing was changed");
    ledger.release(&key, &me("a")).unwrap();
    ledger.readopt(&key, &dead("gone")).unwrap();
    assert_eq!(ledger.readopt(&key, &me("b")).unwrap(), Readopted::TakenFrom(dead("gone")));
    assert_eq!(ledger.readopt(&LeaseKey::Uid(20_000), &me("b")).unwrap(), Readopted::Recreated);
    assert!(matches!(ledger.readopt(&LeaseKey::Uid(20_000), &me("c")), Err(LedgerError::Duplicate { .. })));
}

#[test]
fn svirt_11_leases_of_an_older_boot_or_of_a_reused_pid_are_dead() {
    let (_run, ledger) = ledger();
    let me = me("a");
    let reused = Owner { start: me.start + 1, ..me.clone() };
    for owner in [dead("old"), reused] {
        ledger.lease_pair(&owner, &window(0, 1023), &none()).unwrap();
    }
    ledger.lease_pair(&me, &window(0, 1023), &none()).unwrap();
    assert_eq!(ledger.drop_dead(|_| true).unwrap().len(), 2);
    assert_eq!(ledger.list().unwrap().len(), 1);
}

#[test]
fn svirt_12_dead_owners_go_only_after_their_objects_were_restored() {
    let (_run, ledger) = ledger();
    let (_, alive) = ledger.lease_pair(&me("alive"), &window(0, 1023), &none()).unwrap();
    ledger.lease_pair(&dead("gone"), &window(0, 1023), &none()).unwrap();
    ledger.lease_uid(&dead("gone"), DEFAULT_UIDS).unwrap();
    assert!(ledger.drop_dead(|_| false).unwrap().is_empty());
    let dropped = ledger.drop_dead(|l| l.owner.sandbox == "gone").unwrap();
    assert_eq!(dropped.len(), 2);
    assert_eq!(ledger.list().unwrap(), [alive]);
}

#[test]
fn svirt_11_what_a_killed_allocator_left_half_made_is_swept() {
    let (run, ledger) = ledger();
    let half = run.path().join("leases/tmp/1.2");
    std::fs::write(&half, "{").unwrap();
    assert!(ledger.list().unwrap().is_empty(), "it is no lease");
    ledger.drop_dead(|_| true).unwrap();
    assert!(!half.exists());
}

#[test]
fn svirt_11_a_forged_or_misnamed_lease_stops_the_ledger() {
    let (run, ledger) = ledger();
    let (pair, _) = ledger.lease_pair(&me("a"), &window(0, 1023), &none()).unwrap();
    let mcs = run.path().join("leases/mcs");
    std::fs::rename(mcs.join(pair.to_string()), mcs.join("c0,c1")).unwrap();
    assert!(ledger.list().is_err(), "its name is not its content");
    std::fs::rename(mcs.join("c0,c1"), mcs.join("c1,c1")).unwrap();
    assert!(ledger.list().is_err(), "no pair");
}

#[test]
fn uids_come_from_the_range_and_it_can_be_exhausted() {
    let (_run, ledger) = ledger();
    let range = UidRange { first: 20_000, count: 5 };
    let uids: HashSet<_> = (0..5).map(|_| ledger.lease_uid(&me("a"), range).unwrap().0).collect();
    assert_eq!(uids, (20_000..20_005).collect());
    assert!(matches!(ledger.lease_uid(&me("a"), range), Err(LedgerError::NoUid { leased: 5, .. })));
    for (first, count) in [(0, 10), (999, 1), (5000, 0), (u32::MAX, 1), (u32::MAX - 4, 10)] {
        assert!(matches!(ledger.lease_uid(&me("a"), UidRange { first, count }), Err(LedgerError::BadUids { .. })));
    }
}

#[test]
fn svirt_10_a_uid_that_a_process_has_is_not_leased() {
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can start a process with another uid");
        return;
    }
    let (_run, ledger) = ledger();
    let uid = 23_456;
    let mut other = std::process::Command::new("sleep").arg("60").uid(uid).spawn().unwrap();
    let range = UidRange { first: uid, count: 2 };
    let leased = ledger.lease_uid(&me("a"), range);
    let full = ledger.lease_uid(&me("a"), range);
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(leased.unwrap().0, uid + 1);
    assert!(matches!(full, Err(LedgerError::NoUid { leased: 1, .. })));
    assert_eq!(ledger.lease_uid(&me("a"), range).unwrap().0, uid, "free again");
}

#[test]
fn a_directory_open_to_others_or_a_symlink_is_refused() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let run = tempfile::tempdir().unwrap();
    std::fs::create_dir(run.path().join("leases")).unwrap();
    std::fs::set_permissions(run.path().join("leases"), std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(Ledger::open(run.path()), Err(LedgerError::Untrusted(_))));

    let run = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(elsewhere.path(), run.path().join("leases")).unwrap();
    assert!(Ledger::open(run.path()).is_err());
}
