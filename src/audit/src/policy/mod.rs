//! A SELinux policy, loaded from a file, from memory or from the running kernel, and what it answers.
//!
//! Decisions are libsepol's, with every constraint, for concrete contexts. Names, rules and constraints come from the
//! policy's own text. Nothing here needs SELinux on this machine, nor root.

pub mod ask;
pub mod cil;
pub mod constraint;
pub mod diff;
pub mod entries;
pub mod never;
pub mod separation;
pub mod vm;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::sepol;
pub use cil::Facts;

/// `POLICYDB_MAGIC`, and that of modules (`sepol/policydb/policydb.h`).
const MAGIC: u32 = 0xf97c_ff8c;
const MODULE_MAGICS: [u32; 2] = [0xf97c_ff8d, 0xf97c_ff8f];
const MLS: u32 = 1;
/// Fedora's is 4 MB.
const MAX_BYTES: u64 = 256 << 20;
const LIVE: &str = "/sys/fs/selinux/policy";

#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("cannot read the policy {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("SELinux has no policy loaded here; name a policy file (--file), as /etc/selinux/default/policy/policy.33")]
    NotLoaded,
    #[error("{origin} is no kernel policy: {why}")]
    Form { origin: String, why: String },
    #[error("{origin} is policy version {found}; this libsepol reads {min} to {max}: install a newer libsepol2")]
    Version { origin: String, found: u32, min: u32, max: u32 },
    #[error("{origin} is truncated, malformed or made for a newer libsepol: this one refuses it{}", because(.why))]
    Malformed { origin: String, why: String },
    #[error(
        "{origin} is malformed, by accident or on purpose: libsepol did not survive it ({how}); no answer is given"
    )]
    Crashes { origin: String, how: String },
    #[error("cannot start the process that tries {origin} out: {why}")]
    NotTried { origin: String, why: String },
    #[error("{0} has no levels (MLS is off): categories separate nothing with it")]
    NoMls(String),
    #[error("the policy does not know {0}")]
    Unknown(String),
    #[error("the policy does not accept the context {0}; is there a user and a role for the type?")]
    Context(String),
    #[error("libsepol gave no decision for {0}")]
    NoDecision(String),
}

/// libsepol's own words, if it had any.
fn because(why: &str) -> String {
    if why.is_empty() { String::new() } else { format!(" ({why})") }
}

/// A loaded policy.
#[derive(Debug)]
pub struct Policy {
    id: u64,
    image: Vec<u8>,
    origin: String,
    version: u32,
    mls: bool,
    facts: Arc<Facts>,
}

/// Why something is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// No rule allows it.
    TypeEnforcement,
    /// A rule does, a constraint does not: the levels, for an MCS-constrained type.
    Constraint,
}

/// The answer for one source, target and class.
#[derive(Debug, Clone, Serialize)]
pub struct Access {
    pub allowed: Vec<String>,
    /// What is not allowed, with the reason.
    pub refused: Vec<(String, Refusal)>,
}

impl Access {
    pub fn allows(&self, permission: &str) -> bool {
        self.allowed.iter().any(|p| p == permission)
    }
}

