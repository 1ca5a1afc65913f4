//! What the jailer's `labels` verb tells: who holds which level on this host, libvirt and podman included, what collides,
//! and what nobody alive holds. Casemate's own answer, of root's program; names in it may be hostile.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survey {
    pub selinux: bool,
    pub lines: Vec<Line>,
    pub problems: Vec<Problem>,
    /// What could not be looked at.
    pub warnings: Vec<String>,
}

/// Somebody has something (jailer, census.rs).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub kind: String,
    pub level: String,
    pub label: Option<String>,
    pub object: String,
    pub holder: String,
    pub alive: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProblemKind {
    /// Two alive have what only one may.
    Collision,
    /// Nobody alive has it.
    Leak,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub kind: ProblemKind,
    /// Sandboxes that it is about.
    pub sandboxes: Vec<String>,
    pub what: String,
    pub remedy: String,
}

impl Survey {
    pub fn collisions(&self) -> impl Iterator<Item = String> {
        self.told(ProblemKind::Collision, None)
    }

    pub fn leaks(&self) -> impl Iterator<Item = String> {
        self.told(ProblemKind::Leak, None)
    }

    pub(super) fn collisions_of(&self, sandbox: &str) -> Vec<String> {
        self.told(ProblemKind::Collision, Some(sandbox)).collect()
    }

    pub(super) fn leaks_of(&self, sandbox: &str) -> Vec<String> {
        self.told(ProblemKind::Leak, Some(sandbox)).collect()
    }

    fn told(&self, kind: ProblemKind, sandbox: Option<&str>) -> impl Iterator<Item = String> {
        let about = move |problem: &&Problem| {
            problem.kind == kind && sandbox.is_none_or(|name| problem.sandboxes.iter().any(|known| known == name))
        };
        self.problems.iter().filter(about).map(|p| format!("{} (what to do: {})", p.what, p.remedy))
    }

    /// Its level is leased for a group.
    pub(super) fn shares_level(&self, sandbox: &str) -> bool {
        let begins = format!("lease static/{sandbox}=");
        let shared = |line: &Line| line.object.starts_with(&begins) && line.object.ends_with("+shared");
        self.lines.iter().any(|line| line.kind == "lease" && shared(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_told_to_those_that_it_is_about() {
        let problem = |kind, sandboxes: &[&str], what: &str| Problem {
            kind,
            sandboxes: sandboxes.iter().map(|s| (*s).to_owned()).collect(),
            what: what.into(),
            remedy: "stop one".into(),
        };
        let line = Line {
            kind: "lease".into(),
            level: "s0:c1".into(),
            label: None,
            object: "lease static/web=s0:c1+shared".into(),
            holder: "sandbox web (pid 1)".into(),
            alive: true,
        };
        let survey = Survey {
            problems: vec![
                problem(ProblemKind::Collision, &["web", "db"], "both"),
                problem(ProblemKind::Leak, &["old"], "gone"),
            ],
            lines: vec![line],
            ..Survey::default()
        };
        assert_eq!(survey.collisions_of("db"), ["both (what to do: stop one)"]);
        assert!(survey.collisions_of("old").is_empty() && survey.collisions_of("we").is_empty());
        assert_eq!((survey.leaks().count(), survey.leaks_of("old").len()), (1, 1));
        assert!(survey.shares_level("web") && !survey.shares_level("we"));
    }
}
