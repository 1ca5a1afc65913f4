//! A directory of a trial's own below RUN, with the cgroup of the same name; and what killed trials left of theirs.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use casemate_confine::cgroup;
use casemate_label::Owner;
use casemate_plan::CgroupPlan;

use crate::error::StepFailed;

const STEP: &str = "make room for a trial";
/// Names of such directories: `selftest-PID-START`.
const KINDS: [&str; 2] = ["selftest", "probe"];

/// Removed when it is dropped, unless the process is killed: then the next trial removes it.
pub struct Scratch {
    pub dir: PathBuf,
    /// Its name, which the trial's cgroup has too.
    pub id: String,
    _socket: Option<UnixListener>,
}

impl Scratch {
    pub fn make(run: &Path, kind: &str) -> Result<Self, StepFailed> {
        let own = Owner::of_self("<trial>").map_err(|e| StepFailed::stage(STEP, e))?;
        let id = format!("{kind}-{}-{}", own.pid, own.start);
        let dir = run.join(&id);
        std::fs::create_dir(&dir).map_err(|e| StepFailed::because(STEP, format!("{}: {e}", dir.display())))?;
        Ok(Scratch { dir, id, _socket: None })
    }

    /// The place where Landlock's rights are tried (`confine::controls::Ground::place`). Open to everybody, so that no
    /// file mode says no instead; only root reaches it.
    pub fn place(&mut self, landlock_abi: u32) -> Result<String, StepFailed> {
        let place = self.dir.join("place");
        let laid_out = (|| {
            for dir in ["", "dir", "empty"] {
                std::fs::create_dir(place.join(dir))?;
                std::fs::set_permissions(place.join(dir), PermissionsExt::from_mode(0o777))?;
            }
            for file in ["file", "gone"] {
                std::fs::write(place.join(file), b"")?;
                std::fs::set_permissions(place.join(file), PermissionsExt::from_mode(0o666))?;
            }
            // No older one has a right to connect, and the path of a run directory may be too long for a socket's.
            (landlock_abi >= 9).then(|| UnixListener::bind(place.join("socket"))).transpose()
        })();
        self._socket = laid_out.map_err(|e: std::io::Error| StepFailed::stage(STEP, e))?;
        Ok(place.display().to_string())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("casemate-jailer: cannot remove {}: {error}", self.dir.display());
        }
    }
}

/// Removes what trials left that were killed. One that lives is left alone: a pid that was used again has another start
/// time, and a name that does not say whose it is counts as nobody's.
pub fn clear_stale(run: &Path, cgroups: Option<&CgroupPlan>) -> Result<(), StepFailed> {
    const STEP: &str = "clear what a killed trial left";
    let failed = |e: std::io::Error| StepFailed::stage(STEP, e);
    for entry in std::fs::read_dir(run).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !is_stale(&name) || !entry.file_type().map_err(failed)?.is_dir() {
            continue;
        }
        if let Some(plan) = cgroups {
            let left: Vec<PathBuf> = cgroup::plan_paths(plan, &name).into_iter().filter(|path| path.exists()).collect();
            cgroup::remove(&left, Duration::from_secs(5)).map_err(|e| StepFailed::stage(STEP, e))?;
        }
        match std::fs::remove_dir_all(entry.path()) {
            // Two trials at once clear the same.
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
    }
    Ok(())
}

fn is_stale(name: &str) -> bool {
    let mut parts = name.split('-');
    if !parts.next().is_some_and(|kind| KINDS.contains(&kind)) {
        return false;
    }
    let mut number = || parts.next().and_then(|text| text.parse::<u64>().ok());
    let (Some(pid), start) = (number().and_then(|pid| u32::try_from(pid).ok()), number()) else { return false };
    match Owner::of_process("<trial>", pid) {
        Ok(living) => start.is_some_and(|start| start != living.start),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_dead_left_is_removed() {
        let run = tempfile::tempdir().unwrap();
        let mut own = Scratch::make(run.path(), "selftest").unwrap();
        own.place(9).unwrap();
        let start = Owner::of_self("x").unwrap().start;
        let pid = std::process::id();
        let names = [
            format!("selftest-{pid}-{}", start + 1),
            format!("probe-{}-5", u32::MAX),
            "selftest-4294967295".into(),
            format!("selftest-{pid}"),
            "selftest-x".into(),
            "vms".into(),
            "probes-1-1".into(),
        ];
        for name in &names {
            std::fs::create_dir_all(run.path().join(name).join("place")).unwrap();
        }
        clear_stale(run.path(), None).unwrap();
        let left: Vec<bool> = names.iter().map(|name| run.path().join(name).exists()).collect();
        assert_eq!(left, [false, false, false, true, true, true, true]);
        assert!(own.dir.exists(), "a living one's");
        let dir = own.dir.clone();
        drop(own);
        assert!(!dir.exists());
    }
}
