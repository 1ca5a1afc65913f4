//! What the layers have in common: the token, the finding, the error.

use casemate_plan::Layer;
use serde::{Deserialize, Serialize};

/// Proof that a layer was applied and read back. Only this room makes it; it cannot be copied.
#[must_use = "a layer that nobody accounts for may as well be missing"]
#[derive(Debug)]
pub struct Confined {
    layer: Layer,
    shown: String,
}

impl Confined {
    pub(crate) fn new(layer: Layer, shown: impl Into<String>) -> Self {
        Self { layer, shown: shown.into() }
    }

    pub fn layer(&self) -> Layer {
        self.layer
    }

    /// What the read-back showed, for the log.
    pub fn shown(&self) -> &str {
        &self.shown
    }
}

/// The tokens that a process has gathered so far.
#[derive(Debug, Default)]
pub struct Jail(Vec<Confined>);

impl Jail {
    pub fn add(&mut self, token: Confined) {
        self.0.push(token);
    }

    pub fn holds(&self, layer: Layer) -> bool {
        self.0.iter().any(|token| token.layer == layer)
    }

    /// The demanded layers without a token. Exec only when this is empty.
    pub fn missing(&self, demanded: &[Layer]) -> Vec<Layer> {
        demanded.iter().copied().filter(|layer| !self.holds(*layer)).collect()
    }
}

/// One comparison of the plan with what the kernel says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub layer: Layer,
    /// What was looked at, as `Seccomp of thread vcpu0`.
    pub what: String,
    pub expected: String,
    pub seen: String,
    pub ok: bool,
}

impl Finding {
    /// Equal is ok.
    pub(crate) fn equal(
        layer: Layer,
        what: impl Into<String>,
        expected: impl Into<String>,
        seen: impl Into<String>,
    ) -> Self {
        let (expected, seen) = (expected.into(), seen.into());
        Self { layer, what: what.into(), ok: expected == seen, expected, seen }
    }

    /// A judgement that is not plain equality.
    pub(crate) fn judged(
        layer: Layer,
        what: impl Into<String>,
        expected: impl Into<String>,
        seen: impl Into<String>,
        ok: bool,
    ) -> Self {
        Self { layer, what: what.into(), expected: expected.into(), seen: seen.into(), ok }
    }

    /// Something that could not be looked at is never ok.
    pub(crate) fn unreadable(layer: Layer, what: impl Into<String>, error: &casemate_sys::Error) -> Self {
        Self::judged(layer, what, "readable", error.report(), false)
    }
}

/// Why a layer does not hold. Each of them stops the start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the {layer} layer could not be applied")]
    Call {
        layer: Layer,
        #[source]
        source: casemate_sys::Error,
    },
    #[error("the {layer} layer could not be applied: {why}")]
    Refused { layer: Layer, why: String },
    #[error("the {layer} layer does not hold: {what} should be {expected}, the kernel says {seen}")]
    NotHeld { layer: Layer, what: String, expected: String, seen: String },
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The layer that failed.
    pub fn layer(&self) -> Layer {
        match self {
            Self::Call { layer, .. } | Self::Refused { layer, .. } | Self::NotHeld { layer, .. } => *layer,
        }
    }

    pub(crate) fn call(layer: Layer) -> impl FnOnce(casemate_sys::Error) -> Self {
        move |source| Self::Call { layer, source }
    }
}

impl From<Finding> for Error {
    fn from(f: Finding) -> Self {
        Self::NotHeld { layer: f.layer, what: f.what, expected: f.expected, seen: f.seen }
    }
}

/// The token, if every finding of the read-back is ok; the first bad one as the error otherwise.
pub(crate) fn held(layer: Layer, findings: Vec<Finding>) -> Result<Confined> {
    let shown = findings.iter().map(|f| format!("{} {}", f.what, f.seen)).collect::<Vec<_>>().join(", ");
    match findings.into_iter().find(|finding| !finding.ok) {
        Some(bad) => Err(bad.into()),
        None => Ok(Confined::new(layer, shown)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_finding_makes_no_token() {
        let good = Finding::equal(Layer::Uid, "uid", "7", "7");
        let bad = Finding::equal(Layer::Uid, "gid", "7", "0");
        assert!(held(Layer::Uid, vec![good.clone()]).is_ok());
        let error = held(Layer::Uid, vec![good, bad]).unwrap_err();
        assert_eq!(error.to_string(), "the uid layer does not hold: gid should be 7, the kernel says 0");
    }

    #[test]
    fn a_jail_knows_what_is_missing() {
        let mut jail = Jail::default();
        jail.add(Confined::new(Layer::Uid, ""));
        assert_eq!(jail.missing(&[Layer::Uid, Layer::Landlock]), [Layer::Landlock]);
    }
}
