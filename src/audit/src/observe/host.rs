//! What the host is like: kernel, mitigations, memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use casemate_sys::facts::cgroup::Layout;
use casemate_sys::facts::{kernel, selinux};

use super::{Observer, Survey, together};
use crate::subject::{Host, Kind, Known, Subject};

/// Beside the VMs of this run directory, for the orphans.
#[derive(Debug, Default)]
pub struct Kept {
    /// Processes that a record of a living sandbox names.
    pub pids: BTreeSet<u32>,
    /// cgroup directories that a record names.
    pub cgroups: BTreeSet<String>,
    /// What is known already to be left: lost sandboxes, unreadable records.
    pub left: Vec<String>,
}

impl Observer {
    /// Read once.
    pub fn host_facts(&self) -> &Host {
        self.host.get_or_init(|| Host {
            kernel: kernel::release(),
            selinux: match selinux::selinux() {
                None => "disabled",
                Some(is) if is.enforcing => "enforcing",
                Some(_) => "permissive",
            }
            .into(),
            landlock_abi: kernel::landlock_abi(),
            cgroup: self.layout.seen().map_or("none", cgroup).into(),
            vulnerabilities: vulnerabilities(Path::new("/sys/devices/system/cpu/vulnerabilities")),
            smt: number("/sys/devices/system/cpu/smt/active").map(|active| active != 0),
            ksm: number("/sys/kernel/mm/ksm/run").map(|run| run == 1),
            swap: swap(&fs::read_to_string("/proc/swaps").unwrap_or_default()),
        })
    }

    /// The host itself: collisions of labels, and what nobody alive owns.
    pub fn host(&self, run_dir: &Path, kept: &Kept, survey: &Known<Survey>) -> Subject {
        let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let leaks = survey.clone().map(|survey| survey.leaks().collect());
        let leftovers = together([Known::Seen(kept.left.clone()), self.orphans(run_dir, kept), leaks]);
        Subject {
            kind: Kind::Host,
            name: if name.is_empty() { "host".into() } else { name },
            file: None,
            processes: Vec::new(),
            objects: Vec::new(),
            separation: Known::unseen("asked for each sandbox"),
            standing: Known::unseen("a host has none"),
            host: Known::Seen(self.host_facts().clone()),
            neighbours: survey.clone().map(|survey| survey.collisions().collect()),
            leftovers,
        }
    }
}

/// As the jailer chooses: v2 where its root has memory and pids, else v1.
fn cgroup(layout: &Layout) -> &'static str {
    let v2 = layout.v2.as_ref().map(|v2| ["memory", "pids"].iter().all(|n| v2.controllers.iter().any(|c| c == n)));
    match (v2, layout.v1.is_empty()) {
        (Some(true), _) | (Some(false), true) => "v2",
        (_, false) => "v1",
        (None, true) => "none",
    }
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn vulnerabilities(dir: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let one = |entry: fs::DirEntry| {
        let says = fs::read_to_string(entry.path()).ok()?;
        Some((entry.file_name().to_string_lossy().into_owned(), says.trim().to_owned()))
    };
    entries.filter_map(one).collect()
}

/// First column of /proc/swaps, below its head.
fn swap(text: &str) -> Vec<String> {
    text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_the_kernel_are_understood() {
        let text = "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0  partition 1 0 100\n/swap\\040file file 2 1 -2\n";
        assert_eq!(swap(text), ["/dev/zram0", "/swap\\040file"]);
        assert!(swap("").is_empty());
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("mds"), "Vulnerable\n").unwrap();
        assert_eq!(vulnerabilities(dir.path())["mds"], "Vulnerable");
        assert!(vulnerabilities(&dir.path().join("none")).is_empty());
    }

    #[test]
    fn this_host_has_facts() {
        let observer = Observer::new().unwrap();
        let host = observer.host_facts();
        assert!(!host.kernel.is_empty());
        assert!(["disabled", "permissive", "enforcing"].contains(&host.selinux.as_str()));
    }
}
