//! SARIF 2.1.0 (OASIS): one run, a rule with its help for every rule that was asked, a result for everything that was not as
//! it must be. What passed is a result of kind `pass`, so that a reader sees what was looked at.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::visible::visible;
use super::{Report, kind};
use crate::rule::{Finding, Severity, Verdict};

pub const SCHEMA: &str = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json";

/// The log, as JSON.
pub fn log(report: &Report) -> Value {
    let mut rules: BTreeMap<&str, &Finding> = BTreeMap::new();
    for finding in &report.findings {
        rules.entry(&finding.rule).or_insert(finding);
    }
    let index: BTreeMap<&str, usize> = rules.keys().enumerate().map(|(at, id)| (*id, at)).collect();
    let results: Vec<Value> = report.findings.iter().map(|finding| result(finding, index[&*finding.rule])).collect();
    let waived: Vec<Value> = report
        .waived
        .iter()
        .map(|waived| {
            let text = format!("{} is switched off by the profile: {}", waived.rule, waived.reason);
            json!({ "level": "note", "message": message(&text), "associatedRule": { "id": waived.rule } })
        })
        .collect();
    json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "casemate audit",
                "version": env!("CARGO_PKG_VERSION"),
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": rules.values().map(|finding| rule(finding)).collect::<Vec<_>>(),
            }},
            "invocations": [{ "executionSuccessful": true, "toolConfigurationNotifications": waived }],
            "columnKind": "unicodeCodePoints",
            "properties": { "profile": visible(&report.profile), "host": visible(&report.host), "time": report.time },
            "results": results,
        }],
    })
}

fn message(text: &str) -> Value {
    json!({ "text": visible(text) })
}

fn rule(finding: &Finding) -> Value {
    json!({
        "id": finding.rule,
        "name": finding.rule.split(['.', '-']).map(capital).collect::<String>(),
        "shortDescription": message(&finding.title),
        "fullDescription": message(&finding.threat),
        "help": message(&finding.remedy),
        "defaultConfiguration": { "level": level(finding.severity) },
        "properties": { "tags": ["security", finding.layer], "security-severity": score(finding.severity) },
    })
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn result(finding: &Finding, index: usize) -> Value {
    let check = &finding.check;
    let (what, level) = match check.verdict {
        Verdict::Fail => ("fail", level(finding.severity)),
        Verdict::Unknown => ("open", "none"),
        Verdict::Inapplicable => ("notApplicable", "none"),
        Verdict::Pass => ("pass", "none"),
    };
    let text = format!("{}: {}: expected {}; seen {}", finding.title, check.what, check.expected, check.seen);
    let name = visible(&finding.subject);
    json!({
        "ruleId": finding.rule,
        "ruleIndex": index,
        "kind": what,
        "level": level,
        "message": message(&text),
        "locations": [{ "logicalLocations": [{
            "name": name,
            "fullyQualifiedName": format!("{}/{name}/{}", kind(finding.kind), visible(&check.what)),
            "kind": "resource",
        }]}],
    })
}

/// SARIF knows four levels (3.27.10).
fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Critical | Severity::High => "error",
        Severity::Medium | Severity::Low => "warning",
        Severity::Info => "note",
    }
}

/// The middle of CVSS' ranges, which viewers sort by.
fn score(severity: Severity) -> &'static str {
    match severity {
        Severity::Critical => "9.5",
        Severity::High => "8.0",
        Severity::Medium => "5.5",
        Severity::Low => "2.0",
        Severity::Info => "0.0",
    }
}
