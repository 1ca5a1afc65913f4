//! The VMs that a policy can hold: whose types, and contexts with a level.

use serde::Serialize;

use super::{Policy, PolicyError};

/// The types that make up one family of VMs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Family {
    pub name: String,
    /// Domain of the process that runs the guest.
    pub runner: String,
    /// Type of what one VM writes.
    pub image: String,
    /// Type of what every VM reads.
    pub content: String,
}

/// A family at a level: concrete contexts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vm {
    pub runner: String,
    pub image: String,
    /// The family's content, which has no categories.
    pub content: String,
}

/// Families that are known by name: ours, libvirt's, container-selinux'.
pub fn families() -> [Family; 3] {
    let family = |name: &str, runner: &str, image: &str, content: &str| Family {
        name: name.into(),
        runner: runner.into(),
        image: image.into(),
        content: content.into(),
    };
    [
        family("casemate", "casemate_runner_t", "casemate_image_t", "casemate_content_t"),
        family("svirt", "svirt_t", "svirt_image_t", "virt_content_t"),
        family("container", "container_kvm_t", "container_file_t", "container_ro_file_t"),
    ]
}

impl Family {
    /// The family of that name, or the first that the policy has.
    pub fn find(policy: &Policy, name: Option<&str>) -> Result<Self, PolicyError> {
        let known = families();
        match name {
            None => {
                let found = known.into_iter().find(|family| family.missing(policy).is_empty());
                found.ok_or_else(|| PolicyError::Unknown("casemate_runner_t, svirt_t or container_kvm_t".into()))
            }
            Some(name) => {
                let family = known.into_iter().find(|family| family.name == name);
                let family = family.ok_or_else(|| PolicyError::Unknown(format!("a family named {name}")))?;
                match family.missing(policy).first() {
                    None => Ok(family),
                    Some(missing) => Err(PolicyError::Unknown(missing.clone())),
                }
            }
        }
    }

    pub fn missing(&self, policy: &Policy) -> Vec<String> {
        let all = [&self.runner, &self.image, &self.content];
        all.into_iter().filter(|t| !policy.facts().types.contains(t.as_str())).cloned().collect()
    }

    pub fn at(&self, policy: &Policy, level: &str) -> Result<Vm, PolicyError> {
        policy.require_mls()?;
        Ok(Vm {
            runner: process(policy, &self.runner, level)?,
            image: format!("system_u:object_r:{}:{level}", self.image),
            content: format!("system_u:object_r:{}:s0", self.content),
        })
    }
}

/// A context of a domain at a level or range: system_u:system_r if that is possible, else the first user and role that
/// the policy allows it.
pub fn process(policy: &Policy, type_: &str, range: &str) -> Result<String, PolicyError> {
    let wanted = || PolicyError::Context(format!("(any user and role):{type_}:{range}"));
    let roles = policy.facts().roles.get(type_).ok_or_else(wanted)?;
    let mut users: Vec<(&str, &str)> = Vec::new();
    for (user, allowed) in &policy.facts().users {
        users.extend(allowed.iter().filter(|r| roles.contains(*r)).map(|r| (user.as_str(), r.as_str())));
    }
    users.sort_by_key(|(user, role)| (*user != "system_u", *role != "system_r"));
    let contexts = users.into_iter().map(|(user, role)| format!("{user}:{role}:{type_}:{range}"));
    contexts.into_iter().find(|context| policy.knows_context(context)).ok_or_else(wanted)
}
