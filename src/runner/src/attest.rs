//! The second narrowing, and what the runner sees of itself.

use std::os::fd::OwnedFd;

use casemate_confine::seccomp::{self, Filter};
use casemate_confine::{Finding, attest_inside, landlock};
use casemate_plan::RolePlan;
use casemate_sys::prctl::{self, Speculation};
use casemate_wire::record;

use crate::error::{Error, Step};

const NARROW: &str = "narrow the runner";
const ATTEST: &str = "attest from inside";

/// No new privileges, no file, no memory that turns executable, no life without the warden; then every layer is
/// compared with the plan. Before any thread, and before anything of the guest's is read.
pub fn narrow(plan: &RolePlan, inherited: &[OwnedFd]) -> Result<Vec<record::Finding>, Error> {
    prctl::set_no_new_privs().step(NARROW)?;
    prctl::set_not_dumpable().step(NARROW)?;
    prctl::die_with_parent().step(NARROW)?;
    // Extra locks, missed by nothing in the plan where the kernel or the processor has no such thing; the auditor says so.
    let _known = prctl::deny_write_execute().step(NARROW)?;
    for what in [Speculation::StoreBypass, Speculation::IndirectBranch] {
        let _possible = prctl::disable_speculation(what).step(NARROW)?;
    }
    if plan.landlock_abi > 0 {
        // The token's read-back is repeated by the attestation below, with all others.
        let _held = landlock::apply_fully(plan.landlock_abi).step(NARROW)?;
    }
    hold(attest_inside::attest(plan, inherited))
}

/// The main thread's own filter, when everything that needs more is done.
pub fn confine_main(plan: &RolePlan) -> Result<Vec<record::Finding>, Error> {
    if !plan.seccomp {
        return Ok(Vec::new());
    }
    confine_thread("main", Filter::RunnerMain).map(|finding| vec![finding])
}

/// Installs a thread's filter and lets it show itself.
pub fn confine_thread(thread: &str, filter: Filter) -> Result<record::Finding, Error> {
    let _held = seccomp::apply(filter).step(ATTEST)?;
    let mut finding = seccomp::attest(filter);
    finding.what = format!("seccomp filter of thread {thread}");
    Ok(to_wire(finding))
}

/// All findings, if each is ok; the first that is not stops the start with its layer's name.
fn hold(findings: Vec<Finding>) -> Result<Vec<record::Finding>, Error> {
    match findings.iter().find(|finding| !finding.ok) {
        None => Ok(findings.into_iter().map(to_wire).collect()),
        Some(Finding { layer, what, expected, seen, .. }) => {
            let why = format!("the {layer} layer does not hold: {what} should be {expected}, the kernel says {seen}");
            Err(Error::because(ATTEST, why))
        }
    }
}

fn to_wire(finding: Finding) -> record::Finding {
    let Finding { layer, what, expected, seen, ok } = finding;
    record::Finding { layer: layer.to_string(), what, expected, seen, ok }
}
