//! cgroups: a directory per sandbox with cpu, memory and pids limits, on v2 or on each v1 hierarchy.
//!
//! Life: `plan_paths` (for the journal) -> [`Cgroup::create`] (the jailer) -> the child is born in it
//! (v2: [`Cgroup::birthplace`] for clone3; v1: the child calls [`Cgroup::join`]) -> [`Cgroup::attest`]
//! -> [`kill`], [`remove`] (the warden, `repair`).
//!
//! v1 join: a single thread that writes "0" to `tasks` moves only itself, which the kernel does without
//! the cgroup_threadgroup_rwsem that makes every other way cost a grace period of 4 to 24 ms.
//! Mount points may lie behind symlinks of the administrator's; what counts is the file system found there.

use crate::confined::{Finding, held};
use crate::{Confined, Error, Result};
use casemate_plan::{CgroupFacts, CgroupPlan, HugetlbLimit, Layer};
use casemate_sys as sys;
use casemate_sys::path::{self, Mode, OFlags};
use casemate_sys::procfs::Proc;
use casemate_sys::rustix;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const LAYER: Layer = Layer::Cgroup;
const CPU_PERIOD_US: u64 = 100_000;
const WANTED: [&str; 3] = ["cpu", "memory", "pids"];

/// One directory of a sandbox, in one hierarchy.
#[derive(Debug)]
struct Place {
    dir: OwnedFd,
    path: PathBuf,
    /// None: v2. Some: the v1 controllers of this hierarchy that we limit.
    v1: Option<Vec<String>>,
    /// v1: opened by the parent for the child's one write.
    tasks: Option<OwnedFd>,
}

/// A sandbox's cgroup.
#[derive(Debug)]
pub struct Cgroup {
    places: Vec<Place>,
    /// `/parent/id`, as /proc/PID/cgroup ends.
    name: String,
}

/// Does the host offer everything that we limit?
pub fn probe(facts: &CgroupFacts) -> Vec<&'static str> {
    let has = |name: &str| match facts {
        CgroupFacts::V2 { controllers, .. } => controllers.iter().any(|controller| controller == name),
        CgroupFacts::V1 { controllers } => controllers.contains_key(name),
        CgroupFacts::None => false,
    };
    WANTED.into_iter().filter(|name| !has(name)).collect()
}

/// The controllers that a plan uses.
fn wanted(plan: &CgroupPlan) -> impl Iterator<Item = &'static str> {
    WANTED.into_iter().chain((!plan.hugetlb.is_empty()).then_some("hugetlb"))
}

/// Mount point and v1 controllers of each hierarchy to use; hierarchies that share a mount count once.
fn hierarchies(plan: &CgroupPlan) -> Vec<(PathBuf, Option<Vec<String>>)> {
    match &plan.layout {
        CgroupFacts::None => Vec::new(),
        CgroupFacts::V2 { mount, .. } => vec![(mount.clone(), None)],
        CgroupFacts::V1 { controllers } => {
            let mut found: Vec<(PathBuf, Vec<String>)> = Vec::new();
            for name in wanted(plan) {
                let Some(mount) = controllers.get(name) else { continue };
                match found.iter_mut().find(|(known, _)| known == mount) {
                    Some((_, names)) => names.push(name.to_owned()),
                    None => found.push((mount.clone(), vec![name.to_owned()])),
                }
            }
            found.into_iter().map(|(mount, names)| (mount, Some(names))).collect()
        }
    }
}

/// The directories that [`Cgroup::create`] will make, for the journal that is written before.
pub fn plan_paths(plan: &CgroupPlan, id: &str) -> Vec<PathBuf> {
    hierarchies(plan).into_iter().map(|(mount, _)| mount.join(&plan.parent).join(id)).collect()
}

impl Cgroup {
    /// Makes the directories, writes the limits and reads them back. A directory that exists already
    /// is refused. On failure what was made is removed again.
    pub fn create(plan: &CgroupPlan, id: &str) -> Result<Self> {
        path::single_component(id).map_err(Error::call(LAYER))?;
        let mut cgroup = Self { places: Vec::new(), name: format!("/{}/{id}", plan.parent) };
        let made = hierarchies(plan).into_iter().try_for_each(|(mount, v1)| {
            cgroup.places.push(Place::create(&mount, plan, id, v1).map_err(Error::call(LAYER))?);
            Ok(())
        });
        let limited = made.and_then(|()| {
            for place in &cgroup.places {
                place.limit(plan).map_err(Error::call(LAYER))?;
            }
            held(LAYER, cgroup.attest_limits(plan)).map(drop)
        });
        match limited {
            Ok(()) => Ok(cgroup),
            Err(error) => {
                // The first failure is the one to report; leftovers stay in the journal.
                let _ = remove(&cgroup.paths(), Duration::from_millis(100));
                Err(error)
            }
        }
    }

