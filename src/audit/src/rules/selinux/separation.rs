//! What a policy answers for two VMs, judged.

use std::collections::BTreeMap;

use super::NO_POLICY;
use crate::policy::ask::HARMFUL;
use crate::rule::{Check, Scope};
use crate::rules::common::selinux_is_off;
use crate::subject::{Kind, Known, Separation, Subject};

/// The policy's answers, judged; a host without SELinux and a plan without a policy have none.
fn asked(subject: &Subject, expected: &str, judge: impl FnOnce(&Separation) -> Check) -> Vec<Check> {
    vec![match &subject.separation {
        Known::Seen(separation) => judge(separation),
        Known::Unseen(_) if selinux_is_off(subject) == Ok(true) => {
            Check::inapplicable("the policy", "the host has no SELinux (selinux.present)")
        }
        Known::Unseen(why) if subject.kind == Kind::Plan && why == NO_POLICY => {
            Check::inapplicable("the policy", NO_POLICY)
        }
        Known::Unseen(why) => Check::unknown("the policy", expected, why.clone()),
    }]
}

pub(super) fn domain_enforced(subject: &Subject, _: &Scope) -> Vec<Check> {
    let expected = "not a permissive domain";
    asked(subject, expected, |policy| {
        let seen = if policy.permissive_domain { "permissive" } else { "not permissive" };
        Check::judged(!policy.permissive_domain, policy.runner.clone(), expected, seen)
    })
}

fn permission_of(line: &str) -> &str {
    line.rsplit(':').next().unwrap_or_default()
}

pub(super) fn no_reach(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let expected = "no use of another VM's objects";
    let harmful = scope.words("harmful");
    asked(subject, expected, |policy| {
        let found: Vec<String> =
            policy.reach.iter().filter(|line| harmful.contains(&permission_of(line))).cloned().collect();
        Check::none_of(&found, format!("{} on {}", policy.runner, policy.other_image), expected)
    })
}

pub(super) fn no_rest(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let expected = "nothing else on another VM's objects";
    // Whatever selinux.no-reach does not count is counted here; where a profile switches that rule off, what it would count
    // is waived with it.
    let harmful = scope.words_of("selinux.no-reach", "harmful").unwrap_or(HARMFUL.to_vec());
    let allowed = scope.words("allowed");
    asked(subject, expected, |policy| {
        let rest = policy.reach.iter().filter(|line| !harmful.contains(&permission_of(line)));
        let found: Vec<String> = rest.filter(|line| !allowed.contains(&line.as_str())).cloned().collect();
        Check::none_of(&found, format!("{} on {}", policy.runner, policy.other_image), expected)
    })
}

pub(super) fn mcs_covers(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let expected = "held back by categories";
    asked(subject, expected, |policy| {
        let wanted = scope.words("classes");
        let found: Vec<String> =
            policy.unconstrained.iter().filter(|class| wanted.contains(&class.as_str())).cloned().collect();
        Check::none_of(&found, format!("classes {}", wanted.join(" ")), expected)
    })
}

pub(super) fn no_flows(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let expected = "nothing that one VM writes and another reads";
    asked(subject, expected, |policy| {
        let allowed = scope.words("allowed");
        let found: Vec<String> =
            policy.flows.iter().filter(|flow| !allowed.contains(&flow.as_str())).cloned().collect();
        Check::none_of(&found, format!("{} to {}", policy.runner, policy.other_runner), expected)
    })
}

pub(super) fn entries(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let expected = "only domains that start VMs";
    asked(subject, expected, |policy| {
        let allowed = scope.words("allowed");
        let found: Vec<String> =
            policy.entries.iter().filter(|from| !allowed.contains(&from.as_str())).cloned().collect();
        Check::none_of(&found, format!("ways into {}", policy.runner), expected)
    })
}

/// Lines are `domain object class:permission`.
pub(super) fn others(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let expected = "only domains that are known";
    asked(subject, expected, |policy| {
        let (deeds, allowed) = (scope.words("deeds"), scope.words("allowed"));
        let mut domains: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for line in policy.others.iter().filter(|line| deeds.contains(&permission_of(line))) {
            let (domain, right) = line.split_once(' ').unwrap_or((line, ""));
            if !allowed.contains(&domain) {
                domains.entry(domain).or_default().push(right);
            }
        }
        let mut alike: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (domain, rights) in domains {
            alike.entry(rights.join(" ")).or_default().push(domain);
        }
        let found: Vec<String> =
            alike.iter().map(|(rights, domains)| format!("{} ({rights})", domains.join(" "))).collect();
        Check::none_of(&found, format!("who may touch {} and {}", policy.runner, policy.image), expected)
    })
}

pub(super) fn booleans(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let expected = "no boolean widens it";
    asked(subject, expected, |policy| {
        let allowed = scope.words("allowed");
        let wide = policy.booleans.iter().filter(|(name, widens)| **widens && !allowed.contains(&name.as_str()));
        let found: Vec<String> = wide.map(|(name, _)| name.clone()).collect();
        Check::none_of(&found, format!("booleans of {}", policy.runner), expected)
    })
}
