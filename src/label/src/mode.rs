//! What SELinux on this host really separates, asked of the loaded policy.
//!
//! Trust: selinuxfs, verified to be one (`selinuxfs`), and procfs likewise. Nothing is assumed from names, versions or
//! /proc/mounts: whether the runner's type is MCS-constrained is the kernel's own answer to "may this context do
//! that" (`questions`). Whatever cannot be asked is a shortcoming: no state of doubt is called separated.
//! Called by the jailer, which puts the facts into `HostFacts` for the planner, and by the warden when the policy has
//! changed.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use casemate_plan::Shortcoming;
use serde::{Deserialize, Serialize};

use crate::context::{CategoryPair, Context, Level, Range};
use crate::exec_label::VerifiedProc;
use crate::profile::Profile;
pub use crate::questions::Check;
use crate::questions::{self, Answers};
pub use crate::selinuxfs::SelinuxFs;
use crate::{configured, transition};

/// The boolean without which the jailer may not touch host disks.
const HOST_DISKS: &str = "casemate_use_host_disks";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SelinuxMode {
    Disabled,
    Permissive,
    Enforcing,
}

/// The facts the posture is computed from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxFacts {
    pub mode: SelinuxMode,
    pub profile: String,
    /// The runner's domain in this profile.
    pub runner: String,
    /// The caller's own label; none when SELinux is off.
    pub own: Option<Context>,
    /// The loaded policy has levels.
    pub mls: bool,
    /// What the policy does not know is denied. False on most hosts: then a new kernel's new classes are open.
    pub deny_unknown: bool,
    /// Types of the profile that the loaded policy does not know.
    pub missing_types: Vec<String>,
    /// Some of the profile's types are there: the module is not whole.
    pub partial: bool,
    /// The runner's domain is permissive although the host is enforcing.
    pub domain_permissive: bool,
    /// The runner's type is held back by categories. False when unknown.
    pub mcs_constrained: bool,
    /// The caller's domain may exec into the runner's domain with NNP set.
    pub nnp_transition: bool,
    /// Each question and its answer, for `doctor` and the evidence.
    pub checks: Vec<Check>,
    /// Counts policy loads; when it moves, the facts are stale.
    pub policy_seqno: u32,
    /// Booleans that matter to sandboxes, as they are in force.
    pub booleans: BTreeMap<String, bool>,
    /// Why something could not be asked, or is not as it must be.
    pub problems: Vec<Shortcoming>,
    /// What keeps an exec from ending in the runner's domain.
    pub transition: Vec<Shortcoming>,
    /// Rules that a start needs and the policy does not grant, as CIL; asked for other managers' families only.
    pub missing_rules: Vec<String>,
    /// What one runner of the family may do to another's objects all the same.
    pub not_separated: Vec<String>,
    /// What was assumed because the policy's files do not say it.
    pub assumed: Vec<String>,
}

pub(crate) fn problem(code: &str, text: impl Into<String>, remedy: impl Into<String>) -> Shortcoming {
    Shortcoming { code: code.into(), text: text.into(), remedy: remedy.into() }
}

impl SelinuxFacts {
    fn off(profile: &Profile) -> Self {
        Self {
            mode: SelinuxMode::Disabled,
            profile: profile.name.clone(),
            runner: profile.runner.clone(),
            own: None,
            mls: false,
            deny_unknown: false,
            missing_types: Vec::new(),
            partial: false,
            domain_permissive: false,
            mcs_constrained: false,
            nnp_transition: false,
            checks: Vec::new(),
            policy_seqno: 0,
            booleans: BTreeMap::new(),
            problems: Vec::new(),
            transition: Vec::new(),
            missing_rules: Vec::new(),
            not_separated: Vec::new(),
            assumed: Vec::new(),
        }
    }

    /// The family is there, separates, and a start can use it; whether SELinux enforces it is another question.
    pub fn fits(&self) -> bool {
        self.misfits().is_empty()
    }

    /// What is in the way of `fits`, in few words.
    pub fn misfits(&self) -> Vec<String> {
        let mut all: Vec<String> = self.missing_types.iter().map(|t| format!("the policy lacks {t}")).collect();
        all.extend(self.problems.iter().map(ToString::to_string));
        if self.missing_types.is_empty() && self.problems.is_empty() && !self.mcs_constrained {
            let broken: Vec<&str> = self.checks.iter().filter(|c| !c.holds()).map(|c| c.name.as_str()).collect();
            all.push(format!("categories do not separate it ({})", broken.join(", ")));
        }
        if !self.missing_rules.is_empty() {
            all.push(format!("the policy does not grant {}", self.missing_rules.join(" ")));
        }
        all.extend(self.transition.iter().map(ToString::to_string));
        all
    }

    /// All that the word "enforced" needs of SELinux.
    pub fn separates(&self) -> bool {
        self.mode == SelinuxMode::Enforcing && self.findings().is_empty()
    }

