//! What a verification checked, and what it did not. Nothing is left out in silence.

use std::fmt::Write;

use casemate_client::sanitize;
use serde::Serialize;

use crate::output::{Tone, paint};

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Holds,
    Fails(String),
    /// What the host itself says against the sandbox; no reason to doubt the evidence.
    Noted(String),
    NotChecked(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Told {
    /// The bundle, or `chain`.
    pub of: String,
    pub what: String,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The list of one verification.
#[derive(Debug, Default, Serialize)]
pub struct Checks {
    #[serde(skip)]
    of: String,
    pub checks: Vec<Told>,
}

impl Checks {
    /// From here on of this bundle.
    pub fn begin(&mut self, of: impl Into<String>) {
        self.of = of.into();
    }

    fn push(&mut self, what: impl Into<String>, outcome: Outcome) {
        self.checks.push(Told { of: self.of.clone(), what: what.into(), outcome });
    }

    pub fn result<E: std::fmt::Display>(&mut self, what: impl Into<String>, result: Result<(), E>) {
        let outcome = result.map_or_else(|e| Outcome::Fails(e.to_string()), |()| Outcome::Holds);
        self.push(what, outcome);
    }

    pub fn holds(&mut self, what: impl Into<String>, holds: bool, else_: impl Into<String>) {
        self.push(what, if holds { Outcome::Holds } else { Outcome::Fails(else_.into()) });
    }

    /// Holds if nothing is listed.
    pub fn none(&mut self, what: impl Into<String>, wrong: &[String]) {
        self.holds(what, wrong.is_empty(), wrong.join("; "));
    }

    pub fn equal<T: PartialEq + std::fmt::Debug>(&mut self, what: impl Into<String>, seen: &T, wanted: &T) {
        self.holds(what, seen == wanted, format!("{seen:?}, where {wanted:?} belongs"));
    }

    pub fn note(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.push(what, Outcome::Noted(why.into()));
    }

    pub fn skip(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.push(what, Outcome::NotChecked(why.into()));
    }

    pub fn failed(&self) -> usize {
        self.checks.iter().filter(|told| matches!(told.outcome, Outcome::Fails(_))).count()
    }

    pub fn text(&self) -> String {
        let mut out = String::new();
        let mut of = None;
        for told in &self.checks {
            if of.replace(&told.of) != Some(&told.of) {
                let _ = writeln!(out, "{}", paint(&sanitize::line(&told.of, 200), Tone::Head));
            }
            let what = sanitize::line(&told.what, 300);
            let _ = match &told.outcome {
                Outcome::Holds => writeln!(out, "  {} {what}", paint("ok         ", Tone::Good)),
                Outcome::Fails(why) => {
                    writeln!(out, "  {} {what}: {}", paint("FAILS      ", Tone::Bad), sanitize::line(why, 2000))
                }
                Outcome::Noted(why) => {
                    writeln!(out, "  {} {what}: {}", paint("noted      ", Tone::Weak), sanitize::line(why, 1000))
                }
                Outcome::NotChecked(why) => {
                    writeln!(out, "  {} {what}: {}", paint("not checked", Tone::Weak), sanitize::line(why, 1000))
                }
            };
        }
        out
    }
}
