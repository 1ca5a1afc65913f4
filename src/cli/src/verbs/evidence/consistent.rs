//! Do a bundle's parts say the same? The plan is made again, by the same planner, from what the bundle says it was made from.

use std::collections::BTreeSet;

use casemate_evidence::parts::{HIDDEN, Planned, SpecText};
use casemate_evidence::statement::Predicate;
use casemate_evidence::{Digest, Evidence, Part};
use casemate_plan::{FdAccess, FdKind, FdSource, Plan};
use casemate_spec::{SandboxSpec, parse};
use casemate_wire::record::{Finding, Phase};

use super::told::Checks;

pub fn check(predicate: &Predicate, checks: &mut Checks) {
    let evidence = &predicate.evidence;
    times(predicate, checks);
    let spec = evidence.spec.taken().and_then(|text| spec(text, checks));
    if let Some(planned) = evidence.start.taken() {
        match &spec {
            Some(spec) => plan(spec, planned, checks),
            None => checks.skip("the plan is the planner's", "the bundle holds no specification to plan from"),
        }
        bound(evidence, planned, checks);
        recorded(evidence, planned, checks);
        files(evidence, planned, checks);
        attested(evidence, planned, checks);
    } else {
        checks.skip("plan, record, descriptors and digests against each other", "the bundle holds no plan");
    }
    changed_programs(evidence, checks);
}

fn times(predicate: &Predicate, checks: &mut Checks) {
    let (seal, evidence) = (&predicate.seal, &predicate.evidence);
    let record = &evidence.record;
    let order = record.created <= evidence.time && evidence.time <= seal.time;
    let why = format!("started {}, gathered {}, sealed {}", record.created, evidence.time, seal.time);
    checks.holds("it was started, gathered and sealed in this order", order, why);
    if record.phase == Phase::Stopped {
        checks.holds("it has ended, and says how", record.exit.is_some(), "there is no end in the record");
    } else {
        checks.equal("it lived in the boot in which it was sealed", &record.boot_id, &seal.boot_id);
    }
    if seal.sequence == 1 {
        checks.equal("the first record follows the key", &seal.previous, &seal.signer.id());
    }
}

/// The specification, if it is one; what is hidden in it is said.
fn spec(text: &SpecText, checks: &mut Checks) -> Option<SandboxSpec> {
    let parsed = parse::json(text.text.as_bytes()).and_then(SandboxSpec::try_from);
    checks.result("the specification is one", parsed.as_ref().map(|_| ()));
    let spec = parsed.ok()?;
    let hidden: BTreeSet<&String> =
        spec.file().env.0.iter().filter(|(_, value)| *value == HIDDEN).map(|(name, _)| name).collect();
    checks.equal("the values that it hides are those that it names", &text.hidden.keys().collect(), &hidden);
    match (&text.digest, &text.salt) {
        (Some(digest), Some(salt)) if text.hidden.is_empty() => {
            checks.equal("the specification has its digest", &Digest::salted(salt, text.text.as_bytes()), digest);
            checks.equal("the specification has its length", &text.text.len(), &text.bytes);
        }
        _ => {
            let names: Vec<&str> = text.hidden.keys().map(String::as_str).collect();
            let why = format!("hidden: {}; give the original with --spec", names.join(", "));
            checks.skip("the values of variables", why);
        }
    }
    Some(spec)
}

fn plan(spec: &SandboxSpec, planned: &Planned, checks: &mut Checks) {
    let again = casemate_plan::plan(spec, &planned.facts, &planned.config);
    let wrong = differences(&again, &planned.plan);
    checks.none("the plan is what the planner makes of specification, facts and configuration", &wrong);
    checks.holds("the plan could be applied", again.blockers.is_empty(), again.blockers.join("; "));
}

fn differences(again: &Plan, told: &Plan) -> Vec<String> {
    if again == told {
        return Vec::new();
    }
    let (again, told) = (serde_json::to_value(again), serde_json::to_value(told));
    let (Ok(serde_json::Value::Object(again)), Ok(serde_json::Value::Object(told))) = (again, told) else {
        return vec!["it is another plan".into()];
    };
    let other: Vec<&str> = again.iter().filter(|(k, v)| told.get(*k) != Some(*v)).map(|(k, _)| k.as_str()).collect();
    vec![format!("another planner, or another plan: {} differ", other.join(", "))]
}

/// What the runner was told is the plan, with values in place.
fn bound(evidence: &Evidence, planned: &Planned, checks: &mut Checks) {
    let (plan, role, config) = (&planned.plan, &planned.role, &planned.config);
    checks.equal("what was bound is this sandbox", &role.sandbox, &evidence.sandbox);
    let named = plan.sandbox.as_ref().is_none_or(|name| *name == evidence.sandbox);
    checks.holds("what was planned is this sandbox", named, format!("it is {:?}", plan.sandbox));
    let slots: Vec<_> = plan.fds.iter().map(|s| (s.number, s.name.clone(), s.kind, s.access)).collect();
    let fds: Vec<_> = role.fds.iter().map(|s| (s.number, s.name.clone(), s.kind, s.access)).collect();
    checks.equal("the bound descriptors are the plan's", &fds, &slots);
    checks.equal("the bound VM is the plan's", &role.vm, &plan.vm);
    checks.equal("the bound limits are the plan's", &role.rlimits, &plan.rlimits);
    let layers = (role.landlock_abi, role.seccomp, role.label.is_some());
    checks.equal("the bound layers are the plan's", &layers, &(plan.landlock_abi, plan.seccomp, plan.selinux));
    let ours = (config.uid_first..=config.uid_last).contains(&role.uid) && role.uid == role.gid;
    checks.holds("the uid is of the leased range", ours, format!("uid {}, gid {}", role.uid, role.gid));
}

