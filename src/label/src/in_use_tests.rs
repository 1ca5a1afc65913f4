use super::*;
use crate::context::CategoryPair;

fn in_use(labels: &[&str]) -> InUse {
    let mut in_use = InUse::none();
    labels.iter().for_each(|l| in_use.add(l.parse().unwrap(), Holder::Process { pid: 1 }));
    in_use
}

fn pair(a: u16, b: u16) -> CategoryPair {
    CategoryPair::try_from((a, b)).unwrap()
}

fn occupied(in_use: &InUse, window: &CategorySet) -> Occupied {
    let mut taken = Occupied::default();
    in_use.occupy(window, &mut taken);
    taken
}

#[test]
fn svirt_09_10_levels_of_others_are_avoided_and_named() {
    let l = in_use(&["u:r:svirt_t:s0:c1,c2", "u:r:one_t:s0:c7", "u:r:wide_t:s0:c100.c200", "u:r:ranged_t:s0-s0:c8,c9"]);
    let taken = occupied(&l, &CategorySet::ALL);
    for (a, b) in [(1, 2), (7, 500), (3, 7), (100, 200), (150, 151), (8, 9)] {
        assert!(!taken.is_free(pair(a, b)), "c{a},c{b}");
        assert!(l.in_reach_of(&pair(a, b).set()).next().is_some());
    }
    for (a, b) in [(1, 3), (2, 3), (99, 100), (200, 201), (8, 10)] {
        assert!(taken.is_free(pair(a, b)), "c{a},c{b}");
    }
}

#[test]
fn svirt_09_unconfined_and_plain_processes_do_not_fill_the_host() {
    let l = in_use(&["u:r:unconfined_t:s0-s0:c0.c1023", "u:r:init_t:s0", "u:r:old_t"]);
    assert!(occupied(&l, &CategorySet::ALL).is_free(pair(1, 2)));
    assert_eq!(l.wide, 1);
}

#[test]
fn svirt_08_the_callers_own_clearance_does_not_fill_its_window() {
    let window: Context = "u:r:staff_t:s0-s0:c0.c511".parse().unwrap();
    let window = window.range().unwrap().high().categories;
    let session = in_use(&["u:r:staff_t:s0-s0:c0.c511"]);
    assert!(occupied(&session, &window).is_free(pair(1, 2)), "the session from whose range the pair comes");
    let guest = in_use(&["u:r:svirt_t:s0:c0.c511"]);
    assert!(!occupied(&guest, &window).is_free(pair(1, 2)), "one level, and no clearance");
    // whichever is seen first
    for labels in [
        ["u:r:svirt_t:s0:c0.c511", "u:r:staff_t:s0-s0:c0.c511"],
        ["u:r:staff_t:s0-s0:c0.c511", "u:r:svirt_t:s0:c0.c511"],
    ] {
        assert!(!occupied(&in_use(&labels), &window).is_free(pair(1, 2)), "{labels:?}");
    }
    let narrower = in_use(&["u:r:other_t:s0-s0:c0.c5"]);
    assert!(!occupied(&narrower, &window).is_free(pair(1, 2)), "somebody else's clearance");
}