    /// The directories.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.places.iter().map(|place| place.path.clone()).collect()
    }

    /// v2: the directory for `CLONE_INTO_CGROUP`.
    pub fn birthplace(&self) -> Option<BorrowedFd<'_>> {
        self.places.iter().find(|place| place.v1.is_none()).map(|place| place.dir.as_fd())
    }

    /// In the child: moves the calling, single-threaded process into the v1 hierarchies (nothing to do
    /// on v2), and reads back where it is.
    pub fn join(&self, proc: &Proc) -> Result<Confined> {
        for tasks in self.places.iter().filter_map(|place| place.tasks.as_ref()) {
            let written = sys::Attempt::attempt(rustix::io::write(tasks, b"0"), "join the cgroup");
            written.map_err(Error::call(LAYER))?;
        }
        let text = proc.read("thread-self/cgroup").map_err(Error::call(LAYER))?;
        held(LAYER, self.attest(&text))
    }

    /// From the text of /proc/PID/cgroup: the process is in every directory of ours.
    pub fn attest(&self, text: &str) -> Vec<Finding> {
        let finding = |place: &Place| {
            let what = match &place.v1 {
                None => "cgroup v2".to_owned(),
                Some(names) => format!("cgroup {}", names.join(",")),
            };
            let seen = membership(text, place.v1.as_deref()).unwrap_or("no such hierarchy");
            // A cgroup namespace shows the path relative to its root: the end is what counts.
            Finding::judged(LAYER, what, self.name.clone(), seen, seen.ends_with(&self.name))
        };
        self.places.iter().map(finding).collect()
    }

    /// The limits as the kernel has them.
    pub fn attest_limits(&self, plan: &CgroupPlan) -> Vec<Finding> {
        let mut findings = Vec::new();
        for place in &self.places {
            for (file, want) in place.values(plan) {
                let what = format!("limit {file}");
                findings.push(match path::read_beneath(place.dir.as_fd(), file, 4096) {
                    Ok(bytes) => {
                        let seen = String::from_utf8_lossy(&bytes).trim().to_owned();
                        let ok = seen == want || same_pages(file, &want, &seen);
                        Finding::judged(LAYER, what, want, seen, ok)
                    }
                    Err(error) => Finding::unreadable(LAYER, what, &error),
                });
            }
        }
        findings
    }

    /// Kills every member. See [`kill`].
    pub fn kill(&self) -> Result<()> {
        kill(&self.paths())
    }

    /// Removes the directories. See [`remove`].
    pub fn remove(&self, patience: Duration) -> Result<()> {
        remove(&self.paths(), patience)
    }
}

/// Memory limits come back rounded down to pages.
fn same_pages(file: &str, want: &str, seen: &str) -> bool {
    let page = sys::facts::kernel::page_size() as u64;
    match (file.starts_with("memory."), want.parse::<u64>(), seen.parse::<u64>()) {
        (true, Ok(want), Ok(seen)) => seen <= want && want - seen < page,
        _ => false,
    }
}

/// The path in the line `id:controllers:path` of one hierarchy.
fn membership<'a>(text: &'a str, v1: Option<&[String]>) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (names, path) = (fields.next()?, fields.next()?);
        let ours = match v1 {
            None => names.is_empty(),
            Some(wanted) => wanted.iter().all(|want| names.split(',').any(|name| name == want)),
        };
        ours.then_some(path)
    })
}

fn check_hierarchy(dir: &OwnedFd, v1: bool, mount: &Path) -> sys::Result<()> {
    let want = if v1 { path::CGROUP_MAGIC } else { path::CGROUP2_MAGIC };
    if path::fs_magic(dir)? == want {
        return Ok(());
    }
    Err(sys::Error::because(format!("use {}", mount.display()), "it is not a cgroup file system of the planned kind"))
}

