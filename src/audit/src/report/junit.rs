//! JUnit: a test suite for each subject, a test case for each check. What could not be looked at is an error, not a success;
//! what does not apply, and what a profile switches off, is skipped with the reason; what is for information is a success that
//! says so in its output.

use quick_junit::{NonSuccessKind, Property, TestCase, TestCaseStatus, TestSuite};

use super::visible::visible;
use super::{Report, kind};
use crate::rule::{Finding, Verdict};

/// The file's text.
///
/// # Errors
/// The XML writer's, in a sentence.
pub fn text(report: &Report) -> Result<String, String> {
    let mut whole = quick_junit::Report::new(visible(&format!("casemate audit of {}", report.host)));
    for subject in &report.subjects {
        let mut suite = TestSuite::new(visible(&format!("{} {}", kind(subject.kind), subject.name)));
        suite.add_property(Property::new("profile", visible(&report.profile)));
        let own = report.findings.iter().filter(|f| f.subject == subject.name && f.kind == subject.kind);
        suite.add_test_cases(own.map(case));
        whole.add_test_suite(suite);
    }
    if !report.waived.is_empty() {
        let mut suite = TestSuite::new(visible(&format!("switched off by the profile {}", report.profile)));
        for waived in &report.waived {
            let mut status = TestCaseStatus::skipped();
            status.set_message(visible(&waived.reason));
            suite.add_test_case(TestCase::new(waived.rule.as_str(), status));
        }
        whole.add_test_suite(suite);
    }
    whole.to_string().map_err(|error| error.to_string())
}

fn case(finding: &Finding) -> TestCase {
    let check = &finding.check;
    let described = visible(&format!(
        "expected: {}; seen: {}; threat: {}; what to do: {}",
        check.expected, check.seen, finding.threat, finding.remedy
    ));
    let told = |mut status: TestCaseStatus| {
        status.set_type(finding.severity.word());
        status.set_message(visible(&format!("{}: {}", finding.title, check.seen)));
        status.set_description(described.as_str());
        status
    };
    let status = match check.verdict {
        Verdict::Pass => TestCaseStatus::success(),
        Verdict::Fail if finding.is_note() => TestCaseStatus::success(),
        Verdict::Fail => told(TestCaseStatus::non_success(NonSuccessKind::Failure)),
        Verdict::Unknown => told(TestCaseStatus::non_success(NonSuccessKind::Error)),
        Verdict::Inapplicable => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(visible(&check.seen));
            status
        }
    };
    let mut case = TestCase::new(visible(&format!("{}: {}", finding.rule, check.what)), status);
    if finding.is_note() {
        // JUnit knows no notes, and a failed case fails a build.
        case.set_system_out(format!("note, for information: {described}"));
    }
    case.set_classname(format!("{}.{}", kind(finding.kind), finding.layer));
    case
}
