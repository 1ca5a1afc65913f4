//! What the user reads when something failed: what, why, what to do. Printed once, as text or as one JSON object.

use std::error::Error as StdError;
use std::io::Write;

use casemate_client::sanitize;

use crate::args::Format;

pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Exit status of Casemate's own failures.
pub const OWN: u8 = 125;

#[derive(Debug)]
pub struct Failure {
    pub message: String,
    /// From the nearest cause to the farthest; what the message already says is left out.
    pub causes: Vec<String>,
    pub remedy: Option<String>,
    /// Text of several lines, as the end of a console.
    pub attached: Option<String>,
    pub code: u8,
    /// The output is closed: end without a word.
    pub silent: bool,
}

impl Failure {
    pub fn new(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), causes: Vec::new(), remedy: None, attached: None, code: OWN, silent: false }
    }

    pub fn io(attempt: impl Into<String>, error: std::io::Error) -> Failure {
        let mut failure = Failure::new(attempt);
        failure.causes.push(error.to_string());
        failure
    }

    /// From any error, with its chain.
    pub fn from_error(error: &dyn StdError) -> Failure {
        let mut failure = Failure::new(error.to_string());
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            let told = failure.causes.last().unwrap_or(&failure.message);
            if !told.ends_with(&text) {
                failure.causes.push(text);
            }
            source = cause.source();
        }
        failure
    }

    pub fn remedy(mut self, remedy: impl Into<String>) -> Failure {
        self.remedy = Some(remedy.into());
        self
    }

    pub fn code(mut self, code: u8) -> Failure {
        self.code = code;
        self
    }

    /// One sentence with its causes.
    pub fn sentence(&self) -> String {
        let mut text = self.message.clone();
        for cause in &self.causes {
            text.push_str(": ");
            text.push_str(cause);
        }
        text
    }

    /// Prints it on stderr. A closed stderr is nobody to tell.
    pub fn print(&self, format: Format) {
        if self.silent {
            return;
        }
        let mut text = String::new();
        match format {
            Format::Json => {
                let object = serde_json::json!({
                    "error": self.message, "causes": self.causes, "remedy": self.remedy,
                    "attached": self.attached, "exit_code": self.code,
                });
                text.push_str(&object.to_string());
                text.push('\n');
            }
            Format::Text | Format::Junit | Format::Sarif | Format::Html => {
                text.push_str(&format!("casemate: {}\n", sanitize::line(&self.sentence(), 4000)));
                if let Some(attached) = &self.attached {
                    for line in attached.lines() {
                        text.push_str(&format!("    {}\n", sanitize::line(line, 400)));
                    }
                }
                if let Some(remedy) = &self.remedy {
                    text.push_str(&format!("  what to do: {}\n", sanitize::line(remedy, 1000)));
                }
            }
        }
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

impl From<casemate_client::Error> for Failure {
    fn from(error: casemate_client::Error) -> Failure {
        let mut failure = Failure::from_error(&error);
        failure.remedy = error.remedy();
        failure.code = error.exit_code();
        failure
    }
}

impl From<casemate_spec::SpecError> for Failure {
    fn from(error: casemate_spec::SpecError) -> Failure {
        use casemate_spec::SpecError::{Field, Syntax};
        match error {
            Syntax { form, field, problem, remedy } => {
                Failure::new(format!("the {form} specification, field '{field}': {problem}")).remedy(remedy)
            }
            Field { field, problem, remedy } => Failure::new(format!("field '{field}': {problem}")).remedy(remedy),
        }
    }
}

impl From<casemate_image::Error> for Failure {
    fn from(error: casemate_image::Error) -> Failure {
        Failure::from_error(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let error = casemate_client::Error::Io {
            attempt: "opening x".into(),
            source: std::io::Error::from(std::io::ErrorKind::PermissionDenied),
        };
        let failure = Failure::from(error);
        assert_eq!(failure.sentence(), "opening x: permission denied");
        assert!(failure.remedy.unwrap().contains("root"));
    }
}
