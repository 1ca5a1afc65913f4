use std::collections::HashSet;
use std::sync::Arc;

use super::*;

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

fn none() -> LiveLevels {
    LiveLevels::none()
}

#[test]
fn a_released_pair_can_be_leased_again_and_a_held_one_cannot() {
    let (_run, ledger) = ledger();
    let small = window(0, 7); // 28 pairs
    let leases: Vec<_> = (0..28).map(|_| ledger.lease_pair(&me("a"), &small, &none()).unwrap()).collect();
    let pairs: HashSet<_> = leases.iter().map(|(p, _)| *p).collect();
    assert_eq!(pairs.len(), 28, "every pair of the window was found once");
    let full = ledger.lease_pair(&me("b"), &small, &none()).unwrap_err();
    assert!(matches!(&full, LedgerError::NoPair { ours: 28, .. }), "{full}");
    assert!(ledger.release(&leases[3].1.key, &me("a")).unwrap());
    assert!(!ledger.release(&leases[3].1.key, &me("a")).unwrap(), "gone already");
    assert_eq!(ledger.lease_pair(&me("b"), &small, &none()).unwrap().0, leases[3].0);
}

#[test]
fn a_narrow_window_is_refused() {
    let (_run, ledger) = ledger();
    let error = ledger.lease_pair(&me("a"), &window(0, 6), &none()).unwrap_err();
    assert!(matches!(error, LedgerError::NarrowWindow(_)));
}

#[test]
fn running_and_static_levels_are_kept_apart_from() {
    let (_run, ledger) = ledger();
    let mut live = none();
    // libvirt's guest, a one-category process, and a wide level over half the window
    for l in ["u:r:svirt_t:s0:c0,c1", "u:r:one_t:s0:c2", "u:r:wide_t:s0:c4.c11"] {
        live.add(&l.parse().unwrap());
    }
    ledger.lease_static(&me("fixed"), &"s0:c0,c3".parse().unwrap(), false, &none()).unwrap();
    let mut seen = HashSet::new();
    while let Ok((pair, _)) = ledger.lease_pair(&me("a"), &window(0, 11), &live) {
        assert!(!live.conflicts(&pair.set()), "{pair}");
        assert!(!pair.set().comparable(&window(2, 2)), "{pair} holds c2");
        assert_ne!(pair, CategoryPair::try_from((0, 3)).unwrap());
        seen.insert(pair);
    }
    // {0,1,3} with each other: 3, less (0,1) and (0,3); {0,1,3} x {4..11}: 24
    assert_eq!(seen.len(), 1 + 24);
}

#[test]
fn a_static_level_is_reserved_and_refused_where_it_is_taken() {
    let (_run, ledger) = ledger();
    let (pair, _) = ledger.lease_pair(&me("a"), &window(0, 1023), &none()).unwrap();
    for level in [pair.level().to_string(), format!("s0:{}", pair.low()), "s0:c0.c1023".into(), "s0".into()] {
        let error = ledger.lease_static(&me("s"), &level.parse().unwrap(), false, &none()).unwrap_err();
        assert!(matches!(error, LedgerError::Reserved { .. }), "{level}: {error}");
    }
    ledger.lease_static(&me("pod"), &pair.level(), true, &none()).expect("an explicit group may share");
    assert!(ledger.lease_static(&me("../x"), &pair.level(), true, &none()).is_err(), "a sandbox id is one name");
}

#[test]
fn only_the_owner_releases() {
    let (_run, ledger) = ledger();
    let (_, lease) = ledger.lease_pair(&me("a"), &window(0, 1023), &none()).unwrap();
    assert!(matches!(ledger.release(&lease.key, &me("b")), Err(LedgerError::NotOwner { .. })));
    let adopted = ledger.adopt(&lease.key, &me("a"), &dead("a")).unwrap();
    assert!(matches!(ledger.adopt(&lease.key, &me("a"), &me("a")), Err(LedgerError::NotOwner { .. })));
    assert!(ledger.release(&lease.key, &adopted.owner).unwrap());
}

#[test]
fn dead_owners_go_only_after_their_objects_were_restored() {
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
fn uids_come_from_the_range_and_it_can_be_exhausted() {
    let (_run, ledger) = ledger();
    let range = UidRange { first: 20_000, count: 5 };
    let uids: HashSet<_> = (0..5).map(|_| ledger.lease_uid(&me("a"), range).unwrap().0).collect();
    assert_eq!(uids, (20_000..20_005).collect());
    assert!(matches!(ledger.lease_uid(&me("a"), range), Err(LedgerError::NoUid { .. })));
    for (first, count) in [(0, 10), (999, 1), (5000, 0), (u32::MAX, 1), (u32::MAX - 4, 10)] {
        assert!(matches!(ledger.lease_uid(&me("a"), UidRange { first, count }), Err(LedgerError::BadUids { .. })));
    }
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

#[test]
fn random_numbers_cover_the_window_evenly() {
    let mut counts = [0u32; 10];
    (0..10_000).for_each(|_| counts[random_below(10) as usize] += 1);
    // 1000 expected, sigma 30: ten sigma
    assert!(counts.iter().all(|c| (700..1300).contains(c)), "{counts:?}");
}

#[test]
fn sixteen_allocators_at_once_never_collide() {
    let (run, _ledger) = ledger();
    let path = Arc::new(run.path().to_owned());
    let threads: Vec<_> = (0..16)
        .map(|t| {
            let path = Arc::clone(&path);
            std::thread::spawn(move || {
                let ledger = Ledger::open(&path).unwrap();
                let owner = me(&format!("t{t}"));
                let mut kept = Vec::new();
                // a crowded window of 40 categories, 780 pairs, of which 640 stay taken
                for i in 0..50 {
                    let (pair, lease) = ledger.lease_pair(&owner, &window(0, 39), &none()).unwrap();
                    let (uid, _) = ledger.lease_uid(&owner, UidRange { first: 1_000_000, count: 900 }).unwrap();
                    if i % 5 == 0 {
                        assert!(ledger.release(&lease.key, &owner).unwrap());
                    } else {
                        kept.push((pair, uid));
                    }
                }
                kept
            })
        })
        .collect();
    let kept: Vec<_> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
    assert_eq!(kept.len(), 640);
    assert_eq!(kept.iter().map(|k| k.0).collect::<HashSet<_>>().len(), 640, "a pair was leased twice");
    assert_eq!(kept.iter().map(|k| k.1).collect::<HashSet<_>>().len(), 640, "a uid was leased twice");
}
