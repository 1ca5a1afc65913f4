//! The forms that other programs read, with hostile text in every place.

use quick_junit::{NonSuccessKind, TestCaseStatus};

use super::*;
use crate::rule::Check;

pub const HOSTILE: &str = "a\u{1b}]0;x\u{7}<b>&\"]]>\n\u{202e}\u{ffff}\u{0}[link](https://evil.example/)";

pub fn finding(rule: &str, verdict: Verdict, severity: Severity) -> Finding {
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

pub fn report() -> Report {
    let unseen = || "none".to_owned();
    let subject = Subject {
        kind: Kind::Process,
        name: HOSTILE.into(),
        file: None,
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
            finding("posture.no-warnings", Verdict::Fail, Severity::Info),
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
    assert_eq!((back.tests, back.failures, back.errors), (6, 1, 1));
    let suite = &back.test_suites[0];
    let is = |at: usize, wanted: NonSuccessKind| match &suite.test_cases[at].status {
        TestCaseStatus::NonSuccess { kind, .. } => *kind == wanted,
        _ => false,
    };
    assert!(is(0, NonSuccessKind::Failure) && is(2, NonSuccessKind::Error));
    assert!(matches!(suite.test_cases[1].status, TestCaseStatus::Success { .. }));
    assert!(matches!(suite.test_cases[3].status, TestCaseStatus::Skipped { .. }));
    let note = &suite.test_cases[4];
    assert!(matches!(note.status, TestCaseStatus::Success { .. }), "the exit status of a report with notes alone is 0");
    assert!(note.system_out.as_ref().is_some_and(|out| out.as_str().starts_with("note, for information: expected")));
    assert!(suite.test_cases[0].name.as_str().contains("<b>&\"]]>"), "text survives its escapes");
    assert_eq!(back.test_suites[1].test_cases[0].name.as_str(), "host.swap");
}

/// Another's reader: quick-junit would forgive itself.
#[test]
fn junit_is_read_by_another_library() {
    let text = junit::text(&report()).unwrap();
    let suites = junit_parser::from_reader(text.as_bytes()).unwrap();
    assert_eq!((suites.tests, suites.failures, suites.errors, suites.skipped), (6, 1, 1, 2));
    let cases = &suites.suites[0].cases;
    let told = |is: fn(&junit_parser::TestStatus) -> bool| cases.iter().filter(|case| is(&case.status)).count();
    assert_eq!(told(junit_parser::TestStatus::is_success), 2);
    assert_eq!(told(junit_parser::TestStatus::is_failure), 1);
    assert_eq!(told(junit_parser::TestStatus::is_error), 1);
    assert_eq!(told(junit_parser::TestStatus::is_skipped), 1);
    assert!(cases.iter().all(|case| case.name.contains("<b>&\"]]>")), "{cases:#?}");
}

/// What is for information is counted and named apart: it is no failure in any form.
#[test]
fn notes_are_no_failures() {
    let mut report = report();
    assert!(
        report.verdict().starts_with("1 passed, 1 failed, 1 unknown, 1 noted for information; the worst is critical")
    );
    report.findings.retain(|f| !f.is_failure() && f.check.verdict != Verdict::Unknown);
    assert!(report.verdict().starts_with("1 passed, 0 failed, 0 unknown, 1 noted for information; nothing failed"));
    assert_eq!(report.exit_status(), 0);
    let page = html::page(&report);
    assert!(page.contains("0 failed, 1 noted, "), "{page}");
    assert!(!page.contains("1 failed"), "{page}");
    assert_eq!(quick_junit::Report::deserialize_from_str(&junit::text(&report).unwrap()).unwrap().failures, 0);
}

#[test]
fn a_report_survives_json() {
    let report = report();
    let back: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    assert_eq!(back, report);
}
