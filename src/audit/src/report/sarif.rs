//! SARIF 2.1.0 (OASIS), in the subset that GitHub code scanning takes: one run, a rule with its help and the number of its
//! checks for every rule that was asked, a result for everything that failed, is noted, or could not be looked at.
//!
//! What passed is a number and no result: SARIF has a kind `pass`, but code scanning shows each result as an alert whatever
//! its kind. It also takes no result without a file; where a subject is none (a VM, a process), its name stands in the
//! place of one below a base that says so.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::visible::visible;
use super::{Report, kind};
use crate::rule::{Finding, Severity, Verdict};
use crate::subject::Subject;

pub const SCHEMA: &str = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json";

/// Where relative names of files begin, by the specification's own examples (3.14.14).
const SOURCES: &str = "%SRCROOT%";
/// The base of subjects that are no files.
const SUBJECTS: &str = "SUBJECTS";
/// Seconds of the last time that RFC 3339 can write.
const LAST: u64 = 253_402_300_799;

/// The log, as JSON.
pub fn log(report: &Report) -> Value {
    let mut rules: BTreeMap<&str, Vec<&Finding>> = BTreeMap::new();
    for finding in &report.findings {
        rules.entry(&finding.rule).or_default().push(finding);
    }
    let index: BTreeMap<&str, usize> = rules.keys().enumerate().map(|(at, id)| (*id, at)).collect();
    let mut results = Results { report, rules: index, seen: HashMap::new() };
    let told = report.findings.iter().filter(|f| matches!(f.check.verdict, Verdict::Fail | Verdict::Unknown));
    let results: Vec<Value> = told.map(|finding| results.result(finding)).collect();
    let description =
        format!("Names of what was looked at on {}: VMs, processes, the host itself; no files.", report.host);
    json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "casemate audit",
                "version": env!("CARGO_PKG_VERSION"),
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": rules.values().map(|findings| rule(findings)).collect::<Vec<_>>(),
            }},
            "invocations": [invocation(report)],
            "originalUriBaseIds": { (SUBJECTS): { "description": message(&description) } },
            "artifacts": report.subjects.iter().map(artifact).collect::<Vec<_>>(),
            "columnKind": "unicodeCodePoints",
            "properties": {
                "profile": visible(&report.profile), "host": visible(&report.host), "time": report.time,
                "verdict": visible(&report.verdict()),
            },
            "results": results,
        }],
    })
}

/// Text that no viewer takes for more. Brackets and parentheses together would be a link (3.11.6).
fn message(text: &str) -> Value {
    json!({ "text": visible(text).replace("](", "] (") })
}

fn invocation(report: &Report) -> Value {
    let waived = report.waived.iter().map(|waived| {
        let text = format!("{} is switched off by the profile: {}", waived.rule, waived.reason);
        json!({ "level": "note", "message": message(&text), "associatedRule": { "id": visible(&waived.rule) } })
    });
    let mut invocation = json!({
        "executionSuccessful": true,
        "exitCode": report.exit_status(),
        "toolConfigurationNotifications": waived.collect::<Vec<_>>(),
    });
    if report.time <= LAST {
        let time = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(report.time));
        invocation["endTimeUtc"] = time.to_string().into();
    }
    invocation
}

fn rule(findings: &[&Finding]) -> Value {
    let count = |verdict| findings.iter().filter(|finding| finding.check.verdict == verdict).count();
    let finding = findings[0];
    json!({
        "id": visible(&finding.rule),
        "name": visible(&finding.rule.split(['.', '-']).map(capital).collect::<String>()),
        "shortDescription": message(&finding.title),
        "fullDescription": message(&finding.threat),
        "help": message(&finding.remedy),
        "defaultConfiguration": { "level": level(finding.severity) },
        "properties": {
            "tags": ["security", visible(&finding.layer)],
            "security-severity": score(finding.severity),
            "checks": {
                "passed": count(Verdict::Pass), "failed": count(Verdict::Fail), "unknown": count(Verdict::Unknown),
                "notApplicable": count(Verdict::Inapplicable),
            },
        },
    })
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

struct Results<'a> {
    report: &'a Report,
    /// Places of the rules.
    rules: BTreeMap<&'a str, usize>,
    /// How many results have had a digest.
    seen: HashMap<String, usize>,
}

