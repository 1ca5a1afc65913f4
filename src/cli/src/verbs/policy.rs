//! `policy`: Casemate's SELinux module, through the jailer's program in the caller's own domain: the jailer's may not load
//! policy, and who may is the administrator's question, not ours.

use casemate_client::jailer::Jailer;
use casemate_client::sanitize;
use serde::Deserialize;
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

use crate::args::{ModuleArgs, PolicyCommand};
use crate::failure::{Failure, OWN, Result};
use crate::output::{Context, Tone, paint};

#[derive(Deserialize)]
struct Status {
    facts: Value,
    separates: bool,
    shortcomings: Vec<String>,
    installed: Vec<String>,
    beyond: Vec<String>,
    blocks: Vec<Block>,
    did: Vec<String>,
    #[serde(default)]
    notes: Vec<String>,
}

#[derive(Deserialize)]
struct Block {
    name: String,
    missing: Vec<String>,
}

pub fn policy(context: &Context, command: PolicyCommand) -> Result<u8> {
    let words = words(&command)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let jailer = Jailer::locate(&context.dirs)?;
    // What runs sandboxes is to be judged as it will run: in the jailer's domain, if it can be entered.
    let asks_the_loaded = matches!(&command, PolicyCommand::Status | PolicyCommand::Check { base: None, .. });
    let answer = if asks_the_loaded { jailer.ask(&words, None)? } else { jailer.ask_in_own_domain(&words)? };
    let status: Status = serde_json::from_value(answer.json.clone())
        .map_err(|e| Failure::new(format!("the jailer's answer is not one that this program knows: {e}")))?;
    if context.json() {
        context.print_json(&answer.json)?;
    } else {
        context.print(&text(&status, &command))?;
    }
    Ok(if status.separates || !matches!(command, PolicyCommand::Check { base: None, .. }) { 0 } else { OWN })
}

/// The jailer's argv. Paths are made absolute: it takes no others.
fn words(command: &PolicyCommand) -> Result<Vec<String>> {
    let mut words = vec!["policy".to_owned()];
    let verb = match command {
        PolicyCommand::Build { .. } => "build",
        PolicyCommand::Check { .. } => "check",
        PolicyCommand::Install { .. } => "install",
        PolicyCommand::Remove => "remove",
        PolicyCommand::Status => "status",
    };
    words.push(verb.to_owned());
    let (module, base, output) = match command {
        PolicyCommand::Build { module, base, output } => (Some(module), base.as_deref(), Some(output.as_path())),
        PolicyCommand::Check { module, base } => (Some(module), base.as_deref(), None),
        PolicyCommand::Install { module } => (Some(module), None, None),
        PolicyCommand::Remove | PolicyCommand::Status => (None, None, None),
    };
    let from = module.and_then(|m: &ModuleArgs| m.from.as_deref());
    for (option, path) in [("--from", from), ("--base", base), ("--output", output)] {
        if let Some(path) = path {
            words.extend([option.to_owned(), absolute(path)?]);
        }
    }
    if module.is_some_and(|m| m.without_deny) {
        words.push("--without-deny".to_owned());
    }
    Ok(words)
}

fn absolute(path: &Path) -> Result<String> {
    let whole = std::path::absolute(path).map_err(|e| Failure::new(format!("{}: {e}", path.display())))?;
    whole.to_str().map(str::to_owned).ok_or_else(|| Failure::new(format!("{} is not UTF-8", path.display())))
}

fn text(status: &Status, command: &PolicyCommand) -> String {
    let mut out = String::new();
    for did in &status.did {
        let _ = writeln!(out, "{}", sanitize::line(did, 400));
    }
    for block in &status.blocks {
        let verdict = match block.missing.as_slice() {
            [] => "applies".to_owned(),
            missing => format!("does not apply: no {}", missing.join(", ")),
        };
        let _ = writeln!(out, "  optional {}: {}", sanitize::line(&block.name, 100), sanitize::line(&verdict, 300));
    }
    // These speak of files, not of this host.
    if matches!(command, PolicyCommand::Build { .. } | PolicyCommand::Check { base: Some(_), .. }) {
        return out;
    }
    let mode = status.facts["mode"].as_str().unwrap_or("unknown").to_lowercase();
    let _ = writeln!(out, "SELinux: {mode}");
    if !status.installed.is_empty() {
        let _ = writeln!(out, "installed: {} modules", status.installed.len());
    }
    let verdict = if status.separates { paint("yes", Tone::Good) } else { paint("no", Tone::Bad) };
    let _ = writeln!(out, "the loaded policy keeps two guests apart: {verdict}");
    for note in &status.notes {
        let _ = writeln!(out, "  {}", sanitize::line(note, 400));
    }
    for shortcoming in &status.shortcomings {
        let _ = writeln!(out, "  {}", sanitize::line(shortcoming, 400));
    }
    if !status.beyond.is_empty() {
        let beyond = sanitize::line(&status.beyond.join(", "), 400);
        let _ = writeln!(out, "the deny rules are not loaded; beyond the module's own rules the runner may: {beyond}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_reach_the_jailer_absolute_and_with_their_options() {
        let module = ModuleArgs { from: Some("/m".into()), without_deny: true };
        let check = PolicyCommand::Check { module, base: Some("/b/./c".into()) };
        assert_eq!(words(&check).unwrap(), ["policy", "check", "--from", "/m", "--base", "/b/c", "--without-deny"]);
        assert_eq!(words(&PolicyCommand::Remove).unwrap(), ["policy", "remove"]);
        let module = ModuleArgs { from: None, without_deny: false };
        let build = words(&PolicyCommand::Build { module, base: None, output: "x.cil".into() }).unwrap();
        assert!(build.len() == 4 && build[3].starts_with('/') && build[3].ends_with("/x.cil"), "{build:?}");
    }
}
