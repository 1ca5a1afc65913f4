//! Casemate's SELinux module: built and checked against a base policy, installed and removed with the distribution's own
//! tools, judged by what the loaded policy answers.
//!
//! Trust: started by the command line tool in the *caller's* domain, not in the jailer's: who may change the host's
//! policy is decided for the administrator, and the module itself forbids the jailer's domain to load one. Files are the
//! administrator's own; selinuxfs answers are the kernel's.

mod blocks;
mod build;
mod files;
mod store;

use std::path::PathBuf;

use casemate_label::{Context, Profile, mode};
use serde::Serialize;

use crate::customizable;
use crate::error::StepFailed;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Build,
    Check,
    Install,
    Remove,
    Status,
}

/// What goes with a verb; what does not is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Directory of the module's CIL files instead of the installed one.
    pub from: Option<PathBuf>,
    /// Directory of a base policy's CIL files.
    pub base: Option<PathBuf>,
    /// Where `build` writes.
    pub output: Option<PathBuf>,
    /// Leave the deny rules out, for libsepol before 3.6.
    pub without_deny: bool,
}

/// What the loaded policy says of our types, and what was done.
#[derive(Debug, Serialize)]
pub struct Status {
    pub facts: mode::SelinuxFacts,
    /// SELinux separates guests: what `enforced` needs.
    pub separates: bool,
    /// What is in the way, with remedies.
    pub shortcomings: Vec<String>,
    /// The store's modules of ours, as `priority name`. Where the store cannot be read, a note says so.
    pub installed: Vec<String>,
    /// What the runner's domain may do beyond the module's own rules: the deny rules are not loaded.
    pub beyond: Vec<String>,
    /// Optional blocks of the module, and why one does not apply; of `build` and `check` with a base.
    pub blocks: Vec<blocks::Block>,
    /// What the verb did.
    pub did: Vec<String>,
    /// What to know besides: not in the way of separation.
    pub notes: Vec<String>,
}

pub fn act(verb: Verb, options: &Options) -> Result<Status, StepFailed> {
    match verb {
        Verb::Status => Ok(status(Vec::new())),
        Verb::Check if options.base.is_none() => check(),
        Verb::Check | Verb::Build => build::build(verb, options),
        Verb::Install => store::install(options),
        Verb::Remove => store::remove(),
    }
}

fn status(did: Vec<String>) -> Status {
    let facts = mode::probe();
    let (installed, unread) = modules(&facts, store::installed);
    Status {
        separates: facts.separates(),
        shortcomings: facts.shortcomings(),
        installed,
        beyond: beyond(&facts),
        blocks: Vec::new(),
        notes: unread.into_iter().chain(restorecon_note(&facts)).collect(),
        facts,
        did,
    }
}

/// The store's modules of ours, or why they are not known.
fn modules(
    facts: &mode::SelinuxFacts,
    installed: impl FnOnce() -> Result<Vec<String>, StepFailed>,
) -> (Vec<String>, Option<String>) {
    let unread = |why: String| (Vec::new(), Some(format!("which modules are installed is not known: {why}")));
    if facts.mode == mode::SelinuxMode::Disabled {
        return (Vec::new(), None);
    }
    if in_own_domain(facts) {
        return unread("the jailer's domain may not read the store; ask in your own".into());
    }
    match installed() {
        Ok(modules) => (modules, None),
        Err(failed) => unread(failed.to_string()),
    }
}

/// `restorecon -R` over images of running VMs would take their labels.
fn restorecon_note(facts: &mode::SelinuxFacts) -> Option<String> {
    let file = customizable::file().filter(|_| facts.mode != mode::SelinuxMode::Disabled)?;
    let missing = customizable::missing(&file).ok().filter(|missing| !missing.is_empty())?;
    let (types, file) = (missing.join("\\n"), file.display());
    Some(format!("restorecon would relabel images in use; to keep theirs: printf '{types}\\n' >> {file}"))
}

/// `status`, as a failure where guests are not separated.
fn check() -> Result<Status, StepFailed> {
    let status = status(Vec::new());
    if status.separates {
        return Ok(status);
    }
    Err(StepFailed::because("check the loaded policy", status.shortcomings.join("; ")))
}

/// Rights that base policies give every domain and that deny rules take from the runner again: which of them it has.
fn beyond(facts: &mode::SelinuxFacts) -> Vec<String> {
    const ASKED: [(&str, &str, &[&str]); 9] = [
        ("etc_t", "file", &["open"]),
        ("lib_t", "file", &["open", "execute"]),
        ("ld_so_t", "file", &["open", "execute"]),
        ("usr_t", "file", &["open"]),
        ("bin_t", "file", &["open", "execute"]),
        ("proc_t", "dir", &["open"]),
        ("root_t", "dir", &["open"]),
        ("null_device_t", "chr_file", &["open"]),
        ("urandom_device_t", "chr_file", &["open"]),
    ];
    let Some(own) = facts.own.as_ref().filter(|_| facts.missing_types.is_empty()) else { return Vec::new() };
    let Ok(Some(fs)) = mode::SelinuxFs::here() else { return Vec::new() };
    let profile = Profile::casemate();
    let level = casemate_label::CategoryPair::try_from((1, 2)).expect("a pair").level();
    let runner = profile.runner_label(own, level);
    let mut found = Vec::new();
    for (type_, class, perms) in ASKED {
        let Ok(target) = format!("system_u:object_r:{type_}:s0").parse::<Context>() else { continue };
        // a type that this policy lacks grants nothing
        if !fs.is_valid(&target) {
            continue;
        }
        let Ok(decision) = fs.access(&runner, &target, class) else { continue };
        let granted = |perm: &&&str| fs.permission(class, perm).is_ok_and(|bit| decision.allowed & bit != 0);
        found.extend(perms.iter().filter(granted).map(|perm| format!("{perm} {type_} ({class})")));
    }
    found
}

/// Are we in the jailer's domain? It may neither run semodule nor load policy.
fn in_own_domain(facts: &mode::SelinuxFacts) -> bool {
    let jailer = Profile::casemate().jailer;
    facts.own.as_ref().is_some_and(|own| Some(own.type_()) == jailer.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_that_cannot_be_listed_are_said_to_be_unknown() {
        let mut facts = mode::probe();
        facts.mode = mode::SelinuxMode::Enforcing;
        facts.own = "unconfined_u:unconfined_r:unconfined_t:s0".parse().ok();
        let failing = || Err(StepFailed::because("list the installed modules", "semodule is missing"));
        let (modules_, note) = modules(&facts, failing);
        assert!(modules_.is_empty());
        assert!(note.unwrap().contains("semodule is missing"));
        assert_eq!(modules(&facts, || Ok(vec!["400 casemate_types".into()])).1, None);
        facts.own = "system_u:system_r:casemate_jailer_t:s0".parse().ok();
        assert!(modules(&facts, || Ok(Vec::new())).1.unwrap().contains("may not read the store"));
    }
}
