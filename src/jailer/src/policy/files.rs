//! The module's CIL files, and programs that handle them.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Options;
use crate::error::StepFailed;

/// Where the module's CIL files are: installed, or beside the build in a checkout.
const INSTALLED: &str = "/usr/share/casemate/policies";
/// Deny rules and the neverallow rules that hold because of them: one is not without the other.
const DENY: [&str; 2] = ["casemate_deny.cil", "casemate_deny_neverallow.cil"];

/// The module's files in the order of their names, each with its text.
pub fn module(options: &Options) -> Result<Vec<(PathBuf, String)>, StepFailed> {
    const STAGE: &str = "read the SELinux module";
    let beside = std::env::current_exe().ok().and_then(|exe| exe.ancestors().nth(3).map(|top| top.join("policies")));
    let places = match &options.from {
        Some(dir) => vec![dir.clone()],
        None => [Some(PathBuf::from(INSTALLED)), beside].into_iter().flatten().collect(),
    };
    let found = places.iter().map(|dir| cil_files(dir)).find(|files| !files.is_empty()).unwrap_or_default();
    let chosen: Vec<PathBuf> =
        found.into_iter().filter(|f| !(options.without_deny && DENY.iter().any(|d| f.ends_with(d)))).collect();
    // A store takes any name; only ours may be taken away again by `remove`.
    if let Some(foreign) = chosen.iter().find(|f| !module_name(f).starts_with("casemate_")) {
        return Err(StepFailed::because(STAGE, format!("{} is not named casemate_*.cil", foreign.display())));
    }
    if chosen.is_empty() {
        let looked = places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" and ");
        return Err(StepFailed::because(STAGE, format!("no .cil file in {looked}; name the directory with --from")));
    }
    chosen.into_iter().map(|path| read(STAGE, &path).map(|text| (path, text))).collect()
}

/// The CIL files in a directory, none where it cannot be read.
pub fn cil_files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.filter_map(|entry| entry.ok().map(|e| e.path()));
    let mut files: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|e| e == "cil")).collect();
    files.sort();
    files
}

pub fn read(stage: &str, path: &Path) -> Result<String, StepFailed> {
    std::fs::read_to_string(path).map_err(|e| StepFailed::because(stage, format!("{}: {e}", path.display())))
}

/// The name under which semodule stores a file.
pub fn module_name(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

pub fn tool(stage: &str, name: &str, package: &str) -> Result<PathBuf, StepFailed> {
    let places = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(|dir| Path::new(dir).join(name));
    let found = places.into_iter().find(|path| path.exists());
    found.ok_or_else(|| StepFailed::because(stage, format!("{name} is missing; install the package {package}")))
}

/// Runs a program with an empty environment; its output, or what it complained of.
pub fn call(stage: &str, command: &mut Command) -> Result<String, StepFailed> {
    let program = Path::new(command.get_program()).display().to_string();
    let output = command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(std::process::Stdio::null());
    let output = output.output().map_err(|e| StepFailed::because(stage, format!("{program}: {e}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(StepFailed::because(stage, format!("{program} ended with {}: {}", output.status, said.trim())))
}
