//! `repair`: gives the host back what dead sandboxes left, and says what it did. `rm`: forgets an ended sandbox.
//!
//! Two sources: the journals below RUN, and the records of labels below STATE/held, which a reboot leaves (see
//! `casemate_label::durable`). A dry run goes the same way and makes the same list; it writes nothing anywhere.

use std::io;

use casemate_evidence::parts::KEPT;
use casemate_label::durable::{self, Found, HELD};
use casemate_label::{
    Intent, Journal, JournalError, Lease, Ledger, Owner, Profile, Relabeler, UndoOutcome, UndoReport, Undoer,
    foresee_labels, record, undo_labels,
};
use casemate_plan::HostConfig;
use casemate_spec::SandboxId;
use casemate_wire::record::{ExitCause, ExitReport, Phase};
use serde::Serialize;

use crate::error::{StepFailed, sentence};
use crate::store::{EXIT, RunDir, STATE, SandboxDir};
use crate::{past, readopt};

/// What is asked of a repair.
#[derive(Debug, Default)]
pub struct Asked {
    /// Of one sandbox only; its leases go by its journal.
    pub only: Option<SandboxId>,
    /// Change nothing, say what would be done.
    pub dry_run: bool,
    /// Give up what is waited for: labels on file systems that will not come back.
    pub forget: bool,
}

/// How a sandbox was found, or left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Alive,
    Ended,
    Repaired,
    WouldRepair,
    /// Something cannot be given back yet, and is kept.
    Waiting,
    Failed,
}

/// What was found of one sandbox and done about it.
#[derive(Debug, Serialize)]
pub struct Repaired {
    pub sandbox: String,
    pub state: State,
    /// It was started before this boot.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub earlier_boot: bool,
    /// In the order in which it was, or would be, done.
    pub did: Vec<UndoReport>,
    /// Leases of a living sandbox that the ledger had lost.
    pub took_up: Vec<String>,
    pub error: Option<String>,
}

/// What a repair came to.
#[derive(Debug, Serialize)]
pub struct Repair {
    pub sandboxes: Vec<Repaired>,
    /// Leases whose owners are dead and whose sandboxes left no journal.
    pub leases_dropped: Vec<String>,
}

/// A repair under way.
struct Work<'a> {
    config: &'a HostConfig,
    asked: &'a Asked,
    relabeler: Relabeler,
    /// Whose journals below RUN still say what is to be done, and by which entries.
    told: Vec<(Owner, Vec<u64>)>,
    /// Whose labels stay for now, and their leases with them.
    left: Vec<Owner>,
    /// What is, or would be, released by a journal.
    released: Vec<String>,
}

/// Looks at the sandboxes below the run directory, then at the records of labels.
pub fn repair(config: &HostConfig, asked: &Asked) -> Result<Repair, StepFailed> {
    let mut relabeler = Relabeler::new(Profile::casemate());
    // Absent: nothing was ever labelled by this state directory, so no record on a file names it.
    if let Some(id) = record::known_host_id(&config.state_dir) {
        relabeler.set_host(id);
    }
    let mut work = Work { config, asked, relabeler, told: Vec::new(), left: Vec::new(), released: Vec::new() };
    let mut sandboxes = Vec::new();
    let run = work.run_dir()?;
    let ledger = run.as_ref().and_then(|_| work.ledger().transpose()).transpose()?;
    if let Some((run, ledger)) = run.as_ref().zip(ledger.as_ref()) {
        work.journals(run, ledger, &mut sandboxes)?;
    }
    work.records(&mut sandboxes)?;
    if let Some(name) = &asked.only
        && sandboxes.is_empty()
    {
        let why = format!("there is no sandbox {name}, and no record of one; `casemate repair -n` lists what there is");
        return Err(StepFailed::because("find the sandbox", why));
    }
    let leases_dropped = match (&run, &ledger, &asked.only) {
        (Some(run), Some(ledger), None) => work.dead_leases(ledger, run)?,
        _ => Vec::new(),
    };
    Ok(Repair { sandboxes, leases_dropped })
}