impl Policy {
    /// Reads a binary policy, as the kernel gets it.
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        let failed = |source| PolicyError::Read { path: path.into(), source };
        let file = std::fs::File::open(path).map_err(failed)?;
        let mut image = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_BYTES), &mut image).map_err(failed)?;
        Self::from_image(image, path.display().to_string())
    }

    /// The policy that this machine's kernel enforces.
    pub fn live() -> Result<Self, PolicyError> {
        match Self::read(Path::new(LIVE)) {
            Err(PolicyError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Err(PolicyError::NotLoaded)
            }
            other => other,
        }
    }

    pub fn from_image(image: Vec<u8>, origin: String) -> Result<Self, PolicyError> {
        let (version, mls) = header(&image, &origin)?;
        let versions = sepol::versions();
        if !versions.contains(&version) {
            let (min, max) = (*versions.start(), *versions.end());
            return Err(PolicyError::Version { origin, found: version, min, max });
        }
        let text = sepol::text(&image).map_err(|failed| {
            let origin = origin.clone();
            match failed {
                sepol::Failed::Refused(why) => PolicyError::Malformed { origin, why },
                sepol::Failed::Ended(how) => PolicyError::Crashes { origin, how },
                sepol::Failed::NotTried(why) => PolicyError::NotTried { origin, why },
            }
        })?;
        let facts = Arc::new(Facts::of(&text));
        Ok(Self { id: next_id(), image, origin, version, mls, facts })
    }

    /// The same policy with one boolean set otherwise.
    pub fn with_boolean(&self, name: &str, value: bool) -> Result<Self, PolicyError> {
        if !self.facts.booleans.contains_key(name) {
            return Err(PolicyError::Unknown(format!("the boolean {name}")));
        }
        let image = sepol::with_booleans(&self.image, &[(name, value)]);
        let image = image.ok_or_else(|| self.malformed())?;
        Self::from_image(image, format!("{} with {name} {}", self.origin, if value { "on" } else { "off" }))
    }

    /// For decisions alone: booleans set otherwise, while the facts still tell of the values before. Costs a load, not the
    /// policy's text.
    fn switched(&self, values: &[(&str, bool)]) -> Result<Self, PolicyError> {
        let image = sepol::with_booleans(&self.image, values).ok_or_else(|| self.malformed())?;
        let (origin, facts) = (self.origin.clone(), Arc::clone(&self.facts));
        Ok(Self { id: next_id(), image, origin, version: self.version, mls: self.mls, facts })
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    pub fn version(&self) -> u32 {
        self.version
    }

    /// The binary form, for a digest.
    pub fn image(&self) -> &[u8] {
        &self.image
    }

    /// Where it came from.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// `Err` for a policy without levels.
    pub fn require_mls(&self) -> Result<(), PolicyError> {
        if self.mls { Ok(()) } else { Err(PolicyError::NoMls(self.origin.clone())) }
    }

    /// Does the policy accept this context?
    pub fn knows_context(&self, context: &str) -> bool {
        sepol::with(self.id, &self.image, |server| server.sid(context).is_some()).unwrap_or(false)
    }

    /// What `source` may do to `target` of `class`, every constraint applied.
    pub fn access(&self, source: &str, target: &str, class: &str) -> Result<Access, PolicyError> {
        let permissions = self.permissions(class)?;
        self.asked(source, target, class, |asked| {
            let allowed = asked.decide(0, false)?.allowed;
            let mut access = Access { allowed: Vec::new(), refused: Vec::new() };
            for permission in permissions {
                let Some(bit) = asked.server.permission(asked.class, permission) else { continue };
                if allowed & bit != 0 {
                    access.allowed.push(permission.clone());
                    continue;
                }
                let reason = asked.decide(bit, false)?.reason;
                let by_rule = reason & sepol::BY_TYPE_ENFORCEMENT != 0;
                let by_constraint = reason & sepol::BY_CONSTRAINT != 0;
                let refusal = if by_constraint && !by_rule { Refusal::Constraint } else { Refusal::TypeEnforcement };
                access.refused.push((permission.clone(), refusal));
            }
            Ok(access)
        })
    }

    /// The allowed permissions alone: one decision instead of one for each permission.
    pub fn allowed(&self, source: &str, target: &str, class: &str) -> Result<Vec<&str>, PolicyError> {
        let permissions = self.permissions(class)?;
        self.asked(source, target, class, |asked| {
            let allowed = asked.decide(0, false)?.allowed;
            if allowed == 0 {
                return Ok(Vec::new());
            }
            let granted = |p: &&String| asked.server.permission(asked.class, p).is_some_and(|bit| allowed & bit != 0);
            Ok(permissions.iter().filter(granted).map(String::as_str).collect())
        })
    }

    /// The constraints that refuse a permission, in libsepol's words.
    pub fn explain(
        &self,
        source: &str,
        target: &str,
        class: &str,
        permission: &str,
    ) -> Result<Option<String>, PolicyError> {
        self.asked(source, target, class, |asked| {
            let bit = asked.server.permission(asked.class, permission);
            let bit = bit.ok_or_else(|| PolicyError::Unknown(format!("the permission {permission}")))?;
            Ok(asked.decide(bit, true)?.words)
        })
    }

    fn permissions(&self, class: &str) -> Result<&[String], PolicyError> {
        let known = self.facts.classes.get(class).map(Vec::as_slice);
        known.ok_or_else(|| PolicyError::Unknown(format!("the class {class}")))
    }

    /// Puts questions about one source, target and class to the server that holds this policy.
    fn asked<T>(
        &self,
        source: &str,
        target: &str,
        class: &str,
        ask: impl FnOnce(&mut Question<'_>) -> Result<T, PolicyError>,
    ) -> Result<T, PolicyError> {
        let answer = sepol::with(self.id, &self.image, |server| {
            let context = |context: &str| PolicyError::Context(context.to_owned());
            let from = server.sid(source).ok_or_else(|| context(source))?;
            let to = server.sid(target).ok_or_else(|| context(target))?;
            let number = server.class(class).ok_or_else(|| PolicyError::Unknown(format!("the class {class}")))?;
            let none = || PolicyError::NoDecision(format!("{source} on {target}, {class}"));
            ask(&mut Question { server, from, to, class: number, none: &none })
        });
        answer.unwrap_or_else(|| Err(self.malformed()))
    }

    fn malformed(&self) -> PolicyError {
        PolicyError::Malformed { origin: self.origin.clone(), why: String::new() }
    }
}

/// Tells the server one policy from another.
fn next_id() -> u64 {
    static IDS: AtomicU64 = AtomicU64::new(1);
    IDS.fetch_add(1, Ordering::Relaxed)
}

/// One source, target and class, as the server numbers them.
struct Question<'a> {
    server: &'a mut sepol::Server,
    from: u32,
    to: u32,
    class: u16,
    none: &'a dyn Fn() -> PolicyError,
}

