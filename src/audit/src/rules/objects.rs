//! The files that a VM uses: nobody but root changes them under it.

use super::common::{ALL_OF_A_VM, LIVE};
use crate::rule::{Check, Initial, Parameter, Rule, Scope, Severity};
use crate::subject::{Kind, Known, Object, Subject};

const LAYER: &str = "objects";

pub static RULES: &[Rule] = &[
    Rule {
        id: "objects.protected",
        title: "nobody but root can write or replace the kernel, the images and the sockets",
        layer: LAYER,
        threat: "who writes the kernel or an image runs code in the guest, and who replaces it does so at the next start",
        severity: Severity::High,
        remedy: "chown root, chmod go-w the file and the directories above it; or name the object in `allowed`",
        kinds: ALL_OF_A_VM,
        parameters: &[Parameter {
            name: "allowed",
            what: "names of objects that others may write, as `disk.data`",
            default: Initial::Words(&[]),
        }],
        check: protected,
    },
    Rule {
        id: "objects.content-read-only",
        title: "kernel and initramfs are used for reading only",
        layer: LAYER,
        threat: "a guest that rewrites its kernel keeps what it put there over the next start",
        severity: Severity::Critical,
        remedy: "open them read-only",
        kinds: ALL_OF_A_VM,
        parameters: &[Parameter {
            name: "content",
            what: "names of objects that must be read-only",
            default: Initial::Words(&["kernel", "initrd"]),
        }],
        check: content,
    },
    Rule {
        id: "objects.unchanged",
        title: "the paths still lead to what the VM has open",
        layer: LAYER,
        threat: "another file in the place of an image takes its label and its trust at the next start",
        severity: Severity::Medium,
        remedy: "find out who replaced it; stop the VM before its files are replaced",
        kinds: LIVE,
        parameters: &[],
        check: unchanged,
    },
    Rule {
        id: "objects.one-name",
        title: "an image has one name",
        layer: LAYER,
        threat: "by a second hard link the file is written, or labelled, where nobody looks",
        severity: Severity::Low,
        remedy: "find the other link (find -inum) and remove it",
        kinds: ALL_OF_A_VM,
        parameters: &[],
        check: one_name,
    },
];

fn what(object: &Object) -> String {
    format!("{} at {}", object.name, object.path)
}

fn protected(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let expected = "only root can write or replace it";
    let allowed = scope.words("allowed");
    let judge = |object: &Object| match &object.writable_by {
        _ if allowed.contains(&object.name.as_str()) => Check::inapplicable(what(object), "allowed by the profile"),
        Known::Seen(who) => Check::none_of(who, what(object), expected),
        Known::Unseen(why) => unseen(subject, object, expected, why),
    };
    subject.objects.iter().map(judge).collect()
}

/// A plan may be for another machine, or name what will be made: the file is judged when it is there.
fn unseen(subject: &Subject, object: &Object, expected: &str, why: &str) -> Check {
    match subject.kind {
        Kind::Plan => Check::inapplicable(what(object), format!("{why}; it is judged when it is there")),
        _ => Check::unknown(what(object), expected, why),
    }
}

fn content(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let names = scope.words("content");
    let judge = |object: &Object| {
        let seen = if object.read_only { "read-only" } else { "read-write" };
        Check::judged(object.read_only, what(object), "read-only", seen)
    };
    subject.objects.iter().filter(|object| names.contains(&object.name.as_str())).map(judge).collect()
}

fn unchanged(subject: &Subject, _: &Scope) -> Vec<Check> {
    let expected = "the file that was opened";
    let judge = |object: &Object| {
        Some(match object.unchanged.as_ref()? {
            Known::Seen(same) => {
                let seen = if *same { "the same" } else { "another file is there now" };
                Check::judged(*same, what(object), expected, seen)
            }
            Known::Unseen(why) => Check::unknown(what(object), expected, why.clone()),
        })
    };
    let checks: Vec<Check> = subject.objects.iter().filter_map(judge).collect();
    if checks.is_empty() && !subject.objects.is_empty() {
        return vec![Check::inapplicable(subject.name.clone(), "nothing of it is open")];
    }
    checks
}

fn one_name(subject: &Subject, _: &Scope) -> Vec<Check> {
    let expected = "one link";
    let judge = |object: &Object| match &object.inode {
        Known::Seen(inode) => Check::judged(inode.links <= 1, what(object), expected, format!("{} links", inode.links)),
        Known::Unseen(why) => unseen(subject, object, expected, why),
    };
    subject.objects.iter().map(judge).collect()
}
