//! Casemate's SELinux module: installed with the distribution's own tools, judged by what the loaded policy answers.

use std::path::{Path, PathBuf};
use std::process::Command;

use casemate_label::{Profile, SelinuxMode, mode};
use serde::Serialize;

use crate::error::StepFailed;

/// Where the module's CIL files are: installed, or beside the build in a checkout.
const INSTALLED: &str = "/usr/share/casemate/policies";
const SEMODULE: [&str; 2] = ["/usr/sbin/semodule", "/sbin/semodule"];
const RESTORECON: [&str; 2] = ["/usr/sbin/restorecon", "/sbin/restorecon"];
/// What the module's file contexts speak of.
const LABELLED: [&str; 5] =
    ["/usr/bin/casemate", "/usr/libexec/casemate", "/usr/share/casemate", "/run/casemate", "/var/lib/casemate"];

#[derive(Debug, Clone, Copy)]
pub enum Verb {
    Install,
    Check,
    Status,
}

/// What the loaded policy says of our types.
#[derive(Debug, Serialize)]
pub struct Status {
    pub facts: mode::SelinuxFacts,
    /// SELinux separates guests: what `enforced` needs.
    pub separates: bool,
    /// What is in the way, with remedies.
    pub shortcomings: Vec<String>,
    /// What `install` did.
    pub did: Vec<String>,
}

pub fn act(verb: Verb) -> Result<Status, StepFailed> {
    match verb {
        Verb::Status => Ok(status(Vec::new())),
        Verb::Check => check(),
        Verb::Install => install(),
    }
}

fn status(did: Vec<String>) -> Status {
    let facts = mode::probe();
    Status { separates: facts.separates(), shortcomings: facts.shortcomings(), facts, did }
}

/// `status`, as a failure where guests are not separated.
fn check() -> Result<Status, StepFailed> {
    let status = status(Vec::new());
    if status.separates {
        return Ok(status);
    }
    Err(StepFailed::because("check the loaded policy", status.shortcomings.join("; ")))
}

fn install() -> Result<Status, StepFailed> {
    const STAGE: &str = "install the SELinux module";
    let facts = mode::probe();
    if facts.mode == SelinuxMode::Disabled {
        return Err(StepFailed::because(STAGE, "SELinux is off; boot with security=selinux selinux=1 and a policy"));
    }
    // Our own module takes the right away: a jailer that can load policy could take itself out of it.
    if facts.own.is_some_and(|own| Some(own.type_()) == Profile::casemate().jailer.as_deref()) {
        let why = format!(
            "a loaded module keeps the jailer from loading policy; run: semodule -i {INSTALLED}/*.cil && restorecon -R {}",
            LABELLED.join(" ")
        );
        return Err(StepFailed::because(STAGE, why));
    }
    let files = module_files()?;
    let semodule = tool(STAGE, &SEMODULE, "policycoreutils")?;
    call(STAGE, Command::new(semodule).arg("-i").args(&files))?;
    let restorecon = tool(STAGE, &RESTORECON, "policycoreutils")?;
    let present: Vec<&str> = LABELLED.into_iter().filter(|path| Path::new(path).exists()).collect();
    call(STAGE, Command::new(restorecon).arg("-R").args(&present))?;
    Ok(status(vec![
        format!("installed {} CIL files", files.len()),
        format!("restored labels of {}", present.join(", ")),
    ]))
}

fn module_files() -> Result<Vec<PathBuf>, StepFailed> {
    const STAGE: &str = "find the SELinux module";
    let beside = std::env::current_exe().ok().and_then(|exe| exe.ancestors().nth(3).map(|top| top.join("policies")));
    for dir in [Some(PathBuf::from(INSTALLED)), beside].into_iter().flatten() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        let mut files: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok().map(|e| e.path()))
            .filter(|path| path.extension().is_some_and(|e| e == "cil"))
            .collect();
        files.sort();
        if !files.is_empty() {
            return Ok(files);
        }
    }
    Err(StepFailed::because(STAGE, format!("no .cil file in {INSTALLED}; install Casemate's policies there")))
}

fn tool(stage: &str, places: &[&'static str], package: &str) -> Result<&'static str, StepFailed> {
    let found = places.iter().copied().find(|path| Path::new(path).exists());
    found.ok_or_else(|| StepFailed::because(stage, format!("{} is missing; install the package {package}", places[0])))
}

fn call(stage: &str, command: &mut Command) -> Result<(), StepFailed> {
    let shown = format!("{command:?}");
    let output = command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output();
    let output = output.map_err(|e| StepFailed::because(stage, format!("{shown}: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(StepFailed::because(stage, format!("{shown} ended with {}: {}", output.status, said.trim())))
}
