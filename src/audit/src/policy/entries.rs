//! The ways into a VM's domain: who may become it, and by which programs.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::ask::{all_categories, contexts_of};
use super::cil::Facts;
use super::vm::{Family, Vm};
use super::{Policy, PolicyError};

/// A way into a VM's domain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Entry {
    pub from: String,
    /// Types of programs that `from` may execute and that are an entrypoint.
    pub programs: Vec<String>,
    /// The kernel makes the transition without being asked.
    pub default: bool,
    /// Also with no_new_privs, and from a nosuid mount.
    pub under_no_new_privs: bool,
    pub from_nosuid: bool,
}

/// Which domains may become the VM's, and by which programs?
pub fn entries(policy: &Policy, vm: &Vm, family: &Family) -> Result<Vec<Entry>, PolicyError> {
    let facts = policy.facts();
    let rules = |class: &'static str, permission: &'static str| {
        facts.all_rules().filter(move |rule| rule.class == class && rule.permissions.iter().any(|p| p == permission))
    };
    let mut programs = BTreeSet::new();
    for rule in rules("file", "entrypoint").filter(|rule| facts.stands_for(&rule.source, &family.runner)) {
        programs.extend(facts.types_of(&rule.target));
    }
    let mut sources = BTreeSet::new();
    for rule in rules("process", "transition").filter(|rule| facts.stands_for(&rule.target, &family.runner)) {
        sources.extend(facts.types_of(&rule.source));
    }
    let mut ways = Ways { policy, alike: alike(facts, &programs), entrypoints: BTreeMap::new() };
    let all = all_categories(policy);
    let mut entries = Vec::new();
    for source in sources {
        let Some((from, _)) = contexts_of(policy, source, all.as_deref()) else {
            continue;
        };
        // The user and role of the starter go over to the VM.
        let runner = kept_identity(&from, &vm.runner);
        let runner = if policy.knows_context(&runner) { runner } else { vm.runner.clone() };
        if !policy.allowed(&from, &runner, "process")?.contains(&"transition") {
            continue;
        }
        let usable = ways.usable(&from, &runner)?;
        if usable.is_empty() {
            continue;
        }
        let default = facts.transitions.iter().any(|transition| {
            transition.result == family.runner
                && facts.stands_for(&transition.source, source)
                && usable.iter().any(|program| facts.stands_for(&transition.program, program))
        });
        let special = if facts.classes.contains_key("process2") {
            policy.allowed(&from, &runner, "process2")?
        } else {
            Vec::new()
        };
        entries.push(Entry {
            from: source.to_owned(),
            programs: usable,
            default,
            under_no_new_privs: special.contains(&"nnp_transition"),
            from_nosuid: special.contains(&"nosuid_transition"),
        });
    }
    Ok(entries)
}

/// Asks by which programs; thousands on Fedora's policy, whose container domains may be entered by almost any file.
struct Ways<'a> {
    policy: &'a Policy,
    alike: Vec<Vec<&'a str>>,
    /// Which groups are entrypoints of a runner, by its context.
    entrypoints: BTreeMap<String, Vec<usize>>,
}

impl Ways<'_> {
    /// Programs that `from` may execute and that are an entrypoint of `runner`.
    fn usable(&mut self, from: &str, runner: &str) -> Result<Vec<String>, PolicyError> {
        if !self.entrypoints.contains_key(runner) {
            let found = self.granted(runner, 0..self.alike.len(), "entrypoint")?;
            self.entrypoints.insert(runner.to_owned(), found);
        }
        let candidates = self.entrypoints.get(runner).into_iter().flatten().copied();
        let groups = self.granted(from, candidates, "execute")?.into_iter();
        let mut usable: Vec<String> = groups.flat_map(|group| &self.alike[group]).map(|&p| p.to_owned()).collect();
        usable.sort();
        Ok(usable)
    }

    fn granted(
        &self,
        who: &str,
        groups: impl Iterator<Item = usize>,
        permission: &str,
    ) -> Result<Vec<usize>, PolicyError> {
        let mut found = Vec::new();
        for group in groups {
            let Some(program) = self.alike[group].first() else { continue };
            let file = format!("system_u:object_r:{program}:s0");
            if self.policy.allowed(who, &file, "file")?.contains(&permission) {
                found.push(group);
            }
        }
        Ok(found)
    }
}

/// Programs in groups that no rule on executing files and no constraint on files tells apart: one decision answers for
/// a whole group. A type that stands for itself somewhere (`self`, bounds) is a group of its own.
fn alike<'a>(facts: &'a Facts, programs: &BTreeSet<&'a str>) -> Vec<Vec<&'a str>> {
    let executes = |permission: &String| permission == "execute" || permission == "entrypoint";
    let rules = facts.all_rules().filter(|rule| rule.class == "file" && rule.permissions.iter().any(executes));
    let mut names: BTreeSet<&str> = rules.map(|rule| rule.target.as_str()).collect();
    for constraint in facts.constraints.iter().filter(|constraint| constraint.class == "file") {
        names.extend(
            constraint
                .text
                .split(['(', ')', ' '])
                .filter(|word| facts.types.contains(*word) || facts.attributes.contains_key(*word)),
        );
    }
    let mut told: BTreeMap<&str, Vec<usize>> = programs.iter().map(|program| (*program, Vec::new())).collect();
    for (number, name) in names.into_iter().enumerate() {
        for type_ in facts.types_of(name) {
            if let Some(numbers) = told.get_mut(type_) {
                numbers.push(number);
            }
        }
    }
    let mut groups: BTreeMap<(Vec<usize>, Option<&str>), Vec<&str>> = BTreeMap::new();
    for (program, numbers) in told {
        let is_process = facts.roles.get(program).is_some_and(|roles| roles.iter().any(|role| role != "object_r"));
        let alone = (is_process || facts.bounded.contains(program)).then_some(program);
        groups.entry((numbers, alone)).or_default().push(program);
    }
    groups.into_values().collect()
}

/// `context` with user and role of `from`.
pub(super) fn kept_identity(from: &str, context: &str) -> String {
    let head: Vec<&str> = from.splitn(3, ':').take(2).collect();
    let tail: Vec<&str> = context.splitn(3, ':').skip(2).collect();
    format!("{}:{}", head.join(":"), tail.join(":"))
}