impl Place {
    fn create(mount: &Path, plan: &CgroupPlan, id: &str, v1: Option<Vec<String>>) -> sys::Result<Self> {
        let mut dir = path::open_dir(mount)?;
        check_hierarchy(&dir, v1.is_some(), mount)?;
        let parent = &plan.parent;
        for component in parent.split('/').filter(|component| !component.is_empty()) {
            if v1.is_none() {
                enable_controllers(dir.as_fd(), plan)?;
            }
            dir = shared_dir(dir.as_fd(), component)?;
        }
        if v1.is_none() {
            enable_controllers(dir.as_fd(), plan)?;
        }
        let dir = path::create_dir(dir.as_fd(), id, 0o755)?;
        let tasks = match v1 {
            None => None,
            Some(_) => Some(path::open_beneath(dir.as_fd(), Path::new("tasks"), OFlags::WRONLY, Mode::empty())?),
        };
        Ok(Self { dir, path: mount.join(parent).join(id), v1, tasks })
    }

    /// File and content of each limit, in this hierarchy.
    fn values(&self, plan: &CgroupPlan) -> Vec<(&'static str, String)> {
        let mut values = Vec::new();
        let has = |name: &str| self.v1.as_ref().is_none_or(|names| names.iter().any(|known| known == name));
        let v2 = self.v1.is_none();
        if let Some(percent) = plan.cpu_percent.filter(|_| has("cpu")) {
            let quota = u64::from(percent) * CPU_PERIOD_US / 100;
            values.push(if v2 {
                ("cpu.max", format!("{quota} {CPU_PERIOD_US}"))
            } else {
                ("cpu.cfs_quota_us", quota.to_string())
            });
        }
        if has("memory") {
            values.push((if v2 { "memory.max" } else { "memory.limit_in_bytes" }, plan.memory.to_string()));
        }
        if has("pids") {
            values.push(("pids.max", plan.pids.to_string()));
        }
        if has("hugetlb") {
            values.extend(plan.hugetlb.iter().flat_map(|limit| hugetlb_values(limit, v2)));
        }
        values
    }

    fn limit(&self, plan: &CgroupPlan) -> sys::Result<()> {
        for (file, value) in self.values(plan) {
            path::write_beneath(self.dir.as_fd(), file, value.as_bytes())?;
        }
        Ok(())
    }
}

/// Pages in use and, apart from them, pages reserved by a mapping (Documentation/admin-guide/cgroup-v1/hugetlb.rst).
fn hugetlb_values(limit: &HugetlbLimit, v2: bool) -> Vec<(&'static str, String)> {
    let files = match (limit.page, v2) {
        (0x20_0000, true) => ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"],
        (0x20_0000, false) => ["hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.rsvd.limit_in_bytes"],
        (_, true) => ["hugetlb.1GB.max", "hugetlb.1GB.rsvd.max"],
        (_, false) => ["hugetlb.1GB.limit_in_bytes", "hugetlb.1GB.rsvd.limit_in_bytes"],
    };
    files.map(|file| (file, limit.bytes.to_string())).to_vec()
}

/// Offers our controllers to the children of a v2 directory. Only those that are not offered yet are
/// written: the write takes the global lock.
fn enable_controllers(dir: BorrowedFd<'_>, plan: &CgroupPlan) -> sys::Result<()> {
    let offered = path::read_beneath(dir, "cgroup.subtree_control", 4096)?;
    let offered = String::from_utf8_lossy(&offered).into_owned();
    let missing: Vec<String> = wanted(plan)
        .filter(|name| !offered.split_whitespace().any(|known| known == *name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    path::write_beneath(dir, "cgroup.subtree_control", missing.join(" ").as_bytes())
}

/// The parent that all sandboxes share: made by whoever comes first, never removed.
fn shared_dir(dir: BorrowedFd<'_>, name: &str) -> sys::Result<OwnedFd> {
    match path::create_dir(dir, name, 0o755) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            path::open_beneath(dir, Path::new(name), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
        }
        other => other,
    }
}

/// Opens a cgroup directory by its full path; None when it is gone. Not a cgroup: refused.
fn open_existing(dir: &Path) -> sys::Result<Option<OwnedFd>> {
    match path::open_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(fd) => {
            let magic = path::fs_magic(&fd)?;
            if magic != path::CGROUP_MAGIC && magic != path::CGROUP2_MAGIC {
                return Err(sys::Error::because(format!("use {}", dir.display()), "it is not a cgroup"));
            }
            Ok(Some(fd))
        }
    }
}

