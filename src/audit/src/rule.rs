//! The rule engine's forms: rules with an id, a threat, a severity and a remedy, over [`Subject`]s of every kind.
//!
//! A rule answers with checks: passed, failed, unknown with the reason, or inapplicable with the reason. A rule that
//! applies and checked nothing is unknown: an audit that looked at nothing is no proof.

use serde::{Deserialize, Serialize};

use crate::crowd::Crowd;
use crate::profile::Profile;
use crate::subject::{Kind, Subject};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Info,
    Low,
    Medium,
    High,
    Critical,
}

impl Severity {
    pub const ALL: [Self; 5] = [Self::Info, Self::Low, Self::Medium, Self::High, Self::Critical];

    pub fn word(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|severity| severity.word() == word)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Pass,
    Fail,
    /// It could not be looked at.
    Unknown,
    /// There is nothing to look at, as SELinux labels on a host without SELinux; another rule judges that.
    Inapplicable,
}

/// One thing that a rule looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub verdict: Verdict,
    /// What was looked at, as `runner 4711, thread vcpu0`. Untrusted text is in it as it is: reports escape it.
    pub what: String,
    pub expected: String,
    pub seen: String,
}

impl Check {
    pub fn judged(holds: bool, what: impl Into<String>, expected: impl Into<String>, seen: impl Into<String>) -> Self {
        let verdict = if holds { Verdict::Pass } else { Verdict::Fail };
        Self { verdict, what: what.into(), expected: expected.into(), seen: seen.into() }
    }

    pub fn unknown(what: impl Into<String>, expected: impl Into<String>, why: impl Into<String>) -> Self {
        Self { verdict: Verdict::Unknown, what: what.into(), expected: expected.into(), seen: why.into() }
    }

    pub fn inapplicable(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { verdict: Verdict::Inapplicable, what: what.into(), expected: String::new(), seen: why.into() }
    }

    /// Passes if nothing is listed; else fails with the list.
    pub fn none_of(found: &[String], what: impl Into<String>, expected: impl Into<String>) -> Self {
        const SHOWN: usize = 40;
        let mut seen = found.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        if found.len() > SHOWN {
            seen.push_str(&format!(", and {} more", found.len() - SHOWN));
        }
        let seen = if found.is_empty() { "none".to_owned() } else { seen };
        Self::judged(found.is_empty(), what, expected, seen)
    }
}

/// A rule, as code.
pub struct Rule {
    /// `layer.what-must-hold`, as `seccomp.no-unconditional-ioctl`; never reused for another meaning.
    pub id: &'static str,
    pub title: &'static str,
    /// Layer, in the plan's words.
    pub layer: &'static str,
    /// The threat that it answers, in a sentence.
    pub threat: &'static str,
    pub severity: Severity,
    pub remedy: &'static str,
    pub kinds: &'static [Kind],
    pub parameters: &'static [Parameter],
    pub check: fn(&Subject, &Scope) -> Vec<Check>,
}

/// What a profile may set for a rule.
pub struct Parameter {
    pub name: &'static str,
    pub what: &'static str,
    pub default: Initial,
}

/// Form and value of a parameter that a profile leaves out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Initial {
    Words(&'static [&'static str]),
    Number(u64),
    Word(&'static str),
}

/// What a profile sets for a rule, with the defaults filled in.
pub type Parameters = toml::Table;

/// What a rule is given beside its subject.
pub struct Scope<'a> {
    pub profile: &'a Profile,
    /// Those of the rule that is asked.
    pub parameters: &'a Parameters,
    /// What all subjects have together.
    pub crowd: &'a Crowd,
}

impl Scope<'_> {
    /// A list of words; empty if there is no such parameter (the tests look for that).
    pub fn words(&self, name: &str) -> Vec<&str> {
        words(self.parameters, name)
    }

    /// Another rule's list of words; `None` where the profile does not ask it.
    pub fn words_of(&self, rule: &str, name: &str) -> Option<Vec<&str>> {
        self.profile.rule(rule).map(|selected| words(&selected.parameters, name))
    }

    pub fn number(&self, name: &str) -> u64 {
        let number = self.parameters.get(name).and_then(toml::Value::as_integer);
        number.and_then(|n| u64::try_from(n).ok()).unwrap_or_default()
    }

    pub fn word(&self, name: &str) -> &str {
        self.parameters.get(name).and_then(toml::Value::as_str).unwrap_or_default()
    }
}

fn words<'a>(parameters: &'a Parameters, name: &str) -> Vec<&'a str> {
    let list = parameters.get(name).and_then(toml::Value::as_array);
    list.map(|list| list.iter().filter_map(toml::Value::as_str).collect()).unwrap_or_default()
}

/// A rule's answer for one subject, for reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub rule: String,
    pub title: String,
    pub layer: String,
    pub threat: String,
    pub severity: Severity,
    pub remedy: String,
    /// Kind and name of the subject.
    pub kind: Kind,
    pub subject: String,
    #[serde(flatten)]
    pub check: Check,
}

impl Finding {
    /// It does not hold, and that weakens something.
    pub fn is_failure(&self) -> bool {
        self.check.verdict == Verdict::Fail && self.severity > Severity::Info
    }

    /// It does not hold, and that is for information: worth knowing, no failure.
    pub fn is_note(&self) -> bool {
        self.check.verdict == Verdict::Fail && self.severity == Severity::Info
    }
}
