//! The emulated host, through testbed/testbed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub fn repo() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Brings L1 up, builds it first if need be, and loads the module of this checkout.
pub fn up() -> Result<(), String> {
    if !Path::new("/proc/self/uid_map").exists() || !is_root() {
        return Err("not root, and the testbed's image is built as root".into());
    }
    for verb in ["up", "policy"] {
        let output = testbed([verb]).map_err(|e| format!("testbed {verb}: {e}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("testbed {verb}: {}", said.lines().last().unwrap_or("failed")));
        }
    }
    Ok(())
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

fn testbed<'a>(args: impl IntoIterator<Item = &'a str>) -> std::io::Result<Output> {
    Command::new(repo().join("testbed/testbed")).args(args).stdin(Stdio::null()).output()
}

/// Runs `script` in L1's shell, in `domain` if one is named. Output and status; an error if the tool itself failed.
pub fn sh(domain: Option<&str>, script: &str) -> Result<Output, String> {
    let mut args = vec!["exec", "--timeout", "300"];
    if let Some(d) = domain {
        args.extend(["-d", d]);
    }
    args.extend(["--", "sh", "-c", script]);
    testbed(args).map_err(|e| e.to_string())
}

/// Copies files of this machine to a directory of L1; labels come from L1's policy.
pub fn push(files: &[PathBuf], dir: &str) -> Result<(), String> {
    let names: Vec<&str> = files.iter().filter_map(|f| f.to_str()).collect();
    let output = testbed(["push"].into_iter().chain(names).chain([dir])).map_err(|e| e.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}
