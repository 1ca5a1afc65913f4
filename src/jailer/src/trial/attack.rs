//! `attack A B`: what code with A's exact confinement can do to B and to the host, with all layers and with each alone.
//! (Limits of memory and tasks are left out: the probe is a guest in A's share of neither.)

use std::os::fd::OwnedFd;
use std::path::Path;

use casemate_confine::controls::{self, Control, Ground, Target};
use casemate_confine::trial::{Attempt, Outcome};
use casemate_label::Context;
use casemate_plan::{HostConfig, Layer};
use casemate_spec::SandboxId;
use casemate_sys::path::{self, OFlags};
use casemate_wire::record::{ObjectLabel, Phase, SandboxRecord};
use serde::Serialize;

use super::jail::{EVERY, FIRST_GIVEN, Jail};
use super::outside::Outside;
use super::{Part, word};
use crate::error::StepFailed;
use crate::store::{CONTROL, RunDir, STATE, VSOCK};

/// The table: one row per attack, one column per set of layers.
#[derive(Debug, Serialize)]
pub struct Table {
    pub attacker: String,
    pub victim: String,
    pub attacks: Vec<Row>,
    pub controls: Vec<Row>,
}

/// What each set of layers answered: the errno or signal of the refusal, or `allowed`.
#[derive(Debug, Serialize)]
pub struct Row {
    pub attack: String,
    pub all: String,
    pub selinux: String,
    pub landlock: String,
    pub seccomp: String,
    pub uid_and_caps: String,
    pub namespaces: String,
    /// Denied by all together (a control: allowed by all together).
    pub ok: bool,
}

const COLUMNS: [&[Layer]; 6] = [
    EVERY,
    &[Layer::Selinux],
    &[Layer::Landlock],
    &[Layer::Seccomp],
    &[Layer::Uid, Layer::Capabilities],
    &[Layer::Namespaces, Layer::Mounts],
];

/// Descriptors that the attacker is given: its own disk, and the victim's, as a careless helper would pass it.
const OWN_DISK: i32 = FIRST_GIVEN;
const VICTIMS_DISK: i32 = FIRST_GIVEN + 1;

/// Runs every attack. Both sandboxes must be running.
pub fn attack(config: &HostConfig, pair: Option<(SandboxId, SandboxId)>, part: Part) -> Result<Table, StepFailed> {
    const STEP: &str = "attack";
    let Some((a, b)) = pair else {
        return Err(StepFailed::because(STEP, "name two running sandboxes: casemate attack A B"));
    };
    if a == b {
        return Err(StepFailed::because(STEP, "a sandbox may touch what is its own; name two"));
    }
    let run = RunDir::open(&config.run_dir, true)?;
    let (attacker, victim) = (living(&run, &a)?, living(&run, &b)?);
    let outside = Outside::listen();
    let (own, theirs) = (disk(&attacker)?, disk(&victim)?);
    let ground = Ground { own_disk: OWN_DISK, landlock_abi: attacker.landlock_abi, ..outside.ground() };
    let target = target(&victim, &config.run_dir.join("vms").join(b.as_str()));
    let mut questions: Vec<Question> =
        controls::attack(&target, &ground).into_iter().map(|c| Question::new(c, Kind::Attack)).collect();
    if let Some((_, writable)) = &own {
        let fits = |c: &Control| *writable || !matches!(c.attempt, Attempt::WriteFd { .. });
        questions.extend(controls::positive(&ground).into_iter().filter(fits).map(|c| Question::new(c, Kind::Control)));
    }
    // A careless helper may pass a foreign descriptor: of all layers only SELinux looks at it.
    let private = last_disk(&victim).is_some_and(is_private);
    let passed = own.is_some() && theirs.is_some() && private && attacker.label.is_some();
    if passed {
        let what = format!("use {}'s disk, passed to it open", target.name);
        let attempt = Attempt::ReadFd { number: VICTIMS_DISK };
        questions.push(Question { what, attempt, kind: Kind::Passed });
    }
    let given: Vec<&OwnedFd> = own.iter().chain(theirs.iter().filter(|_| passed)).map(|(fd, _)| fd).collect();
    let columns = columns(&attacker, &questions, &given, part)?;
    let mut table = Table { attacker: a.to_string(), victim: b.to_string(), attacks: Vec::new(), controls: Vec::new() };
    for (at, question) in questions.iter().enumerate() {
        let row = row(question, at, &columns, part);
        if question.kind == Kind::Control { table.controls.push(row) } else { table.attacks.push(row) }
    }
    Ok(table)
}

/// What is asked of each set of layers.
struct Question {
    what: String,
    attempt: Attempt,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Attack,
    Control,
    Passed,
}

impl Question {
    fn new(control: Control, kind: Kind) -> Self {
        Question { what: control.what, attempt: control.attempt, kind }
    }
}

