//! `[plan]`: what a start, planned or made, must keep to.

use casemate_spec::Posture;
use toml::{Table, Value};

use super::Stated;
use crate::crowd::type_of;
use crate::profile::Problem;
use crate::profile::read::{keys, number, string, words};
use crate::rule::{Check, Finding};
use crate::subject::{Kind, Known, Object, Standing, Subject};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanAssertions {
    stated: Stated,
    posture: Option<Posture>,
    image_directories: Vec<String>,
    /// Paths, or `sha256:HEX`.
    kernels: Vec<String>,
    max_memory: Option<u64>,
    max_cpus: Option<u64>,
    runner_types: Vec<String>,
    exclusive_level: bool,
}

impl PlanAssertions {
    pub(super) fn of(all: &Table) -> Result<Self, Problem> {
        let known = [
            "posture",
            "image_directories",
            "kernels",
            "max_memory",
            "max_cpus",
            "runner_types",
            "exclusive_level",
            "reason",
            "severity",
        ];
        keys(all, "plan", &known)?;
        let posture = string(all, "plan", "posture")?.map(|word| {
            word.parse()
                .map_err(|_| Problem::new("plan.posture", format!("{word} is none of enforced, hardened, reduced")))
        });
        let made = Self {
            stated: Stated::of(all, "plan")?,
            posture: posture.transpose()?,
            image_directories: words(all, "plan", "image_directories")?,
            kernels: words(all, "plan", "kernels")?,
            max_memory: memory(all)?,
            max_cpus: number(all, "plan", "max_cpus")?,
            runner_types: words(all, "plan", "runner_types")?,
            exclusive_level: match all.get("exclusive_level") {
                None => false,
                Some(Value::Boolean(wanted)) => *wanted,
                Some(_) => return Err(Problem::new("plan.exclusive_level", "this must be true or false")),
            },
        };
        made.sound()?;
        Ok(made)
    }

    fn sound(&self) -> Result<(), Problem> {
        if let Some(relative) = self.image_directories.iter().find(|path| !is_plain(path)) {
            let problem = format!("{relative} is not an absolute path without . and ..");
            return Err(Problem::new("plan.image_directories", problem));
        }
        let digest = |text: &str| {
            text.strip_prefix("sha256:")
                .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
        };
        if let Some(bad) = self.kernels.iter().find(|kernel| !is_plain(kernel) && !digest(kernel)) {
            let problem = format!("{bad} is neither an absolute path nor sha256: and 64 hexadecimal digits");
            return Err(Problem::new("plan.kernels", problem));
        }
        Ok(())
    }

    pub(super) fn want_digests(&self) -> bool {
        self.kernels.iter().any(|kernel| kernel.starts_with("sha256:"))
    }

    pub(super) fn ask(&self, subject: &Subject) -> Vec<Finding> {
        if !matches!(subject.kind, Kind::Plan | Kind::Vm) {
            return Vec::new();
        }
        let mut checks = Vec::new();
        if let Some(posture) = &self.posture {
            checks.push(standing(subject, "posture", &format!("at least {posture}"), |standing| {
                (standing.posture.parse().is_ok_and(|seen: Posture| seen >= *posture), standing.posture.clone())
            }));
        }
        if let Some(max) = self.max_memory {
            checks.push(standing(subject, "guest memory", &format!("at most {max} bytes"), |standing| {
                (standing.memory <= max, format!("{} bytes", standing.memory))
            }));
        }
        if let Some(max) = self.max_cpus {
            checks.push(standing(subject, "vCPUs", &format!("at most {max}"), |standing| {
                (u64::from(standing.cpus) <= max, standing.cpus.to_string())
            }));
        }
        if self.exclusive_level {
            checks.push(standing(subject, "level", "this sandbox's alone", |standing| {
                let shared = standing.level_shared;
                (!shared, if shared { "shared on request" } else { "exclusive" }.to_owned())
            }));
        }
        checks.extend(self.images(subject));
        checks.extend(self.kernel(subject));
        checks.extend(self.types(subject));
        checks.into_iter().map(|check| self.stated.finding(super::IDS[2], "-", subject, check)).collect()
    }

