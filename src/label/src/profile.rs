//! Which types a sandbox uses: Casemate's own module, or another family already loaded.
//!
//! Pure data. Called by `mode` (are they there, do they separate) and `relabel`.

use serde::{Deserialize, Serialize};

use crate::context::{Context, Level, Range};
use crate::contexts::Family;
use crate::families::ProfileName;

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
    /// Only Casemate labels with these types: a private label without our record is one that we leaked. In another
    /// manager's family it is that manager's.
    pub own: bool,
    /// Types that the runner may read and not write as well: content that has one of them is left as it is.
    pub content_also: Vec<String>,
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
            own: true,
            content_also: Vec::new(),
        }
    }

    /// libvirt's family, by the names of the reference policy.
    pub fn svirt() -> Self {
        Self::of_another(ProfileName::Svirt)
    }

    /// Another manager's family by the names it usually has; [`Self::take`] puts those of the loaded policy in.
    pub(crate) fn of_another(name: ProfileName) -> Self {
        let (runner, image, content) = match name {
            ProfileName::Casemate => return Self::casemate(),
            ProfileName::Svirt => ("svirt_t", "svirt_image_t", "virt_content_t"),
            ProfileName::Container => ("container_kvm_t", "container_file_t", "container_ro_file_t"),
        };
        Self {
            name: name.to_string(),
            runner: runner.into(),
            image: image.into(),
            content: content.into(),
            jailer: None,
            runner_exec: None,
            own: false,
            content_also: Vec::new(),
        }
    }

    /// The type names that the policy's own files give.
    pub(crate) fn take(&mut self, family: &Family) {
        self.runner = family.process.type_().to_owned();
        self.image = family.image.type_().to_owned();
        self.content = family.content.type_().to_owned();
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