/// Kills every process in these directories: `cgroup.kill` where there is one (v2, Linux 5.14), pidfds
/// otherwise. Returns when all were signalled; they may still be dying.
pub fn kill(paths: &[PathBuf]) -> Result<()> {
    for dir in paths {
        if let Some(fd) = open_existing(dir).map_err(Error::call(LAYER))? {
            kill_members(fd.as_fd()).map_err(Error::call(LAYER))?;
        }
    }
    Ok(())
}

fn kill_members(dir: BorrowedFd<'_>) -> sys::Result<()> {
    if path::write_beneath(dir, "cgroup.kill", b"1").is_ok() {
        return Ok(());
    }
    for pid in members(dir)? {
        // Open, look again, signal: a pid that was reused in between is no longer listed.
        let Ok(pidfd) = sys::process::pidfd_open(pid) else { continue };
        if members(dir)?.contains(&pid) {
            sys::process::pidfd_kill(pidfd.as_fd())?;
        }
    }
    Ok(())
}

fn members(dir: BorrowedFd<'_>) -> sys::Result<Vec<i32>> {
    let text = path::read_beneath(dir, "cgroup.procs", 1 << 20)?;
    Ok(String::from_utf8_lossy(&text).lines().filter_map(|line| line.parse().ok()).collect())
}

/// Removes the directories; one that is gone already is success. A directory stays busy until its last
/// task has left it for good, so it is tried again for as long as `patience`.
pub fn remove(paths: &[PathBuf], patience: Duration) -> Result<()> {
    let until = Instant::now() + patience;
    for dir in paths {
        remove_one(dir, until).map_err(Error::call(LAYER))?;
    }
    Ok(())
}

fn remove_one(dir: &Path, until: Instant) -> sys::Result<()> {
    let mut pause = Duration::from_micros(200);
    loop {
        if open_existing(dir)?.is_none() {
            return Ok(());
        }
        match std::fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(sys::process::errno::EBUSY) && Instant::now() < until => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
            Err(error) => return Err(sys::Error::new(format!("remove the cgroup {}", dir.display()), error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn v1() -> CgroupFacts {
        let mount = |name: &str| PathBuf::from(format!("/sys/fs/cgroup/{name}"));
        CgroupFacts::V1 {
            controllers: BTreeMap::from([
                ("cpu".into(), mount("cpu,memory")),
                ("memory".into(), mount("cpu,memory")),
                ("pids".into(), mount("pids")),
                ("blkio".into(), mount("blkio")),
            ]),
        }
    }

    fn plan(layout: CgroupFacts) -> CgroupPlan {
        CgroupPlan {
            layout,
            parent: "casemate".into(),
            cpu_percent: Some(150),
            memory: 1 << 20,
            pids: 9,
            hugetlb: Vec::new(),
        }
    }

    #[test]
    fn hierarchies_that_share_a_mount_get_one_directory() {
        let paths = plan_paths(&plan(v1()), "x");
        let want = ["/sys/fs/cgroup/cpu,memory/casemate/x", "/sys/fs/cgroup/pids/casemate/x"];
        assert_eq!(paths, want.map(PathBuf::from));
    }

    #[test]
    fn membership_is_read_per_hierarchy() {
        let text = "12:pids:/casemate/x\n4:cpu,cpuacct:/../casemate/x\n0::/user.slice";
        assert_eq!(membership(text, Some(&["pids".into()])), Some("/casemate/x"));
        assert_eq!(membership(text, Some(&["cpu".into()])), Some("/../casemate/x"));
        assert_eq!(membership(text, None), Some("/user.slice"));
        assert_eq!(membership(text, Some(&["memory".into()])), None);
    }

    #[test]
    fn what_is_not_a_cgroup_is_neither_created_in_nor_removed() {
        let dir = tempfile::tempdir().unwrap();
        let facts = CgroupFacts::V2 { mount: dir.path().into(), controllers: Vec::new() };
        assert!(Cgroup::create(&plan(facts), "x").is_err());
        assert!(remove(&[dir.path().into()], Duration::ZERO).is_err());
        assert!(dir.path().exists());
        remove(&[dir.path().join("gone")], Duration::ZERO).unwrap();
    }

    #[test]
    fn an_id_that_is_a_path_is_refused() {
        for id in ["", "..", "a/b"] {
            assert!(Cgroup::create(&plan(CgroupFacts::None), id).is_err());
        }
    }

    #[test]
    fn a_missing_controller_is_named() {
        assert_eq!(probe(&CgroupFacts::None), WANTED);
        assert!(probe(&v1()).is_empty());
    }
}
