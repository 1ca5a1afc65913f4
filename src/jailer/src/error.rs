//! The jailer's errors: the step that failed, its layer, and one sentence with its causes.

use casemate_plan::{Layer, Step};
use casemate_wire::jailer::Failure;

/// A stage or step of the start that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {error}")]
pub struct StepFailed {
    pub step: String,
    pub layer: Layer,
    pub error: String,
}

impl StepFailed {
    /// A stage before or beside the plan's steps.
    pub fn stage(step: &str, error: impl std::error::Error) -> Self {
        StepFailed { step: step.into(), layer: Layer::None, error: sentence(&error) }
    }

    pub fn because(step: &str, error: impl Into<String>) -> Self {
        StepFailed { step: step.into(), layer: Layer::None, error: error.into() }
    }

    pub fn at(step: &Step, error: impl std::error::Error) -> Self {
        StepFailed { step: step.what.clone(), layer: step.layer, error: sentence(&error) }
    }

    pub fn at_because(step: &Step, error: impl Into<String>) -> Self {
        StepFailed { step: step.what.clone(), layer: step.layer, error: error.into() }
    }

    pub fn failure(self, left: Vec<String>) -> Failure {
        Failure { step: self.step, layer: self.layer.to_string(), error: self.error, console: None, left }
    }
}

/// An error and its chain of sources as one sentence.
pub fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