    fn images(&self, subject: &Subject) -> Option<Check> {
        if self.image_directories.is_empty() {
            return None;
        }
        let below = |path: &str| {
            is_plain(path) && self.image_directories.iter().any(|dir| std::path::Path::new(path).starts_with(dir))
        };
        let disks = subject.objects.iter().filter(|object| object.name.starts_with("disk"));
        let outside: Vec<String> =
            disks.filter(|disk| !below(&disk.path)).map(|disk| format!("{} at {}", disk.name, disk.path)).collect();
        Some(Check::none_of(&outside, "images", format!("below {}", self.image_directories.join(" or "))))
    }

    fn kernel(&self, subject: &Subject) -> Option<Check> {
        if self.kernels.is_empty() {
            return None;
        }
        let expected = format!("one of {}", self.kernels.join(", "));
        let Some(kernel) = subject.objects.iter().find(|object| object.name == "kernel") else {
            return Some(Check::unknown("kernel", expected, "the subject names none"));
        };
        Some(self.kernel_is_listed(kernel, expected))
    }

    fn kernel_is_listed(&self, kernel: &Object, expected: String) -> Check {
        let by_path = self.kernels.contains(&kernel.path);
        if by_path {
            return Check::judged(true, "kernel", expected, kernel.path.clone());
        }
        let digests = self.want_digests();
        match &kernel.sha256 {
            Known::Seen(hex) => {
                let listed =
                    self.kernels.iter().any(|l| l.strip_prefix("sha256:").is_some_and(|l| l.eq_ignore_ascii_case(hex)));
                Check::judged(listed, "kernel", expected, format!("{} (sha256:{hex})", kernel.path))
            }
            Known::Unseen(why) if digests => Check::unknown("kernel", expected, why.clone()),
            Known::Unseen(_) => Check::judged(false, "kernel", expected, kernel.path.clone()),
        }
    }

    fn types(&self, subject: &Subject) -> Option<Check> {
        if self.runner_types.is_empty() {
            return None;
        }
        let expected = format!("one of {}", self.runner_types.join(", "));
        let Some(runner) = subject.processes.iter().find(|process| process.role == "runner") else {
            return Some(Check::unknown("the runner's type", expected, "there is no runner"));
        };
        Some(match &runner.label {
            Known::Seen(Some(label)) => {
                let type_ = type_of(label).unwrap_or_default();
                Check::judged(
                    self.runner_types.iter().any(|t| t == type_),
                    "the runner's type",
                    expected,
                    label.clone(),
                )
            }
            Known::Seen(None) => Check::judged(false, "the runner's type", expected, "none: the host has no SELinux"),
            Known::Unseen(why) => Check::unknown("the runner's type", expected, why.clone()),
        })
    }
}

fn standing(subject: &Subject, what: &str, expected: &str, judge: impl FnOnce(&Standing) -> (bool, String)) -> Check {
    match &subject.standing {
        Known::Seen(standing) => {
            let (holds, seen) = judge(standing);
            Check::judged(holds, what, expected, seen)
        }
        Known::Unseen(why) => Check::unknown(what, expected, why.clone()),
    }
}

/// Absolute, and no part of it leads elsewhere than it says.
fn is_plain(path: &str) -> bool {
    path.starts_with('/') && path.split('/').all(|part| part != "." && part != "..")
}

/// Bytes, or a size as `4G`.
fn memory(all: &Table) -> Result<Option<u64>, Problem> {
    match all.get("max_memory") {
        Some(Value::String(text)) => {
            let size = casemate_spec::ByteSize::parse(text);
            size.map(|size| Some(size.bytes())).map_err(|why| Problem::new("plan.max_memory", why.to_string()))
        }
        _ => number(all, "plan", "max_memory"),
    }
}
