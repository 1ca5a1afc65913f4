//! Processes and cgroups of Casemate's that no record names.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use casemate_sys::path;
use casemate_sys::rustix::param::clock_ticks_per_second;

use super::Observer;
use super::host::Kept;
use crate::subject::Known;

/// A start takes milliseconds: what is younger may have no record yet.
const YOUNG: Duration = Duration::from_secs(30);
/// Where sandboxes' cgroups are, unless the host's settings say otherwise; then the records tell.
const PARENT: &str = "casemate";

impl Observer {
    /// One sentence each. Other run directories' sandboxes are theirs: a warden says on its command line which is its own.
    pub(super) fn orphans(&self, run_dir: &Path, kept: &Kept) -> Known<Vec<String>> {
        let pids = match self.proc.list(".") {
            Ok(names) => names.iter().filter_map(|name| name.parse().ok()).collect::<Vec<u32>>(),
            Err(error) => return Known::Unseen(error.report()),
        };
        let mut left: Vec<String> = pids
            .into_iter()
            .filter(|pid| !kept.pids.contains(pid))
            .filter_map(|pid| self.orphan(pid, run_dir))
            .collect();
        left.extend(self.empty_cgroups(kept));
        Known::Seen(left)
    }

    /// By its program, not by its name, which any process may choose.
    fn orphan(&self, pid: u32, run_dir: &Path) -> Option<String> {
        let program = self.program(pid)?;
        let stranded = match program.as_str() {
            "casemate-jailer" => self.serves(pid, run_dir) && self.is_old(pid),
            // A runner's parent is its warden, which is its record's owner; a runner without one outlived it.
            "casemate-runner" => {
                let parent = self.parent(pid)?;
                self.program(parent).as_deref() != Some("casemate-jailer") && self.is_old(pid)
            }
            _ => false,
        };
        stranded.then(|| format!("process {pid} ({program}) runs, and no record of a living sandbox names it"))
    }

    /// Base name of the executable; `None` for those that may not be looked at or have ended.
    fn program(&self, pid: u32) -> Option<String> {
        let exe = self.proc.read_link(&format!("{pid}/exe")).ok()?;
        let name = Path::new(exe.strip_suffix(" (deleted)").unwrap_or(&exe)).file_name()?.to_str()?.to_owned();
        Some(name)
    }

    fn parent(&self, pid: u32) -> Option<u32> {
        super::status::Status::new(&self.proc.read(&format!("{pid}/status")).ok()?).parent()
    }

    /// `casemate-jailer run --run-dir DIR …`: the verb that stays as a warden.
    fn serves(&self, pid: u32, run_dir: &Path) -> bool {
        let line = self.proc.read(&format!("{pid}/cmdline")).unwrap_or_default();
        let mut arguments = line.split('\0').skip(1);
        arguments.next() == Some("run") && arguments.any(|argument| Path::new(argument) == run_dir)
    }

    fn is_old(&self, pid: u32) -> bool {
        let Some(start) = i32::try_from(pid).ok().and_then(|pid| self.proc.start_of(pid).ok()) else { return false };
        let up = self.proc.read("uptime").ok().and_then(|text| text.split('.').next()?.parse::<u64>().ok());
        up.is_some_and(|up| up.saturating_sub(start.ticks / clock_ticks_per_second()) > YOUNG.as_secs())
    }

    /// Directories beside those of the records that hold nobody: one with processes in it is told by its processes.
    fn empty_cgroups(&self, kept: &Kept) -> Vec<String> {
        let known = |path: &PathBuf| kept.cgroups.iter().any(|cgroup| Path::new(cgroup) == path);
        let mut left = Vec::new();
        for parent in self.cgroup_parents(kept) {
            let inner = fs::read_dir(&parent).into_iter().flatten().flatten();
            let dirs =
                inner.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path());
            let idle = dirs.filter(|dir| !known(dir) && is_idle(dir));
            let names = idle.filter_map(|dir| Some(dir.file_name()?.to_string_lossy().into_owned())).collect();
            left.extend(told(&parent, names));
        }
        left
    }

    fn cgroup_parents(&self, kept: &Kept) -> BTreeSet<PathBuf> {
        let recorded = kept.cgroups.iter().filter_map(|cgroup| Path::new(cgroup).parent()).map(Path::to_owned);
        let mut parents: BTreeSet<PathBuf> = recorded.collect();
        if let Known::Seen(layout) = &self.layout {
            let mounts = layout.v1.values().chain(layout.v2.iter().map(|v2| &v2.mount));
            parents.extend(mounts.map(|mount| mount.join(PARENT)));
        }
        let is_cgroup = |dir: &PathBuf| {
            let magic = path::open_dir(dir).and_then(path::fs_magic);
            matches!(magic, Ok(path::CGROUP_MAGIC | path::CGROUP2_MAGIC))
        };
        parents.into_iter().filter(is_cgroup).collect()
    }
}

/// One sentence for all of a parent: a crowd that died leaves hundreds.
fn told(parent: &Path, mut names: Vec<String>) -> Option<String> {
    const NAMED: usize = 4;
    names.sort();
    let which = match names.len() {
        0 => return None,
        1..=NAMED => names.join(", "),
        many => format!("{} and {} more", names[..NAMED].join(", "), many - NAMED),
    };
    Some(format!("empty cgroups below {} that no record names (what to do: rmdir them): {which}", parent.display()))
}

fn is_idle(dir: &Path) -> bool {
    let made = fs::metadata(dir).and_then(|is| is.modified()).ok();
    let old = made.and_then(|made| SystemTime::now().duration_since(made).ok()).is_some_and(|age| age > YOUNG);
    old && fs::read_to_string(dir.join("cgroup.procs")).is_ok_and(|procs| procs.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_of_empty_cgroups_is_one_sentence() {
        let names = |count: usize| (0..count).rev().map(|n| format!("vm{n}")).collect::<Vec<_>>();
        let parent = Path::new("/sys/fs/cgroup/casemate");
        assert_eq!(told(parent, names(0)), None);
        assert!(
            told(parent, names(2))
                .unwrap()
                .ends_with("/casemate that no record names (what to do: rmdir them): vm0, vm1")
        );
        assert!(told(parent, names(300)).unwrap().ends_with("vm0, vm1, vm10, vm100 and 296 more"));
    }
}
