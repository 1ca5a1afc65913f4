//! The labels that processes run with, whoever started them.
//!
//! Trust: `attr/current` is the kernel's word. Every thread is asked: a thread may have another label than its process
//! (a bounded transition by setcon). Called through `in_use`, and by the warden before "go".

use std::fs;
use std::io;

use crate::context::{CategorySet, Context, Level};
use crate::in_use::{Holder, InUse};

/// Counts in every thread of every process.
pub(crate) fn scan(in_use: &mut InUse) {
    let mut refused = 0_usize;
    for pid in pids("/proc") {
        let tasks = format!("/proc/{pid}/task");
        let mut last = Vec::new();
        for task in pids(&tasks) {
            match fs::read(format!("{tasks}/{task}/attr/current")) {
                // the threads of a process nearly always have one label
                Ok(raw) if raw != last => {
                    if has_categories(&raw) {
                        match Context::from_bytes(&raw) {
                            Ok(label) => in_use.add(label, Holder::Process { pid }),
                            Err(error) => in_use.warn(format!("the label of process {pid}: {error}")),
                        }
                    }
                    last = raw;
                }
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => refused += 1,
                // it has gone, or (EINVAL) no policy is loaded
                Ok(_) | Err(_) => {}
            }
        }
    }
    if refused > 0 {
        in_use.warn(format!("the labels of {refused} threads may not be read: their levels are not known"));
    }
}

/// A colon after the level's sensitivity: most of a host's processes have none, and need no parsing.
fn has_categories(raw: &[u8]) -> bool {
    raw.iter().filter(|b| **b == b':').count() > 3
}

/// Processes, beside those in `known`, whose level is in reach of `level`, leaving out the sessions whose clearance is
/// around the `window` it came from. The warden asks once more after its runner has the label: another manager, which
/// knows nothing of our ledger, may have chosen the same in between.
pub fn others_in_reach(level: impl Into<Level>, window: &CategorySet, known: &[u32]) -> Vec<(u32, Context)> {
    let wanted = level.into().categories;
    let mut found = Vec::new();
    for pid in pids("/proc").into_iter().filter(|pid| !known.contains(pid)) {
        let Ok(raw) = fs::read(format!("/proc/{pid}/attr/current")) else { continue };
        if !has_categories(&raw) {
            continue;
        }
        let Ok(context) = Context::from_bytes(&raw) else { continue };
        let Some(range) = context.range() else { continue };
        let set = range.high().categories;
        let clearance = set == CategorySet::ALL || (range.low() != range.high() && window.is_subset(&set));
        if !clearance && !set.is_empty() && set.comparable(&wanted) {
            found.push((pid, context));
        }
    }
    found
}

/// The name that a process gave itself; for people.
pub(crate) fn name_of(pid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().chars().filter(|c| !c.is_control()).collect())
}

fn pids(dir: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_without_categories_are_told_apart_without_parsing() {
        assert!(!has_categories(b"system_u:system_r:init_t:s0\0"));
        assert!(!has_categories(b"kernel"));
        assert!(has_categories(b"system_u:system_r:svirt_t:s0:c1,c2\0"));
        assert!(has_categories(b"u:r:unconfined_t:s0-s0:c0.c1023\0"));
        assert!(has_categories(b"u:r:t:s0:c1-s0:c1.c5\0"));
    }
}
