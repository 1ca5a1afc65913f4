//! What a bundle holds of a sandbox. Each part is there, or says why it is not.

use std::collections::BTreeMap;

use casemate_plan::{HostConfig, HostFacts, Plan, RolePlan};
use casemate_wire::record::{Finding, SandboxRecord};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Digest, Refused};

/// Version of [`Evidence`]; it changes with every form that is contained in it.
pub const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part<T> {
    Taken(T),
    /// Why not, in a sentence.
    Missing(String),
}

impl<T> Part<T> {
    pub fn taken(&self) -> Option<&T> {
        match self {
            Part::Taken(value) => Some(value),
            Part::Missing(_) => None,
        }
    }

    pub fn why(&self) -> Option<&str> {
        match self {
            Part::Taken(_) => None,
            Part::Missing(why) => Some(why),
        }
    }
}

impl<T, E: std::fmt::Display> From<Result<T, E>> for Part<T> {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(value) => Part::Taken(value),
            Err(error) => Part::Missing(error.to_string()),
        }
    }
}

/// All that was seen of one sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    pub version: u32,
    pub sandbox: String,
    /// When it was gathered, in seconds since the epoch.
    pub time: u64,
    /// What the asker gave, so that an older bundle cannot answer.
    pub nonce: Option<String>,
    /// Version of the program that gathered it.
    pub casemate: String,
    pub spec: Part<SpecText>,
    pub start: Part<Planned>,
    /// `state.json`, or `exit.json` of one that has ended: attestation before the first guest instruction from inside and
    /// outside, labels before, during and after.
    pub record: SandboxRecord,
    /// Both attestations again, when the evidence was gathered.
    pub attested: Part<Vec<Finding>>,
    pub filters: Part<Filters>,
    /// Kernel, initramfs, images.
    pub files: Vec<File>,
    pub programs: Vec<File>,
    pub policy: Part<Policy>,
    /// The audit's report of this sandbox: processes with their Landlock rulesets, descriptors, namespaces, … and findings.
    pub audit: Part<Value>,
}

/// The specification as the jailer got it, but for values that may be secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecText {
    /// JSON.
    pub text: String,
    /// How many bytes the jailer got.
    pub bytes: usize,
    /// Of the bytes that the jailer got, [`Digest::salted`]; `None` where values are hidden without a digest.
    pub digest: Option<Digest>,
    /// Variables of the environment whose values are [`HIDDEN`] in the text, each with the salted digest of its value.
    pub hidden: BTreeMap<String, Option<Digest>>,
    pub salt: Option<String>,
}

/// What stands for a hidden value.
pub const HIDDEN: &str = "(hidden)";

/// From what, and what, the jailer planned; and what it bound.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planned {
    pub facts: HostFacts,
    pub config: HostConfig,
    pub plan: Plan,
    pub role: RolePlan,
}

/// `start.json` in the sandbox's directory: written by the jailer at the start, kept until the sandbox is removed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    pub version: u32,
    /// The bytes that the jailer got.
    pub spec: String,
    pub planned: Planned,
}

/// The name of that file, and most bytes of it.
pub const KEPT: &str = "start.json";
pub const MAX_KEPT: u64 = 4 << 20;

/// The installed seccomp filters, raw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filters {
    /// SHA-256 of a program's instructions to the instructions (struct sock_filter, little-endian), in hexadecimal digits.
    pub programs: BTreeMap<Digest, String>,
    pub threads: Vec<ThreadFilters>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThreadFilters {
    pub role: String,
    pub pid: u32,
    pub tid: u32,
    pub name: String,
    /// Newest first.
    pub filters: Vec<Digest>,
}

/// A file that was digested, or why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// As in the plan (`kernel`, `disk.root`); of a program, its role.
    pub name: String,
    pub path: String,
    pub read_only: bool,
    /// As fstat(2) showed what was digested; 0 where nothing could be opened.
    pub dev: u64,
    pub ino: u64,
    pub size: u64,
    /// The name led to another object than the sandbox has open.
    pub replaced: bool,
    /// How it was reached.
    pub via: String,
    pub digest: Part<Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Of the loaded policy, as selinuxfs gives it.
    pub loaded: Part<Digest>,
    pub enforcing: Part<bool>,
    /// Files of our module, by name.
    pub module: BTreeMap<String, Digest>,
    /// The policy itself, in base64, where that was asked for.
    pub bytes: Option<String>,
}

impl Evidence {
    /// What the form does not say by itself. The jailer seals nothing else.
    pub fn check(&self) -> Result<(), Refused> {
        let form = |why: &str| Err(Refused::Form { what: "the evidence", why: why.into() });
        if self.version != VERSION {
            let (seen, known) = (self.version.to_string(), VERSION.to_string());
            return Err(Refused::Kind { what: "the evidence's version", seen, known });
        }
        if self.record.name != self.sandbox {
            return form("its record is of another sandbox");
        }
        if self.nonce.as_ref().is_some_and(|nonce| nonce.is_empty() || nonce.len() > 128) {
            return form("a nonce has 1 to 128 characters");
        }
        Ok(())
    }
}
