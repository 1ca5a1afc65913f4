//! Guest memory on huge pages: is there enough, the memfd, its label.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use casemate_plan::{Step, names};
use casemate_sys::memfd;

use crate::error::StepFailed;
use crate::start::Start;

const POOLS: &str = "/sys/kernel/mm/hugepages";

impl Start {
    /// The memfd is the runner's to map. Its pages come when it does, in the runner's cgroup.
    pub(crate) fn create_memory(&mut self, step: &Step, bytes: u64, page: u64) -> Result<(), StepFailed> {
        let pool = Path::new(POOLS).join(format!("hugepages-{}kB", page >> 10));
        enough(&pool, bytes, page).map_err(|why| StepFailed::at_because(step, why))?;
        let fd = memfd::huge(names::MEMORY, bytes, page).map_err(|e| StepFailed::at(step, e))?;
        if let Some(level) = self.level {
            let labelled = self.relabeler.label_memory(fd.as_fd(), Path::new("the guest memory"), level);
            labelled.map_err(|e| StepFailed::at(step, e))?;
        }
        self.fds.insert(names::MEMORY.into(), fd);
        Ok(())
    }
}

/// The pool may shrink before the runner maps the memory; then that fails, and says so. Here it is said what to set.
fn enough(pool: &Path, bytes: u64, page: u64) -> Result<(), String> {
    let size = if page >= 1 << 30 { "1G" } else { "2M" };
    let read = |name: &str| fs::read_to_string(pool.join(name)).ok()?.trim().parse::<u64>().ok();
    let (Some(all), Some(free), Some(reserved)) =
        (read("nr_hugepages"), read("free_hugepages"), read("resv_hugepages"))
    else {
        return Err(format!("this host has no huge pages of {size} ({} is missing)", pool.display()));
    };
    let (needed, usable) = (bytes / page, free.saturating_sub(reserved));
    if needed <= usable {
        return Ok(());
    }
    let total = all + needed - usable;
    let remedy = match size {
        "2M" => format!("sysctl vm.nr_hugepages={total}"),
        _ => format!("echo {total} > {}/nr_hugepages, or boot with hugepagesz=1G hugepages={total}", pool.display()),
    };
    Err(format!("{needed} huge pages of {size} are needed, {usable} of the host's {all} are free; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn svirt_48_a_pool_that_is_too_small_is_refused_with_the_setting() {
        let dir = tempfile::tempdir().unwrap();
        assert!(enough(dir.path(), 4 << 20, 2 << 20).unwrap_err().contains("no huge pages of 2M"));
        for (name, value) in [("nr_hugepages", "5"), ("free_hugepages", "4"), ("resv_hugepages", "2")] {
            fs::write(dir.path().join(name), format!("{value}\n")).unwrap();
        }
        assert_eq!(enough(dir.path(), 4 << 20, 2 << 20), Ok(()));
        let said = enough(dir.path(), 6 << 20, 2 << 20).unwrap_err();
        assert!(said.contains("3 huge pages of 2M are needed, 2 of") && said.contains("vm.nr_hugepages=6"), "{said}");
        assert!(enough(dir.path(), 3 << 30, 1 << 30).unwrap_err().contains("hugepagesz=1G hugepages=6"));
    }
}
