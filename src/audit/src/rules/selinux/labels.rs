//! What labels a VM's processes and objects bear.

use super::LEASED;
use crate::crowd::{level_of, type_of};
use crate::policy::constraint::Level;
use crate::rule::{Check, Scope};
use crate::rules::common::{each, named};
use crate::subject::{Kind, Known, Object, Subject};

pub(super) fn two_categories(subject: &Subject, _: &Scope) -> Vec<Check> {
    let expected = "s0 and exactly two categories";
    each(
        subject,
        expected,
        |process| &process.label,
        |process, label| {
            let Some(label) = label else {
                return vec![Check::inapplicable(named(process), "the host has no SELinux (selinux.present)")];
            };
            let level = level_of(label).unwrap_or_default();
            if subject.kind == Kind::Plan && level == format!("s0:{LEASED}") {
                return vec![Check::judged(true, named(process), expected, "a pair is leased at the start")];
            }
            let pair = Level::parse(level).is_some_and(|level| level.categories.len() == 2);
            vec![Check::judged(pair, named(process), expected, label.clone())]
        },
    )
}

pub(super) fn level_exclusive(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let expected = "no other VM at this level";
    each(
        subject,
        expected,
        |process| &process.label,
        |process, label| {
            let shared = subject.standing.seen().is_some_and(|standing| standing.level_shared);
            let Some(label) = label else {
                return vec![Check::inapplicable(named(process), "the host has no SELinux (selinux.present)")];
            };
            if subject.kind == Kind::Plan {
                let seen = if shared { "level_shared is asked for" } else { "exclusive" };
                return vec![Check::judged(!shared, named(process), expected, seen)];
            }
            let level = level_of(label).unwrap_or_default();
            let mut found: Vec<String> =
                scope.crowd.with_level(level, &subject.name).into_iter().map(|vm| format!("{vm} at {level}")).collect();
            if shared {
                found.push("it was started with level_shared".into());
            }
            vec![Check::none_of(&found, format!("{} at {level}", named(process)), expected)]
        },
    )
}

pub(super) fn process_label(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let types = scope.words("types");
    let expected = format!("one of {}", types.join(", "));
    each(
        subject,
        &expected,
        |process| &process.label,
        |process, label| {
            vec![match label {
                None => Check::inapplicable(named(process), "the host has no SELinux (selinux.present)"),
                Some(label) => {
                    let holds = type_of(label).is_some_and(|type_| types.contains(&type_));
                    Check::judged(holds, named(process), expected.as_str(), label.clone())
                }
            }]
        },
    )
}

pub(super) fn object_labels(subject: &Subject, _: &Scope) -> Vec<Check> {
    let judge = |object: &Object| {
        let what = format!("{} at {}", object.name, object.path);
        match (&object.label, &object.wanted) {
            (Known::Seen(_), None) => Check::inapplicable(what, "no label was planned for it"),
            (Known::Seen(label), Some(wanted)) => {
                let seen = label.clone().unwrap_or_else(|| "none".into());
                Check::judged(seen == *wanted, what, wanted.clone(), seen)
            }
            (Known::Unseen(why), wanted) => Check::unknown(what, wanted.clone().unwrap_or_default(), why.clone()),
        }
    };
    subject.objects.iter().map(judge).collect()
}
