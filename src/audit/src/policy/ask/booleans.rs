//! Which booleans bear on a VM: each is set in a copy of the policy, and the decisions are compared.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{all_categories, contexts_of, object_context};
use crate::policy::vm::{Family, Vm};
use crate::policy::{Policy, PolicyError};

/// A boolean that changes what a VM may do, or what may be done to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Widening {
    pub boolean: String,
    pub now: bool,
    /// What the other value adds, and takes away: `source target:class permissions`.
    pub adds: Vec<String>,
    pub removes: Vec<String>,
}

/// Which booleans widen or narrow what a VM's domain may do, or who may touch its images? Each is really set, and the
/// decisions compared.
pub fn booleans(policy: &Policy, family: &Family, vm: &Vm) -> Result<Vec<Widening>, PolicyError> {
    let facts = policy.facts();
    let mut touched: BTreeMap<&str, BTreeSet<(&str, &str, &str)>> = BTreeMap::new();
    for block in &facts.conditionals {
        for rule in &block.rules {
            let by = facts.stands_for(&rule.source, &family.runner);
            let on = [&family.image, &family.runner].into_iter().any(|t| facts.stands_for(&rule.target, t));
            if !by && !on {
                continue;
            }
            for boolean in &block.booleans {
                touched.entry(boolean).or_default().insert((&rule.source, &rule.target, &rule.class));
            }
        }
    }
    let all = all_categories(policy);
    let mut asked: Vec<(&str, BTreeSet<Put>)> = Vec::new();
    for (boolean, rules) in touched {
        asked.push((boolean, puts(policy, family, vm, &rules, all.as_deref())));
    }
    let before = granted(policy, asked.iter().flat_map(|(_, puts)| puts))?;
    let now = |boolean: &str| facts.booleans.get(boolean).copied().unwrap_or_default();
    let mut rows = Vec::new();
    for batch in independent(asked) {
        let values: Vec<(&str, bool)> = batch.iter().map(|(boolean, _)| (*boolean, !now(boolean))).collect();
        let after = granted(&policy.switched(&values)?, batch.iter().flat_map(|(_, puts)| puts))?;
        for (boolean, puts) in &batch {
            let lines = |answers: &Granted| -> BTreeSet<String> {
                puts.iter().filter_map(|put| answers.get(put)).flatten().cloned().collect()
            };
            let (old, new) = (lines(&before), lines(&after));
            let adds: Vec<String> = new.difference(&old).cloned().collect();
            let removes: Vec<String> = old.difference(&new).cloned().collect();
            if !adds.is_empty() || !removes.is_empty() {
                rows.push(Widening { boolean: (*boolean).to_owned(), now: now(boolean), adds, removes });
            }
        }
    }
    rows.sort_by(|a, b| a.boolean.cmp(&b.boolean));
    Ok(rows)
}

/// A question that is put to a policy: contexts, class, and the words for it: `source target:class`, by types.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Put {
    from: String,
    to: String,
    class: String,
    words: String,
}

/// Booleans in groups in which no two bear on one question: switched together, each answers as it would alone, since a
/// decision depends on the rules for its types and class only. A policy takes a tenth of a second to load; most fit one group.
fn independent<'a>(asked: Vec<(&'a str, BTreeSet<Put>)>) -> Vec<Vec<(&'a str, BTreeSet<Put>)>> {
    type Group<'a> = (BTreeSet<String>, Vec<(&'a str, BTreeSet<Put>)>);
    let mut groups: Vec<Group<'a>> = Vec::new();
    for (boolean, puts) in asked {
        let keys: BTreeSet<String> = puts.iter().map(|put| put.words.clone()).collect();
        match groups.iter_mut().find(|(taken, _)| taken.is_disjoint(&keys)) {
            Some((taken, group)) => {
                taken.extend(keys);
                group.push((boolean, puts));
            }
            None => groups.push((keys, vec![(boolean, puts)])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// Question to lines of what is allowed.
type Granted = BTreeMap<Put, BTreeSet<String>>;

fn granted<'a>(policy: &Policy, puts: impl Iterator<Item = &'a Put>) -> Result<Granted, PolicyError> {
    let mut answers = BTreeMap::new();
    for put in puts {
        let allowed = policy.allowed(&put.from, &put.to, &put.class)?;
        answers
            .insert(put.clone(), allowed.into_iter().map(|permission| format!("{} {permission}", put.words)).collect());
    }
    Ok(answers)
}

/// What the named rules come to, for the VM as source or as target.
fn puts(
    policy: &Policy,
    family: &Family,
    vm: &Vm,
    rules: &BTreeSet<(&str, &str, &str)>,
    all: Option<&str>,
) -> BTreeSet<Put> {
    let facts = policy.facts();
    let mut puts = BTreeSet::new();
    let mut put = |source: &str, from: &str, target: &str, to: &str, class: &str| {
        let words = format!("{source} {target}:{class}");
        puts.insert(Put { from: from.to_owned(), to: to.to_owned(), class: class.to_owned(), words });
    };
    for (source, target, class) in rules {
        if facts.stands_for(source, &family.runner) {
            let itself = *target == "self";
            let targets = if itself { facts.types_of(&family.runner) } else { facts.types_of(target) };
            for type_ in targets {
                if let Some(object) = object_context(policy, type_, "s0") {
                    put(&family.runner, &vm.runner, type_, &object, class);
                }
            }
        } else {
            let (name, object) = if facts.stands_for(target, &family.image) {
                (&family.image, &vm.image)
            } else {
                (&family.runner, &vm.runner)
            };
            for type_ in facts.types_of(source) {
                if let Some((wide, _)) = contexts_of(policy, type_, all) {
                    put(type_, &wide, name, object, class);
                }
            }
        }
    }
    puts
}
