//! The question `summary`: a verdict for each of the others.

use std::fmt::Write;

use casemate_audit::PolicyError;
use casemate_audit::policy::ask::{self, HARMFUL, Reach};
use casemate_client::sanitize;
use serde_json::json;

use super::{Asked, FOUND, failure};
use crate::failure::Result;
use crate::output::{Context, Tone, paint};

struct Verdict {
    question: &'static str,
    tone: Tone,
    answer: String,
}

impl Verdict {
    fn new(question: &'static str, tone: Tone, answer: String) -> Self {
        Self { question, tone, answer }
    }
}

impl Asked<'_> {
    /// One verdict for each question. Fails where a VM can reach another's image or process.
    pub(super) fn summary(&self, context: &Context) -> Result<u8> {
        let verdicts = self.verdicts().map_err(failure)?;
        let bad = verdicts.iter().any(|v| v.tone == Tone::Bad);
        if context.json() {
            let rows = verdicts
                .iter()
                .map(|v| json!({ "question": v.question, "holds": v.tone != Tone::Bad, "answer": v.answer }));
            self.tell(context, rows.collect(), "", &[], Vec::new())?;
        } else {
            context.print(&self.text(&verdicts))?;
        }
        Ok(if bad { FOUND } else { 0 })
    }

    fn text(&self, verdicts: &[Verdict]) -> String {
        let facts = self.policy.facts();
        let (rules, types) = (facts.all_rules().count(), facts.types.len());
        let shown = |text: &str| sanitize::line(text, 2000);
        let (origin, version) = (shown(self.policy.origin()), self.policy.version());
        let (runner, other) = (shown(&self.a.runner), shown(&self.b.runner));
        let mut out = format!("{origin}: version {version}, {types} types, {rules} allow rules\n");
        let _ = writeln!(out, "VMs of the family {}: {runner} and {other}", shown(&self.family.name));
        for verdict in verdicts {
            let word = match verdict.tone {
                Tone::Good => "good",
                Tone::Bad => "BAD ",
                _ => "note",
            };
            let _ = writeln!(out, "{}  {}", paint(word, verdict.tone), shown(&verdict.answer));
        }
        out
    }

    fn verdicts(&self) -> std::result::Result<Vec<Verdict>, PolicyError> {
        let reach = ask::reach(self.policy, &self.a, &self.b)?;
        let mut all = vec![self.permissive(), reached(&reach)];
        all.extend(rest(&reach));
        all.push(self.held_back()?);
        all.extend(self.office()?);
        Ok(all)
    }

    fn permissive(&self) -> Verdict {
        let runner = &self.family.runner;
        match self.policy.facts().permissive.contains(runner) {
            true => {
                let answer =
                    format!("{runner} is permissive: the kernel refuses it nothing; semanage permissive -d it");
                Verdict::new("permissive", Tone::Bad, answer)
            }
            false => Verdict::new("permissive", Tone::Good, format!("{runner} is not permissive")),
        }
    }

    fn held_back(&self) -> std::result::Result<Verdict, PolicyError> {
        let held = ask::constrained(self.policy, &self.a, &self.b)?;
        let free: Vec<&str> = held.iter().filter(|row| row.held.is_empty()).map(|row| row.class.as_str()).collect();
        let count = held.len() - free.len();
        let tone = if count == 0 { Tone::Bad } else { Tone::Weak };
        let answer = format!("categories hold back {count} of {} classes; not: {}", held.len(), free.join(" "));
        Ok(Verdict::new("constrained", tone, answer))
    }

    /// Who has to do with VMs by their office, and what an administrator can switch: for a person to judge.
    fn office(&self) -> std::result::Result<[Verdict; 3], PolicyError> {
        let none = |text: String, none: &str| if text.is_empty() { none.to_owned() } else { text };
        let entries = ask::entries(self.policy, &self.a, &self.family)?;
        let from: Vec<&str> = entries.iter().map(|entry| entry.from.as_str()).collect();
        let who = ask::who(self.policy, &self.family, &self.a)?;
        let write = who.iter().filter(|w| w.object == "image" && w.permissions.iter().any(|p| p == "write"));
        let mut writers: Vec<&str> = write.map(|w| w.domain.as_str()).collect();
        writers.dedup();
        let writers = format!("{} domains may write a VM's image: {}", writers.len(), writers.join(", "));
        let booleans = ask::booleans(self.policy, &self.family, &self.a)?;
        let switches: Vec<String> =
            booleans.iter().map(|w| format!("{} (now {})", w.boolean, if w.now { "on" } else { "off" })).collect();
        let note = |question, answer| Verdict::new(question, Tone::Weak, answer);
        Ok([
            note("entries", format!("may become a VM: {}", none(from.join(", "), "nobody"))),
            note("who", writers),
            note("booleans", format!("booleans that bear on a VM: {}", none(switches.join(", "), "none"))),
        ])
    }
}

/// `image file (open map)`, for each object and class of another VM with such permissions. Content is for everybody to
/// read.
fn of_another(reach: &[Reach], wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let others = reach.iter().filter(|row| row.object != "content");
    let told = others.filter_map(|row| {
        let some: Vec<&str> = row.to_other.iter().map(String::as_str).filter(|p| wanted(p)).collect();
        (!some.is_empty()).then(|| format!("{} {} ({})", row.object, row.class, some.join(" ")))
    });
    told.collect()
}

fn is_harmful(permission: &str) -> bool {
    HARMFUL.contains(&permission)
}

fn reached(reach: &[Reach]) -> Verdict {
    let harm = of_another(reach, is_harmful);
    match harm.is_empty() {
        true => {
            let answer = "a VM may neither read nor write another VM's image, nor signal or trace it";
            Verdict::new("reach", Tone::Good, answer.into())
        }
        false => Verdict::new("reach", Tone::Bad, format!("a VM may, of another VM's: {}", harm.join(", "))),
    }
}

/// What is left open beside.
fn rest(reach: &[Reach]) -> Option<Verdict> {
    let open = of_another(reach, |permission| !is_harmful(permission));
    let answer = || format!("left open between two VMs: {}", open.join(", "));
    (!open.is_empty()).then(|| Verdict::new("rest", Tone::Weak, answer()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(object: &'static str, class: &str, to_other: &[&str]) -> Reach {
        let to_other = to_other.iter().map(|permission| (*permission).to_owned()).collect();
        Reach { object, class: class.into(), to_own: Vec::new(), to_other }
    }

    #[test]
    fn whatever_the_rules_call_harmful_is_bad_here_too() {
        for permission in HARMFUL {
            let verdict = reached(&[row("image", "file", &["getattr", permission])]);
            assert!(verdict.tone == Tone::Bad && verdict.answer.contains(permission), "{permission}");
        }
        let harmless = [row("image", "file", &["getattr"]), row("content", "file", &["read"])];
        assert!(reached(&harmless).tone == Tone::Good);
        assert_eq!(
            rest(&harmless).map(|verdict| verdict.answer).unwrap(),
            "left open between two VMs: image file (getattr)"
        );
        assert!(rest(&[row("image", "file", &["unlink"])]).is_none(), "told as harm");
    }
}