fn recorded(evidence: &Evidence, planned: &Planned, checks: &mut Checks) {
    let (plan, role, record) = (&planned.plan, &planned.role, &evidence.record);
    let told: Vec<_> =
        record.descriptors.iter().map(|d| (d.number, d.name.clone(), d.read, d.write, d.dev, d.ino)).collect();
    let wanted: Vec<_> = role
        .fds
        .iter()
        .map(|f| {
            (f.number, f.name.clone(), f.access != FdAccess::WriteOnly, f.access != FdAccess::ReadOnly, f.dev, f.ino)
        })
        .collect();
    checks.equal("the record's descriptors are the bound ones", &told, &wanted);
    let told = (record.uid, &record.label, record.landlock_abi, record.cpus, record.memory);
    let wanted = (role.uid, &role.label, role.landlock_abi, role.vm.cpus, role.vm.memory);
    checks.equal("the record's uid, label, Landlock ABI and size are the bound ones", &told, &wanted);
    let level = record.label.as_ref().map(|label| label.split(':').nth(4).unwrap_or_default().to_owned());
    checks.equal("the record's categories are its label's", &record.categories, &level);
    let better = format!("it says {}, and the plan gave {}", record.posture, plan.posture);
    checks.holds("the posture is no better than the plan's", record.posture <= plan.posture, better);
    let labelled: BTreeSet<&str> = record.labels.iter().map(|l| l.fd.as_str()).collect();
    let of_path = |s: &&casemate_plan::FdSlot| matches!(s.source, FdSource::Path(_)) && s.kind != FdKind::CharDevice;
    let objects: BTreeSet<&str> = plan.fds.iter().filter(of_path).map(|s| s.name.as_str()).collect();
    checks.equal("the record tells the label of each object of the plan", &labelled, &objects);
}

/// Each object is digested, or says why not; and it is the one that was bound.
fn files(evidence: &Evidence, planned: &Planned, checks: &mut Checks) {
    let mut wrong = Vec::new();
    let of_path = planned.plan.fds.iter().filter_map(|slot| match &slot.source {
        FdSource::Path(path) if slot.kind != FdKind::CharDevice => Some((slot, path)),
        _ => None,
    });
    for (slot, path) in of_path {
        let Some(file) = evidence.files.iter().find(|file| file.name == slot.name) else {
            wrong.push(format!("{} is not among the files", slot.name));
            continue;
        };
        let bound = planned.role.fds.iter().find(|bound| bound.name == slot.name).map(|b| (b.dev, b.ino));
        if file.digest.taken().is_some() && bound != Some((file.dev, file.ino)) {
            wrong.push(format!("{} that was digested is another file than the one that was bound", slot.name));
        }
        if file.path != *path || file.read_only != (slot.access == FdAccess::ReadOnly) {
            wrong.push(format!("{} has another path or access than the plan says", slot.name));
        }
        if file.digest.taken().is_some() && !file.read_only {
            wrong.push(format!("{} is writable and has a digest, which says nothing", slot.name));
        }
    }
    checks.none("what was digested is what was planned and bound", &wrong);
    let replaced = evidence.files.iter().filter(|file| file.replaced);
    let replaced: Vec<String> =
        replaced.map(|f| format!("{} ({}) leads to another file than the sandbox uses", f.path, f.name)).collect();
    checks.none("no file was replaced under its name", &replaced);
    for file in &evidence.files {
        if let Part::Missing(why) = &file.digest {
            let object = format!("{} bytes, device {}, inode {}", file.size, file.dev, file.ino);
            checks.skip(format!("the content of {} ({})", file.name, file.path), format!("{why} ({object})"));
        }
    }
}

fn attested(evidence: &Evidence, planned: &Planned, checks: &mut Checks) {
    proof("before the first guest instruction", &evidence.record.findings, planned, checks);
    if let Some(findings) = evidence.attested.taken() {
        proof("when the evidence was gathered", findings, planned, checks);
    }
}

/// Every layer of the plan was looked at, and nothing was found wanting.
fn proof(when: &str, findings: &[Finding], planned: &Planned, checks: &mut Checks) {
    let told = |f: &Finding| format!("{} {}: expected {}, seen {}", f.layer, f.what, f.expected, f.seen);
    let bad: Vec<String> = findings.iter().filter(|f| !f.ok).map(told).collect();
    checks.none(format!("the attestation {when} found each layer as planned ({} findings)", findings.len()), &bad);
    let layers: BTreeSet<&str> = findings.iter().map(|f| f.layer.as_str()).collect();
    let plan = &planned.plan;
    let optional = [("selinux", plan.selinux), ("landlock", plan.landlock_abi > 0), ("seccomp", plan.seccomp)];
    let wanted = ["capabilities", "namespaces", "mounts", "uid", "rlimits", "fds"].into_iter();
    let wanted = wanted.chain(optional.into_iter().filter(|(_, on)| *on).map(|(layer, _)| layer));
    let unseen: Vec<String> =
        wanted.filter(|layer| !layers.contains(layer)).map(|l| format!("nothing of {l}")).collect();
    checks.none(format!("the attestation {when} looked at each layer of the plan"), &unseen);
}

fn changed_programs(evidence: &Evidence, checks: &mut Checks) {
    for file in evidence.programs.iter() {
        match &file.digest {
            Part::Missing(why) => checks.skip(format!("the program {}", file.name), why.clone()),
            Part::Taken(_) if file.replaced => {
                let why = format!("{} was replaced since it was started; the digest is of the running one", file.path);
                checks.skip(format!("the program {} as it lies there now", file.name), why);
            }
            Part::Taken(_) => {}
        }
    }
}