impl Question<'_> {
    fn decide(&mut self, requested: u32, words: bool) -> Result<sepol::Decision, PolicyError> {
        self.server.decide(self.from, self.to, self.class, requested, words).ok_or_else(self.none)
    }
}

/// Version and MLS of a binary policy: `magic, length, "SE Linux", version, config`, little-endian
/// (libsepol, policydb_read; kernel, security/selinux/ss/policydb.c).
fn header(image: &[u8], origin: &str) -> Result<(u32, bool), PolicyError> {
    let bad = |why: &str| PolicyError::Form { origin: origin.to_owned(), why: why.to_owned() };
    let word = |at: usize| -> Result<u32, PolicyError> {
        let bytes = image.get(at..at + 4).and_then(|b| b.try_into().ok());
        bytes.map(u32::from_le_bytes).ok_or_else(|| bad("it ends within its first lines"))
    };
    if image.is_empty() {
        return Err(bad("it is empty"));
    }
    match word(0)? {
        MAGIC => {}
        magic if MODULE_MAGICS.contains(&magic) => {
            return Err(bad("it is a policy module (.pp); give the policy that is made of all modules"));
        }
        _ if image.first() == Some(&b'(') || image.first() == Some(&b';') => {
            return Err(bad("it is CIL source; compile it first (`casemate policy build`, or secilc)"));
        }
        _ => return Err(bad("it does not begin with SELinux' magic number")),
    }
    let length = word(4)? as usize;
    if length > 32 {
        return Err(bad("its target's name is too long"));
    }
    if image.get(8..8 + length) != Some(b"SE Linux".as_slice()) {
        return Err(bad("it is for another target than SE Linux"));
    }
    let version = word(8 + length)?;
    Ok((version, word(12 + length)? & MLS != 0))
}

#[cfg(test)]
#[path = "policy_tests.rs"]
pub(crate) mod tests;
