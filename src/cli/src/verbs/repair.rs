//! `repair`: the jailer takes back what dead sandboxes left; this tells what it did, or would do.
//!
//! Exit status: 0 nothing is left to do (or a dry run), 1 something waits and is kept, 125 something failed.

use casemate_client::jailer::Jailer;
use casemate_client::sanitize;
use serde::Deserialize;
use std::fmt::Write;

use crate::args::RepairArgs;
use crate::failure::{Failure, OWN, Result};
use crate::output::{Context, Tone, paint};

/// Something is kept for a later repair.
const WAITS: u8 = 1;

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
    earlier_boot: bool,
    #[serde(default)]
    did: Vec<Done>,
    #[serde(default)]
    took_up: Vec<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Done {
    what: String,
    label: Option<Change>,
    outcome: Outcome,
}

#[derive(Deserialize)]
struct Change {
    from: Option<String>,
    to: String,
    why: String,
}

/// A word, with its detail.
#[derive(Deserialize)]
struct Outcome {
    outcome: String,
    detail: Option<String>,
}

pub fn repair(context: &Context, args: &RepairArgs) -> Result<u8> {
    let mut verb = vec!["repair"];
    verb.extend(args.name.as_deref());
    verb.extend(args.dry_run.then_some("--dry-run"));
    verb.extend(args.forget.then_some("--forget"));
    let answer = Jailer::locate(&context.dirs)?.ask(&verb, None)?;
    let told: Repair = serde_json::from_value(answer.json.clone())
        .map_err(|e| Failure::new(format!("the jailer's answer is not one that this program knows: {e}")))?;
    if context.json() {
        context.print_json(&answer.json)?;
    } else {
        context.print(&text(&told, args.dry_run))?;
    }
    Ok(status(&told, args.dry_run))
}

fn status(told: &Repair, dry_run: bool) -> u8 {
    let some = |state: &str| told.sandboxes.iter().any(|s| s.state == state);
    match () {
        () if some("failed") => OWN,
        () if some("waiting") && !dry_run => WAITS,
        () => 0,
    }
}

fn text(told: &Repair, dry_run: bool) -> String {
    let mut out = String::new();
    for Repaired { sandbox, state, earlier_boot, did, took_up, error } in &told.sandboxes {
        let (tone, words) = match state.as_str() {
            "alive" => (Tone::Dim, "runs, left alone"),
            "ended" => (Tone::Dim, "has ended in order, nothing to do"),
            "repaired" => (Tone::Good, "repaired"),
            "would-repair" => (Tone::Weak, "would be repaired"),
            "waiting" if dry_run => (Tone::Weak, "would be repaired in part; the rest has to wait"),
            "waiting" => (Tone::Weak, "repaired in part; the rest is kept, repair again later"),
            "failed" => (Tone::Bad, "could not be repaired"),
            other => (Tone::Plain, other),
        };
        let boot = if *earlier_boot { " (of an earlier boot)" } else { "" };
        let _ = writeln!(out, "{}{boot}: {}", sanitize::line(sandbox, 80), paint(words, tone));
        for step in did {
            out.push_str(&undone(step));
        }
        for lease in took_up {
            let _ = writeln!(out, "    lease {}", sanitize::line(lease, 200));
        }
        if let Some(error) = error {
            let _ = writeln!(out, "    {}", sanitize::line(error, 1000));
        }
    }
    let drop = if dry_run { "would be dropped" } else { "dropped" };
    for lease in &told.leases_dropped {
        let _ = writeln!(out, "lease {}, of nobody any more: {drop}", sanitize::line(lease, 200));
    }
    let acted = told.sandboxes.iter().any(|s| !matches!(s.state.as_str(), "alive" | "ended"));
    if !acted && told.leases_dropped.is_empty() {
        out.push_str("nothing to repair\n");
    } else if dry_run {
        out.push_str("nothing was changed (--dry-run)\n");
    }
    out
}

/// One entry of a journal, taken back; a label's change below it.
fn undone(step: &Done) -> String {
    let detail = step.outcome.detail.as_deref().unwrap_or_default();
    let words = match step.outcome.outcome.as_str() {
        "undone" => detail.to_owned(),
        "would" => format!("would be {detail}"),
        "absent" => "not there any more".into(),
        "left" => format!("left as it is: {detail}"),
        "waiting" => format!("kept for later: {detail}"),
        "failed" => format!("failed: {detail}"),
        other => format!("{other} {detail}"),
    };
    // The change says it better.
    let words = match &step.label {
        Some(_) => {
            let renamed = words.find(" (it ").map_or("", |at| &words[at..]);
            format!("{}{renamed}", words.split(" to ").next().unwrap_or_default())
        }
        None => words,
    };
    let what = match &step.label {
        // The label is in the change.
        Some(_) => step.what.split_once(" on ").map_or(step.what.clone(), |(_, path)| format!("label of {path}")),
        None => step.what.clone(),
    };
    let mut out = format!("    {}: {}\n", sanitize::line(&what, 300), sanitize::line(&words, 400));
    if let Some(Change { from, to, why }) = &step.label {
        let from = from.as_deref().unwrap_or("no label");
        let _ = writeln!(out, "        {} -> {} ({})", line(from), line(to), line(why));
    }
    out
}

fn line(text: &str) -> String {
    sanitize::line(text, 300)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(state: &str, did: serde_json::Value) -> Repair {
        let sandbox = json!({ "sandbox": "a", "state": state, "earlier_boot": true, "did": did, "error": null });
        serde_json::from_value(json!({ "sandboxes": [sandbox], "leases_dropped": ["uid/7"] })).unwrap()
    }

    #[test]
    fn a_repair_reads_as_sentences() {
        let did = json!([
            { "n": 3, "what": "label x_t:s0:c1 on /i/d.raw", "outcome": { "outcome": "undone", "detail": "restored to y_t" },
              "label": { "from": "x_t:s0:c1", "to": "y_t", "why": "remembered" } },
            { "n": 2, "what": "cgroup /x", "outcome": { "outcome": "undone", "detail": "removed" } },
            { "n": 1, "what": "lease uid/9", "outcome": { "outcome": "absent" } },
        ]);
        let text = text(&told("repaired", did), false);
        assert!(text.contains("a (of an earlier boot): "), "{text}");
        assert!(text.contains("    label of /i/d.raw: restored\n        x_t:s0:c1 -> y_t (remembered)\n"), "{text}");
        assert!(text.contains("    cgroup /x: removed\n    lease uid/9: not there any more\n"), "{text}");
        assert!(text.ends_with("lease uid/7, of nobody any more: dropped\n"), "{text}");
    }

    #[test]
    fn a_dry_run_says_would_and_the_status_tells_what_is_left() {
        let did = json!([{ "n": 1, "what": "cgroup /x", "outcome": { "outcome": "would", "detail": "removed" } }]);
        let text = text(&told("would-repair", did.clone()), true);
        assert!(text.contains("cgroup /x: would be removed\n") && text.ends_with("(--dry-run)\n"), "{text}");
        for (state, dry_run, wanted) in
            [("repaired", false, 0), ("waiting", false, WAITS), ("waiting", true, 0), ("failed", true, OWN)]
        {
            assert_eq!(status(&told(state, did.clone()), dry_run), wanted, "{state}");
        }
    }
}
