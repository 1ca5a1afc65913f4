//! An access vector that was denied: by the rules on types or by the categories, decided anew by the policy itself.

use super::event::Event;
use super::record::{Kind, Record};
use super::who::{Role, Who, level_of, type_of};
use super::{Expected, Reason};
use crate::policy::never::{self, Never};
use crate::policy::{Policy, Refusal};

/// Types of objects that a VM uses, with what they are for: the label to set instead of a rule.
const OURS: [&str; 5] =
    ["casemate_image_t", "casemate_content_t", "casemate_plan_t", "casemate_memory_t", "casemate_runner_t"];
const FILES: [&str; 7] = ["file", "blk_file", "chr_file", "dir", "lnk_file", "fifo_file", "sock_file"];

/// What a denied vector is about.
struct Vector<'a> {
    source: &'a str,
    target: &'a str,
    class: &'a str,
    permissions: &'a [String],
    object: String,
}

/// Why one permission was denied.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Why {
    /// No rule on the types.
    Types,
    /// A rule there is; a constraint on the levels refuses. In libsepol's words, if it has any.
    Levels(Option<String>),
    /// The policy that was asked allows it.
    AllowedNow,
    /// It could not be asked.
    Unknown(String),
}

pub fn explain(event: &Event, record: &Record, who: &Who, policy: Option<&Policy>) -> Option<Reason> {
    if record.kind == Kind::SELINUX_ERR {
        return transition(record, who);
    }
    if !record.denied {
        return None;
    }
    let vector = Vector {
        source: record.field("scontext")?,
        target: record.field("tcontext")?,
        class: record.field("tclass")?,
        permissions: &record.permissions,
        object: object(event, record),
    };
    let (from, to) = (type_of(vector.source)?, type_of(vector.target)?);
    let why = decide(&vector, policy);
    let facts = policy.map(Policy::facts);
    let never = vector.permissions.iter().find_map(|p| never::forbids(facts, from, to, vector.class, p));
    let (expected, because) = expectation(&vector, who, &why, never.as_ref());
    let permissive = record.field("permissive") == Some("1");
    Some(Reason {
        what: format!("{} on {} ({})", vector.permissions.join(" "), vector.object, vector.class),
        layer: "selinux",
        outcome: if permissive { "allowed only because SELinux or the domain is permissive" } else { "denied" }.into(),
        rule: rule(&vector, &why, never.as_ref()),
        expected,
        why: because,
        remedy: remedy(&vector, &why, never.as_ref(), expected, policy),
    })
}

/// A change of domain that no_new_privs, a nosuid mount or a bounded domain stood in the way of.
fn transition(record: &Record, who: &Who) -> Option<Reason> {
    let field = |name| record.field(name);
    let old = field("oldcontext").or_else(|| field("scontext"))?;
    let new = field("newcontext").or_else(|| field("invalid_context")).or_else(|| field("tcontext"))?;
    let (from, to) = (type_of(old)?, type_of(new)?);
    Some(Reason {
        what: format!("{} from {old} to {new}", field("op").unwrap_or("change of context")),
        layer: "selinux",
        outcome: "denied".into(),
        rule: "no_new_privs or a nosuid mount without (process2 (nnp_transition)), or a context the policy does not know"
            .into(),
        expected: if who.role == Role::Runner { Expected::Attempt } else { Expected::Gap },
        why: "the jailer's own change into the runner's domain is in the module; another one is not expected".into(),
        remedy: match (from, to) {
            ("casemate_jailer_t", "casemate_runner_t") => {
                "install the module of this build: casemate policy install (it has nnp_transition and nosuid_transition)"
                    .into()
            }
            _ => format!("if the change is wanted: (allow {from} {to} (process2 (nnp_transition nosuid_transition)))"),
        },
    })
}

fn object(event: &Event, record: &Record) -> String {
    let path = record.field("path").or_else(|| event.first(Kind::PATH).and_then(|p| p.field("name")));
    if let Some(path) = path.or_else(|| record.field("name")) {
        return path.to_owned();
    }
    match (record.field("capability"), record.field("ioctlcmd"), record.field("opid")) {
        (Some(capability), _, _) => format!("capability {capability}"),
        (_, Some(command), _) => format!("ioctl {command}"),
        (_, _, Some(pid)) => format!("process {pid}"),
        _ => record.field("tcontext").unwrap_or("?").to_owned(),
    }
}

fn decide(vector: &Vector<'_>, policy: Option<&Policy>) -> Why {
    let Some(policy) = policy else { return Why::Unknown("no policy could be asked (--policy FILE)".into()) };
    let access = match policy.access(vector.source, vector.target, vector.class) {
        Ok(access) => access,
        Err(error) => return Why::Unknown(error.to_string()),
    };
    let refused = |p: &&String| access.refused.iter().any(|(refused, _)| refused == *p);
    let Some(permission) = vector.permissions.iter().find(refused) else { return Why::AllowedNow };
    let by = access.refused.iter().find(|(p, _)| p == permission).map(|(_, refusal)| *refusal);
    match by {
        Some(Refusal::Constraint) => {
            Why::Levels(policy.explain(vector.source, vector.target, vector.class, permission).ok().flatten())
        }
        _ => Why::Types,
    }
}

