//! [`judge`]: every subject by every rule that the profile selects.

use crate::crowd::Crowd;
use crate::policy::Policy;
use crate::profile::Profile;
use crate::report::{Report, VERSION};
use crate::rule::{Check, Finding, Rule, Scope, Severity};
use crate::rules;
use crate::subject::Subject;

/// Where and when, and what is at hand beside the subjects.
#[derive(Debug, Default)]
pub struct Around<'a> {
    /// Seconds since the epoch.
    pub time: u64,
    pub host: String,
    /// For the profile's own questions to a policy.
    pub policy: Option<&'a Policy>,
}

/// Judges. The findings stand in the order of subjects, then of rules.
pub fn judge(subjects: Vec<Subject>, profile: &Profile, around: &Around<'_>) -> Report {
    let crowd = Crowd::of(&subjects);
    let mut findings = Vec::new();
    for subject in &subjects {
        for rule in rules::all().filter(|rule| rule.kinds.contains(&subject.kind)) {
            let Some(selected) = profile.rule(rule.id) else { continue };
            let scope = Scope { profile, parameters: &selected.parameters, crowd: &crowd };
            let checks = asked(rule, subject, &scope);
            findings.extend(checks.into_iter().map(|check| finding(rule, selected.severity, subject, check)));
        }
        findings.extend(profile.assertions().ask(subject, around.policy));
    }
    let matrix = crate::observe::matrix::of(&subjects);
    Report {
        version: VERSION,
        time: around.time,
        host: around.host.clone(),
        profile: profile.name().to_owned(),
        subjects,
        findings,
        waived: profile.waived(),
        matrix,
    }
}

/// A rule that looked at nothing proves nothing.
pub(crate) fn asked(rule: &Rule, subject: &Subject, scope: &Scope) -> Vec<Check> {
    let checks = (rule.check)(subject, scope);
    if checks.is_empty() {
        if subject.standing.seen().is_some_and(|standing| standing.phase == "exited") {
            return vec![Check::inapplicable(subject.name.clone(), "the sandbox has ended")];
        }
        return vec![Check::unknown(subject.name.clone(), rule.title, "nothing was there to look at")];
    }
    checks
}

fn finding(rule: &Rule, severity: Severity, subject: &Subject, check: Check) -> Finding {
    Finding {
        rule: rule.id.into(),
        title: rule.title.into(),
        layer: rule.layer.into(),
        threat: rule.threat.into(),
        severity,
        remedy: rule.remedy.into(),
        kind: subject.kind,
        subject: subject.name.clone(),
        check,
    }
}
