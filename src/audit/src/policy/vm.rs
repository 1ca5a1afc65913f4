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

/// Types that an auditor gives in the place of a family's.
#[derive(Debug, Clone, Copy, Default)]
pub struct Types<'a> {
    pub runner: Option<&'a str>,
    pub image: Option<&'a str>,
    pub content: Option<&'a str>,
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
            None => Self::common(&[policy]),
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

    /// The first that all these policies have.
    pub fn common(policies: &[&Policy]) -> Result<Self, PolicyError> {
        let found = families().into_iter().find(|family| policies.iter().all(|p| family.missing(p).is_empty()));
        found.ok_or_else(|| PolicyError::Unknown("casemate_runner_t, svirt_t or container_kvm_t".into()))
    }

    /// With other types in the place of its own, as svirt_tcg_t or container_t; then it is named by its runner's.
    pub fn with(mut self, policy: &Policy, types: &Types<'_>) -> Result<Self, PolicyError> {
        let told =
            [(types.runner, &mut self.runner), (types.image, &mut self.image), (types.content, &mut self.content)];
        for (given, place) in told {
            if let Some(given) = given {
                if !policy.facts().types.contains(given) {
                    return Err(PolicyError::Unknown(format!("the type {given}")));
                }
                given.clone_into(place);
            }
        }
        if !policy.facts().roles.get(&self.runner).is_some_and(|roles| roles.iter().any(|role| role != OBJECTS)) {
            return Err(PolicyError::Unknown(format!("a role for {}: no process can have it", self.runner)));
        }
        if types.runner.is_some() {
            self.name.clone_from(&self.runner);
        }
        Ok(self)
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

/// The role of what is no process. Every type may have it.
const OBJECTS: &str = "object_r";

/// A context of a domain at a level or range: system_u:system_r if that is possible, else the first user and role that
/// the policy allows it.
pub fn process(policy: &Policy, type_: &str, range: &str) -> Result<String, PolicyError> {
    let wanted = || PolicyError::Context(format!("(any user and role):{type_}:{range}"));
    let roles = policy.facts().roles.get(type_).ok_or_else(wanted)?;
    let mut users: Vec<(&str, &str)> = Vec::new();
    for (user, allowed) in &policy.facts().users {
        let held = allowed.iter().filter(|r| r.as_str() != OBJECTS && roles.contains(*r));
        users.extend(held.map(|r| (user.as_str(), r.as_str())));
    }
    users.sort_by_key(|(user, role)| (*user != "system_u", *role != "system_r"));
    let contexts = users.into_iter().map(|(user, role)| format!("{user}:{role}:{type_}:{range}"));
    contexts.into_iter().find(|context| policy.knows_context(context)).ok_or_else(wanted)
}
