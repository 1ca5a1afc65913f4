//! What a policy answers for a VM of a family at one level beside another's: put together from [`crate::policy::ask`].

use std::collections::BTreeSet;

use casemate_wire::record::SandboxRecord;

use super::Observer;
use crate::policy::vm::Family;
use crate::policy::{PolicyError, ask};
use crate::subject::{Known, Separation};
use crate::{Policy, policy::constraint::Level};

/// Two levels that stand for any two VMs: MCS compares sets and knows no number.
const OTHERS: [&str; 2] = ["s0:c1,c2", "s0:c3,c4"];

/// For a VM at `level`, and any other at `other`. `enforcing`: of the running kernel, where it is its policy.
///
/// # Errors
/// The policy has no levels, or does not know the family's types.
pub fn separation(
    policy: &Policy,
    family: &Family,
    [level, other]: [&str; 2],
    enforcing: Option<bool>,
) -> Result<Separation, PolicyError> {
    let (a, b) = (family.at(policy, level)?, family.at(policy, other)?);
    let reach: BTreeSet<String> = ask::reach(policy, &a, &b)?
        .into_iter()
        .filter(|row| row.object != "content")
        .flat_map(|row| row.to_other.into_iter().map(move |permission| format!("{}:{permission}", row.class)))
        .collect();
    let constrained = ask::constrained(policy, &a, &b)?;
    let open = constrained.into_iter().filter(|row| row.held.is_empty() && row.unknown.is_empty());
    let who = ask::who(policy, family, &a)?;
    let others = who.into_iter().flat_map(|row| {
        let (domain, class) = (row.domain, row.class);
        row.permissions.into_iter().map(move |permission| format!("{domain} {class}:{permission}"))
    });
    let flows = ask::flows(policy, family, &a, &b)?.into_iter();
    Ok(Separation {
        origin: policy.origin().to_owned(),
        family: family.name.clone(),
        enforcing,
        permissive_domain: policy.facts().permissive.contains(&family.runner),
        reach: reach.into_iter().collect(),
        unconstrained: open.map(|row| row.class).collect(),
        entries: ask::entries(policy, &a, family)?.into_iter().map(|entry| entry.from).collect(),
        others: others.collect(),
        booleans: ask::booleans(policy, family, &a)?.into_iter().map(|row| (row.boolean, row.now)).collect(),
        flows: flows.map(|flow| format!("{}:{} at {}", flow.type_, flow.class, flow.level)).collect(),
        runner: a.runner,
        image: a.image,
    })
}

impl Observer {
    /// The loaded policy's answer, asked once per family: levels that are not within reach of one another are answered
    /// alike, and those that are show up in the matrix and among the neighbours.
    pub(super) fn separation_of(&self, record: &SandboxRecord) -> Known<Separation> {
        if !self.selinux {
            return Known::unseen("this host has no SELinux");
        }
        let Some(label) = &record.label else { return Known::unseen("it was started without a label") };
        let family = record.profile.clone().unwrap_or_else(|| "casemate".into());
        let mut answers = self.separations.borrow_mut();
        let answer = answers.entry(family.clone()).or_insert_with(|| self.asked(&family)).clone();
        answer.map(|mut answer| {
            answer.runner = label.clone();
            if let (Some((head, _)), Some(level)) = (split(&answer.image), level(label)) {
                answer.image = format!("{head}:{level}");
            }
            answer
        })
    }

    fn asked(&self, family: &str) -> Known<Separation> {
        let policy = match self.policy.get_or_init(|| Policy::live().into()) {
            Known::Seen(policy) => policy,
            Known::Unseen(why) => return Known::Unseen(why.clone()),
        };
        let enforcing = self.host_facts().selinux == "enforcing";
        let found = Family::find(policy, Some(family));
        found.and_then(|family| separation(policy, &family, OTHERS, Some(enforcing))).into()
    }
}

fn split(context: &str) -> Option<(&str, &str)> {
    let at = context.match_indices(':').nth(2)?.0;
    Some((context.get(..at)?, context.get(at + 1..)?))
}

/// The level of a context, text.
pub(super) fn level(context: &str) -> Option<&str> {
    split(context).map(|(_, level)| level)
}

/// May a process at `a` touch, as far as MCS goes, what has level `b`? `None` where one of them is no level.
pub(super) fn dominates(a: &str, b: &str) -> Option<bool> {
    let high = |range: &str| Level::parse(range.split_once('-').map_or(range, |(_, high)| high));
    Some(high(a)?.dominates(&high(b)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_dominate_by_their_sets() {
        assert_eq!(dominates("s0:c1,c2", "s0:c1,c2"), Some(true));
        assert_eq!(dominates("s0:c1,c2", "s0:c1,c3"), Some(false));
        assert_eq!(dominates("s0-s0:c0.c1023", "s0:c1,c3"), Some(true));
        assert_eq!(dominates("s0", "s0:c1"), Some(false));
        assert_eq!(dominates("evil", "s0:c1"), None);
        assert_eq!(level("u:r:t:s0:c1,c2"), Some("s0:c1,c2"));
        assert_eq!(level("u:r:t"), None);
    }
}
