//! Leases of living sandboxes that the ledger lost (somebody emptied RUN/leases): taken up again from the journal.
//!
//! The journal says what was leased, the runner's label says what it really has, and both must agree. Only while the
//! runner lives: its warden releases after it reaped the runner, so a lease that is missing before that was lost, and is
//! no release on its way.

use std::path::Path;

use casemate_label::mode::SelinuxFs;
use casemate_label::{Intent, Journal, LeaseKey, Ledger, Readopted, VerifiedProc, owner};

use crate::error::StepFailed;

const STAGE: &str = "take lost leases up again";

/// Looks at one living sandbox's leases. A level that another living sandbox has is an error that names both.
pub fn take_up(journal: &Path, ledger: &Ledger, dry_run: bool) -> Result<Vec<String>, StepFailed> {
    let journal = Journal::peek(journal).map_err(|e| StepFailed::stage(STAGE, e))?;
    let (holder, pending) = (journal.owner(), journal.pending());
    let runner = pending.iter().find_map(|entry| match &entry.intent {
        Intent::Process { role, pid, start } if role == "runner" => Some((*pid, *start)),
        _ => None,
    });
    // it is only starting, and takes its leases itself, or it ends
    let Some((pid, start)) = runner else { return Ok(Vec::new()) };
    let lives = || owner::start_time(pid).is_ok_and(|now| now == start);
    let mut took_up = Vec::new();
    for entry in &pending {
        let Intent::Lease { lease: key } = &entry.intent else { continue };
        if !lives() {
            break;
        }
        if !agrees(key, pid, holder.pid)? {
            break;
        }
        let known = ledger.holder(key).map_err(|e| StepFailed::stage(STAGE, e))?;
        if known.is_some_and(|lease| lease.owner == *holder) {
            continue;
        }
        if dry_run {
            took_up.push(format!("{key}: would be taken up again"));
            continue;
        }
        match ledger.readopt(key, holder).map_err(|e| StepFailed::stage(STAGE, e))? {
            Readopted::Held => {}
            Readopted::Recreated => took_up.push(format!("{key}: had been lost, taken up again")),
            Readopted::TakenFrom(dead) => took_up.push(format!("{key}: stood in the name of {dead}, which is dead")),
        }
        if !lives() {
            // it ended meanwhile, and its warden may have released already
            ledger.release(key, holder).map_err(|e| StepFailed::stage(STAGE, e))?;
            took_up.pop();
        }
    }
    Ok(took_up)
}

/// Has the runner the level that the journal says? False before its exec, while it still has its warden's label: then
/// the sandbox is only starting.
fn agrees(key: &LeaseKey, pid: u32, warden: u32) -> Result<bool, StepFailed> {
    let Some(set) = key.categories() else { return Ok(true) };
    if SelinuxFs::here().map_err(|e| StepFailed::stage(STAGE, e))?.is_none() {
        return Ok(true);
    }
    let proc = VerifiedProc::open_host().map_err(|e| StepFailed::stage(STAGE, e))?;
    let label = proc.label_of(pid).map_err(|e| StepFailed::stage(STAGE, e))?;
    if label.range().is_some_and(|range| range.high().categories == set) {
        return Ok(true);
    }
    if proc.label_of(warden).is_ok_and(|of_warden| of_warden == label) {
        return Ok(false);
    }
    let why = format!("its runner, process {pid}, has {label}, and its journal says {key}; stop this sandbox");
    Err(StepFailed::because(STAGE, why))
}