    /// What is in the way of `separates`, one sentence each, with its remedy.
    pub fn shortcomings(&self) -> Vec<String> {
        self.findings().iter().map(ToString::to_string).collect()
    }

    /// The same, taken apart. Empty on a host that enforces and separates.
    pub fn findings(&self) -> Vec<Shortcoming> {
        let mut all = Vec::new();
        match self.mode {
            SelinuxMode::Disabled if self.problems.is_empty() => {
                let remedy = "boot with security=selinux selinux=1 and a policy";
                return vec![problem("disabled", "SELinux is off", remedy)];
            }
            SelinuxMode::Permissive if self.problems.is_empty() => {
                all.push(problem("permissive", "SELinux is permissive: it logs and denies nothing", "`setenforce 1`"));
            }
            _ => {}
        }
        all.extend(self.problems.iter().cloned());
        all.extend(self.types_and_levels());
        if !self.missing_rules.is_empty() {
            let rules = self.missing_rules.join(" ");
            let text = format!("profile {} cannot be used: the loaded policy does not grant {rules}", self.profile);
            let remedy = "`casemate policy install` brings the rules that other families lack; or another profile";
            all.push(problem("rules", text, remedy));
        }
        if self.domain_permissive {
            let runner = &self.runner;
            let text = format!("{runner} is a permissive domain: it logs and denies nothing");
            all.push(problem("permissive-domain", text, format!("`semanage permissive -d {runner}`")));
        }
        all
    }

    fn types_and_levels(&self) -> Option<Shortcoming> {
        let asked = self.problems.is_empty();
        let (types, install) = (self.missing_types.join(", "), "`casemate policy install`");
        if !self.missing_types.is_empty() {
            return Some(if self.partial {
                let text =
                    format!("the loaded policy knows only a part of the {} module: {types} is missing", self.profile);
                problem("module-partial", text, format!("an older or half-removed module: {install}"))
            } else {
                let text =
                    format!("the loaded policy does not know {types}: the {} module is not loaded", self.profile);
                problem("module-missing", text, format!("install Casemate's module: {install}"))
            });
        }
        if asked && !self.mls {
            let text = "the loaded policy has no levels: there are no categories to keep two guests apart";
            let remedy = "load a policy built with MCS or MLS (SELINUXTYPE in /etc/selinux/config), and reboot";
            return Some(problem("no-levels", text, remedy));
        }
        if asked && !self.mcs_constrained {
            let broken: Vec<&str> = self.checks.iter().filter(|c| !c.holds()).map(|c| c.name.as_str()).collect();
            let text = format!(
                "the loaded policy does not constrain {} by category (MCS); wrong answers: {}",
                self.runner,
                if broken.is_empty() { "none was given".into() } else { broken.join(", ") }
            );
            return Some(problem(
                "not-constrained",
                text,
                format!("another module changed it: {install}, `semodule -l`"),
            ));
        }
        None
    }
}

/// What the planner wants to know of them.
impl From<&SelinuxFacts> for casemate_plan::SelinuxFacts {
    fn from(facts: &SelinuxFacts) -> Self {
        let on = facts.mode != SelinuxMode::Disabled;
        Self {
            mode: match facts.mode {
                SelinuxMode::Disabled => casemate_plan::SelinuxMode::Disabled,
                SelinuxMode::Permissive => casemate_plan::SelinuxMode::Permissive,
                SelinuxMode::Enforcing => casemate_plan::SelinuxMode::Enforcing,
            },
            mls: facts.mls && facts.own.as_ref().is_some_and(|own| own.range().is_some()),
            module: on && facts.missing_types.is_empty() && !facts.problems.iter().any(|p| p.code == "unreadable"),
            domain_permissive: facts.domain_permissive,
            mcs_constrained: facts.mcs_constrained && facts.problems.is_empty(),
            deny_unknown: facts.deny_unknown,
            shortcomings: if on { facts.findings() } else { Vec::new() },
            transition: facts.transition.clone(),
            booleans: facts.booleans.clone(),
            family: None,
        }
    }
}

/// The facts of this host for Casemate's own types.
pub fn probe() -> SelinuxFacts {
    probe_profile(&Profile::casemate())
}

/// For a profile, with a pair that nobody needs to have.
pub fn probe_profile(profile: &Profile) -> SelinuxFacts {
    with_fs(profile, |fs, facts| {
        let caller = facts.own.clone().unwrap_or_else(service);
        let runner = profile.runner_label(&caller, CategoryPair::try_from((1, 2)).expect("a pair"));
        examine(fs, profile, &runner, facts);
        facts.problems.extend(configured::problems(fs));
    })
}