fn rule(vector: &Vector<'_>, why: &Why, never: Option<&Never>) -> String {
    let (from, to) = (type_of(vector.source).unwrap_or("?"), type_of(vector.target).unwrap_or("?"));
    let permissions = vector.permissions.join(" ");
    let decided = match why {
        Why::Types => format!("type enforcement: no rule allows {from} {to} ({} ({permissions}))", vector.class),
        Why::Levels(words) => {
            let level = |label| level_of(label).unwrap_or("no level");
            let words = words.as_deref().map(|w| format!(": {}", w.split_whitespace().collect::<Vec<_>>().join(" ")));
            format!(
                "categories (MCS): the types allow it; {} does not dominate {}{}",
                level(vector.source),
                level(vector.target),
                words.unwrap_or_default()
            )
        }
        Why::AllowedNow => "the policy that was asked allows it: it was loaded, or a boolean set, since".into(),
        Why::Unknown(why) => format!("types or categories, not known: {why}"),
    };
    match never {
        Some(never) => format!("{decided}; forbidden for good by {} in {}", never.rule, never.file),
        None => decided,
    }
}

fn expectation(vector: &Vector<'_>, who: &Who, why: &Why, never: Option<&Never>) -> (Expected, String) {
    let other = |label| type_of(label).is_some_and(|t| OURS.contains(&t));
    if who.role == Role::Probe {
        return (Expected::Probe, "a probe of selftest, attack or audit made the attempt; it must be denied".into());
    }
    if never.is_some() {
        return (Expected::Attempt, "the module forbids it for good".into());
    }
    match (who.role, why) {
        (Role::Runner, Why::Levels(_)) => {
            (Expected::Attempt, "the object is another VM's, or carries no level of this one's".into())
        }
        (Role::Other, _) if other(vector.target) => {
            (Expected::Attempt, "a process that is not the VM's reached for what is a VM's".into())
        }
        (_, Why::AllowedNow) => (Expected::Host, "the policy has changed since".into()),
        (Role::Jailer, _) if FILES.contains(&vector.class) => {
            (Expected::Host, "an object of the host has a label that the jailer may not use so".into())
        }
        (Role::Runner | Role::Jailer | Role::Warden, Why::Types) => {
            (Expected::Gap, "a right that no test of the module's has met; please report it".into())
        }
        _ => (Expected::Unclear, "the policy could not be asked, or the process is not one of ours".into()),
    }
}

fn remedy(
    vector: &Vector<'_>,
    why: &Why,
    never: Option<&Never>,
    expected: Expected,
    policy: Option<&Policy>,
) -> String {
    let (from, to) = (type_of(vector.source).unwrap_or("?"), type_of(vector.target).unwrap_or("?"));
    if expected == Expected::Probe {
        return "nothing should allow it: it is an attempt that must fail".into();
    }
    if let Some(never) = never {
        return format!("nothing should: it is on the never list ({})", never.file);
    }
    match why {
        Why::AllowedNow => "none: try again".into(),
        Why::Unknown(_) => format!(
            "ask a policy first (--policy FILE); only if types refuse it: {}",
            allow(from, to, vector.class, vector.permissions)
        ),
        Why::Levels(_) => levels(vector, from, to),
        Why::Types => types(vector, from, to, policy),
    }
}

/// The object gets the VM's level; no domain is taken out of the constraint.
fn levels(vector: &Vector<'_>, from: &str, to: &str) -> String {
    let level = level_of(vector.source).unwrap_or("s0");
    let low = level.split('-').next().unwrap_or(level);
    if to == from || to == "casemate_runner_t" {
        return "nothing should: it is another VM's process".into();
    }
    match FILES.contains(&vector.class) {
        true => format!(
            "nothing, if it is another VM's. If it is this one's, name it in the specification, so that it gets {low}; to \
             share a disk among VMs: shared = true there"
        ),
        false => "nothing should: what carries another VM's categories is that VM's".into(),
    }
}

fn types(vector: &Vector<'_>, from: &str, to: &str, policy: Option<&Policy>) -> String {
    if let Some(boolean) = policy.and_then(|p| boolean(p, from, to, vector)) {
        return boolean;
    }
    let rule = allow(from, to, vector.class, vector.permissions);
    let relabels = vector.permissions.iter().any(|p| p.starts_with("relabel"));
    match from {
        "casemate_jailer_t" if relabels => format!(
            "move the file to a directory of images, or let the jailer relabel this type: (typeattributeset \
             casemate_relabelable ({to}))"
        ),
        "casemate_jailer_t" if FILES.contains(&vector.class) => format!(
            "a label that the jailer knows on {} (casemate_image_t, casemate_content_t; restorecon -F), else in a module \
             of your own: {rule}",
            vector.object
        ),
        "casemate_runner_t" if FILES.contains(&vector.class) => format!(
            "the object's own label: name it in the specification, and the jailer sets casemate_image_t or \
             casemate_content_t; else in a module of your own: {rule}"
        ),
        _ => format!("in a module of your own: {rule}"),
    }
}

/// A boolean that is there for it, which is narrower than a rule of one's own only where it holds nothing else.
fn boolean(policy: &Policy, from: &str, to: &str, vector: &Vector<'_>) -> Option<String> {
    let facts = policy.facts();
    let covers = |rule: &&crate::policy::cil::Rule| {
        rule.class == vector.class
            && facts.stands_for(&rule.source, from)
            && (facts.stands_for(&rule.target, to) || (rule.target == "self" && from == to))
            && vector.permissions.iter().all(|p| rule.permissions.contains(p))
    };
    for block in facts.conditionals.iter().filter(|block| block.booleans.len() == 1) {
        let Some(name) = block.booleans.iter().next() else { continue };
        let off = facts.booleans.get(name) == Some(&false);
        if off && block.rules.iter().any(|rule| covers(&rule)) {
            let rules = block.rules.len();
            return Some(format!("setsebool -P {name} on (the boolean turns on {rules} rules; this is one of them)"));
        }
    }
    None
}

fn allow(from: &str, to: &str, class: &str, permissions: &[String]) -> String {
    format!("(allow {from} {} ({class} ({})))", if from == to { "self" } else { to }, permissions.join(" "))
}
