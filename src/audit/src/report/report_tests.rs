//! The forms that other programs read, with hostile text in every place.

use quick_junit::{NonSuccessKind, TestCaseStatus};
use serde_json::Value;

use super::*;
use crate::rule::Check;

const HOSTILE: &str = "a\u{1b}]0;x\u{7}<b>&\"]]>\n\u{202e}\u{ffff}\u{0}";

fn finding(rule: &str, verdict: Verdict, severity: Severity) -> Finding {
    Finding {
        rule: rule.into(),
        title: HOSTILE.into(),
        layer: "fds".into(),
        threat: HOSTILE.into(),
        severity,
        remedy: HOSTILE.into(),
        kind: Kind::Process,
        subject: HOSTILE.into(),
        check: Check { verdict, what: HOSTILE.into(), expected: HOSTILE.into(), seen: HOSTILE.into() },
    }
}

fn report() -> Report {
    let unseen = || "none".to_owned();
    let subject = Subject {
        kind: Kind::Process,
        name: HOSTILE.into(),
        processes: Vec::new(),
        objects: Vec::new(),
        separation: crate::subject::Known::Unseen(unseen()),
        standing: crate::subject::Known::Unseen(unseen()),
        host: crate::subject::Known::Unseen(unseen()),
        neighbours: crate::subject::Known::Unseen(unseen()),
        leftovers: crate::subject::Known::Unseen(unseen()),
    };
    Report {
        version: VERSION,
        time: 1,
        host: HOSTILE.into(),
        profile: HOSTILE.into(),
        subjects: vec![subject],
        findings: vec![
            finding("fds.no-directory", Verdict::Fail, Severity::Critical),
            finding("fds.no-directory", Verdict::Pass, Severity::Critical),
            finding("fds.no-device", Verdict::Unknown, Severity::Medium),
            finding("environment.empty", Verdict::Inapplicable, Severity::Info),
        ],
        waived: vec![Waived { rule: "host.swap".into(), reason: HOSTILE.into() }],
        matrix: Matrix::default(),
    }
}

#[test]
fn junit_is_read_back_with_a_case_for_each_check() {
    let text = junit::text(&report()).unwrap();
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    let back = quick_junit::Report::deserialize_from_str(&text).unwrap();
    assert_eq!((back.tests, back.failures, back.errors), (5, 1, 1));
    let suite = &back.test_suites[0];
    let is = |at: usize, wanted: NonSuccessKind| match &suite.test_cases[at].status {
        TestCaseStatus::NonSuccess { kind, .. } => *kind == wanted,
        _ => false,
    };
    assert!(is(0, NonSuccessKind::Failure) && is(2, NonSuccessKind::Error));
    assert!(matches!(suite.test_cases[1].status, TestCaseStatus::Success { .. }));
    assert!(matches!(suite.test_cases[3].status, TestCaseStatus::Skipped { .. }));
    assert!(suite.test_cases[0].name.as_str().contains("<b>&\"]]>"), "text survives its escapes");
    assert_eq!(back.test_suites[1].test_cases[0].name.as_str(), "host.swap");
}

/// The required structure of sarif-schema-2.1.0.json, and what code scanning asks beyond it.
#[test]
fn sarif_has_what_its_schema_requires() {
    let log: Value = serde_json::from_str(&sarif::log(&report()).to_string()).unwrap();
    assert_eq!((&log["version"], &log["$schema"]), (&Value::from("2.1.0"), &Value::from(sarif::SCHEMA)));
    let run = &log["runs"][0];
    assert!(run["tool"]["driver"]["name"].is_string() && run["invocations"][0]["executionSuccessful"].is_boolean());
    let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
    let ids: Vec<&str> = rules.iter().filter_map(|rule| rule["id"].as_str()).collect();
    assert_eq!(ids, ["environment.empty", "fds.no-device", "fds.no-directory"], "each once");
    for rule in rules {
        assert!(
            ["none", "note", "warning", "error"].contains(&rule["defaultConfiguration"]["level"].as_str().unwrap())
        );
        for text in ["shortDescription", "fullDescription", "help"] {
            assert!(!rule[text]["text"].as_str().unwrap().is_empty());
        }
    }
    let kinds = ["fail", "pass", "open", "notApplicable"];
    for (result, kind) in run["results"].as_array().unwrap().iter().zip(kinds) {
        assert_eq!(result["kind"], kind);
        // 3.27.10: a kind other than fail has the level none.
        assert_eq!(result["level"] != "none", kind == "fail");
        let index = result["ruleIndex"].as_u64().unwrap() as usize;
        assert_eq!(rules[index]["id"], result["ruleId"]);
        assert!(result["message"]["text"].is_string());
        assert!(result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"].is_string());
    }
    fn texts(value: &Value) -> Vec<&str> {
        match value {
            Value::String(text) => vec![text],
            Value::Array(all) => all.iter().flat_map(texts).collect(),
            Value::Object(all) => all.values().flat_map(texts).collect(),
            _ => Vec::new(),
        }
    }
    assert!(texts(&log).iter().all(|text| text.chars().all(|c| !c.is_control() && c != '\u{202e}')));
}

#[test]
fn a_report_survives_json() {
    let report = report();
    let back: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    assert_eq!(back, report);
}