/// Adds whether an exec of `program` would end in the profile's domain.
pub fn foresee(facts: &mut SelinuxFacts, profile: &Profile, program: BorrowedFd<'_>) {
    let askable = facts.mode != SelinuxMode::Disabled && facts.missing_types.is_empty() && facts.mls;
    if let (true, Ok(Some(fs)), Some(own)) = (askable, SelinuxFs::here(), facts.own.clone()) {
        facts.transition = transition::obstacles(&fs, profile, &own, program);
    }
}

/// The facts for a runner that lives: its actual label, asked again through a handle that was opened before.
pub fn verify(fs: &SelinuxFs, profile: &Profile, own: &Context, runner: &Context) -> SelinuxFacts {
    let mut facts = SelinuxFacts { own: Some(own.clone()), ..SelinuxFacts::off(profile) };
    state(fs, &mut facts);
    find_types(fs, profile, &mut facts);
    if facts.missing_types.is_empty() {
        examine(fs, profile, runner, &mut facts);
    }
    facts
}

fn service() -> Context {
    "system_u:system_r:init_t:s0".parse().expect("a context")
}

fn with_fs(profile: &Profile, look: impl FnOnce(&SelinuxFs, &mut SelinuxFacts)) -> SelinuxFacts {
    let mut facts = SelinuxFacts::off(profile);
    let fs = match SelinuxFs::here() {
        Ok(Some(fs)) => fs,
        Ok(None) => return facts,
        Err(e) => {
            // On, as far as can be told, and never taken for enforcing.
            facts.mode = SelinuxMode::Permissive;
            facts.problems.push(problem("unreadable", e.to_string(), e.remedy()));
            return facts;
        }
    };
    state(&fs, &mut facts);
    match VerifiedProc::open_host().and_then(|p| p.own_label()) {
        Ok(own) => facts.own = Some(own),
        Err(e) => facts.problems.push(no_own_label(&fs, &e)),
    }
    find_types(&fs, profile, &mut facts);
    if facts.missing_types.is_empty() {
        look(&fs, &mut facts);
    }
    facts
}

/// Before a policy is loaded every process has the label `kernel`, which is no context.
fn no_own_label(fs: &SelinuxFs, error: &crate::exec_label::ProcError) -> Shortcoming {
    if fs.is_valid(&service()) {
        return problem("own-label", format!("the jailer's own label cannot be read: {error}"), error.remedy());
    }
    let remedy = "load one: `load_policy -i`, or boot with a policy installed";
    problem("no-policy", "SELinux is on, but no policy is loaded: everything is allowed", remedy)
}

/// Mode and the policy's own properties. A mode that cannot be read is not enforcing.
fn state(fs: &SelinuxFs, facts: &mut SelinuxFacts) {
    facts.mode = SelinuxMode::Permissive;
    match fs.enforcing() {
        Ok(true) => facts.mode = SelinuxMode::Enforcing,
        Ok(false) => {}
        Err(e) => {
            let remedy = "start as root in a domain that may read selinuxfs (`casemate policy install`)";
            facts.problems.push(problem("unreadable", format!("selinuxfs is mounted but cannot be read: {e}"), remedy));
        }
    }
    facts.mls = fs.mls().unwrap_or(false);
    facts.deny_unknown = fs.deny_unknown().unwrap_or(false);
    if let Ok(Some(on)) = fs.boolean(HOST_DISKS) {
        facts.booleans.insert(HOST_DISKS.into(), on);
    }
}

fn find_types(fs: &SelinuxFs, profile: &Profile, facts: &mut SelinuxFacts) {
    // with the role of objects every type makes a valid context, if the policy has it
    let known = |type_: &str| {
        let object = profile.object(type_, Range::single(Level::S0));
        fs.is_valid(&object) || fs.is_valid(&object.without_range())
    };
    facts.missing_types = profile.types().filter(|t| !known(t)).map(str::to_owned).collect();
    facts.partial = !facts.missing_types.is_empty() && facts.missing_types.len() < profile.types().count();
}

/// Asks for one runner's label; what the answers mean goes into the facts.
fn examine(fs: &SelinuxFs, profile: &Profile, runner: &Context, facts: &mut SelinuxFacts) {
    if !facts.mls {
        return;
    }
    if !fs.is_valid(runner) {
        facts.problems.push(transition::invalid(fs, profile, facts.own.as_ref(), runner));
        return;
    }
    match questions::ask(fs, profile, runner) {
        Ok(Answers { checks, permissive, seqno }) => {
            facts.mcs_constrained = checks.iter().all(Check::holds);
            facts.checks = checks;
            facts.domain_permissive = permissive;
            facts.policy_seqno = seqno;
        }
        Err(e) => {
            let remedy = "the caller's domain needs security compute_av (`casemate policy install`)";
            facts.problems.push(problem("no-answers", format!("the policy does not answer: {e}"), remedy));
        }
    }
    facts.nnp_transition =
        facts.own.as_ref().is_some_and(|own| fs.allows(own, runner, "process2", "nnp_transition").unwrap_or(false));
}

#[cfg(test)]
#[path = "mode_tests.rs"]
mod tests;
