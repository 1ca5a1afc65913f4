//! What an organisation asserts of its own, beside the rules: each assertion becomes a check in the report.

mod plan;
mod policy;
mod seccomp;

use toml::Table;

use super::Problem;
use super::read::{keys, needed, string, table, tables};
use crate::policy::Policy;
use crate::rule::{Check, Finding, Severity};
use crate::subject::Subject;
pub use plan::PlanAssertions;
pub use policy::PolicyAssertion;
pub use seccomp::SeccompAssertion;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Assertions {
    policy: Vec<PolicyAssertion>,
    seccomp: Vec<SeccompAssertion>,
    plan: Option<PlanAssertions>,
}

/// Must something be allowed, or not?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    Allowed,
    Denied,
}

impl Wanted {
    const BOTH: [(Self, &'static str); 2] = [(Self::Denied, "deny"), (Self::Allowed, "allow")];
}

/// What every assertion has: its place in the profile, its reason, its severity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stated {
    place: String,
    reason: String,
    severity: Severity,
}

impl Stated {
    fn of(entry: &Table, place: &str) -> Result<Self, Problem> {
        let severity = match string(entry, place, "severity")? {
            None => Severity::High,
            Some(word) => Severity::parse(word).ok_or_else(|| {
                let words = Severity::ALL.map(Severity::word).join(", ");
                Problem::new(format!("{place}.severity"), format!("{word} is none of {words}"))
            })?,
        };
        Ok(Self { place: place.into(), reason: needed(entry, place, "reason")?.into(), severity })
    }

    fn finding(&self, id: &str, layer: &str, subject: &Subject, check: Check) -> Finding {
        Finding {
            rule: id.into(),
            title: format!("the profile's {}", self.place),
            layer: layer.into(),
            threat: self.reason.clone(),
            severity: self.severity,
            remedy: "change what was judged, or, if the assertion is wrong, the profile".into(),
            kind: subject.kind,
            subject: subject.name.clone(),
            check,
        }
    }
}

/// Ids of the findings that assertions make.
pub const IDS: [&str; 3] = ["profile.policy", "profile.seccomp", "profile.plan"];

impl Assertions {
    pub(super) fn of(all: &Table) -> Result<Self, Problem> {
        let mut assertions = Self::default();
        if let Some(group) = table(all, "", "policy")? {
            keys(group, "policy", &["deny", "allow"])?;
            for (wanted, key) in Wanted::BOTH {
                for (place, entry) in tables(group, "policy", key)? {
                    assertions.policy.push(PolicyAssertion::of(entry, &place, wanted)?);
                }
            }
        }
        if let Some(group) = table(all, "", "seccomp")? {
            keys(group, "seccomp", &["deny", "allow"])?;
            for (wanted, key) in Wanted::BOTH {
                for (place, entry) in tables(group, "seccomp", key)? {
                    assertions.seccomp.push(SeccompAssertion::of(entry, &place, wanted)?);
                }
            }
        }
        assertions.plan = table(all, "", "plan")?.map(PlanAssertions::of).transpose()?;
        Ok(assertions)
    }

    pub fn is_empty(&self) -> bool {
        self.policy.is_empty() && self.seccomp.is_empty() && self.plan.is_none()
    }

    /// Is the kernel named by its digest?
    pub fn want_digests(&self) -> bool {
        self.plan.as_ref().is_some_and(PlanAssertions::want_digests)
    }

    /// One finding for each assertion that bears on this kind of subject.
    pub fn ask(&self, subject: &Subject, policy: Option<&Policy>) -> Vec<Finding> {
        let mut findings: Vec<Finding> = self.policy.iter().filter_map(|one| one.ask(subject, policy)).collect();
        findings.extend(self.seccomp.iter().filter_map(|one| one.ask(subject)));
        findings.extend(self.plan.iter().flat_map(|plan| plan.ask(subject)));
        findings
    }
}