impl Results<'_> {
    fn result(&mut self, finding: &Finding) -> Value {
        let check = &finding.check;
        let (what, level) = match check.verdict {
            Verdict::Fail => ("fail", level(finding.severity)),
            // 3.27.10: whatever is not of the kind fail has the level none.
            _ => ("open", "none"),
        };
        let text = format!("{}: {}: expected {}; seen {}", finding.title, check.what, check.expected, check.seen);
        let name = visible(&finding.subject);
        let subjects = &self.report.subjects;
        let at = subjects.iter().position(|s| s.name == finding.subject && s.kind == finding.kind);
        let mut place = match at {
            Some(at) => location(&subjects[at]),
            None => unlisted(kind(finding.kind), &finding.subject),
        };
        if let Some(at) = at {
            place.insert("index".into(), at.into());
        }
        json!({
            "ruleId": visible(&finding.rule),
            "ruleIndex": self.rules[&*finding.rule],
            "kind": what,
            "level": level,
            "message": message(&text),
            "locations": [{
                // A result is about the whole of its subject, for which the first line stands.
                "physicalLocation": {
                    "artifactLocation": place,
                    "region": { "startLine": 1, "startColumn": 1, "endLine": 1, "endColumn": 1 },
                },
                "logicalLocations": [{
                    "name": name,
                    "fullyQualifiedName": format!("{}/{name}/{}", kind(finding.kind), visible(&check.what)),
                    "kind": "resource",
                }],
            }],
            // The one name that code scanning knows; it says which result of the last report this is.
            "partialFingerprints": { "primaryLocationLineHash": self.fingerprint(finding) },
        })
    }

    /// What stays the same from one audit to the next: the rule, the subject, and what was looked at without its numbers,
    /// which are those of processes. Results that have all that alike are counted.
    fn fingerprint(&mut self, finding: &Finding) -> String {
        let mut digest = Sha256::new();
        let what: String = finding.check.what.chars().filter(|c| !c.is_ascii_digit()).collect();
        for part in [&finding.rule, kind(finding.kind), &finding.subject, &what] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        let digest: String = digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let times = self.seen.entry(digest.clone()).or_default();
        *times += 1;
        format!("{digest}:{times}")
    }
}

fn artifact(subject: &Subject) -> Value {
    json!({
        "location": location(subject),
        "roles": ["analysisTarget"],
        "description": message(&format!("{} {}", kind(subject.kind), subject.name)),
    })
}

/// The judged file, as its user named it; else a name that is none.
fn location(subject: &Subject) -> Map<String, Value> {
    let Some(file) = &subject.file else { return unlisted(kind(subject.kind), &subject.name) };
    let uri = escaped(file.strip_prefix("./").unwrap_or(file), b"/");
    let mut place = Map::new();
    if file.starts_with('/') {
        place.insert("uri".into(), format!("file://{uri}").into());
    } else {
        place.insert("uri".into(), uri.into());
        place.insert("uriBaseId".into(), SOURCES.into());
    }
    place
}

fn unlisted(kind: &str, name: &str) -> Map<String, Value> {
    let uri = format!("{kind}/{}", escaped(&visible(name), b""));
    [("uri", uri.as_str()), ("uriBaseId", SUBJECTS)]
        .map(|(key, value)| (key.to_owned(), value.into()))
        .into_iter()
        .collect()
}

/// Everything but RFC 3986's unreserved characters, and those that are to be kept, by number.
fn escaped(text: &str, keep: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ if keep.contains(&byte) => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// SARIF knows four levels (3.27.10).
fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Critical | Severity::High => "error",
        Severity::Medium | Severity::Low => "warning",
        Severity::Info => "note",
    }
}

/// The middle of CVSS' ranges, which viewers sort by; 0.0 is none.
fn score(severity: Severity) -> &'static str {
    match severity {
        Severity::Critical => "9.5",
        Severity::High => "8.0",
        Severity::Medium => "5.5",
        Severity::Low => "2.0",
        Severity::Info => "0.0",
    }
}

#[cfg(test)]
#[path = "sarif_tests.rs"]
mod tests;
