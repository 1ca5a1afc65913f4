//! Which types a sandbox uses: Casemate's own module, or another family already loaded.
//!
//! Pure data. Called by `mode` (are they there, do they separate) and `relabel`.

use serde::{Deserialize, Serialize};

use crate::context::{Context, Level, Range};

/// Type names of one labelling family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    pub name: String,
    /// Domain of the runner; must be MCS-constrained.
    pub runner: String,
    /// Type of writable images.
    pub image: String,
    /// Type of read-only content.
    pub content: String,
    /// Domain of the jailer and warden, where the family has one.
    pub jailer: Option<String>,
    /// File type of the runner's executable, where the family has one.
    pub runner_exec: Option<String>,
}

impl Profile {
    /// The module in `policies/`.
    pub fn casemate() -> Self {
        Self {
            name: "casemate".into(),
            runner: "casemate_runner_t".into(),
            image: "casemate_image_t".into(),
            content: "casemate_content_t".into(),
            jailer: Some("casemate_jailer_t".into()),
            runner_exec: Some("casemate_runner_exec_t".into()),
        }
    }

    /// libvirt's family.
    pub fn svirt() -> Self {
        Self {
            name: "svirt".into(),
            runner: "svirt_t".into(),
            image: "svirt_image_t".into(),
            content: "virt_content_t".into(),
            jailer: None,
            runner_exec: None,
        }
    }

    /// Every type the family needs.
    pub fn types(&self) -> impl Iterator<Item = &str> {
        [&self.runner, &self.image, &self.content]
            .into_iter()
            .chain(self.jailer.as_ref())
            .chain(self.runner_exec.as_ref())
            .map(String::as_str)
    }

    /// The runner's label: the caller's user and role, our type, the sandbox's level alone
    /// (a pair, or the level that a user fixed).
    pub fn runner_label(&self, caller: &Context, level: impl Into<Level>) -> Context {
        caller.with_type(&self.runner).expect("a profile holds type names").with_level(level.into())
    }

    /// An object's label. The user is system_u whoever starts the sandbox, so that a label
    /// does not tell users apart; the role of every object is object_r.
    pub fn object(&self, type_: &str, range: Range) -> Context {
        Context::new("system_u", "object_r", type_, Some(range)).expect("a profile holds type names")
    }
}
