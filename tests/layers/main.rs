//! The house plan, held: who may link whom (docs/processes.md, DESIGN section 4), which crates may hold `unsafe`,
//! and how large the trusted binaries' dependency trees may be.

mod svirt;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Rooms by floor; a room may use rooms of lower floors only. A bin may use every room that is not forbidden to it.
const FLOORS: &[(&str, u8)] = &[
    ("casemate-spec", 0),
    ("casemate-sys", 0),
    ("casemate-visible", 0),
    ("casemate-filters", 1),
    ("casemate-plan", 1),
    ("casemate-wire", 1),
    ("casemate-storage", 1),
    ("casemate-agent-protocol", 1),
    ("casemate-devices", 2),
    ("casemate-evidence", 2),
    ("casemate-client", 3),
    ("casemate-confine", 3),
    ("casemate-label", 3),
    ("casemate-vm", 3),
    ("casemate-image", 3),
    ("casemate-audit", 3),
    ("casemate", 4),
    ("casemate-jailer", 4),
    ("casemate-runner", 4),
    ("casemate-agent", 4),
    ("casemate-probe", 4),
    ("casemate-benches", 5),
];

/// What a crate must never link, directly or not.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("casemate-devices", &["casemate-vm", "kvm-ioctls", "casemate-sys"]),
    ("casemate-vm", &["casemate-devices"]),
    (
        "casemate-runner",
        &["casemate-label", "clap", "selinux", "selinux-sys", "casemate-client", "casemate-image", "toml"],
    ),
    ("casemate-agent", &["casemate-label", "clap", "selinux", "casemate-client", "casemate-spec", "casemate-confine"]),
    ("casemate-probe", &["casemate-label", "clap", "selinux", "casemate-client"]),
    ("casemate", &["casemate-confine", "casemate-label", "casemate-vm", "selinux"]),
    ("casemate-client", &["casemate-confine", "casemate-label", "casemate-vm", "selinux"]),
];

/// The only crates with `unsafe` in them; every other one forbids it at its root.
const UNSAFE: &[&str] = &["casemate-sys", "casemate-vm", "casemate-audit"];

/// Most packages in a trusted binary's tree, itself and our rooms included, build-time ones not (docs/dependencies.md).
const BUDGET: &[(&str, usize)] = &[("casemate-runner", 42), ("casemate-jailer", 51), ("casemate-agent", 25)];

fn metadata() -> Metadata {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let options = ["--locked".to_owned(), "--filter-platform".to_owned(), "x86_64-unknown-linux-gnu".to_owned()];
    MetadataCommand::new().manifest_path(manifest).other_options(options.to_vec()).exec().expect("cargo metadata")
}

/// Names of all packages that a member links at run time, itself included; proc-macros, build and test dependencies
/// left out, with the features that a build of this member alone has (`cargo metadata` unites those of all members).
fn linked(root: &str) -> BTreeSet<String> {
    let arguments = ["tree", "--locked", "-e", "normal,no-proc-macro", "--prefix", "none", "-f", "{p}", "-p", root];
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let mut cargo = Command::new(env!("CARGO"));
    let output =
        cargo.args(arguments).args(["--target", "x86_64-unknown-linux-gnu", "--manifest-path", manifest]).output();
    let output = output.expect("cargo tree");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().filter_map(|line| line.split(' ').next()).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[test]
fn dependencies_point_downwards() {
    let metadata = metadata();
    let floors: BTreeMap<&str, u8> = FLOORS.iter().copied().collect();
    for package in metadata.workspace_packages().iter().filter(|p| p.name.as_str() != "casemate-tests") {
        let floor = *floors.get(package.name.as_str()).unwrap_or_else(|| panic!("{} has no floor", package.name));
        for dependency in package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal) {
            if let Some(below) = floors.get(dependency.name.as_str()) {
                assert!(*below < floor, "{} (floor {floor}) uses {} (floor {below})", package.name, dependency.name);
            }
        }
    }
}

#[test]
fn forbidden_links_are_absent() {
    for (package, forbidden) in FORBIDDEN {
        let linked = linked(package);
        for name in *forbidden {
            assert!(!linked.contains(*name), "{package} links {name}");
        }
    }
}

#[test]
fn trusted_trees_stay_within_their_budget() {
    for (package, budget) in BUDGET {
        let linked = linked(package);
        assert!(
            linked.len() <= *budget,
            "{package} links {} packages, its budget is {budget}: {linked:?}",
            linked.len()
        );
    }
}

#[test]
fn unsafe_is_forbidden_where_it_has_no_place() {
    for package in metadata().workspace_packages().iter().filter(|p| p.name.as_str() != "casemate-tests") {
        let source = package.manifest_path.parent().expect("a folder").join("src");
        let may = UNSAFE.contains(&package.name.as_str());
        for root in ["lib.rs", "main.rs"].map(|f| source.join(f)).iter().filter(|p| p.exists()) {
            let text = std::fs::read_to_string(root).expect("a crate root");
            assert!(may || text.contains("#![forbid(unsafe_code)]"), "{root} does not forbid unsafe code");
        }
    }
}

#[test]
fn every_direct_dependency_has_its_reason() {
    let manifest = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/dependencies.md"));
    let page = std::fs::read_to_string(manifest).expect("docs/dependencies.md");
    let first_column = |line: &str| line.strip_prefix("| ").and_then(|l| l.split(" |").next()).map(str::to_owned);
    let names = |cell: String| cell.split(", ").map(str::to_owned).collect::<Vec<_>>();
    let reasons: BTreeSet<String> = page.lines().filter_map(first_column).flat_map(names).collect();
    let mut missing = BTreeSet::new();
    for package in metadata().workspace_packages() {
        for dependency in package.dependencies.iter().filter(|d| !d.name.starts_with("casemate")) {
            if !reasons.contains(&dependency.name) {
                missing.insert(dependency.name.clone());
            }
        }
    }
    assert!(missing.is_empty(), "docs/dependencies.md lacks: {missing:?}");
}
