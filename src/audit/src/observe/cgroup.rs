//! cgroups of a process and what they limit, v1 and v2 (cgroups(7)).
//!
//! A limit of a directory holds for everything below it: ancestors that limit something are listed, too.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use casemate_sys::facts::cgroup::Layout;
use casemate_sys::path;
use casemate_sys::procfs::ProcessView;

use super::Observer;
use crate::subject::{CgroupOf, Known};

/// Files that hold a limit. Those of a controller that is not there do not exist.
const V2: [&str; 5] = ["memory.max", "memory.swap.max", "pids.max", "cpu.max", "io.max"];
const V1: [(&str, &str); 4] = [
    ("memory", "memory.limit_in_bytes"),
    ("memory", "memory.memsw.limit_in_bytes"),
    ("pids", "pids.max"),
    ("cpu", "cpu.cfs_quota_us"),
];
const HUGETLB: [&str; 8] = [
    "hugetlb.2MB.max",
    "hugetlb.1GB.max",
    "hugetlb.2MB.rsvd.max",
    "hugetlb.1GB.rsvd.max",
    "hugetlb.2MB.limit_in_bytes",
    "hugetlb.1GB.limit_in_bytes",
    "hugetlb.2MB.rsvd.limit_in_bytes",
    "hugetlb.1GB.rsvd.limit_in_bytes",
];
/// More than any path in a cgroup hierarchy is deep.
const DEEPEST: usize = 64;

impl Observer {
    /// Of every thread: on v1, and in threaded v2 cgroups, one thread may be where the others are not.
    pub(super) fn cgroups(&self, view: &ProcessView<'_>, tids: &[u32]) -> Known<Vec<CgroupOf>> {
        let layout = match &self.layout {
            Known::Seen(layout) => layout,
            Known::Unseen(why) => return Known::Unseen(why.clone()),
        };
        let mut memberships = BTreeSet::new();
        match view.read("cgroup") {
            Ok(text) => memberships.insert(text),
            Err(error) => return Known::Unseen(error.report()),
        };
        // A thread that ended since is in none.
        memberships.extend(tids.iter().filter_map(|tid| view.read(&format!("task/{tid}/cgroup")).ok()));
        let mut found: BTreeMap<PathBuf, BTreeMap<String, String>> = BTreeMap::new();
        for place in memberships.iter().flat_map(|text| places(text, layout)) {
            self.limits_of(&place, &mut found);
        }
        let of = |(path, limits): (PathBuf, _)| CgroupOf { path: path.display().to_string(), limits };
        Known::Seen(found.into_iter().map(of).collect())
    }

    /// The directory's, and those of its ancestors that limit something.
    fn limits_of(&self, place: &Place, found: &mut BTreeMap<PathBuf, BTreeMap<String, String>>) {
        let mut dir = Some(place.dir.as_path());
        while let Some(path) = dir {
            let limits = self.limits.borrow_mut().entry(path.to_owned()).or_insert_with(|| read(path)).clone();
            let itself = path == place.dir;
            if itself || limits.values().any(|value| is_limit(value)) {
                found.insert(path.to_owned(), limits);
            }
            dir = path.parent().filter(|_| path != place.mount);
        }
    }
}

/// Where a process is in one hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    mount: PathBuf,
    dir: PathBuf,
}

/// From the text of /proc/PID/cgroup: `id:controllers:path`. A path outside of our cgroup namespace (`/../x`) and a
/// hierarchy that is not mounted here are left out, which shows as a missing limit.
fn places(text: &str, layout: &Layout) -> Vec<Place> {
    let place = |line: &str| -> Option<Vec<Place>> {
        let mut fields = line.splitn(3, ':').skip(1);
        let (names, path) = (fields.next()?, fields.next()?);
        // A directory that was removed under its last thread.
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        let inner = Path::new(path.strip_prefix('/')?);
        let plain = inner.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if !plain || inner.components().count() > DEEPEST {
            return None;
        }
        // Joining an empty path would leave a slash behind.
        let dir = |mount: &PathBuf| if inner.as_os_str().is_empty() { mount.clone() } else { mount.join(inner) };
        let at = |mount: &PathBuf| Place { mount: mount.clone(), dir: dir(mount) };
        Some(match names {
            "" => layout.v2.iter().map(|unified| at(&unified.mount)).collect(),
            names => names.split(',').filter_map(|name| layout.v1.get(name)).map(at).collect(),
        })
    };
    text.lines().filter_map(place).flatten().collect()
}

/// The limit files of one directory, if it is a cgroup.
fn read(dir: &Path) -> BTreeMap<String, String> {
    let mut limits = BTreeMap::new();
    let Ok(fd) = path::open_dir(dir) else { return limits };
    let files: Vec<&str> = match path::fs_magic(&fd) {
        Ok(path::CGROUP2_MAGIC) => V2.into_iter().chain(HUGETLB).collect(),
        Ok(path::CGROUP_MAGIC) => V1.into_iter().map(|(_, file)| file).chain(HUGETLB).collect(),
        _ => return limits,
    };
    for file in files {
        if let Ok(bytes) = path::read_beneath(fd.as_fd(), file, 4096) {
            limits.insert(file.to_owned(), String::from_utf8_lossy(&bytes).trim().to_owned());
        }
    }
    limits
}

/// `max`, `max 100000`, -1 and v1's largest number of pages limit nothing.
pub(super) fn is_limit(value: &str) -> bool {
    const LARGEST: u64 = 1 << 62;
    let first = value.split_whitespace().next().unwrap_or_default();
    match first.parse::<u64>() {
        Ok(number) => number < LARGEST,
        Err(_) => !first.is_empty() && first != "max" && first != "-1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use casemate_sys::facts::cgroup::Unified;

    #[test]
    fn a_membership_leads_to_directories_of_this_host_alone() {
        let v1 = BTreeMap::from([("cpu".into(), "/c/cpu".into()), ("pids".into(), "/c/pids".into())]);
        let v2 = Some(Unified { mount: "/c/2".into(), controllers: vec![] });
        let layout = Layout { v1, v2 };
        let text = "4:cpu,cpuacct:/a b\n3:pids:/../x\n2:memory:/m\n1:name=systemd:/s\n0::/a/b (deleted)\nodd";
        let dirs: Vec<_> = places(text, &layout).into_iter().map(|place| place.dir).collect();
        assert_eq!(dirs, [PathBuf::from("/c/cpu/a b"), PathBuf::from("/c/2/a/b")]);
    }

    #[test]
    fn what_limits_nothing_is_told_apart() {
        for none in ["max", "max 100000", "-1", "9223372036854771712", ""] {
            assert!(!is_limit(none), "{none}");
        }
        for limit in ["0", "268435456", "150000 100000", "8:0 rbps=1"] {
            assert!(is_limit(limit), "{limit}");
        }
    }

    #[test]
    fn a_directory_that_is_no_cgroup_limits_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("memory.max"), "1").unwrap();
        assert!(read(dir.path()).is_empty());
    }
}