impl Work<'_> {
    /// A dry run makes no directory: where there is none, there is no sandbox.
    fn run_dir(&self) -> Result<Option<RunDir>, StepFailed> {
        match RunDir::find(&self.config.run_dir)? {
            Some(_) if !self.asked.dry_run => RunDir::open(&self.config.run_dir, true).map(Some),
            found => Ok(found),
        }
    }

    fn ledger(&self) -> Result<Option<Ledger>, StepFailed> {
        let ledger = match self.asked.dry_run {
            true => Ledger::find(&self.config.run_dir),
            false => Ledger::open(&self.config.run_dir).map(Some),
        };
        ledger.map_err(|e| StepFailed::stage("open the ledger", e))
    }

    fn wants(&self, name: &str) -> bool {
        self.asked.only.as_ref().is_none_or(|only| only.as_str() == name)
    }

    fn journals(&mut self, run: &RunDir, ledger: &Ledger, all: &mut Vec<Repaired>) -> Result<(), StepFailed> {
        let names: Vec<SandboxId> = run.names()?.into_iter().filter(|name| self.wants(name.as_str())).collect();
        for name in names {
            // Under the lock no start stands between its directory and its journal.
            let _lock = run.lock()?;
            let Ok(dir) = run.existing(&name) else { continue };
            let sandbox = name.to_string();
            let mut repaired = Repaired {
                sandbox,
                state: State::Ended,
                earlier_boot: false,
                did: Vec::new(),
                took_up: Vec::new(),
                error: None,
            };
            if let Err(failed) = self.one(run, dir, &name, ledger, &mut repaired) {
                (repaired.state, repaired.error) = (State::Failed, Some(failed.to_string()));
            }
            all.push(repaired);
        }
        Ok(())
    }

    fn one(
        &mut self,
        run: &RunDir,
        dir: SandboxDir,
        name: &SandboxId,
        ledger: &Ledger,
        out: &mut Repaired,
    ) -> Result<(), StepFailed> {
        let failed = |e: &dyn std::error::Error| StepFailed::because(&format!("repair {name}"), sentence(e));
        let path = dir.path().join(casemate_label::journal::JOURNAL);
        let opened = if self.asked.dry_run { peek(&path) } else { Journal::open(&path) };
        let mut journal = match opened {
            Ok(journal) => journal,
            Err(JournalError::Held(_)) => {
                out.state = State::Alive;
                out.took_up = readopt::take_up(&path, ledger, self.asked.dry_run)?;
                if !out.took_up.is_empty() {
                    out.state = if self.asked.dry_run { State::WouldRepair } else { State::Repaired };
                }
                return Ok(());
            }
            Err(JournalError::Io { ref source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return self.without_journal(run, dir, name, out);
            }
            // The journal's first line is written right after its creation: a crash in between changed nothing else.
            Err(JournalError::Header { .. }) if dir.read_record(STATE)?.is_none() => {
                return self.close(run, dir, name, out);
            }
            Err(error) => return Err(failed(&error)),
        };
        let owner = journal.owner().clone();
        out.earlier_boot = is_earlier(&owner);
        let undoer = Undoer { ledger, relabeler: &self.relabeler };
        if self.asked.dry_run {
            out.did = undoer.foresee(&journal);
        } else {
            journal.keep_labels_in(&self.config.state_dir.join(HELD)).map_err(|e| failed(&e))?;
            out.did = undoer.undo(&mut journal).map_err(|e| failed(&e))?;
            if self.asked.forget && forget(&mut journal, &mut out.did).map_err(|e| failed(&e))? {
                out.did.extend(undoer.undo(&mut journal).map_err(|e| failed(&e))?);
            }
        }
        let leases = out.did.iter().filter(|r| !r.outcome.is_pending()).filter_map(|r| r.what.strip_prefix("lease "));
        self.released.extend(leases.map(String::from));
        out.state = self.state_of(&out.did);
        if self.asked.dry_run || out.state != State::Repaired {
            self.told.push((owner, out.did.iter().map(|report| report.n).collect()));
        }
        match out.state {
            State::Failed | State::Waiting => Ok(()),
            _ => self.close(run, dir, name, out),
        }
    }

    fn state_of(&self, did: &[UndoReport]) -> State {
        let some = |is: fn(&UndoOutcome) -> bool| did.iter().any(|report| is(&report.outcome));
        match () {
            () if some(|o| matches!(o, UndoOutcome::Failed(_))) => State::Failed,
            () if some(UndoOutcome::is_pending) => State::Waiting,
            () if self.asked.dry_run => State::WouldRepair,
            () => State::Repaired,
        }
    }

    /// A directory without a journal: an ended sandbox's record, or a start that died at its first step.
    fn without_journal(
        &mut self,
        run: &RunDir,
        dir: SandboxDir,
        name: &SandboxId,
        out: &mut Repaired,
    ) -> Result<(), StepFailed> {
        if dir.read_record(EXIT)?.is_some() && !dir.has_more_than(&kept())? {
            return Ok(());
        }
        self.close(run, dir, name, out)
    }

    /// The last part: what stays of the sandbox's directory.
    fn close(&mut self, run: &RunDir, dir: SandboxDir, name: &SandboxId, out: &mut Repaired) -> Result<(), StepFailed> {
        out.state = if self.asked.dry_run { State::WouldRepair } else { State::Repaired };
        // It had ended and was about to clear up: what it wrote of its end stands.
        let ended = dir.read_record(EXIT)?.is_some();
        let last = dir.read_record(STATE).ok().flatten().filter(|r| r.detached && r.phase != Phase::Starting);
        let keeps = ended || last.is_some();
        let how = if keeps { "emptied but for its record and logs" } else { "removed" };
        let what = format!("directory {}", dir.path().display());
        let outcome = if self.asked.dry_run { UndoOutcome::Would(how.into()) } else { UndoOutcome::Undone(how.into()) };
        if !self.asked.dry_run {
            if let (false, Some(mut record)) = (ended, last) {
                record.phase = Phase::Stopped;
                let detail = Some("its warden was killed; repaired".into());
                record.exit = Some(ExitReport { cause: ExitCause::RunnerDied, status: None, detail });
                dir.write_record(EXIT, &record)?;
            }
            match keeps {
                true => dir.empty(&kept())?,
                false => run.remove(dir, name)?,
            }
        }
        out.did.push(UndoReport { n: 0, what, label: None, outcome });
        Ok(())
    }

    /// Labels of sandboxes whose journal is gone: with an earlier boot, or a run directory that was removed.
    fn records(&mut self, all: &mut Vec<Repaired>) -> Result<(), StepFailed> {
        let dead = durable::of_the_dead(&self.config.state_dir);
        let dead = dead.map_err(|e| StepFailed::stage("list the records of labels", e))?;
        let wanted: Vec<Found> = dead.into_iter().filter(|f| self.wants(&f.owner.sandbox)).collect();
        for found in wanted {
            let mut repaired = Repaired {
                sandbox: found.owner.sandbox.clone(),
                state: State::Repaired,
                earlier_boot: is_earlier(&found.owner),
                did: Vec::new(),
                took_up: Vec::new(),
                error: None,
            };
            match self.record(&found, &mut repaired) {
                Ok(true) => {}
                // Another repair is at it, or its journal told it already.
                Ok(false) => {
                    self.left.push(found.owner);
                    continue;
                }
                Err(failed) => (repaired.state, repaired.error) = (State::Failed, Some(failed.to_string())),
            }
            if matches!(repaired.state, State::Failed | State::Waiting) {
                self.left.push(found.owner);
            }
            all.push(repaired);
        }
        Ok(())
    }

    fn record(&self, found: &Found, out: &mut Repaired) -> Result<bool, StepFailed> {
        let step = || format!("repair the labels of {}", found.owner.sandbox);
        let failed = |e: &dyn std::error::Error| StepFailed::because(&step(), sentence(e));
        let dry_run = self.asked.dry_run;
        let told = self.told.iter().find(|(owner, _)| *owner == found.owner).map(|(_, entries)| entries);
        if !found.unfinished && dry_run {
            match peek(&found.path) {
                Err(JournalError::Held(_)) => return Ok(false),
                Err(e) => return Err(failed(&e)),
                Ok(journal) => out.did = foresee_labels(&self.relabeler, &journal),
            }
            // Its journal, which is there too, would give these back; the jailer may have died between the two files.
            if let Some(told) = told {
                out.did.retain(|report| !told.contains(&report.n));
                if out.did.is_empty() {
                    return Ok(false);
                }
            }
        } else if told.is_some() {
            return Ok(false);
        } else if !found.unfinished {
            let mut journal = match Journal::open(&found.path) {
                Err(JournalError::Held(_)) => return Ok(false),
                other => other.map_err(|e| failed(&e))?,
            };
            out.did = undo_labels(&self.relabeler, &mut journal).map_err(|e| failed(&e))?;
            if self.asked.forget {
                forget(&mut journal, &mut out.did).map_err(|e| failed(&e))?;
            }
        }
        out.state = self.state_of(&out.did);
        if matches!(out.state, State::Failed | State::Waiting) {
            return Ok(true);
        }
        let what = format!("record {}", found.path.display());
        let how = "removed".to_owned();
        if !dry_run {
            durable::discard(found).map_err(|e| failed(&e))?;
        }
        let outcome = if dry_run { UndoOutcome::Would(how) } else { UndoOutcome::Undone(how) };
        out.did.push(UndoReport { n: 0, what, label: None, outcome });
        Ok(true)
    }

    /// A dead owner's lease goes when its sandbox left no journal and no record of labels, hence no object that still
    /// carries the pair.
    fn dead_leases(&self, ledger: &Ledger, run: &RunDir) -> Result<Vec<String>, StepFailed> {
        let failed = |e: &dyn std::error::Error| StepFailed::because("drop the leases of the dead", sentence(e));
        let is_kept = |lease: &Lease| self.left.contains(&lease.owner);
        if self.asked.dry_run {
            let going = |lease: &Lease| {
                !lease.owner.is_alive() && !self.told.iter().any(|(o, _)| *o == lease.owner) && !is_kept(lease)
            };
            let leases = ledger.list().map_err(|e| failed(&e))?.into_iter();
            return Ok(leases
                .filter(going)
                .map(|l| l.key.to_string())
                .filter(|k| !self.released.contains(k))
                .collect());
        }
        let journals: Vec<String> =
            run.names()?.into_iter().filter(|name| run.has_journal(name)).map(|n| n.to_string()).collect();
        let restored = |lease: &Lease| !journals.contains(&lease.owner.sandbox) && !is_kept(lease);
        let dropped = ledger.drop_dead(restored).map_err(|e| failed(&e))?;
        Ok(dropped.into_iter().map(|lease| lease.key.to_string()).collect())
    }
}