fn target(victim: &SandboxRecord, dir: &Path) -> Target {
    let pid = |process: Option<casemate_wire::record::ProcessName>| process.and_then(|p| i32::try_from(p.pid).ok());
    Target {
        name: victim.name.clone(),
        disks: last_disk(victim).filter(|o| is_private(o)).map(|o| o.path.clone()).into_iter().collect(),
        below: victim.labels.iter().filter(|o| is_below(o) || is_content(o)).map(|o| o.path.clone()).collect(),
        runner: pid(victim.runner).unwrap_or(1),
        warden: pid(Some(victim.warden)).unwrap_or(1),
        control: dir.join(CONTROL).display().to_string(),
        vsock: dir.join(VSOCK).display().to_string(),
    }
}

/// Each set of layers' answers; a set that is not asked for, or whose layer this host does not have, has none.
fn columns(
    attacker: &SandboxRecord,
    questions: &[Question],
    given: &[&OwnedFd],
    part: Part,
) -> Result<Vec<Option<Vec<Outcome>>>, StepFailed> {
    let label = attacker.label.as_deref().map(str::parse).transpose();
    let label = label.map_err(|e| StepFailed::because("read A's label", format!("{e}")))?;
    let jail =
        Jail { uid: attacker.uid, label, landlock_abi: attacker.landlock_abi, cgroup: None, rlimits: Vec::new() };
    let attempts: Vec<Attempt> = questions.iter().map(|q| q.attempt.clone()).collect();
    let wanted = |layers: &[Layer]| {
        let with_selinux = layers.contains(&Layer::Selinux);
        let here = match part {
            Part::Whole => true,
            Part::Selinux => with_selinux,
            Part::Others => !with_selinux,
        };
        let lacks = layers.len() == 1
            && ((with_selinux && attacker.label.is_none())
                || (layers.contains(&Layer::Landlock) && attacker.landlock_abi == 0));
        here && !lacks
    };
    let one = |layers: &&'static [Layer]| match wanted(layers) {
        true => jail.try_all(layers, &attempts, given).map(Some),
        false => Ok(None),
    };
    COLUMNS.iter().map(one).collect()
}

fn row(question: &Question, at: usize, columns: &[Option<Vec<Outcome>>], part: Part) -> Row {
    let outcome = |column: usize| columns.get(column).and_then(Option::as_ref).and_then(|c| c.get(at));
    // SELinux takes a foreign descriptor away at the exec: that it is missing is the denial.
    let taken = |outcome: &Outcome| {
        question.kind == Kind::Passed && matches!(outcome, Outcome::Unclear { why } if why.contains("not inherited"))
    };
    let shown = |column: usize| match outcome(column) {
        Some(outcome) if taken(outcome) => "taken at exec".into(),
        Some(outcome) => word(outcome),
        None => "-".into(),
    };
    let good =
        |o: &Outcome| if question.kind == Kind::Control { *o == Outcome::Allowed } else { o.is_denied() || taken(o) };
    // Without the column of all layers there is nothing to judge but that the single layers were asked.
    let ok = if part == Part::Others { true } else { outcome(0).is_some_and(good) };
    let attack = question.what.clone();
    Row {
        attack,
        all: shown(0),
        selinux: shown(1),
        landlock: shown(2),
        seccomp: shown(3),
        uid_and_caps: shown(4),
        namespaces: shown(5),
        ok,
    }
}

/// The record of a sandbox that runs now.
pub fn living(run: &RunDir, name: &SandboxId) -> Result<SandboxRecord, StepFailed> {
    let record = run.existing(name)?.read_record(STATE)?;
    record.filter(|r| matches!(r.phase, Phase::Running | Phase::Paused)).ok_or_else(|| {
        StepFailed::because("find the sandbox", format!("{name} does not run; `casemate ps` lists those that do"))
    })
}

/// The last disk of a sandbox, opened as its runner has it, and whether for writing too.
fn disk(record: &SandboxRecord) -> Result<Option<(OwnedFd, bool)>, StepFailed> {
    let Some(object) = last_disk(record) else { return Ok(None) };
    let mode = if object.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let fd = path::open_no_symlinks(Path::new(&object.path), mode | OFlags::NONBLOCK);
    fd.map(|fd| Some((fd, !object.read_only))).map_err(|e| StepFailed::stage("open a sandbox's disk", e))
}

pub fn last_disk(record: &SandboxRecord) -> Option<&ObjectLabel> {
    record.labels.iter().rev().find(|object| object.fd.starts_with("disk.") && !is_below(object))
}

/// Content is every sandbox's to read: only a disk that is written, or has categories of its own, is the victim's alone.
fn is_private(object: &ObjectLabel) -> bool {
    let labelled = object.during.as_deref().and_then(|label| label.parse::<Context>().ok());
    !object.read_only
        || labelled.is_some_and(|label| label.range().is_some_and(|range| !range.high().categories.is_empty()))
}

fn is_content(object: &ObjectLabel) -> bool {
    object.fd.starts_with("disk.") && !is_private(object)
}

/// An image below a disk's own: `disk.<id>.<depth>`; an id holds no dot.
fn is_below(object: &ObjectLabel) -> bool {
    object.fd.strip_prefix("disk.").is_some_and(|rest| rest.contains('.'))
}
