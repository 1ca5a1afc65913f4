//! `repair`: the jailer takes back what dead sandboxes left; this tells what it did.

use casemate_client::jailer::Jailer;
use casemate_client::sanitize;
use serde::Deserialize;
use serde_json::Value;
use std::fmt::Write;

use crate::args::RepairArgs;
use crate::failure::{Failure, OWN, Result};
use crate::output::{Context, Tone, paint};

#[derive(Deserialize)]
struct Repair {
    sandboxes: Vec<Repaired>,
    #[serde(default)]
    leases_dropped: Vec<String>,
}

#[derive(Deserialize)]
struct Repaired {
    sandbox: String,
    state: String,
    #[serde(default)]
    did: Vec<Value>,
    error: Option<String>,
}

pub fn repair(context: &Context, args: &RepairArgs) -> Result<u8> {
    let mut verb = vec!["repair"];
    verb.extend(args.dry_run.then_some("--dry-run"));
    let answer = Jailer::locate(&context.dirs)?.ask(&verb, None)?;
    let told: Repair = serde_json::from_value(answer.json.clone())
        .map_err(|e| Failure::new(format!("the jailer's answer is not one that this program knows: {e}")))?;
    if context.json() {
        context.print_json(&answer.json)?;
    } else {
        context.print(&text(&told, args.dry_run))?;
    }
    Ok(if told.sandboxes.iter().any(|s| s.state == "failed") { OWN } else { 0 })
}

fn text(told: &Repair, dry_run: bool) -> String {
    let mut out = String::new();
    for Repaired { sandbox, state, did, error } in &told.sandboxes {
        let (tone, words) = match state.as_str() {
            "alive" => (Tone::Dim, "runs, left alone"),
            "ended" => (Tone::Dim, "has ended in order, nothing to do"),
            "repaired" => (Tone::Good, "repaired"),
            "would-repair" => (Tone::Weak, "would be repaired"),
            "failed" => (Tone::Bad, "could not be repaired"),
            other => (Tone::Plain, other),
        };
        let _ = writeln!(out, "{}: {}", sanitize::line(sandbox, 80), paint(words, tone));
        for step in did {
            let _ = writeln!(out, "    {}", undone(step));
        }
        if let Some(error) = error {
            let _ = writeln!(out, "    {}", sanitize::line(error, 1000));
        }
    }
    for lease in &told.leases_dropped {
        let _ = writeln!(out, "dropped the lease {}", sanitize::line(lease, 200));
    }
    let acted = told.sandboxes.iter().any(|s| !matches!(s.state.as_str(), "alive" | "ended"));
    if !acted && told.leases_dropped.is_empty() {
        out.push_str("nothing to repair\n");
    } else if dry_run {
        out.push_str("nothing was changed (--dry-run)\n");
    }
    out
}

/// One undone entry of a journal: `{n, what, outcome: {outcome, detail}}`.
fn undone(step: &Value) -> String {
    let what = step["what"].as_str().unwrap_or("?");
    // A word, or a word with its detail.
    let outcome = match (&step["outcome"], step["outcome"]["detail"].as_str()) {
        (Value::String(word), _) => word.clone(),
        (map, detail) => {
            let word = map["outcome"].as_str().unwrap_or("?");
            detail.map_or_else(|| word.to_owned(), |detail| format!("{word}, {detail}"))
        }
    };
    format!("{}: {}", sanitize::line(what, 300), sanitize::line(&outcome, 300))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_undone_step_reads_as_a_sentence() {
        let step = json!({ "n": 1, "what": "cgroup /x", "outcome": { "outcome": "undone", "detail": "removed" } });
        assert_eq!(undone(&step), "cgroup /x: undone, removed");
        assert_eq!(undone(&json!({ "what": "lease", "outcome": { "outcome": "absent" } })), "lease: absent");
    }
}
