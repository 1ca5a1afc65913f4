//! The installed filters in a bundle, decided anew from their instructions.

use std::sync::Arc;

use casemate_audit::seccomp::{Cache, Program, Verdicts, digest, from_hex};
use casemate_evidence::Evidence;
use casemate_evidence::parts::{Filters, ThreadFilters};

use super::told::Checks;

/// What the filters of a thread answer.
pub fn verdicts(filters: &Filters, thread: &ThreadFilters, cache: &Cache) -> Result<Arc<Verdicts>, String> {
    let program = |digest| {
        let text = filters.programs.get(digest).ok_or(format!("the filter {digest} is not contained"))?;
        from_hex(text).map_err(|e| e.to_string())
    };
    let stack: Vec<Program> = thread.filters.iter().map(program).collect::<Result<_, String>>()?;
    cache.judge(&stack).map_err(|e| e.to_string())
}

pub fn check(filters: &Filters, evidence: &Evidence, checks: &mut Checks) {
    let damaged = filters.programs.iter().filter_map(|(told, text)| match from_hex(text) {
        Ok(program) if digest(&program) == told.as_str() => None,
        Ok(_) => Some(format!("{told} is not the digest of its instructions")),
        Err(error) => Some(format!("{told}: {error}")),
    });
    checks.none("the contained filters have their digests", &damaged.collect::<Vec<_>>());
    let Some(planned) = evidence.start.taken() else { return };
    if !planned.plan.seccomp {
        checks.skip("the filters", "the plan has none: the posture is reduced");
        return;
    }
    ours(filters, checks);
    let vcpus = filters.threads.iter().filter(|t| t.role == "runner" && wanted(t)[0] == "runner.vcpu").count();
    checks.equal("each vCPU has a thread with its own filter", &vcpus, &usize::from(planned.plan.vm.cpus));
    let named = [("runner", evidence.record.runner), ("warden", Some(evidence.record.warden))];
    let strangers: Vec<String> = filters
        .threads
        .iter()
        .filter(|t| !named.contains(&(t.role.as_str(), named.iter().find_map(|(_, p)| p.filter(|p| p.pid == t.pid)))))
        .map(|t| format!("thread {} of {} {}", t.tid, t.role, t.pid))
        .collect();
    checks.none("the filters are of the recorded processes", &strangers);
}

/// Every input is answered as by the filter that the role's thread must have, in this build's `seccomp-filters`.
fn ours(filters: &Filters, checks: &mut Checks) {
    let cache = Cache::default();
    let mut wrong = Vec::new();
    for thread in &filters.threads {
        let name = format!("{} thread {} ({})", thread.role, thread.name, thread.tid);
        match verdicts(filters, thread, &cache) {
            Err(why) => wrong.push(format!("{name}: {why}")),
            Ok(verdicts) => {
                let known: Vec<&str> =
                    verdicts.filters.iter().map(|f| f.known.as_deref().unwrap_or("(not ours)")).collect();
                if known != wanted(thread) {
                    wrong.push(format!("{name} has {}, not {}", known.join(", "), wanted(thread).join(", ")));
                }
            }
        }
    }
    if filters.threads.is_empty() {
        wrong.push("no thread has any".into());
    }
    let what = format!("the filters of {} threads answer every input as seccomp-filters say", filters.threads.len());
    checks.none(what, &wrong);
}

/// Newest first.
fn wanted(thread: &ThreadFilters) -> Vec<&'static str> {
    match (thread.role.as_str(), thread.name.as_str()) {
        ("warden", _) => vec!["warden"],
        (_, "io") => vec!["runner.io", "jailer.exec"],
        (_, name) if name.starts_with("vcpu") => vec!["runner.vcpu", "jailer.exec"],
        _ => vec!["runner.main", "jailer.exec"],
    }
}
