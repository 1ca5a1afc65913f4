//! What the runner can prove of itself, without /proc and without opening anything.
//!
//! Called by the runner's main thread after its second Landlock ruleset and before its own thread
//! filter (which takes these questions away; NNP, capabilities and ids cannot come back anyway). Each
//! thread then adds [`crate::seccomp::apply`]'s own proof.

use crate::confined::Finding;
use crate::{capabilities, fds, landlock, rlimits, seccomp, uid};
use casemate_plan::{Layer, RolePlan};
use casemate_sys::{prctl, seqpacket};
use std::os::fd::OwnedFd;

/// Every layer that the plan demands, compared with what the kernel says to this thread. All must be
/// ok before the first guest instruction.
pub fn attest(plan: &RolePlan, inherited: &[OwnedFd]) -> Vec<Finding> {
    let mut findings = fds::attest(&plan.fds, inherited);
    findings.extend(uid::attest(plan.uid, plan.gid));
    findings.extend(capabilities::attest());
    findings.extend(rlimits::attest(&plan.rlimits));
    findings.push(label(plan.label.as_deref()));
    findings.extend(process());
    if plan.landlock_abi > 0 {
        findings.extend(landlock::attest());
    }
    if plan.seccomp {
        findings.push(seccomp::attest(seccomp::Filter::JailerExec));
    }
    findings
}

fn label(planned: Option<&str>) -> Finding {
    const NONE: &str = "none";
    match seqpacket::own_label() {
        Ok(seen) => {
            Finding::equal(Layer::Selinux, "own label", planned.unwrap_or(NONE), seen.as_deref().unwrap_or(NONE))
        }
        Err(error) => Finding::unreadable(Layer::Selinux, "own label", &error),
    }
}

fn process() -> Vec<Finding> {
    let yes_no = |layer, what: &str, expected: bool, seen: casemate_sys::Result<bool>| match seen {
        Ok(seen) => Finding::equal(layer, what, expected.to_string(), seen.to_string()),
        Err(error) => Finding::unreadable(layer, what, &error),
    };
    vec![
        yes_no(Layer::Seccomp, "no_new_privs", true, prctl::no_new_privs()),
        yes_no(Layer::Uid, "dumpable", false, prctl::is_dumpable()),
        yes_no(Layer::Namespaces, "dies with the warden", true, prctl::dies_with_parent()),
    ]
}
