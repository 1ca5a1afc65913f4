//! `labels`: who has which level, uid and label, on what, since when and why; what is wrong with it and what helps.
//!
//! Reads only: the ledger, the journals, owner records, running processes, other managers' files, files at rest.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use casemate_label::mode::SelinuxFs;
use casemate_label::{
    CategorySet, Found, Holder, InUse, Intent, Journal, Lease, LeaseKey, Ledger, Owner, Profile, Relabeler, Sources,
};
use casemate_plan::HostConfig;
use casemate_sys::path::{OFlags, open_no_symlinks};
use serde::Serialize;

use crate::error::StepFailed;
use crate::lease;
use crate::store::{EXIT, RunDir};

const STAGE: &str = "list labels";
const REPAIR: &str = "casemate repair";

/// One line: somebody has something.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// `lease`, `object`, `process`, `manager`, `file`.
    pub kind: &'static str,
    /// The level, or `uid N`.
    pub level: String,
    pub label: Option<String>,
    /// What has the label or is leased.
    pub object: String,
    pub holder: String,
    pub alive: bool,
    /// Seconds since the epoch, where it is known.
    pub since: Option<u64>,
    pub why: String,
}

/// Two alive have what only one may, or nobody alive has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProblemKind {
    Collision,
    Leak,
}

/// A collision or a leak.
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    pub kind: ProblemKind,
    /// Sandboxes that it is about.
    pub sandboxes: Vec<String>,
    pub what: String,
    pub remedy: String,
}

#[derive(Debug, Serialize)]
pub struct Census {
    pub selinux: bool,
    pub lines: Vec<Line>,
    pub problems: Vec<Problem>,
    pub warnings: Vec<String>,
}

/// A file's label, its record, and who they are.
#[derive(Debug, Serialize)]
pub struct FileLabel {
    pub path: PathBuf,
    pub label: Option<String>,
    /// What Casemate will give back.
    pub original: Option<String>,
    pub owners: Vec<FileOwner>,
    pub libvirt: bool,
    pub problem: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct FileOwner {
    pub sandbox: String,
    pub pid: u32,
    pub alive: bool,
}

/// A sandbox's journal, as it stands.
struct Told {
    owner: Owner,
    alive: bool,
    runner: Option<u32>,
    leases: Vec<LeaseKey>,
}

/// Everything on this host.
pub fn census(config: &HostConfig) -> Result<Census, StepFailed> {
    let selinux = SelinuxFs::here().map_err(|e| StepFailed::stage(STAGE, e))?.is_some();
    let mut census = Census { selinux, lines: Vec::new(), problems: Vec::new(), warnings: Vec::new() };
    // As they are: whoever asks is an auditor, too, and a look makes and changes nothing.
    let told = RunDir::find(&config.run_dir)?.map_or_else(|| Ok(Vec::new()), |run| census.journals(&run))?;
    let ledger = Ledger::find(&config.run_dir).map_err(|e| StepFailed::stage(STAGE, e))?;
    let leases = ledger.map_or_else(|| Ok(Vec::new()), |ledger| ledger.list());
    let leases = leases.map_err(|e| StepFailed::stage(STAGE, e))?;
    census.leases(&leases, &told);
    let in_use =
        if selinux { InUse::survey_all(&lease::sources(config, None)) } else { InUse::survey_all(&Sources::none()) };
    census.others(&in_use, &leases, &told, &config.run_dir);
    census.warnings = in_use.warnings;
    Ok(census)
}

impl Census {
    fn collision(&mut self, sandboxes: &[&str], what: String, remedy: String) {
        self.problem(ProblemKind::Collision, sandboxes, what, remedy);
    }

    fn leak(&mut self, sandboxes: &[&str], what: String, remedy: impl Into<String>) {
        self.problem(ProblemKind::Leak, sandboxes, what, remedy.into());
    }

    fn problem(&mut self, kind: ProblemKind, sandboxes: &[&str], what: String, remedy: String) {
        let sandboxes = sandboxes.iter().map(|name| (*name).to_owned()).collect();
        self.problems.push(Problem { kind, sandboxes, what, remedy });
    }

