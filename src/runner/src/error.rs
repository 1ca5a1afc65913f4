//! Why a start failed in the runner, by step of the plan.

/// A failed step, as the warden is told.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {why}")]
pub struct Error {
    /// The step, for people.
    pub step: &'static str,
    /// One sentence with its causes.
    pub why: String,
}

impl Error {
    /// A failure with its chain of causes in one line.
    pub fn new(step: &'static str, cause: &dyn std::error::Error) -> Self {
        let mut why = cause.to_string();
        let mut next = cause.source();
        while let Some(source) = next {
            why.push_str(": ");
            why.push_str(&source.to_string());
            next = source.source();
        }
        Self { step, why }
    }

    /// A failure of our own.
    pub fn because(step: &'static str, why: impl Into<String>) -> Self {
        Self { step, why: why.into() }
    }
}

/// Names the step of whatever failed.
pub(crate) trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, Error>;
}

impl<T, E: std::error::Error> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, Error> {
        self.map_err(|error| Error::new(step, &error))
    }
}
