//! `[[policy.deny]]` and `[[policy.allow]]`: what a policy must refuse, and, as a positive control, what it must grant.

use std::collections::BTreeSet;

use toml::Table;

use super::{Stated, Wanted};
use crate::policy::ask::object_context;
use crate::policy::{Policy, PolicyError, vm};
use crate::profile::Problem;
use crate::profile::read::{keys, needed, words};
use crate::rule::{Check, Finding};
use crate::subject::{Kind, Separation, Subject};

/// Words for the VM that is judged, and for another at another level.
const PARTIES: [&str; 4] = ["@runner", "@image", "@other-runner", "@other-image"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyAssertion {
    stated: Stated,
    wanted: Wanted,
    source: String,
    target: String,
    class: String,
    permissions: Vec<String>,
}

impl PolicyAssertion {
    pub(super) fn of(entry: &Table, place: &str, wanted: Wanted) -> Result<Self, Problem> {
        keys(entry, place, &["source", "target", "class", "permission", "reason", "severity"])?;
        let party = |key: &str| -> Result<String, Problem> {
            let word = needed(entry, place, key)?;
            if word.starts_with('@') && !PARTIES.contains(&word) {
                let problem = format!("{word} is none of {}", PARTIES.join(", "));
                return Err(Problem::new(format!("{place}.{key}"), problem));
            }
            Ok(word.to_owned())
        };
        let permissions = words(entry, place, "permission")?;
        if permissions.is_empty() {
            return Err(Problem::new(format!("{place}.permission"), "this is needed"));
        }
        Ok(Self {
            stated: Stated::of(entry, place)?,
            wanted,
            source: party("source")?,
            target: party("target")?,
            class: needed(entry, place, "class")?.into(),
            permissions,
        })
    }

    /// `None` for a subject that has no policy.
    pub(super) fn ask(&self, subject: &Subject, policy: Option<&Policy>) -> Option<Finding> {
        if !matches!(subject.kind, Kind::Policy | Kind::Vm | Kind::Plan) {
            return None;
        }
        let what = format!("{} {}:{} {}", self.source, self.target, self.class, self.permissions.join(" "));
        let expected = match self.wanted {
            Wanted::Denied => "refused, all of it",
            Wanted::Allowed => "allowed, all of it",
        };
        let check = match (policy, subject.separation.seen()) {
            (Some(policy), Some(separation)) => match self.granted(policy, separation) {
                Ok(granted) => self.judged(what, expected, &granted),
                Err(error) => Check::unknown(what, expected, error.to_string()),
            },
            _ if subject.kind == Kind::Plan => Check::inapplicable(
                what,
                "no policy was given: casemate audit plan --policy FILE, or audit policy check",
            ),
            _ => Check::unknown(what, expected, "no policy could be read"),
        };
        Some(self.stated.finding(super::IDS[0], "selinux", subject, check))
    }

    fn judged(&self, what: String, expected: &str, granted: &Granted) -> Check {
        let list = |set: &BTreeSet<String>| match set.len() {
            0 => "none".to_owned(),
            _ => set.iter().take(20).cloned().collect::<Vec<_>>().join(", "),
        };
        match self.wanted {
            Wanted::Denied => {
                let holds = granted.yes.is_empty();
                Check::judged(holds, what, expected, format!("allowed: {}", list(&granted.yes)))
            }
            Wanted::Allowed => {
                let holds = granted.no.is_empty() && !granted.yes.is_empty();
                Check::judged(holds, what, expected, format!("refused: {}", list(&granted.no)))
            }
        }
    }

    fn granted(&self, policy: &Policy, separation: &Separation) -> Result<Granted, PolicyError> {
        let known = policy.facts().classes.get(&self.class);
        let known = known.ok_or_else(|| PolicyError::Unknown(format!("the class {}", self.class)))?;
        if let Some(missing) = self.permissions.iter().find(|p| !known.contains(p)) {
            return Err(PolicyError::Unknown(format!("the permission {missing} of the class {}", self.class)));
        }
        let mut granted = Granted::default();
        for source in contexts(policy, separation, &self.source, true)? {
            for target in contexts(policy, separation, &self.target, false)? {
                let allowed = policy.allowed(&source, &target, &self.class)?;
                for permission in &self.permissions {
                    let line = format!("{source} {target}:{} {permission}", self.class);
                    let yes = allowed.contains(&permission.as_str());
                    if yes {
                        granted.yes.insert(line)
                    } else {
                        granted.no.insert(line)
                    };
                }
            }
        }
        Ok(granted)
    }
}

#[derive(Default)]
struct Granted {
    yes: BTreeSet<String>,
    no: BTreeSet<String>,
}

/// A party's contexts: of the VM, as it is written, or of a type or every type of an attribute: a source with every category
/// (it may come as far as any), a target with none.
fn contexts(policy: &Policy, separation: &Separation, party: &str, source: bool) -> Result<Vec<String>, PolicyError> {
    match party {
        "@runner" => return Ok(vec![separation.runner.clone()]),
        "@image" => return Ok(vec![separation.image.clone()]),
        "@other-runner" => return Ok(vec![separation.other_runner.clone()]),
        "@other-image" => return Ok(vec![separation.other_image.clone()]),
        _ => {}
    }
    if party.contains(':') {
        return match policy.knows_context(party) {
            true => Ok(vec![party.to_owned()]),
            false => Err(PolicyError::Context(party.to_owned())),
        };
    }
    let facts = policy.facts();
    let types: Vec<&str> = facts.types_of(party).collect();
    let known = types.iter().any(|t| facts.types.contains(*t));
    if !known {
        return Err(PolicyError::Unknown(format!("the type or attribute {party}")));
    }
    let wide = facts.last_category.map_or_else(|| "s0".to_owned(), |last| format!("s0-s0:c0.c{last}"));
    let context = |type_: &str| match source {
        true => vm::process(policy, type_, &wide).or_else(|_| vm::process(policy, type_, "s0")).ok(),
        false => object_context(policy, type_, "s0"),
    };
    let found: Vec<String> = types.into_iter().filter_map(context).collect();
    if found.is_empty() { Err(PolicyError::Context(format!("(any):{party}"))) } else { Ok(found) }
}