    /// Labels on objects, as the journals tell of them.
    fn journals(&mut self, run: &RunDir) -> Result<Vec<Told>, StepFailed> {
        let mut all = Vec::new();
        for name in run.names()? {
            let Ok(dir) = run.existing(&name) else { continue };
            if !run.has_journal(&name) {
                continue;
            }
            let peeked = Journal::peek(&dir.path().join(casemate_label::journal::JOURNAL));
            let Ok(journal) = peeked else {
                self.leak(&[name.as_str()], format!("the journal of {name} cannot be read"), REPAIR);
                continue;
            };
            let (owner, pending) = (journal.owner().clone(), journal.pending());
            let mut one = Told { alive: owner.is_alive(), owner, runner: None, leases: Vec::new() };
            if !one.alive {
                let ended = dir.read_record(EXIT).ok().flatten().is_some();
                let left =
                    if ended { "ended and left things undone" } else { "is dead, and nothing of it is taken back" };
                self.leak(&[name.as_str()], format!("sandbox {name} {left}"), REPAIR);
            }
            for entry in pending {
                match entry.intent {
                    Intent::Relabel { path, label, before, .. } => self.lines.push(Line {
                        kind: "object",
                        level: label.range().map_or("-".into(), |r| r.high().to_string()),
                        label: Some(label.to_string()),
                        object: path.display().to_string(),
                        holder: one.owner.to_string(),
                        alive: one.alive,
                        since: Some(entry.at / 1_000_000_000),
                        why: before.map_or("labelled for it".into(), |b| format!("labelled for it; it was {b}")),
                    }),
                    Intent::Process { role, pid, .. } if role == "runner" => one.runner = Some(pid),
                    Intent::Lease { lease } => one.leases.push(lease),
                    _ => {}
                }
            }
            all.push(one);
        }
        Ok(all)
    }

    fn leases(&mut self, leases: &[Lease], told: &[Told]) {
        let mut living = Vec::new();
        for lease in leases {
            let (level, why) = match &lease.key {
                LeaseKey::Uid(uid) => (format!("uid {uid}"), "its runner's uid".to_owned()),
                LeaseKey::Pair(pair) => (pair.level().to_string(), "a leased pair".to_owned()),
                LeaseKey::Static { level, shared, .. } => (
                    level.to_string(),
                    if *shared { "fixed, shared in its group" } else { "fixed by its user" }.to_owned(),
                ),
            };
            let alive = lease.owner.is_alive();
            let (object, holder) = (format!("lease {}", lease.key), lease.owner.to_string());
            if !alive {
                let sandbox = lease.owner.sandbox.as_str();
                self.leak(&[sandbox], format!("{object} belongs to {holder}, which is dead"), REPAIR);
            } else {
                living.push(lease);
            }
            let since = Some(lease.since);
            self.lines.push(Line { kind: "lease", level, label: None, object, holder, alive, since, why });
        }
        for (n, one) in living.iter().enumerate() {
            for other in living[n + 1..].iter().filter(|other| !other.key.compatible(&one.key)) {
                let what =
                    format!("{} of {} and {} of {} are within reach", one.key, one.owner, other.key, other.owner);
                let sandboxes = [one.owner.sandbox.as_str(), other.owner.sandbox.as_str()];
                self.collision(&sandboxes, what, format!("casemate stop {}", other.owner.sandbox));
            }
        }
        let held: HashMap<&LeaseKey, &Owner> = leases.iter().map(|l| (&l.key, &l.owner)).collect();
        for one in told.iter().filter(|t| t.alive && t.runner.is_some()) {
            for key in one.leases.iter().filter(|key| held.get(key).is_none_or(|owner| **owner != one.owner)) {
                let what = format!("{key} of {}, which lives, is not in the ledger", one.owner);
                // Another may be given it.
                self.collision(&[one.owner.sandbox.as_str()], what, REPAIR.into());
            }
        }
    }

    fn others(&mut self, in_use: &InUse, leases: &[Lease], told: &[Told], run_dir: &Path) {
        let alive: Vec<(CategorySet, &Lease)> =
            leases.iter().filter(|l| l.owner.is_alive()).filter_map(|l| Some((l.key.categories()?, l))).collect();
        let journaled: Vec<String> =
            self.lines.iter().filter(|l| l.kind == "object").map(|l| l.object.clone()).collect();
        for found in in_use.within(&CategorySet::ALL) {
            let set = found.categories();
            let ours = match &found.holder {
                Holder::Process { pid } => told.iter().find(|t| t.runner == Some(*pid)),
                _ => None,
            };
            if let Holder::File { path } = &found.holder
                && journaled.iter().any(|known| Path::new(known) == path)
            {
                continue;
            }
            let log = matches!(&found.holder, Holder::File { path } if path.starts_with(run_dir));
            let reached = alive.iter().find(|(lease, _)| lease.comparable(&set));
            let shared = |lease: &Lease| matches!(lease.key, LeaseKey::Static { shared: true, .. });
            if let Some((lease_set, lease)) = reached
                && ours.is_none_or(|told| told.owner != lease.owner)
                && !log
                && !(shared(lease) && *lease_set == set)
            {
                let sandboxes = std::iter::once(&lease.owner).chain(ours.map(|told| &told.owner));
                let sandboxes: Vec<&str> = sandboxes.map(|owner| owner.sandbox.as_str()).collect();
                let what = format!("{} of {} is within reach of {found}", lease.key, lease.owner);
                self.collision(&sandboxes, what, remedy(found, lease));
            }
            let line = self.line(found, ours, log);
            self.lines.push(line);
        }
    }

