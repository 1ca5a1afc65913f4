//! `policy`: Casemate's SELinux module, through the jailer.

use casemate_client::jailer::Jailer;
use casemate_client::sanitize;
use serde::Deserialize;
use serde_json::Value;
use std::fmt::Write;

use crate::args::PolicyCommand;
use crate::failure::{Failure, OWN, Result};
use crate::output::{Context, Tone, paint};

#[derive(Deserialize)]
struct Status {
    facts: Value,
    separates: bool,
    shortcomings: Vec<String>,
    did: Vec<String>,
}

pub fn policy(context: &Context, verb: PolicyCommand) -> Result<u8> {
    let word = match verb {
        PolicyCommand::Install => "install",
        PolicyCommand::Check => "check",
        PolicyCommand::Status => "status",
    };
    let answer = Jailer::locate(&context.dirs)?.ask(&["policy", word], None)?;
    let status: Status = serde_json::from_value(answer.json.clone())
        .map_err(|e| Failure::new(format!("the jailer's answer is not one that this program knows: {e}")))?;
    if context.json() {
        context.print_json(&answer.json)?;
    } else {
        context.print(&text(&status))?;
    }
    Ok(if status.separates || !matches!(verb, PolicyCommand::Check) { 0 } else { OWN })
}

fn text(status: &Status) -> String {
    let mut out = String::new();
    for did in &status.did {
        let _ = writeln!(out, "{}", sanitize::line(did, 400));
    }
    let mode = status.facts["mode"].as_str().unwrap_or("unknown").to_lowercase();
    let _ = writeln!(out, "SELinux: {mode}");
    let verdict = if status.separates { paint("yes", Tone::Good) } else { paint("no", Tone::Bad) };
    let _ = writeln!(out, "the loaded policy keeps two guests apart: {verdict}");
    for shortcoming in &status.shortcomings {
        let _ = writeln!(out, "  {}", sanitize::line(shortcoming, 400));
    }
    out
}