/// Reads a journal unless its writer lives. Changes nothing.
fn peek(path: &std::path::Path) -> Result<Journal, JournalError> {
    let journal = Journal::peek(path)?;
    if journal.is_held() { Err(JournalError::Held(path.to_owned())) } else { Ok(journal) }
}

fn is_earlier(owner: &Owner) -> bool {
    casemate_label::owner::boot_id().is_ok_and(|boot| boot != owner.boot)
}

/// Marks labels that are waited for as given up. True if there was one.
fn forget(journal: &mut Journal, did: &mut [UndoReport]) -> Result<bool, JournalError> {
    let labels: Vec<u64> =
        journal.pending().iter().filter(|e| matches!(e.intent, Intent::Relabel { .. })).map(|e| e.n).collect();
    let mut any = false;
    for report in did.iter_mut().filter(|r| labels.contains(&r.n)) {
        if let UndoOutcome::Waiting(why) = &report.outcome {
            journal.undone(report.n)?;
            report.outcome = UndoOutcome::Left(format!("forgotten on request: {why}"));
            any = true;
        }
    }
    Ok(any)
}

/// What stays of a sandbox that has ended.
fn kept() -> Vec<&'static str> {
    let logs = casemate_plan::names::CONSOLE_LOG.into_iter().chain(casemate_plan::names::OUTPUT_LOG);
    [EXIT, KEPT].into_iter().chain(logs).collect()
}

/// Removes the record and logs of a sandbox that has ended.
pub fn remove(config: &HostConfig, name: &SandboxId) -> Result<(), StepFailed> {
    let run = RunDir::open(&config.run_dir, true)?;
    let dir = run.existing(name)?;
    let Some(record) = dir.read_record(EXIT)? else {
        let why =
            format!("{name} has not ended; `casemate stop {name}` first, or `casemate repair` if its warden died");
        return Err(StepFailed::because("remove the sandbox", why));
    };
    past::told(past::ended(&run, &dir, &record));
    run.remove(dir, name)
}