    fn line(&mut self, found: &Found, ours: Option<&Told>, log: bool) -> Line {
        let (kind, object, holder, mut why) = match &found.holder {
            Holder::Process { pid } => {
                let why = if ours.is_some() { "a sandbox's runner" } else { "it runs with it" };
                (
                    "process",
                    found.holder.to_string(),
                    ours.map_or_else(|| format!("process {pid}"), |t| t.owner.to_string()),
                    why.to_owned(),
                )
            }
            Holder::Manager { manager, name, file } => {
                ("manager", file.display().to_string(), format!("{manager} {name}"), format!("{manager} gave it out"))
            }
            Holder::File { path } => {
                let why = if log { "log of a sandbox" } else { "at rest on a file" };
                ("file", path.display().to_string(), "-".to_owned(), why.to_owned())
            }
        };
        let (mut holder, mut alive) = (holder, kind == "process");
        if let (Holder::File { path }, false) = (&found.holder, log)
            && let Ok(file) = file(path)
            && !file.owners.is_empty()
        {
            alive = file.owners.iter().any(|owner| owner.alive);
            let names: Vec<String> =
                file.owners.iter().map(|o| format!("sandbox {} (pid {})", o.sandbox, o.pid)).collect();
            holder = names.join(", ");
            why = file.original.as_ref().map_or(why, |orig| format!("labelled for it; it was {orig}"));
            if !alive {
                let what = format!("{} carries {} of {holder}, which is dead", path.display(), found.label);
                let sandboxes: Vec<&str> = file.owners.iter().map(|owner| owner.sandbox.as_str()).collect();
                self.leak(&sandboxes, what, format!("{REPAIR}; where it stays: restorecon -F {}", path.display()));
            }
        }
        let level = found.label.range().map_or("-".into(), |r| r.high().to_string());
        Line { kind, level, label: Some(found.label.to_string()), object, holder, alive, since: None, why }
    }
}

fn remedy(found: &Found, lease: &Lease) -> String {
    match &found.holder {
        Holder::File { path } => format!("if nobody uses it: restorecon -F {}", path.display()),
        _ => format!("stop one of the two, as: casemate stop {}", lease.owner.sandbox),
    }
}

/// One file, whoever labelled it.
pub fn file(path: &Path) -> Result<FileLabel, StepFailed> {
    let failed = |e: &dyn std::error::Error| {
        StepFailed::because(STAGE, format!("{}: {}", path.display(), crate::error::sentence(e)))
    };
    let fd = open_no_symlinks(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY).map_err(|e| failed(&e))?;
    let relabeler = Relabeler::new(Profile::casemate());
    let label = relabeler.label_of(fd.as_fd(), path).map_err(|e| failed(&e))?;
    let checked = relabeler.check(fd.as_fd(), path);
    let libvirt = matches!(checked, Err(casemate_label::RelabelError::Libvirt { .. }));
    let (mut owners, mut original, mut problem) = (Vec::new(), None, None);
    match relabeler.record_of(fd.as_fd(), path) {
        Ok(Some(record)) => {
            original = record.orig.map(|label| label.to_string());
            let owner = |o: &Owner| FileOwner { sandbox: o.sandbox.clone(), pid: o.pid, alive: o.is_alive() };
            owners = record.owners.iter().map(owner).collect();
        }
        Ok(None) => {}
        Err(error) => problem = Some(error.to_string()),
    }
    Ok(FileLabel { path: path.into(), label: label.map(|l| l.to_string()), original, owners, libvirt, problem })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn a_look_at_the_run_directory_makes_and_changes_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let run_dir = temp.path().canonicalize().unwrap().join("run");
        let config = HostConfig { run_dir: run_dir.clone(), ..HostConfig::default() };
        let seen = || {
            let names = std::fs::read_dir(&run_dir).unwrap().map(|entry| entry.unwrap().file_name());
            (names.collect::<Vec<_>>(), std::fs::metadata(&run_dir).unwrap().mode() & 0o7777)
        };
        assert!(census(&config).unwrap().lines.iter().all(|line| line.kind != "lease"));
        assert!(!run_dir.exists());
        std::fs::create_dir(&run_dir).unwrap();
        std::fs::set_permissions(&run_dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        census(&config).unwrap();
        assert_eq!(seen(), (Vec::new(), 0o755));
        std::fs::create_dir(run_dir.join("vms")).unwrap();
        census(&config).unwrap();
        assert_eq!(seen(), (vec!["vms".into()], 0o755));
    }
}
