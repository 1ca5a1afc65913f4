//! What is kept for a while of failed starts and of removed sandboxes: `casemate why` tells by it whose a denial was.
//!
//! Trust: `RUN/past`, root's alone. Bounded: the oldest go. No start and no end fails for want of it.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use casemate_sys::path::{self, Mode, OFlags};
use casemate_wire::record::{Ended, FailedStart, Past, SandboxRecord};
use rustix::fs::AtFlags;

use crate::clock;
use crate::error::StepFailed;
use crate::store::{EXIT, RunDir, SandboxDir};

const DIR: &str = "past";
/// Of both kinds together.
const KEPT: usize = 256;
/// Characters of an error; a console's tail is in none of them.
const MAX_TEXT: usize = 2000;
const STAGE: &str = "keep what is past";

/// What could not be kept is said, and nothing else comes of it.
pub fn told(kept: Result<(), StepFailed>) {
    if let Err(failed) = kept {
        eprintln!("casemate-jailer: {failed}");
    }
}

/// A start that failed. `name` may be a name that nobody got.
pub fn failed(run: &RunDir, name: &str, failed: &StepFailed) -> Result<(), StepFailed> {
    let cut = |text: &str| text.lines().next().unwrap_or_default().chars().take(MAX_TEXT).collect::<String>();
    keep(
        run,
        &Past::Failed(FailedStart {
            at: clock::now(),
            name: name.into(),
            pid: std::process::id(),
            step: cut(&failed.step),
            layer: failed.layer.to_string(),
            error: cut(&failed.error),
        }),
    )
}

/// A sandbox whose record is about to be removed.
pub fn ended(run: &RunDir, dir: &SandboxDir, record: &SandboxRecord) -> Result<(), StepFailed> {
    let SandboxRecord { name, uid, label, warden, runner, created, .. } = record.clone();
    let ended = dir.written_at(EXIT).unwrap_or_else(clock::now);
    keep(run, &Past::Ended(Ended { name, uid, label, warden, runner, created, ended }))
}

fn keep(run: &RunDir, past: &Past) -> Result<(), StepFailed> {
    let stage = |e: rustix::io::Errno| StepFailed::stage(STAGE, std::io::Error::from(e));
    let failed = |e: casemate_sys::Error| StepFailed::stage(STAGE, e);
    match rustix::fs::mkdirat(run.root(), DIR, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(stage(error)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let dir = path::open_beneath(run.root(), Path::new(DIR), flags, Mode::empty()).map_err(failed)?;
    let json = serde_json::to_vec(past).map_err(|e| StepFailed::stage(STAGE, e))?;
    // Names sort by time; two of one process in one nanosecond there are not.
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos());
    let name = format!("{now:024}-{}.json", std::process::id());
    let new = format!(".{name}");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let fd = path::open_beneath(dir.as_fd(), Path::new(&new), flags, Mode::from_raw_mode(0o600)).map_err(failed)?;
    std::fs::File::from(fd).write_all(&json).map_err(|e| StepFailed::stage(STAGE, e))?;
    rustix::fs::renameat(&dir, new.as_str(), &dir, name.as_str()).map_err(stage)?;
    drop_oldest(&dir).map_err(stage)
}

fn drop_oldest(dir: &OwnedFd) -> rustix::io::Result<()> {
    let mut names: Vec<String> = rustix::fs::Dir::read_from(dir)?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str().ok()?.to_owned()))
        .filter(|name| name.ends_with(".json"))
        .collect();
    // One that was being written when its writer was killed begins with a dot, and goes first.
    names.sort();
    let too_many = names.len().saturating_sub(KEPT);
    for name in names.iter().take(too_many) {
        match rustix::fs::unlinkat(dir, name.as_str(), AtFlags::empty()) {
            // Another jailer was faster.
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_past_is_kept_and_bounded() {
        let temp = tempfile::tempdir().unwrap();
        let run = RunDir::open(&temp.path().join("run"), true).unwrap();
        let error = StepFailed::because("open the disk", format!("{}\nconsole", "x".repeat(3 * MAX_TEXT)));
        for n in 0..KEPT + 20 {
            failed(&run, &format!("s{n}"), &error).unwrap();
        }
        let mut files: Vec<_> =
            std::fs::read_dir(temp.path().join("run/past")).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        assert_eq!(files.len(), KEPT);
        let last: Past = serde_json::from_slice(&std::fs::read(files.last().unwrap()).unwrap()).unwrap();
        let Past::Failed(last) = last else { panic!("{last:?}") };
        assert_eq!((last.name, last.error.len()), (format!("s{}", KEPT + 19), MAX_TEXT));
    }

    #[test]
    fn a_planted_link_is_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let run = RunDir::open(&temp.path().join("run"), true).unwrap();
        std::os::unix::fs::symlink(temp.path(), temp.path().join("run/past")).unwrap();
        assert!(failed(&run, "s", &StepFailed::because("x", "y")).is_err());
    }
}
