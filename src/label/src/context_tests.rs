use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn ctx(s: &str) -> Context {
    s.parse().unwrap()
}

#[test]
fn bad_contexts_are_refused() {
    let long = format!("u:r:{}", "t".repeat(5000));
    for bad in [
        "",
        "u",
        "u:r",
        "u:r:",
        ":r:t",
        "u:r:t:",
        "u:r:t:x0",
        "u:r:t:s",
        "u:r:t:s0:",
        "u:r:t:s0:c",
        "u:r:t:s0:c1024",
        "u:r:t:s0:c-1",
        "u:r:t:s0:c1,",
        "u:r:t:s0:c9.c5",
        "u:r:t:s0-",
        "u:r:t:s1-s0",
        "u:r:t:s0:c1-s0:c2",
        "u r:r:t",
        "u:r:t/../x",
        "u:r:t\0",
        "u:r:t:s0:c00001",
        "u:r:t:s0:c1:c2",
        "u:r:t:s0-s0-s0",
        long.as_str(),
    ] {
        assert!(bad.parse::<Context>().is_err(), "accepted {bad:?}");
    }
}

#[test]
fn svirt_01_03_every_spelling_of_a_level_is_one_value() {
    assert_eq!(ctx("u:r:t:s0:c2,c1"), ctx("u:r:t:s0:c1,c2"));
    assert_eq!(ctx("u:r:t:s0:c5,c6"), ctx("u:r:t:s0:c5.c6"));
    assert_eq!(ctx("u:r:t:s0-s0"), ctx("u:r:t:s0"));
    assert_ne!(ctx("u:r:t:s0:c1"), ctx("u:r:t:s0:c1,c2"));
    assert_ne!(ctx("u:r:t"), ctx("u:r:t:s0"));
}

#[test]
fn svirt_03_printing_is_canonical_and_is_what_the_kernel_prints() {
    for (given, printed) in [
        ("u:r:t:s0:c2,c1", "u:r:t:s0:c1,c2"),
        ("u:r:t:s0-s0:c0.c1023", "u:r:t:s0-s0:c0.c1023"),
        ("u:r:t:s0:c5,c6,c7,c1023", "u:r:t:s0:c5.c7,c1023"),
        ("u:r:t:s0:c5.c6", "u:r:t:s0:c5,c6"),
        ("u:r:t:s0-s0", "u:r:t:s0"),
    ] {
        assert_eq!(ctx(given).to_string(), printed);
    }
    assert_eq!(Context::from_bytes(b"u:r:t:s0\0").unwrap().to_string(), "u:r:t:s0");
    assert_eq!(Context::from_bytes(b"u:r:t:s0\n").unwrap().to_string(), "u:r:t:s0");
}

#[test]
fn svirt_07_a_pair_has_two_different_categories_in_order() {
    assert_eq!(CategoryPair::try_from((7, 7)), Err(ContextError::SameCategory(7)));
    let p = CategoryPair::try_from((900, 3)).unwrap();
    assert_eq!((p.low().number(), p.high().number()), (3, 900));
    assert_eq!(p.level().to_string(), "s0:c3,c900");
    assert!(CategoryPair::try_from((3, 1024)).is_err());
    assert!(serde_json::from_str::<CategoryPair>("[4,4]").is_err());
}

fn numbers() -> impl Strategy<Value = BTreeSet<u16>> {
    // A small universe as well as the whole one, so that subsets really occur.
    prop_oneof![
        prop::collection::btree_set(0u16..8, 0..8),
        prop::collection::btree_set(0u16..CATEGORIES, 0..40),
        (0u16..CATEGORIES, 0u16..CATEGORIES).prop_map(|(a, b)| (a.min(b)..=a.max(b)).collect()),
    ]
}

fn set(n: &BTreeSet<u16>) -> CategorySet {
    n.iter().map(|c| Category::new(*c).unwrap()).collect()
}

proptest! {
    #[test]
    fn svirt_03_set_algebra_agrees_with_btreeset(a in numbers(), b in numbers()) {
        let (sa, sb) = (set(&a), set(&b));
        prop_assert_eq!(sa.is_subset(&sb), a.is_subset(&b));
        prop_assert_eq!(sa.is_superset(&sb), a.is_superset(&b));
        prop_assert_eq!(sa == sb, a == b);
        prop_assert_eq!(sa.comparable(&sb), a.is_subset(&b) || b.is_subset(&a));
        prop_assert_eq!(sa.len(), a.len());
        prop_assert_eq!(sa.iter().map(Category::number).collect::<BTreeSet<_>>(), a);
    }

    #[test]
    fn a_printed_context_parses_to_itself(low in numbers(), extra in numbers(), sens in 0u16..16) {
        let lo = Level { sensitivity: 0, categories: set(&low) };
        let hi = Level { sensitivity: sens, categories: set(&low.union(&extra).copied().collect()) };
        let c = Context::new("u_u", "r_r", "t.t-x", Some(Range::new(lo, hi).unwrap())).unwrap();
        let text = c.to_string();
        let again: Context = text.parse().unwrap();
        prop_assert_eq!(&again, &c);
        prop_assert_eq!(again.to_string(), text);
    }

    #[test]
    fn two_different_pairs_are_never_comparable(a in 0u16..40, b in 0u16..40, c in 0u16..40, d in 0u16..40) {
        let (Ok(p), Ok(q)) = (CategoryPair::try_from((a, b)), CategoryPair::try_from((c, d))) else { return Ok(()); };
        prop_assert_eq!(p.set().comparable(&q.set()), p == q);
    }

    #[test]
    fn any_text_is_parsed_or_refused_without_a_panic(s in "\\PC*") {
        let _ = s.parse::<Context>();
    }

    #[test]
    fn text_near_a_context_never_panics(s in "[usr:tc0-9,.-]{0,60}") {
        let _ = s.parse::<Context>();
        let _ = s.parse::<Range>();
    }
}
