//! `repair`: gives the host back what dead sandboxes left, and says what it did. `rm`: forgets an ended sandbox.

use casemate_label::{Journal, JournalError, Lease, Ledger, Profile, Relabeler, UndoOutcome, UndoReport, Undoer};
use casemate_plan::HostConfig;
use casemate_spec::SandboxId;
use casemate_wire::record::{ExitCause, ExitReport, Phase};
use serde::Serialize;

use crate::error::{StepFailed, sentence};
use crate::store::{EXIT, RunDir, STATE, SandboxDir};

/// What was found of one sandbox and done about it.
#[derive(Debug, Serialize)]
pub struct Repaired {
    pub sandbox: String,
    /// `alive`, `ended`, `repaired`, `would-repair`, `failed`.
    pub state: &'static str,
    pub did: Vec<UndoReport>,
    pub error: Option<String>,
}

/// Leases whose owners are dead and whose sandboxes are gone.
#[derive(Debug, Serialize)]
pub struct Repair {
    pub sandboxes: Vec<Repaired>,
    pub leases_dropped: Vec<String>,
}

/// Looks at every sandbox below the run directory. With `dry_run`, changes nothing.
pub fn repair(config: &HostConfig, dry_run: bool) -> Result<Repair, StepFailed> {
    if !config.run_dir.exists() {
        return Ok(Repair { sandboxes: Vec::new(), leases_dropped: Vec::new() });
    }
    let run = RunDir::open(&config.run_dir, true)?;
    let ledger = Ledger::open(&config.run_dir).map_err(|e| StepFailed::stage("open the ledger", e))?;
    let relabeler = Relabeler::new(Profile::casemate());
    let mut sandboxes = Vec::new();
    for name in run.names()? {
        // Under the lock no start stands between its directory and its journal.
        let _lock = run.lock()?;
        let Ok(dir) = run.existing(&name) else { continue };
        let mut repaired = Repaired { sandbox: name.to_string(), state: "ended", did: Vec::new(), error: None };
        match one(&run, dir, &name, &ledger, &relabeler, dry_run) {
            Ok((state, did)) => (repaired.state, repaired.did) = (state, did),
            Err(failed) => (repaired.state, repaired.error) = ("failed", Some(failed.to_string())),
        }
        sandboxes.push(repaired);
    }
    let leases_dropped = if dry_run { Vec::new() } else { drop_dead_leases(&ledger, &run)? };
    Ok(Repair { sandboxes, leases_dropped })
}

/// A dead owner's lease goes when its sandbox left no journal, hence no object that still carries the pair.
fn drop_dead_leases(ledger: &Ledger, run: &RunDir) -> Result<Vec<String>, StepFailed> {
    let journals: Vec<String> =
        run.names()?.into_iter().filter(|name| run.has_journal(name)).map(|n| n.to_string()).collect();
    let restored = |lease: &Lease| !journals.contains(&lease.owner.sandbox);
    let dropped = ledger.drop_dead(restored).map_err(|e| StepFailed::stage("drop the leases of the dead", e))?;
    Ok(dropped.into_iter().map(|lease| lease.key.to_string()).collect())
}

type Outcome = (&'static str, Vec<UndoReport>);

fn one(
    run: &RunDir,
    dir: SandboxDir,
    name: &SandboxId,
    ledger: &Ledger,
    relabeler: &Relabeler,
    dry_run: bool,
) -> Result<Outcome, StepFailed> {
    let failed = |e: &dyn std::error::Error| StepFailed::because(&format!("repair {name}"), sentence(e));
    let mut journal = match Journal::open(&dir.path().join(casemate_label::journal::JOURNAL)) {
        Ok(journal) => journal,
        Err(JournalError::Held(_)) => return Ok(("alive", Vec::new())),
        Err(JournalError::Io { ref source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return without_journal(run, dir, name, dry_run);
        }
        // The journal's first line is written right after its creation: a crash in between changed nothing else.
        Err(JournalError::Header { .. }) if dir.read_record(STATE)?.is_none() => {
            return discard(run, dir, name, dry_run, Vec::new());
        }
        Err(error) => return Err(failed(&error)),
    };
    if dry_run {
        let would = journal.pending().into_iter();
        let left = |e: casemate_label::journal::Entry| UndoReport {
            n: e.n,
            what: e.intent.to_string(),
            outcome: UndoOutcome::Left("a dry run changes nothing".into()),
        };
        return Ok(("would-repair", would.map(left).collect()));
    }
    let did = Undoer { ledger, relabeler }.undo(&mut journal).map_err(|e| failed(&e))?;
    if did.iter().any(|report| matches!(report.outcome, UndoOutcome::Failed(_))) {
        return Ok(("failed", did));
    }
    // It had ended and was about to clear up: what it wrote of its end stands.
    if dir.read_record(EXIT)?.is_some() {
        dir.empty(&kept())?;
        return Ok(("repaired", did));
    }
    match dir.read_record(STATE).ok().flatten() {
        Some(mut record) if record.detached && record.phase != Phase::Starting => {
            record.phase = Phase::Stopped;
            let detail = Some("its warden was killed; repaired".into());
            record.exit = Some(ExitReport { cause: ExitCause::RunnerDied, status: None, detail });
            dir.write_record(EXIT, &record)?;
            dir.empty(&kept())?;
            Ok(("repaired", did))
        }
        _ => discard(run, dir, name, false, did),
    }
}

/// What stays of a sandbox that has ended.
fn kept() -> Vec<&'static str> {
    let logs = casemate_plan::names::CONSOLE_LOG.into_iter().chain(casemate_plan::names::OUTPUT_LOG);
    [EXIT].into_iter().chain(logs).collect()
}

/// A directory without a journal: an ended sandbox's record, or a start that died at its first step.
fn without_journal(run: &RunDir, dir: SandboxDir, name: &SandboxId, dry_run: bool) -> Result<Outcome, StepFailed> {
    if dir.read_record(EXIT)?.is_some() {
        let rest = dir.has_more_than(&kept())?;
        if rest && !dry_run {
            dir.empty(&kept())?;
        }
        return Ok((
            if !rest {
                "ended"
            } else if dry_run {
                "would-repair"
            } else {
                "repaired"
            },
            Vec::new(),
        ));
    }
    discard(run, dir, name, dry_run, Vec::new())
}

fn discard(
    run: &RunDir,
    dir: SandboxDir,
    name: &SandboxId,
    dry_run: bool,
    did: Vec<UndoReport>,
) -> Result<Outcome, StepFailed> {
    if dry_run {
        return Ok(("would-repair", did));
    }
    run.remove(dir, name)?;
    Ok(("repaired", did))
}

/// Removes the record and logs of a sandbox that has ended.
pub fn remove(config: &HostConfig, name: &SandboxId) -> Result<(), StepFailed> {
    let run = RunDir::open(&config.run_dir, true)?;
    let dir = run.existing(name)?;
    if dir.read_record(EXIT)?.is_none() {
        let why =
            format!("{name} has not ended; `casemate stop {name}` first, or `casemate repair` if its warden died");
        return Err(StepFailed::because("remove the sandbox", why));
    }
    run.remove(dir, name)
}
