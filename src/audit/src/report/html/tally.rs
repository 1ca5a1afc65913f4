//! Findings in order: by verdict, then by rule, the worst first. A rule that fails in 200 VMs is one entry with 200 rows.

use std::collections::BTreeMap;

use crate::report::Report;
use crate::rule::{Finding, Severity, Verdict};

pub const SEVERITIES: [Severity; 5] =
    [Severity::Critical, Severity::High, Severity::Medium, Severity::Low, Severity::Info];

/// Layers in the order in which a reader looks for them; others follow by name.
const LAYERS: [&str; 10] =
    ["selinux", "landlock", "seccomp", "capabilities", "namespaces", "mounts", "uid", "cgroup", "rlimits", "fds"];

/// All findings with one verdict of one rule.
pub struct Entry<'a> {
    pub findings: Vec<&'a Finding>,
}

impl<'a> Entry<'a> {
    /// The texts of the rule, the same in each.
    pub fn rule(&self) -> &'a Finding {
        self.findings[0]
    }
}

/// What the page's top says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Not one check was made: no proof of anything.
    Nothing,
    Passed,
    /// Nothing failed (or for information only), and something could not be looked at.
    Incomplete,
    Failed(Severity),
}

pub struct Tally<'a> {
    pub failed: Vec<Entry<'a>>,
    pub unknown: Vec<Entry<'a>>,
    pub passed: Vec<Entry<'a>>,
    pub inapplicable: Vec<Entry<'a>>,
    pub outcome: Outcome,
}

impl<'a> Tally<'a> {
    pub fn new(report: &'a Report) -> Self {
        let entries = |verdict| entries(report.findings.iter().filter(move |f| f.check.verdict == verdict));
        let (failed, unknown) = (entries(Verdict::Fail), entries(Verdict::Unknown));
        let passed = entries(Verdict::Pass);
        // As Report::exit_status counts.
        let outcome = match failed.first().map(|worst| worst.rule().severity) {
            Some(severity) if severity > Severity::Info => Outcome::Failed(severity),
            _ if passed.is_empty() && unknown.is_empty() => Outcome::Nothing,
            _ if passed.is_empty() || !unknown.is_empty() => Outcome::Incomplete,
            Some(severity) => Outcome::Failed(severity),
            None => Outcome::Passed,
        };
        Self { failed, unknown, passed, inapplicable: entries(Verdict::Inapplicable), outcome }
    }

    /// How many checks failed at a severity.
    pub fn failures(&self, severity: Severity) -> usize {
        self.failed.iter().filter(|e| e.rule().severity == severity).map(|e| e.findings.len()).sum()
    }
}

pub fn checks(entries: &[Entry]) -> usize {
    entries.iter().map(|e| e.findings.len()).sum()
}

fn entries<'a>(findings: impl Iterator<Item = &'a Finding>) -> Vec<Entry<'a>> {
    let mut by_rule: BTreeMap<_, Vec<&Finding>> = BTreeMap::new();
    for finding in findings {
        let Finding { rule, title, layer, threat, severity, remedy, .. } = finding;
        let key = (std::cmp::Reverse(*severity), rank(layer), rule, title, threat, remedy);
        by_rule.entry(key).or_default().push(finding);
    }
    by_rule.into_values().map(|findings| Entry { findings }).collect()
}

/// Sorts layers.
pub fn rank(layer: &str) -> (usize, &str) {
    (LAYERS.iter().position(|known| *known == layer).unwrap_or(LAYERS.len()), layer)
}

pub fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "fail",
        Verdict::Unknown => "unknown",
        Verdict::Inapplicable => "inapplicable",
    }
}
