//! The ways into a VM's domain: who may become it, and by which programs.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::ask::{all_categories, contexts_of};
use super::cil::Rule;
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
    let mut ways = Ways::new(policy, family, programs);
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
        let usable = ways.usable(source, &from, &runner)?;
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

/// Asks by which programs: a thousand on Fedora's policy, whose container domains may be entered by most of what can be
/// executed, and a hundred domains that may do so. One decision is asked of programs that nothing tells apart.
struct Ways<'a> {
    policy: &'a Policy,
    family: &'a Family,
    programs: Vec<&'a str>,
    /// Allow rules on executing files and on entrypoints.
    rules: Vec<&'a Rule>,
    /// Which programs a name in a rule or in a constraint on files stands for.
    members: BTreeMap<&'a str, Vec<usize>>,
    /// Names in constraints on files.
    constrained: BTreeSet<&'a str>,
    /// Which programs are an entrypoint of a runner, by its context.
    entrypoints: BTreeMap<String, BTreeSet<usize>>,
}

impl<'a> Ways<'a> {
    fn new(policy: &'a Policy, family: &'a Family, programs: BTreeSet<&'a str>) -> Self {
        let facts = policy.facts();
        let executes = |permission: &String| permission == "execute" || permission == "entrypoint";
        let rules = facts.all_rules().filter(|rule| rule.class == "file" && rule.permissions.iter().any(executes));
        let rules: Vec<&Rule> = rules.collect();
        let on_files = facts.constraints.iter().filter(|constraint| constraint.class == "file");
        let words = on_files.flat_map(|constraint| constraint.text.split(['(', ')', ' ']));
        let constrained: BTreeSet<&str> =
            words.filter(|word| facts.types.contains(*word) || facts.attributes.contains_key(*word)).collect();
        let programs: Vec<&str> = programs.into_iter().collect();
        let numbers: BTreeMap<&str, usize> = programs.iter().enumerate().map(|(number, p)| (*p, number)).collect();
        let names: BTreeSet<&str> = rules.iter().map(|rule| rule.target.as_str()).chain(constrained.clone()).collect();
        let stand_for = |name: &'a str| facts.types_of(name).filter_map(|type_| numbers.get(type_).copied()).collect();
        let members = names.into_iter().map(|name| (name, stand_for(name))).collect();
        Self { policy, family, programs, rules, members, constrained, entrypoints: BTreeMap::new() }
    }

    /// Programs that `source`, as `from`, may execute and that are an entrypoint of `runner`.
    fn usable(&mut self, source: &str, from: &str, runner: &str) -> Result<Vec<String>, PolicyError> {
        if !self.entrypoints.contains_key(runner) {
            let found = self.granted(&self.family.runner, runner, "entrypoint", |_| true)?;
            self.entrypoints.insert(runner.to_owned(), found);
        }
        let Some(entrypoints) = self.entrypoints.get(runner) else { return Ok(Vec::new()) };
        let executed = self.granted(source, from, "execute", |program| entrypoints.contains(&program))?;
        Ok(executed.into_iter().map(|program| self.programs[program].to_owned()).collect())
    }

    /// The wanted programs to which `type_`, as `context`, has this permission.
    fn granted(
        &self,
        type_: &str,
        context: &str,
        permission: &str,
        wanted: impl Fn(usize) -> bool,
    ) -> Result<BTreeSet<usize>, PolicyError> {
        let mut found = BTreeSet::new();
        for group in self.alike(type_, permission, wanted) {
            let Some(program) = group.first().map(|first| self.programs[*first]) else { continue };
            let file = format!("system_u:object_r:{program}:s0");
            if self.policy.allowed(context, &file, "file")?.contains(&permission) {
                found.extend(group);
            }
        }
        Ok(found)
    }

    /// Programs in groups that no rule for `type_` and no constraint tells apart: the decision for one is that for all. A
    /// type that is its own target (`self`) or bounded by another is a group of its own.
    fn alike(&self, type_: &str, permission: &str, wanted: impl Fn(usize) -> bool) -> Vec<Vec<usize>> {
        let facts = self.policy.facts();
        let sources: BTreeSet<&str> =
            facts.attributes.iter().filter(|(_, types)| types.contains(type_)).map(|(name, _)| name.as_str()).collect();
        let grants = |rule: &&&Rule| {
            (rule.source == type_ || sources.contains(rule.source.as_str()))
                && rule.permissions.iter().any(|granted| granted == permission)
        };
        let mut names: BTreeSet<&str> = self.rules.iter().filter(grants).map(|rule| rule.target.as_str()).collect();
        names.extend(&self.constrained);
        let mut told = vec![Vec::new(); self.programs.len()];
        for (number, name) in names.into_iter().enumerate() {
            self.members.get(name).into_iter().flatten().for_each(|member| told[*member].push(number));
        }
        let mut groups: BTreeMap<(Vec<usize>, Option<&str>), Vec<usize>> = BTreeMap::new();
        for (member, numbers) in told.into_iter().enumerate().filter(|(member, _)| wanted(*member)) {
            let program = self.programs[member];
            let alone = (program == type_ || facts.bounded.contains(program)).then_some(program);
            groups.entry((numbers, alone)).or_default().push(member);
        }
        groups.into_values().collect()
    }
}

/// `context` with user and role of `from`.
pub(super) fn kept_identity(from: &str, context: &str) -> String {
    let head: Vec<&str> = from.splitn(3, ':').take(2).collect();
    let tail: Vec<&str> = context.splitn(3, ':').skip(2).collect();
    format!("{}:{}", head.join(":"), tail.join(":"))
}
