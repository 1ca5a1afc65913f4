//! /proc/PID/limits, mountinfo and environ.

use std::collections::{BTreeMap, BTreeSet};

use crate::subject::{Limit, Mount};

/// By name as in the file (`Max open files`); columns are 25, 20 and 20 wide (fs/proc/base.c, proc_pid_limits).
pub(super) fn limits(text: &str) -> Result<BTreeMap<String, Limit>, String> {
    let mut limits = BTreeMap::new();
    for line in text.lines().skip(1) {
        let bad = || format!("its limits have a line that is none: {line}");
        let (name, rest) = line.split_at_checked(25).ok_or_else(bad)?;
        let mut values = rest.split_whitespace().map(|value| match value {
            "unlimited" => Ok(None),
            number => number.parse().map(Some).map_err(|_| bad()),
        });
        let (soft, hard) = (values.next().ok_or_else(bad)??, values.next().ok_or_else(bad)??);
        limits.insert(name.trim().to_owned(), Limit { soft, hard });
    }
    if limits.is_empty() { Err("its limits are empty".into()) } else { Ok(limits) }
}

/// `id parent dev root point options [tags…] - type source super-options` (proc_pid_mountinfo(5)). Spaces and newlines in
/// a name are escaped by the kernel, and stay so.
pub(super) fn mounts(text: &str) -> Result<Vec<Mount>, String> {
    let mount = |line: &str| -> Option<Mount> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(4);
        let (point, options) = (left.next()?, left.next()?);
        let mut right = right.split(' ');
        let (kind, whole) = (right.next()?, right.nth(1)?);
        let mut options: BTreeSet<String> = options.split(',').map(str::to_owned).collect();
        // A file system that is read-only as a whole is so at every point. The kernel says that first (show_mountinfo in
        // fs/proc_namespace.c); what follows are options of the file system's own, whatever they are called.
        if whole.split(',').next() == Some("ro") && options.remove("rw") {
            options.insert("ro".into());
        }
        Some(Mount { point: point.to_owned(), kind: kind.to_owned(), options })
    };
    let all: Option<Vec<Mount>> = text.lines().map(mount).collect();
    all.ok_or_else(|| "its mount table has a line that is none".into())
}

/// Names alone: values may be secrets. What has no `=` is told by its first characters.
pub(super) fn environment(text: &str) -> Vec<String> {
    const LONGEST: usize = 64;
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().chars().take(LONGEST).collect();
    text.split('\0').filter(|entry| !entry.is_empty()).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_with_their_names() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max core file size        0                    unlimited            bytes     \n\
                    Max msgqueue size         819200               819200               bytes     \n";
        let limits = limits(text).unwrap();
        assert_eq!(limits["Max core file size"], Limit { soft: Some(0), hard: None });
        assert_eq!(limits["Max msgqueue size"], Limit { soft: Some(819_200), hard: Some(819_200) });
        assert!(super::limits("").is_err());
        assert!(super::limits("head\nshort").is_err());
    }

    #[test]
    fn mounts_keep_hostile_names_as_text() {
        let text = "1 0 0:1 / / rw,nosuid - tmpfs x ro,size=4k\n2 1 0:2 / /a\\040-\\040b ro shared:1 - ext4 /dev/x rw\n3 1 0:3 / /c rw - x x rw,ro";
        let mounts = mounts(text).unwrap();
        assert!(mounts[0].options.contains("ro") && !mounts[0].options.contains("rw"));
        assert_eq!((mounts[1].point.as_str(), mounts[1].kind.as_str()), ("/a\\040-\\040b", "ext4"));
        assert!(mounts[2].options.contains("rw"), "what a file system calls its own option makes it no less writable");
        assert!(super::mounts("nonsense").is_err());
        assert!(super::mounts("").unwrap().is_empty());
    }

    #[test]
    fn values_of_variables_stay_where_they_are() {
        let names = environment("TOKEN=secret=x\0PATH=/bin\0odd\0");
        assert_eq!(names, ["TOKEN", "PATH", "odd"]);
        assert_eq!(environment(&"x".repeat(9000))[0].len(), 64);
    }
}
