//! The levels that running processes hold, whoever started them.
//!
//! Trust: reads `attr/current` of every process; text from the kernel. Other managers keep
//! their tables to themselves (libvirt, go-selinux), so what runs is the only common truth.
//! Called by the jailer before `Ledger::lease_pair`, and again by the warden before "go".

use std::fs;

use crate::context::{CategorySet, Context, Level};

/// Category sets of live processes.
#[derive(Debug, Clone, Default)]
pub struct LiveLevels {
    sets: Vec<CategorySet>,
    /// Processes whose high level holds every category. Nothing can be apart from them by
    /// categories; on a sound policy they are trusted and not MCS-constrained.
    pub wide: usize,
}

impl LiveLevels {
    /// No process has a label: SELinux is off.
    pub fn none() -> Self {
        Self::default()
    }

    /// Reads every thread of every process. One that cannot be read has gone.
    pub fn scan() -> Self {
        let mut live = Self::default();
        for process in numeric_entries("/proc") {
            let tasks = format!("/proc/{process}/task");
            for task in numeric_entries(&tasks) {
                let Ok(raw) = fs::read(format!("{tasks}/{task}/attr/current")) else { continue };
                if let Ok(context) = Context::from_bytes(&raw) {
                    live.add(&context);
                }
            }
        }
        live
    }

    /// Counts a label in, from a process, an object or a configuration.
    pub fn add(&mut self, context: &Context) {
        // dominance looks at the high level; one without categories reaches no private object
        let Some(range) = context.range() else { return };
        let set = range.high().categories;
        if set == CategorySet::ALL {
            self.wide += 1;
        } else if !set.is_empty() && !self.sets.contains(&set) {
            self.sets.push(set);
        }
    }

    /// True when `set` is equal to, within or around a level in use.
    pub fn conflicts(&self, set: &CategorySet) -> bool {
        self.sets.iter().any(|s| s.comparable(set))
    }

    /// Processes, beside those in `known`, whose level is in reach of `level`. The warden
    /// asks once more after its runner has the label: another manager, which knows nothing
    /// of our ledger, may have chosen the same pair in between.
    pub fn others_in_reach(level: impl Into<Level>, known: &[u32]) -> Vec<(u32, Context)> {
        let wanted = level.into().categories;
        let mut found = Vec::new();
        for process in numeric_entries("/proc") {
            let Some(pid) = process.parse().ok().filter(|p| !known.contains(p)) else { continue };
            let Ok(raw) = fs::read(format!("/proc/{process}/attr/current")) else { continue };
            let Ok(context) = Context::from_bytes(&raw) else { continue };
            let Some(range) = context.range() else { continue };
            let set = range.high().categories;
            if set != CategorySet::ALL && !set.is_empty() && set.comparable(&wanted) {
                found.push((pid, context));
            }
        }
        found
    }
}

fn numeric_entries(dir: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|n| n.bytes().all(|b| b.is_ascii_digit()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::CategoryPair;

    fn live(labels: &[&str]) -> LiveLevels {
        let mut live = LiveLevels::none();
        labels.iter().for_each(|l| live.add(&l.parse().unwrap()));
        live
    }

    fn pair(a: u16, b: u16) -> CategorySet {
        CategoryPair::try_from((a, b)).unwrap().set()
    }

    #[test]
    fn equal_subset_and_superset_conflict_and_nothing_else_does() {
        let l =
            live(&["u:r:svirt_t:s0:c1,c2", "u:r:one_t:s0:c7", "u:r:wide_t:s0:c100.c200", "u:r:ranged_t:s0-s0:c8,c9"]);
        for taken in [(1, 2), (7, 500), (3, 7), (100, 200), (150, 151), (8, 9)] {
            assert!(l.conflicts(&pair(taken.0, taken.1)), "{taken:?}");
        }
        for free in [(1, 3), (2, 3), (99, 100), (200, 201), (8, 10)] {
            assert!(!l.conflicts(&pair(free.0, free.1)), "{free:?}");
        }
    }

    #[test]
    fn unconfined_and_plain_processes_do_not_fill_the_host() {
        let l = live(&["u:r:unconfined_t:s0-s0:c0.c1023", "u:r:init_t:s0", "u:r:old_t"]);
        assert!(!l.conflicts(&pair(1, 2)));
        assert_eq!(l.wide, 1);
    }
}
