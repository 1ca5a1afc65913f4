//! A profile: which rules an audit asks, with what parameters, and what an organisation asserts of its own.
//!
//! TOML, written by whoever answers for the host; docs/audit-rules.md names every rule, parameter and assertion. Nothing in
//! it is ignored: a rule, key, parameter or value that is not known is refused, with the nearest that is.

mod assertions;
mod read;

use std::collections::BTreeMap;
use std::path::Path;

use toml::{Table, Value};

use crate::report::Waived;
use crate::rule::{Initial, Parameters, Rule, Severity};
use crate::rules;
pub use assertions::Assertions;
use read::{keys, like, string, table};

/// Larger than any profile that a person reads.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("cannot read the profile {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("the profile {name} is no TOML: {why}")]
    Syntax { name: String, why: String },
    /// `at` names the place as a dotted key.
    #[error("the profile {name}, '{at}': {problem}")]
    Content { name: String, at: String, problem: String },
}

/// What is wrong, and where.
pub(crate) struct Problem {
    at: String,
    problem: String,
}

impl Problem {
    pub(crate) fn new(at: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { at: at.into(), problem: problem.into() }
    }
}

/// A rule as the profile wants it asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Selected {
    pub severity: Severity,
    pub parameters: Parameters,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    name: String,
    rules: BTreeMap<&'static str, Selected>,
    waived: Vec<Waived>,
    assertions: Assertions,
}

impl std::default::Default for Profile {
    /// Every rule with its own severity and parameters.
    fn default() -> Self {
        let rules = rules::all().map(|rule| (rule.id, initial(rule))).collect();
        Self { name: "default".into(), rules, waived: Vec::new(), assertions: Assertions::default() }
    }
}

impl Profile {
    pub fn read(path: &Path) -> Result<Self, ProfileError> {
        let failed = |source| ProfileError::Read { path: path.display().to_string(), source };
        let file = std::fs::File::open(path).map_err(failed)?;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut std::io::Read::take(file, MAX_BYTES + 1), &mut text).map_err(failed)?;
        let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        if text.len() as u64 > MAX_BYTES {
            let problem = format!("it is larger than {MAX_BYTES} bytes");
            return Err(ProfileError::Content { name, at: "(file)".into(), problem });
        }
        Self::parse(&text, &name)
    }

    /// `name` is used where the profile gives none.
    pub fn parse(text: &str, name: &str) -> Result<Self, ProfileError> {
        let table: Table = text.parse().map_err(|error: toml::de::Error| ProfileError::Syntax {
            name: name.to_owned(),
            why: error.to_string().trim_end().replace('\n', " "),
        })?;
        Self::from_table(&table, name).map_err(|Problem { at, problem }| ProfileError::Content {
            name: name.to_owned(),
            at,
            problem,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// `None` for a rule that is not asked.
    pub fn rule(&self, id: &str) -> Option<&Selected> {
        self.rules.get(id)
    }

    /// Rules that this profile switches off, and why.
    pub fn waived(&self) -> Vec<Waived> {
        self.waived.clone()
    }

    pub fn assertions(&self) -> &Assertions {
        &self.assertions
    }

    fn from_table(all: &Table, name: &str) -> Result<Self, Problem> {
        keys(all, "", &["name", "extends", "rules", "policy", "seccomp", "plan"])?;
        let name = string(all, "", "name")?.map_or(name, |given| given).to_owned();
        let mut profile = match string(all, "", "extends")?.unwrap_or("default") {
            "default" => Self { name, ..Self::default() },
            "none" => Self { name, rules: BTreeMap::new(), ..Self::default() },
            other => return Err(Problem::new("extends", format!("{other} is neither \"default\" nor \"none\""))),
        };
        let known: Vec<&str> = rules::all().map(|rule| rule.id).collect();
        for (id, setting) in table(all, "", "rules")?.into_iter().flatten() {
            let at = format!("rules.{id}");
            let rule = rules::all().find(|rule| rule.id == id);
            let rule = rule.ok_or_else(|| Problem::new(&at, format!("there is no such rule{}", like(id, &known))))?;
            let setting = setting.as_table().ok_or_else(|| Problem::new(&at, "this must be a table"))?;
            profile.select(rule, setting, &at)?;
        }
        profile.assertions = Assertions::of(all)?;
        if profile.rules.is_empty() && profile.assertions.is_empty() {
            let problem = "it selects no rule and asserts nothing: an audit by it would look at nothing";
            return Err(Problem::new("rules", problem));
        }
        Ok(profile)
    }

    fn select(&mut self, rule: &'static Rule, setting: &Table, at: &str) -> Result<(), Problem> {
        let mut known = vec!["enabled", "reason", "severity"];
        known.extend(rule.parameters.iter().map(|parameter| parameter.name));
        keys(setting, at, &known)?;
        let enabled = match setting.get("enabled") {
            None => true,
            Some(Value::Boolean(enabled)) => *enabled,
            Some(_) => return Err(Problem::new(format!("{at}.enabled"), "this must be true or false")),
        };
        let reason = string(setting, at, "reason")?.map(str::trim).filter(|reason| !reason.is_empty());
        if !enabled {
            let reason = reason.ok_or_else(|| {
                Problem::new(
                    at,
                    "a rule that is switched off needs a reason: reason = \"…\"; it stands in every report",
                )
            })?;
            self.waived.push(Waived { rule: rule.id.into(), reason: reason.to_owned() });
            self.rules.remove(rule.id);
            return Ok(());
        }
        let mut selected = initial(rule);
        if let Some(word) = string(setting, at, "severity")? {
            let words = Severity::ALL.map(Severity::word);
            selected.severity = Severity::parse(word).ok_or_else(|| {
                Problem::new(format!("{at}.severity"), format!("{word} is none of {}", words.join(", ")))
            })?;
        }
        for parameter in rule.parameters {
            if let Some(value) = setting.get(parameter.name) {
                fits(value, parameter.default, &format!("{at}.{}", parameter.name))?;
                selected.parameters.insert(parameter.name.into(), value.clone());
            }
        }
        self.rules.insert(rule.id, selected);
        Ok(())
    }
}

fn initial(rule: &Rule) -> Selected {
    let value = |initial: Initial| match initial {
        Initial::Words(words) => Value::Array(words.iter().map(|word| Value::String((*word).into())).collect()),
        Initial::Number(number) => Value::Integer(number as i64),
        Initial::Word(word) => Value::String(word.into()),
    };
    let parameters = rule.parameters.iter().map(|p| (p.name.to_owned(), value(p.default))).collect();
    Selected { severity: rule.severity, parameters }
}

/// Is it of the form that the parameter has?
fn fits(value: &Value, initial: Initial, at: &str) -> Result<(), Problem> {
    let (fits, wanted) = match initial {
        Initial::Words(_) => {
            let words = value.as_array();
            (words.is_some_and(|list| list.iter().all(Value::is_str)), "a list of strings")
        }
        Initial::Number(_) => (value.as_integer().is_some_and(|n| n >= 0), "a number, 0 or more"),
        Initial::Word(_) => (value.is_str(), "a string"),
    };
    if fits { Ok(()) } else { Err(Problem::new(at, format!("this must be {wanted}"))) }
}

#[cfg(test)]
#[path = "profile_tests.rs"]
mod tests;
