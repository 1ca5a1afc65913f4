//! What the columns say of each row, and whether it is as it must be.

use std::path::Path;

use casemate_confine::objects::{Act, Object};
use casemate_confine::trial::Outcome;
use casemate_label::mode::SelinuxFs;
use serde::Serialize;

use super::super::word;
use super::columns::{ALONE, Column, Columns, Family, Whose};
use super::policy::{self, Verdict};
use super::table::{Spec, TABLE, Way, kernel_denies};
use super::{Skipped, denied};
use crate::error::StepFailed;

const STEP: &str = "compare with the policy";
/// As a bit of a set (`linux/capability.h`).
const CAP_SYS_RESOURCE: u64 = 1 << 24;

/// What a subject's policy and the kernel say of one attempt.
#[derive(Debug, Clone, Serialize)]
pub struct Pair {
    /// Computed from the loaded policy: `allows`, or whether `types` or `categories` deny.
    pub expected: Verdict,
    /// What the kernel did with SELinux alone.
    pub actual: String,
    pub agree: bool,
}

/// One attempt on another sandbox's object, and its twin on one's own.
#[derive(Debug, Serialize)]
pub struct Row {
    pub class: String,
    pub attempt: String,
    /// The label of B's object.
    pub object: Option<String>,
    /// The runner's domain on B's object.
    pub selinux: Option<Pair>,
    /// The twin domain, whose types may: only categories can deny.
    pub categories: Option<Pair>,
    pub landlock: Option<String>,
    pub seccomp: String,
    pub uid_and_caps: String,
    pub namespaces: String,
    pub all: String,
    /// No layer at all: what shows that the attempt works where nothing forbids it.
    pub open: String,
    /// The positive twins: A on its own object.
    pub own_selinux: Option<Pair>,
    pub own_categories: Option<Pair>,
    pub own_all: Option<String>,
    /// The layers that deny it alone.
    pub denied_by: Vec<&'static str>,
    /// What is not as it must be.
    pub wrong: Vec<String>,
    pub ok: bool,
}

/// Whether A's code may make an object of a class.
#[derive(Debug, Serialize)]
pub struct MakeRow {
    pub class: String,
    pub selinux: Option<Pair>,
    pub landlock: Option<String>,
    pub seccomp: String,
    pub uid_and_caps: String,
    pub namespaces: String,
    pub all: String,
    pub open: String,
    pub wrong: Vec<String>,
    pub ok: bool,
}

pub struct Judge<'a> {
    pub fs: Option<&'a SelinuxFs>,
    pub family: &'a Family,
    pub twin: Option<&'a Family>,
    pub columns: &'a Columns,
}

