//! docs/svirt.md answers 56 points, and each answer names a test that `make test` runs. A test that shows a point carries
//! its number: `svirt_07_a_pair_has_two_different_categories`, or `svirt_52: a reload is noticed` for a trial.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const POINTS: std::ops::RangeInclusive<u32> = 1..=56;

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Rust sources that hold tests of the tiers unit, kvm and testbed.
fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a directory of the checkout").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Names of tests in a source: functions marked `#[test]`, and literals that name a trial.
fn names(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut marked = false;
    for line in source.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("fn ").filter(|_| marked) {
            names.extend(rest.split(['(', '<']).next().map(str::to_owned));
        }
        // Attributes and comments may stand between the mark and the function.
        marked = line == "#[test]" || marked && (line.starts_with("#[") || line.starts_with("//"));
        let literals = line.split('"').skip(1).step_by(2);
        names.extend(literals.filter(|text| text.starts_with("svirt_")).map(str::to_owned));
    }
    names.retain(|name| name.starts_with("svirt_") && !numbers(name).is_empty());
    names
}

/// The numbers that a test's name carries: 9 and 10 of `svirt_09_10_levels_in_use`.
fn numbers(name: &str) -> Vec<u32> {
    let parts = name.trim_start_matches("svirt_").split(['_', ':', ' ']);
    parts.map_while(|part| part.parse().ok().filter(|_| part.len() == 2)).collect()
}

fn tests() -> BTreeMap<String, Vec<u32>> {
    let mut files = Vec::new();
    for dir in ["src", "tests/kvm", "tests/testbed"] {
        sources(&top().join(dir), &mut files);
    }
    let names = files.iter().flat_map(|file| names(&std::fs::read_to_string(file).expect("a source file")));
    names.map(|name| (name.clone(), numbers(&name))).collect()
}

/// Rows of the tables in docs/svirt.md: the numbers of the first cell, and the names in backticks of the others.
fn rows() -> Vec<(Vec<u32>, Vec<String>)> {
    let text = std::fs::read_to_string(top().join("docs/svirt.md")).expect("docs/svirt.md");
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let numbers: Vec<u32> = cells.next()?.split(", ").filter_map(|n| n.parse().ok()).collect();
        let named = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>());
        let tests = named
            .filter_map(|name| Some(name[name.find("svirt_")?..].trim_end_matches(['*', '…', ' ', '.']).to_owned()));
        let tests = tests.filter(|name| !self::numbers(name).is_empty()).collect();
        (!numbers.is_empty()).then_some((numbers, tests))
    };
    text.lines().filter_map(row).collect()
}

/// A name on the page may be cut short; a trial's name in the source may have its end filled in.
fn stands_for(name: &str, test: &str) -> bool {
    test.starts_with(name) || test.split_once('{').is_some_and(|(begin, _)| name.starts_with(begin))
}

#[test]
fn every_point_of_svirt_is_answered_with_a_test_that_exists() {
    let tests = tests();
    let mut answered = BTreeSet::new();
    let mut wrong = Vec::new();
    for (numbers, named) in rows() {
        for name in &named {
            if !tests.keys().any(|test| stands_for(name, test)) {
                wrong.push(format!("docs/svirt.md {numbers:?} names a test that does not exist: {name}"));
            }
        }
        for number in numbers {
            answered.insert(number);
            let shown = named.iter().any(|name| self::numbers(name).contains(&number));
            if !shown {
                wrong.push(format!("docs/svirt.md {number}: no test named after it"));
            }
        }
    }
    wrong.extend(POINTS.filter(|n| !answered.contains(n)).map(|n| format!("docs/svirt.md does not answer {n}")));
    let carried: BTreeSet<u32> = tests.values().flatten().copied().collect();
    wrong.extend(POINTS.filter(|n| !carried.contains(n)).map(|n| format!("no test is named svirt_{n:02}")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn names_and_numbers_are_read_as_written() {
    let source = "#[test]\nfn svirt_09_10_both() {}\nfn svirt_11_helper() {}\n    Trial::test(\"svirt_52: a reload is seen\", f),\n    \"svirt_image_t\"";
    assert_eq!(names(source), ["svirt_09_10_both", "svirt_52: a reload is seen"]);
    assert_eq!(numbers("svirt_09_10_both_12"), [9, 10]);
    assert_eq!(numbers("svirt_52: 53 reloads"), [52]);
    assert!(numbers("svirt_5_x").is_empty());
}
