//! The auditor's questions to a policy, each answered for concrete contexts.

mod booleans;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::constraint::Party;
use super::entries::kept_identity;
pub use super::entries::{Entry, entries};
use super::vm::{self, Family, Vm};
use super::{Policy, PolicyError};

pub use booleans::{Widening, booleans};

/// Permissions that let one VM take or change what is another's, whatever else is closed.
pub const HARMFUL: [&str; 17] = [
    "read",
    "write",
    "append",
    "open",
    "execute",
    "map",
    "create",
    "unlink",
    "rename",
    "relabelfrom",
    "relabelto",
    "ptrace",
    "signal",
    "sigkill",
    "sigstop",
    "connectto",
    "transition",
];

/// What a VM may do to one object of another VM, beside what it may do to its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reach {
    /// `image`, `runner`, `content`
    pub object: &'static str,
    pub class: String,
    pub to_own: Vec<String>,
    pub to_other: Vec<String>,
}

/// May VM `a` touch an object of VM `b`? Every class in which it may touch its own, or the other's.
pub fn reach(policy: &Policy, a: &Vm, b: &Vm) -> Result<Vec<Reach>, PolicyError> {
    let objects =
        [("image", &a.image, &b.image), ("runner", &a.runner, &b.runner), ("content", &a.content, &b.content)];
    let mut rows = Vec::new();
    for (object, own, other) in objects {
        for class in policy.facts().classes.keys() {
            let owned = |list: Vec<&str>| list.into_iter().map(str::to_owned).collect::<Vec<_>>();
            let to_own = owned(policy.allowed(&a.runner, own, class)?);
            let to_other = if of_oneself(class) { Vec::new() } else { owned(policy.allowed(&a.runner, other, class)?) };
            if !to_own.is_empty() || !to_other.is_empty() {
                rows.push(Reach { object, class: class.clone(), to_own, to_other });
            }
        }
    }
    Ok(rows)
}

/// Capabilities are asked of a process about itself alone (kernel, security/selinux/hooks.c, cred_has_capability): a
/// rule that names another's can never matter.
fn of_oneself(class: &str) -> bool {
    matches!(class, "capability" | "capability2" | "cap_userns" | "cap2_userns")
}

/// A domain that may do something to a VM.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Who {
    pub domain: String,
    pub object: &'static str,
    pub class: String,
    pub permissions: Vec<String>,
    /// Also without any category; else only with those of the VM, or all.
    pub without_categories: bool,
}

/// What is done to a VM by those whom an auditor asks for.
const DEEDS: [(&str, &str, &[&str]); 4] = [
    ("image", "file", &["read", "write", "append", "relabelfrom", "relabelto"]),
    ("image", "blk_file", &["read", "write", "append", "relabelfrom", "relabelto"]),
    ("runner", "process", &["ptrace", "signal", "sigkill", "sigstop", "transition", "dyntransition"]),
    ("runner", "unix_stream_socket", &["connectto"]),
];

/// Who, of all domains of the policy, may read, write, relabel, trace or signal this VM or its images?
pub fn who(policy: &Policy, family: &Family, vm: &Vm) -> Result<Vec<Who>, PolicyError> {
    let facts = policy.facts();
    // A type is a process' if a role besides that of objects may have it.
    let domains = facts.roles.iter().filter(|(_, roles)| roles.iter().any(|role| role != "object_r"));
    let all = all_categories(policy);
    let mut rows = Vec::new();
    for domain in domains.map(|(domain, _)| domain).filter(|domain| **domain != family.runner) {
        let Some((wide, plain)) = contexts_of(policy, domain, all.as_deref()) else { continue };
        for (object, class, deeds) in DEEDS {
            let target = if object == "image" { &vm.image } else { &vm.runner };
            let permissions = deeds_of(policy, &wide, target, class, deeds)?;
            if permissions.is_empty() {
                continue;
            }
            let without = deeds_of(policy, &plain, target, class, deeds)?;
            let (domain, class) = (domain.clone(), class.to_owned());
            rows.push(Who { domain, object, class, without_categories: without == permissions, permissions });
        }
    }
    Ok(rows)
}

/// What `from` may do of these deeds. Who becomes a VM keeps user and role, which constraints compare: for that, the VM is
/// one of its own.
fn deeds_of(
    policy: &Policy,
    from: &str,
    target: &str,
    class: &str,
    deeds: &[&str],
) -> Result<Vec<String>, PolicyError> {
    let mut found = chosen(policy.allowed(from, target, class)?, deeds);
    if class == "process" {
        let own = kept_identity(from, target);
        if own != target && policy.knows_context(&own) {
            let become_ = chosen(policy.allowed(from, &own, class)?, &["transition", "dyntransition"]);
            found.extend(become_.into_iter().filter(|p| deeds.contains(&p.as_str())));
            found.sort();
            found.dedup();
        }
    }
    Ok(found)
}

fn chosen(allowed: Vec<&str>, deeds: &[&str]) -> Vec<String> {
    allowed.into_iter().filter(|p| deeds.contains(p)).map(str::to_owned).collect()
}

/// `s0-s0:c0.c1023`, or as far as this policy's categories go.
pub(super) fn all_categories(policy: &Policy) -> Option<String> {
    policy.facts().last_category.map(|last| format!("s0-s0:c0.c{last}"))
}

/// A domain with all categories and with none; `None` for a type that no role has, which no process can be.
pub(super) fn contexts_of(policy: &Policy, domain: &str, all: Option<&str>) -> Option<(String, String)> {
    let plain = vm::process(policy, domain, "s0").ok()?;
    let wide = all.and_then(|range| vm::process(policy, domain, range).ok());
    Some((wide.unwrap_or_else(|| plain.clone()), plain))
}

