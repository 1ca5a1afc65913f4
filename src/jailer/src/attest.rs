//! The warden's attestation: what `confine` sees from outside, as findings for records and clients.

use std::os::fd::AsFd;

use casemate_confine::attest_outside::{Expected, attest};
use casemate_confine::namespaces;
use casemate_label::{CategorySet, Level, VerifiedProc, others_in_reach};
use casemate_plan::{Action, Layer, Namespace, Plan, RolePlan};
use casemate_sys::process::pidfd_open;
use casemate_sys::procfs::{Proc, ProcessView};
use casemate_wire::record::Finding;

use crate::error::StepFailed;
use crate::start::Start;
use crate::warden::Attest;

/// Filters on each thread of a runner: the coarse one from before the exec, and its own.
const FILTERS_PER_THREAD: u32 = 2;
const STAGE: &str = "attest from outside";

/// Everything that an attestation of this runner needs, at any later time.
pub fn outside(plan: &Plan, role: RolePlan, start: &mut Start, pid: i32) -> Result<Attest, StepFailed> {
    let failed = |e: casemate_sys::Error| StepFailed::stage(STAGE, e);
    let proc = Proc::open().map_err(failed)?;
    let wanted = planned_namespaces(plan);
    let own = namespaces::own(&proc, &wanted).map_err(failed)?;
    let pidfd = pidfd_open(pid).map_err(failed)?;
    let cgroup = start.cgroup.take();
    let objects = start.attested_objects(&role);
    let (level, shared) = (start.level, level_is_shared(plan));
    let window = start.window.categories;
    Ok(Box::new(move || {
        let view = ProcessView::new(&proc, pid, pidfd.as_fd());
        let expected = Expected {
            plan: &role,
            namespaces: &wanted,
            own_namespaces: &own,
            cgroup: cgroup.as_ref(),
            only_the_table: false,
            filters_per_thread: FILTERS_PER_THREAD,
        };
        let mut findings: Vec<Finding> = attest(&view, &expected).into_iter().map(finding).collect();
        findings.extend(objects.iter().map(|object| still_labelled(&view, object)));
        // a group shares on purpose, and the plan warned of it
        findings.extend(level.map(|_| own_attributes()));
        findings.extend(level.filter(|_| !shared).map(|level| alone(level, &window, pid)));
        findings
    }))
}

/// The parent labels nothing any more: what it makes as a warden has its own label, and what it executes nobody's.
fn own_attributes() -> Finding {
    let seen = match VerifiedProc::open_host().and_then(|proc| proc.attributes()) {
        Ok(set) if set.is_empty() => "none".to_owned(),
        Ok(set) => set.iter().map(|(a, label)| format!("{}={label}", a.name())).collect::<Vec<_>>().join(", "),
        Err(error) => error.to_string(),
    };
    let ok = seen == "none";
    Finding { layer: Layer::Selinux.to_string(), what: "own attributes".into(), expected: "none".into(), seen, ok }
}

fn level_is_shared(plan: &Plan) -> bool {
    plan.steps.iter().any(|step| matches!(step.action, Action::LeaseLevel { shared: true, .. }))
}

/// An image keeps its label while the VM runs: a `restorecon -F` of its directory takes it away, and then the guest sees
/// I/O errors, or another label lets others in.
fn still_labelled(view: &ProcessView<'_>, (number, path, label): &(i32, String, String)) -> Finding {
    let seen = view.fd_label(*number).unwrap_or_else(|error| error.report());
    Finding {
        layer: Layer::Selinux.to_string(),
        what: format!("label of {path}"),
        expected: label.clone(),
        ok: seen == *label,
        seen,
    }
}

/// Nobody else is within reach of the level: another manager, which knows nothing of our ledger, may have chosen the same.
fn alone(level: Level, window: &CategorySet, pid: i32) -> Finding {
    let others = others_in_reach(level, window, &[pid.unsigned_abs()]);
    let seen: Vec<String> = others.iter().take(8).map(|(pid, context)| format!("{pid} ({context})")).collect();
    Finding {
        layer: Layer::Selinux.to_string(),
        what: format!("other processes within reach of {level}"),
        expected: "none".into(),
        seen: if seen.is_empty() { "none".into() } else { seen.join(", ") },
        ok: seen.is_empty(),
    }
}

pub fn planned_namespaces(plan: &Plan) -> Vec<Namespace> {
    let of = |action: &Action| match action {
        Action::CloneRunner { namespaces, .. } => Some(namespaces.clone()),
        _ => None,
    };
    plan.steps.iter().find_map(|step| of(&step.action)).unwrap_or_default()
}

/// A finding of `confine` in the form of the wire.
pub fn finding(found: casemate_confine::Finding) -> Finding {
    let casemate_confine::Finding { layer, what, expected, seen, ok } = found;
    Finding { layer: layer.to_string(), what, expected, seen, ok }
}
