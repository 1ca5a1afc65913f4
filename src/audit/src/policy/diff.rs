//! What a policy update opened or closed for VMs.

use std::collections::BTreeSet;

use serde::Serialize;

use super::ask;
use super::vm::Family;
use super::{Policy, PolicyError};

/// Lines that hold with one policy and not with the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// Held by the new policy alone.
    pub opened: Vec<String>,
    /// Held by the old policy alone.
    pub closed: Vec<String>,
}

/// Compares all that bears on a VM of `family`: what its domain may do, who may touch it, what it may do to another
/// VM, which permissions categories hold back, how it is entered, and whether it is permissive.
pub fn diff(old: &Policy, new: &Policy, family: &Family, levels: [&str; 2]) -> Result<Diff, PolicyError> {
    let (before, after) = (statements(old, family, levels)?, statements(new, family, levels)?);
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect();
    Ok(Diff { opened: only(&after, &before), closed: only(&before, &after) })
}

fn statements(policy: &Policy, family: &Family, levels: [&str; 2]) -> Result<BTreeSet<String>, PolicyError> {
    let missing = family.missing(policy);
    if let Some(type_) = missing.first() {
        return Err(PolicyError::Unknown(format!("{type_} ({})", policy.origin())));
    }
    let (a, b) = (family.at(policy, levels[0])?, family.at(policy, levels[1])?);
    let facts = policy.facts();
    let mut lines = BTreeSet::new();
    for ((type_, class), permissions) in ask::rights(policy, family, &a)? {
        lines.extend(permissions.iter().map(|permission| format!("a VM may {permission} {type_}:{class}")));
    }
    for row in ask::reach(policy, &a, &b)? {
        for permission in row.to_other {
            lines.insert(format!("a VM may {permission} another VM's {} ({})", row.object, row.class));
        }
    }
    for row in ask::who(policy, family, &a)? {
        for permission in &row.permissions {
            lines.insert(format!("{} may {permission} a VM's {} ({})", row.domain, row.object, row.class));
        }
    }
    for entry in ask::entries(policy, &a, family)? {
        for program in &entry.programs {
            lines.insert(format!("{} may start a VM by {program}", entry.from));
        }
    }
    for row in ask::constrained(policy, &a, &b)? {
        for permission in row.open.iter().chain(&row.unknown) {
            lines.insert(format!("categories do not hold back {}:{permission}", row.class));
        }
    }
    if facts.permissive.contains(&family.runner) {
        lines.insert(format!("{} is permissive: nothing is refused", family.runner));
    }
    Ok(lines)
}