/// How far categories hold a domain back in one class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Constrained {
    pub class: String,
    /// Refused for another pair, whatever rules allow.
    pub held: Vec<String>,
    /// Not refused: only type enforcement stands between two VMs here.
    pub open: Vec<String>,
    /// Decided by something that is not understood here; counted as open by a careful reader.
    pub unknown: Vec<String>,
}

/// Which classes and permissions does this policy's MCS hold back for the VM, and which not? Independent of allow rules.
pub fn constrained(policy: &Policy, a: &Vm, b: &Vm) -> Result<Vec<Constrained>, PolicyError> {
    policy.require_mls()?;
    let party = |context: &str| Party::parse(context).ok_or_else(|| PolicyError::Context(context.to_owned()));
    let (subject, image, other) = (party(&a.runner)?, party(&b.image)?, party(&b.runner)?);
    let facts = policy.facts();
    let mut rows = Vec::new();
    for (class, permissions) in &facts.classes {
        let target = if is_file(class) { &image } else { &other };
        let mut row = Constrained { class: class.clone(), held: vec![], open: vec![], unknown: vec![] };
        for permission in permissions {
            let on = facts.constraints.iter().filter(|c| c.class == *class && c.permissions.contains(permission));
            let verdicts: Vec<_> = on.map(|c| c.expression.holds(facts, &subject, target)).collect();
            let list = if verdicts.contains(&Some(false)) {
                &mut row.held
            } else if verdicts.contains(&None) {
                &mut row.unknown
            } else {
                &mut row.open
            };
            list.push(permission.clone());
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Classes whose objects carry an image's label, not a process'.
pub fn is_file(class: &str) -> bool {
    matches!(
        class,
        "file" | "dir" | "lnk_file" | "chr_file" | "blk_file" | "sock_file" | "fifo_file" | "memfd_file" | "filesystem"
    )
}

/// Everything that a VM may do: `type:class`, and the permissions, for objects without categories.
pub fn rights(
    policy: &Policy,
    family: &Family,
    vm: &Vm,
) -> Result<BTreeMap<(String, String), Vec<String>>, PolicyError> {
    let facts = policy.facts();
    let mut objects = BTreeSet::new();
    for rule in facts.rules_from(&family.runner) {
        objects.extend(facts.targets(rule, &family.runner).map(|target| (target, rule.class.as_str())));
    }
    let mut rights = BTreeMap::new();
    for (type_, class) in objects {
        let Some(object) = object_context(policy, type_, "s0") else { continue };
        let allowed = policy.allowed(&vm.runner, &object, class)?;
        if !allowed.is_empty() {
            rights.insert((type_.to_owned(), class.to_owned()), allowed.into_iter().map(str::to_owned).collect());
        }
    }
    Ok(rights)
}

/// Something that one VM writes and another reads: information flows in two steps.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Flow {
    pub type_: String,
    pub class: String,
    pub level: String,
    pub written_by: Vec<String>,
    pub read_by: Vec<String>,
}

const WRITES: [&str; 14] = [
    "write",
    "append",
    "create",
    "setattr",
    "link",
    "rename",
    "add_name",
    "remove_name",
    "send_msg",
    "sendto",
    "enqueue",
    "connectto",
    "setopt",
    "relabelto",
];
const READS: [&str; 9] = ["read", "getattr", "search", "execute", "map", "receive", "recvfrom", "recv_msg", "ioctl"];

/// Objects through which VM `a` may tell VM `b` something: `a` may write to them, `b` may read them. Asked for objects at
/// s0, at `a`'s level and at `b`'s, of every type that a rule lets the runner write.
pub fn flows(policy: &Policy, family: &Family, a: &Vm, b: &Vm) -> Result<Vec<Flow>, PolicyError> {
    let facts = policy.facts();
    let mut pairs: BTreeSet<(&str, &str)> = BTreeSet::new();
    for rule in facts.rules_from(&family.runner).filter(|r| r.permissions.iter().any(|p| WRITES.contains(&p.as_str())))
    {
        pairs.extend(facts.targets(rule, &family.runner).map(|target| (target, rule.class.as_str())));
    }
    let levels = ["s0".to_owned(), level_of(&a.image), level_of(&b.image)];
    let mut flows = Vec::new();
    for (type_, class) in pairs {
        for level in &levels {
            // A process of the VM's type is the VM itself, or the other one; objects at s0 are not made by either.
            let Some(object) = object_context(policy, type_, level) else { continue };
            let written = chosen(policy.allowed(&a.runner, &object, class)?, &WRITES);
            if written.is_empty() {
                continue;
            }
            let read = chosen(policy.allowed(&b.runner, &object, class)?, &READS);
            if !read.is_empty() {
                let (type_, class, level) = (type_.to_owned(), class.to_owned(), level.clone());
                flows.push(Flow { type_, class, level, written_by: written, read_by: read });
            }
        }
    }
    Ok(flows)
}

fn level_of(context: &str) -> String {
    context.splitn(4, ':').nth(3).unwrap_or_default().to_owned()
}

/// A context for an object of any type: as a file if roles allow that, else as a process.
pub fn object_context(policy: &Policy, type_: &str, level: &str) -> Option<String> {
    let file = format!("system_u:object_r:{type_}:{level}");
    let roles = policy.facts().roles.get(type_);
    if roles.is_none_or(|roles| roles.iter().all(|r| r == "object_r")) && policy.knows_context(&file) {
        return Some(file);
    }
    // Of a domain whose roles no user has there is no process, but a rule that names it is still told.
    vm::process(policy, type_, level).ok().or_else(|| policy.knows_context(&file).then_some(file))
}
