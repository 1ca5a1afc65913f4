//! The rule engine: rules with an id, a threat, a severity and a remedy, over [`Subject`]s of every kind.
//!
//! A rule answers with checks: passed, failed, or unknown with the reason. A rule that applies and checked nothing is
//! unknown, too: an audit that looked at nothing is no proof.

use serde::{Deserialize, Serialize};

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

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Pass,
    Fail,
    /// It could not be looked at.
    Unknown,
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
    pub check: fn(&Subject, &Parameters) -> Vec<Check>,
}

/// What a profile sets for a rule.
pub type Parameters = toml::Table;

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
