//! One error for a specification that cannot be accepted: which field, what is wrong, what to do.

/// Why a specification was refused. `field` is a path into the specification, as `disks[1].path`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("{form} specification, field '{field}': {problem}; {remedy}")]
    Syntax { form: &'static str, field: String, problem: String, remedy: &'static str },
    #[error("field '{field}': {problem}; {remedy}")]
    Field { field: String, problem: String, remedy: String },
}

impl SpecError {
    pub(crate) fn field(field: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        SpecError::Field { field: field.into(), problem: problem.into(), remedy: remedy.into() }
    }

    /// The path of the offending field.
    pub fn field_path(&self) -> &str {
        match self {
            SpecError::Syntax { field, .. } | SpecError::Field { field, .. } => field,
        }
    }
}
