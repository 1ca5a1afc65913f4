//! `attack --matrix A B`: for each class of objects that a sandbox owns, code in A's confinement tries B's, by every way
//! there is. What the loaded policy says (compute_av with the real labels) stands beside what the kernel does, and what
//! each layer says alone beside what all say together.
//!
//! Runs in the caller's domain, where objects of every class can be made; the columns of SELinux and of all layers are asked
//! of a jailer in its own domain ([`inside`]).

mod columns;
mod inside;
mod maker;
mod policy;
mod post;
mod rows;
mod stage;
mod table;

use std::path::PathBuf;

use casemate_confine::trial::Outcome;
use casemate_label::Context;
use casemate_label::mode::SelinuxFs;
use casemate_plan::HostConfig;
use casemate_spec::SandboxId;
use serde::Serialize;

use super::attack::living;
use super::jail::Jail;
use crate::error::StepFailed;
use crate::store::RunDir;
use columns::{Columns, Family};
pub use inside::answer;
use maker::Maker;
use rows::{MakeRow, Row};
use stage::Side;

const STEP: &str = "set the stage";

/// The report.
#[derive(Debug, Serialize)]
pub struct Matrix {
    pub attacker: String,
    pub victim: String,
    /// The labels of A's and B's runners.
    pub labels: Option<[String; 2]>,
    /// The domain that shows what categories alone hold back.
    pub twin: Option<String>,
    pub matrix: Vec<Row>,
    /// What A's confinement lets its code make at all.
    pub makes: Vec<MakeRow>,
    /// What this host does not have.
    pub skipped: Vec<Skipped>,
}

#[derive(Debug, Serialize)]
pub struct Skipped {
    pub attempt: String,
    pub why: String,
}

/// The scratch directory, which goes with its trial.
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("casemate-jailer: {}: {error}", self.0.display());
        }
    }
}

/// Makes every attempt. Both sandboxes must be running.
pub fn matrix(config: &HostConfig, (a, b): (&SandboxId, &SandboxId), twin: Option<&str>) -> Result<Matrix, StepFailed> {
    if a == b {
        return Err(StepFailed::because(STEP, "a sandbox may touch what is its own; name two"));
    }
    let run = RunDir::open(&config.run_dir, true)?;
    let (attacker, victim) = (living(&run, a)?, living(&run, b)?);
    let label = |text: &Option<String>| text.as_deref().map(str::parse::<Context>).transpose();
    let failed = |e: &dyn std::error::Error| StepFailed::because(STEP, crate::error::sentence(e));
    let labels = match (label(&attacker.label), label(&victim.label)) {
        (Ok(a), Ok(b)) => a.zip(b),
        (Err(e), _) | (_, Err(e)) => return Err(failed(&e)),
    };
    let fs = SelinuxFs::open("/sys/fs/selinux".as_ref()).map_err(|e| failed(&e))?.filter(|_| labels.is_some());
    let twins = twins(fs.as_ref(), labels.as_ref(), twin)?;

    let path = config.run_dir.join(format!("matrix-{}", casemate_sys::process::own_pid()));
    stage::place(&path, labels.is_some())?;
    let place = Place(path);
    let mark = |who: &str| format!("{}{who}", casemate_sys::process::own_pid());
    let jail = |label: Option<Context>| Jail {
        uid: attacker.uid,
        label,
        landlock_abi: attacker.landlock_abi,
        cgroup: None,
        rlimits: Vec::new(),
    };
    // Makers first: they must not hold what comes later. They are dropped last, for others hold their sockets.
    let mut makers = Vec::new();
    let mut lent: Vec<Side> = Vec::new();
    for (label, who) in twins.iter().flat_map(|(a, b)| [(a, "p"), (b, "q")]) {
        let (maker, side) = Maker::start(&jail(Some(label.clone())), &place.0, &mark(who))?;
        makers.push(maker);
        lent.push(side);
    }
    let dir = |name: &SandboxId| config.run_dir.join("vms").join(name.as_str());
    let own = Side::of(&attacker, &dir(a), &place.0, &mark("a"), lent.first())?;
    let cross = Side::of(&victim, &dir(b), &place.0, &mark("b"), lent.get(1))?;
    let mut lent = lent.into_iter();
    let twin_family = match (&twins, lent.next(), lent.next()) {
        (Some((a, _)), Some(own), Some(cross)) => Some(Family::new(Some(a.clone()), cross, own)?),
        _ => None,
    };
    let family = Family::new(labels.as_ref().map(|(a, _)| a.clone()), cross, own)?;
    let columns = Columns::run(config, (a, &jail(None)), &family, twin_family.as_ref(), &place.0)?;
    let report = rows::Judge { fs: fs.as_ref(), family: &family, twin: twin_family.as_ref(), columns: &columns };
    let (matrix, skipped) = report.rows()?;
    let makes = report.makes(&place.0)?;
    drop((twin_family, family, columns));
    Ok(Matrix {
        attacker: a.to_string(),
        victim: b.to_string(),
        labels: labels.map(|(a, b)| [a.to_string(), b.to_string()]),
        twin: twin.map(str::to_owned),
        matrix,
        makes,
        skipped,
    })
}

/// A's and B's labels with the twin's type.
fn twins(
    fs: Option<&SelinuxFs>,
    labels: Option<&(Context, Context)>,
    twin: Option<&str>,
) -> Result<Option<(Context, Context)>, StepFailed> {
    let Some(twin) = twin else { return Ok(None) };
    let (Some(fs), Some((a, b))) = (fs, labels) else {
        return Err(StepFailed::because(STEP, "a twin domain needs SELinux, and two sandboxes with labels"));
    };
    let typed = |label: &Context| label.with_type(twin).map_err(|e| StepFailed::stage(STEP, e));
    let (a, b) = (typed(a)?, typed(b)?);
    match fs.is_valid(&a) && fs.is_valid(&b) {
        true => Ok(Some((a, b))),
        false => Err(StepFailed::because(STEP, format!("the loaded policy does not know {a}"))),
    }
}

/// Denied by all that were asked, as far as they were.
fn denied(outcome: Option<&Outcome>) -> Option<bool> {
    outcome.map(Outcome::is_denied)
}
