//! [`Separation`]: what a policy answers for a VM and another, in the form that rules judge.

use super::ask;
use super::vm::Family;
use super::{Policy, PolicyError};
use crate::subject::{Kind, Known, Separation, Subject};

/// Asks everything. `enforcing` is the host's mode; `None` for a policy file.
pub fn separation(
    policy: &Policy,
    family: &Family,
    [from, to]: [&str; 2],
    enforcing: Option<bool>,
) -> Result<Separation, PolicyError> {
    let (a, b) = (family.at(policy, from)?, family.at(policy, to)?);
    let reach = ask::reach(policy, &a, &b)?.into_iter().filter(|row| row.object != "content");
    let reach = reach.flat_map(|row| {
        let (object, class) = (row.object, row.class);
        row.to_other.into_iter().map(move |permission| format!("{object} {class}:{permission}"))
    });
    let free = ask::constrained(policy, &a, &b)?.into_iter().filter(|row| row.held.is_empty());
    let who = ask::who(policy, family, &a)?.into_iter();
    let others = who.flat_map(|who| {
        let (domain, object, class) = (who.domain, who.object, who.class);
        who.permissions.into_iter().map(move |permission| format!("{domain} {object} {class}:{permission}"))
    });
    let flows = ask::flows(policy, family, &a, &b)?.into_iter();
    Ok(Separation {
        origin: policy.origin().to_owned(),
        family: family.name.clone(),
        enforcing,
        permissive_domain: policy.facts().permissive.contains(&family.runner),
        reach: reach.collect(),
        unconstrained: free.map(|row| row.class).collect(),
        entries: ask::entries(policy, &a, family)?.into_iter().map(|entry| entry.from).collect(),
        others: others.collect(),
        booleans: ask::booleans(policy, family, &a)?
            .into_iter()
            .map(|row| (row.boolean, !row.removes.is_empty()))
            .collect(),
        flows: flows.map(|flow| format!("{}:{} {}", flow.type_, flow.level, flow.class)).collect(),
        runner: a.runner,
        image: a.image,
        other_runner: b.runner,
        other_image: b.image,
    })
}

/// A policy alone, as a subject.
pub fn subject(policy: &Policy, family: &Family, levels: [&str; 2]) -> Result<Subject, PolicyError> {
    let none = || "a policy alone is judged";
    Ok(Subject {
        kind: Kind::Policy,
        name: format!("{} ({})", policy.origin(), family.name),
        file: None,
        processes: Vec::new(),
        objects: Vec::new(),
        separation: Known::Seen(separation(policy, family, levels, None)?),
        standing: Known::unseen(none()),
        host: Known::unseen(none()),
        neighbours: Known::unseen(none()),
        leftovers: Known::unseen(none()),
    })
}
