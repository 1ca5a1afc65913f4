//! `/etc/casemate/casemate.toml`: the host owner's settings. Absent means the defaults; anything else must be
//! root's file that nobody else can write.

use std::path::Path;

use casemate_plan::HostConfig;
use casemate_sys::path::{self, OFlags};
use rustix::fs::FileType;

use crate::error::StepFailed;

const PATH: &str = "/etc/casemate/casemate.toml";
const STAGE: &str = "read /etc/casemate/casemate.toml";
const MAX: usize = 64 << 10;

/// The settings of this host.
pub fn load() -> Result<HostConfig, StepFailed> {
    let fd = match path::open_no_symlinks(Path::new(PATH), OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(fd) => fd,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(HostConfig::default()),
        Err(error) => return Err(StepFailed::stage(STAGE, error)),
    };
    let is = path::identity(&fd).map_err(|e| StepFailed::stage(STAGE, e))?;
    if is.kind != FileType::RegularFile || is.uid != 0 || is.mode & 0o022 != 0 {
        return Err(StepFailed::because(STAGE, "it must be a regular file of root's that only root can write"));
    }
    let mut text = String::new();
    let file = std::fs::File::from(fd);
    std::io::Read::read_to_string(&mut std::io::Read::take(file, MAX as u64), &mut text)
        .map_err(|e| StepFailed::stage(STAGE, e))?;
    parse(&text)
}

fn parse(text: &str) -> Result<HostConfig, StepFailed> {
    let config: HostConfig = toml::from_str(text).map_err(|e| StepFailed::because(STAGE, e.to_string()))?;
    if config.uid_first < 1000 || config.uid_last < config.uid_first {
        return Err(StepFailed::because(STAGE, "uid_first and uid_last must be a range of uids of 1000 and up"));
    }
    if ![&config.run_dir, &config.state_dir].into_iter().chain(&config.image_dirs).all(|dir| dir.is_absolute()) {
        return Err(StepFailed::because(STAGE, "run_dir, state_dir and image_dirs must be absolute paths"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let parent = &config.cgroup_parent;
    if parent.is_empty() || parent.starts_with('.') || !parent.chars().all(plain) {
        return Err(StepFailed::because(STAGE, "cgroup_parent must be one name"));
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_settings_are_refused_and_defaults_hold() {
        assert_eq!(parse("").unwrap(), HostConfig::default());
        for bad in [
            "uid_first = 0",
            "uid_first = 2000\nuid_last = 1999",
            "run_dir = 'x'",
            "image_dirs = ['x']",
            "cgroup_parent = '../x'",
            "cgroup_parent = ''",
            "surprise = 1",
            "uid_first = 'a'",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(parse("uid_first = 5000").unwrap().uid_first, 5000);
    }
}