impl Judge<'_> {
    /// All rows whose object there is, and why there are no others.
    pub fn rows(&self) -> Result<(Vec<Row>, Vec<Skipped>), StepFailed> {
        let (mut rows, mut skipped) = (Vec::new(), Vec::new());
        let caps = casemate_sys::cred::capabilities().map_err(|e| StepFailed::stage(STEP, e))?;
        let may_read_limits = caps.effective & CAP_SYS_RESOURCE != 0;
        for (at, spec) in TABLE.iter().enumerate() {
            match self.columns.all.cross.get(at).and_then(Option::as_ref) {
                Some(_) if spec.way == Way::Inherited && self.family.subject.is_none() => {
                    let why =
                        "of all layers only SELinux looks at what is inherited at exec; this host has none".into();
                    skipped.push(Skipped { attempt: format!("{}: {}", spec.class, spec.what), why });
                }
                Some(_) if spec.act == Act::Limit && !may_read_limits => {
                    // Without it nobody reads another uid's limits (kernel/sys.c, check_prlimit_permission).
                    let why = "root has no CAP_SYS_RESOURCE here, so it is denied without any layer".into();
                    skipped.push(Skipped { attempt: format!("{}: {}", spec.class, spec.what), why });
                }
                Some(_) => rows.push(self.row(at, spec)?),
                None => {
                    let why = self.family.cross.missing.get(&spec.thing).cloned();
                    let why = why.unwrap_or_else(|| "the sandbox has none".into());
                    skipped.push(Skipped { attempt: format!("{}: {}", spec.class, spec.what), why });
                }
            }
        }
        Ok((rows, skipped))
    }

    fn row(&self, at: usize, spec: &Spec) -> Result<Row, StepFailed> {
        let columns = self.columns;
        let cross = |column: &Column| column.cross.get(at).cloned().flatten();
        let selinux = self.pair(self.family, columns.selinux.as_ref(), at, Whose::Cross)?;
        let own_selinux = self.pair(self.family, columns.selinux.as_ref(), at, Whose::Own)?;
        let of_twin = |whose| match self.twin {
            Some(twin) => self.pair(twin, columns.twin.as_ref(), at, whose),
            None => Ok(None),
        };
        let (categories, own_categories) = (of_twin(Whose::Cross)?, of_twin(Whose::Own)?);
        let alone: Vec<Option<Outcome>> = columns.alone.iter().map(|column| column.as_ref().and_then(cross)).collect();
        let all = cross(&columns.all);
        let mut denied_by = Vec::new();
        if selinux.as_ref().is_some_and(|pair| pair.actual_denies()) {
            denied_by.push("selinux");
        }
        for ((name, _), outcome) in ALONE.iter().zip(&alone).skip(1) {
            if denied(outcome.as_ref()) == Some(true) {
                denied_by.push(name);
            }
        }
        let mut wrong = Vec::new();
        if denied(all.as_ref()) != Some(true) {
            wrong.push(format!("all layers together: {}", shown(all.as_ref())));
        }
        let open = alone.first().cloned().flatten();
        if !open.as_ref().is_some_and(|o| is_allowed(o) || (kernel_denies(spec) && o.is_denied())) {
            wrong.push(format!("with no layer at all: {}, so the attempt shows nothing", shown(open.as_ref())));
        }
        let pairs = [("SELinux", &selinux), ("SELinux, own object", &own_selinux)];
        let twins = [("the twin", &categories), ("the twin, own object", &own_categories)];
        for (who, pair) in pairs.into_iter().chain(twins) {
            wrong.extend(pair.iter().filter(|pair| !pair.agree).map(|pair| {
                format!("{who}: the policy {}, the kernel says {}", pair.expected.sentence(), pair.actual)
            }));
        }
        if let Some(pair) = own_categories.as_ref().filter(|pair| pair.expected != Verdict::Allows) {
            wrong.push(format!("the twin's {} deny it its own object: nothing is shown", pair.expected.name()));
        }
        let mut alone = alone.iter().map(Option::as_ref);
        Ok(Row {
            class: spec.class.into(),
            attempt: spec.what.into(),
            object: self.object_label(spec),
            selinux,
            categories,
            open: shown(alone.next().flatten()),
            landlock: alone.next().flatten().map(word),
            seccomp: shown(alone.next().flatten()),
            uid_and_caps: shown(alone.next().flatten()),
            namespaces: shown(alone.next().flatten()),
            all: shown(all.as_ref()),
            own_selinux,
            own_categories,
            own_all: columns.all.own.get(at).and_then(Option::as_ref).map(word),
            denied_by,
            ok: wrong.is_empty(),
            wrong,
        })
    }

    fn object_label(&self, spec: &Spec) -> Option<String> {
        let entry = self.family.entry(spec, Whose::Cross)?;
        entry.label.as_ref().or(entry.socket.as_ref()).or(entry.opener.as_ref()).map(ToString::to_string)
    }

    /// Expected and actual of one side; `None` where SELinux or the object is missing.
    fn pair(
        &self,
        family: &Family,
        column: Option<&Column>,
        at: usize,
        whose: Whose,
    ) -> Result<Option<Pair>, StepFailed> {
        let (Some(fs), Some(subject), Some(column), Some(spec)) =
            (self.fs, family.subject.as_ref(), column, TABLE.get(at))
        else {
            return Ok(None);
        };
        let outcomes = if whose == Whose::Cross { &column.cross } else { &column.own };
        let (Some(outcome), Some(entry)) = (outcomes.get(at).and_then(Option::as_ref), family.entry(spec, whose))
        else {
            return Ok(None);
        };
        let expected = policy::verdict(fs, subject, spec, entry).map_err(|e| {
            let what = format!("{}: {}: {e}", spec.class, spec.what);
            StepFailed::because(STEP, what)
        })?;
        // What KVM itself denies says nothing of SELinux.
        let agree = agree(expected, outcome) || (kernel_denies(spec) && expected == Verdict::Allows);
        Ok(Some(Pair { expected, actual: word(outcome), agree }))
    }

    /// What A's own confinement lets it make.
    pub fn makes(&self, place: &Path) -> Result<Vec<MakeRow>, StepFailed> {
        let failed = |e: std::io::Error| StepFailed::stage(STEP, e);
        let place = super::stage::label_at(place);
        let mut rows = Vec::new();
        for (at, object) in Object::ALL.into_iter().enumerate() {
            let made = |column: Option<&Column>| column.and_then(|column| column.makes.get(at)).cloned();
            let alone: Vec<Option<Outcome>> = self.columns.alone.iter().map(|column| made(column.as_ref())).collect();
            let open = alone.first().cloned().flatten();
            // Where nobody can make one, nothing is learned: the rows above say why.
            if !open.as_ref().is_some_and(is_allowed) {
                continue;
            }
            let selinux = match (self.fs, &self.family.subject, &place, made(self.columns.selinux.as_ref())) {
                (Some(fs), Some(subject), Some(place), Some(outcome)) => {
                    let expected = policy::may_make(fs, subject, object, place).map_err(failed)?;
                    Some(Pair { expected, actual: word(&outcome), agree: agree(expected, &outcome) })
                }
                _ => None,
            };
            let mut wrong = Vec::new();
            if let Some(pair) = selinux.as_ref().filter(|pair| !pair.agree) {
                wrong.push(format!("the policy {}, the kernel says {}", pair.expected.sentence(), pair.actual));
            }
            let mut alone = alone.iter().map(Option::as_ref);
            rows.push(MakeRow {
                class: format!("{object:?}").to_lowercase(),
                selinux,
                open: shown(alone.next().flatten()),
                landlock: alone.next().flatten().map(word),
                seccomp: shown(alone.next().flatten()),
                uid_and_caps: shown(alone.next().flatten()),
                namespaces: shown(alone.next().flatten()),
                all: shown(made(Some(&self.columns.all)).as_ref()),
                ok: wrong.is_empty(),
                wrong,
            });
        }
        Ok(rows)
    }
}

impl Pair {
    fn actual_denies(&self) -> bool {
        self.actual != "allowed" && !self.actual.starts_with("unclear")
    }
}

impl Verdict {
    fn sentence(self) -> &'static str {
        match self {
            Self::Allows => "allows it",
            Self::Types => "denies it by types",
            Self::Categories => "denies it by categories",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Allows => "rules",
            Self::Types => "types",
            Self::Categories => "categories",
        }
    }
}

fn agree(expected: Verdict, outcome: &Outcome) -> bool {
    if expected == Verdict::Allows { is_allowed(outcome) } else { outcome.is_denied() }
}

/// An attempt that could not be made is neither.
fn is_allowed(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Allowed | Outcome::Reached { .. })
}

fn shown(outcome: Option<&Outcome>) -> String {
    outcome.map_or_else(|| "-".into(), word)
}
