//! The cgroup layout: v1, v2, or both (hybrid), and which controller lives where.

use crate::{Attempt, Result};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where cgroups are mounted. A path may go through symlinks of the administrator's making; whoever
/// opens it checks the file system behind it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// v1: controller name -> mount point. Named hierarchies are left out.
    pub v1: BTreeMap<String, PathBuf>,
    /// v2: mount point and the controllers that its root offers.
    pub v2: Option<Unified>,
}

/// A mounted v2 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unified {
    pub mount: PathBuf,
    pub controllers: Vec<String>,
}

impl Layout {
    /// Both kinds are mounted.
    pub fn is_hybrid(&self) -> bool {
        self.v2.is_some() && !self.v1.is_empty()
    }

    /// Can this controller be used, in whichever hierarchy?
    pub fn has(&self, controller: &str) -> bool {
        let in_v2 = |unified: &Unified| unified.controllers.iter().any(|name| name == controller);
        self.v1.contains_key(controller) || self.v2.as_ref().is_some_and(in_v2)
    }
}

/// Reads the layout from /proc/self/mountinfo.
pub fn layout() -> Result<Layout> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").attempt("read the mount table")?;
    let mut layout = parse(&text);
    if let Some(unified) = &mut layout.v2 {
        let path = unified.mount.join("cgroup.controllers");
        let names = std::fs::read_to_string(path).attempt("read the cgroup v2 controllers")?;
        unified.controllers = names.split_whitespace().map(str::to_owned).collect();
    }
    Ok(layout)
}

/// mountinfo: `id parent dev root mountpoint options [tags…] - fstype source super-options`.
fn parse(mountinfo: &str) -> Layout {
    let mut layout = Layout::default();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut right = right.split(' ');
        let (kind, _source, options) = (right.next(), right.next(), right.next());
        let Some(mount) = left.split(' ').nth(4).map(unescape) else { continue };
        match kind {
            // A later mount at the same place hides an earlier one: the last wins.
            Some("cgroup2") => {
                layout.v2 = Some(Unified { mount, controllers: Vec::new() });
            }
            Some("cgroup") => {
                let options = options.unwrap_or_default().split(',');
                for name in options.filter(|option| CONTROLLERS.contains(option)) {
                    layout.v1.insert(name.to_owned(), mount.clone());
                }
            }
            _ => {}
        }
    }
    layout
}

/// The v1 controllers (other super options are flags such as `rw` and `name=systemd`).
const CONTROLLERS: [&str; 14] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "pids",
    "freezer",
    "devices",
    "blkio",
    "net_cls",
    "net_prio",
    "perf_event",
    "hugetlb",
    "rdma",
    "misc",
];

/// Undoes the octal escapes of mountinfo (space, tab, newline, backslash).
fn unescape(field: &str) -> PathBuf {
    let mut out = field.to_owned();
    for (code, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        out = out.replace(code, character);
    }
    PathBuf::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu\\040x rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/systemd rw,relatime shared:9 - cgroup cgroup rw,name=systemd
33 30 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate";

    #[test]
    fn a_hybrid_layout_is_read() {
        let layout = parse(HYBRID);
        assert!(layout.is_hybrid());
        assert_eq!(layout.v1.keys().collect::<Vec<_>>(), ["cpu", "cpuacct"]);
        assert_eq!(layout.v1.get("cpu").unwrap(), &PathBuf::from("/sys/fs/cgroup/cpu x"));
        assert_eq!(layout.v2.unwrap().mount, PathBuf::from("/sys/fs/cgroup/unified"));
    }

    #[test]
    fn nothing_mounted_is_an_empty_layout() {
        let layout = parse("1 0 0:1 / / rw - ext4 /dev/vda rw");
        assert_eq!(layout, Layout::default());
        assert!(!layout.has("cpu"));
    }

    #[test]
    fn this_host_has_some_layout() {
        layout().unwrap();
    }
}
