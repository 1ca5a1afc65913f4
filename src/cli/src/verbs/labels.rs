//! `labels`: who has which level, uid and label on this host, on what, since when and why.

use std::path::PathBuf;

use casemate_client::jailer::Jailer;
use casemate_client::sanitize;
use serde::Deserialize;

use crate::args::LabelsArgs;
use crate::failure::{Failure, OWN, Result};
use crate::output::{Context, Tone, cell, paint, seconds_since, span, table_text};

#[derive(Deserialize)]
struct Census {
    selinux: bool,
    lines: Vec<Line>,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

#[derive(Deserialize)]
struct Line {
    kind: String,
    level: String,
    label: Option<String>,
    object: String,
    holder: String,
    alive: bool,
    since: Option<u64>,
    why: String,
}

#[derive(Deserialize)]
struct Problem {
    what: String,
    remedy: String,
}

#[derive(Deserialize)]
struct FileLabel {
    path: PathBuf,
    label: Option<String>,
    original: Option<String>,
    owners: Vec<FileOwner>,
    libvirt: bool,
    problem: Option<String>,
}

#[derive(Deserialize)]
struct FileOwner {
    sandbox: String,
    pid: u32,
    alive: bool,
}

/// With `--check`, a collision or a leak is the failure that it is.
pub fn labels(context: &Context, args: &LabelsArgs) -> Result<u8> {
    let absolute = |file: &PathBuf| -> Result<String> {
        let path = std::path::absolute(file).map_err(|e| Failure::io("finding the file", e))?;
        path.into_os_string().into_string().map_err(|_| Failure::new("a file's name is not UTF-8"))
    };
    let files = args.files.iter().map(absolute).collect::<Result<Vec<_>>>()?;
    let verb: Vec<&str> = std::iter::once("labels").chain(files.iter().map(String::as_str)).collect();
    let answer = Jailer::locate(&context.dirs)?.ask(&verb, None)?;
    let unknown =
        |e: serde_json::Error| Failure::new(format!("the jailer's answer is not one that this program knows: {e}"));
    let (text, wrong) = if files.is_empty() {
        let census: Census = serde_json::from_value(answer.json.clone()).map_err(unknown)?;
        (table(context, &census, args.check), !census.problems.is_empty())
    } else {
        let files: Vec<FileLabel> = serde_json::from_value(answer.json.clone()).map_err(unknown)?;
        (files.iter().map(file).collect(), files.iter().any(FileLabel::is_wrong))
    };
    if context.json() {
        context.print_json(&answer.json)?;
    } else {
        context.print(&text)?;
    }
    Ok(if args.check && wrong { OWN } else { 0 })
}

fn table(context: &Context, census: &Census, check: bool) -> String {
    let mut text = String::new();
    if !check {
        let mut table = context.table(&["LEVEL", "HOLDER", "OBJECT", "SINCE", "WHY", "LABEL"]);
        for line in &census.lines {
            let tone = if line.alive { Tone::Plain } else { Tone::Dim };
            let dead = if line.kind == "lease" && !line.alive { ", dead" } else { "" };
            let since = line.since.map_or("-".to_owned(), |at| format!("{} ago", span(seconds_since(at))));
            table.add_row([
                cell(sanitize::line(&line.level, 40), Tone::Head),
                cell(sanitize::line(&line.holder, 60) + dead, tone),
                cell(sanitize::line(&line.object, 80), tone),
                cell(since, Tone::Dim),
                cell(sanitize::line(&line.why, 100), Tone::Plain),
                cell(line.label.as_deref().map_or("-".into(), |label| sanitize::line(label, 100)), Tone::Dim),
            ]);
        }
        text = if census.lines.is_empty() { "nothing is leased or labelled\n".into() } else { table_text(&table) };
        if !census.selinux {
            text += "this host has no SELinux: there are no labels, sandboxes are kept apart by uid\n";
        }
    }
    for warning in &census.warnings {
        text += &format!("{}: {}\n", paint("not known", Tone::Weak), sanitize::line(warning, 400));
    }
    for Problem { what, remedy } in &census.problems {
        text += &format!("{}: {}\n", paint("problem", Tone::Bad), sanitize::line(what, 400));
        text += &format!("  what to do: {}\n", sanitize::line(remedy, 200));
    }
    if check && census.problems.is_empty() {
        text += "no collision, no leak\n";
    }
    text
}

impl FileLabel {
    fn is_wrong(&self) -> bool {
        self.problem.is_some() || (!self.owners.is_empty() && !self.owners.iter().any(|owner| owner.alive))
    }
}

fn file(file: &FileLabel) -> String {
    let label = file.label.as_deref().unwrap_or("no label: its file system keeps none");
    let mut text =
        format!("{}: {}\n", sanitize::line(&file.path.display().to_string(), 200), sanitize::line(label, 200));
    for FileOwner { sandbox, pid, alive } in &file.owners {
        let state = if *alive { "alive" } else { "dead; `casemate repair`, or restorecon -F" };
        text += &format!("    held by sandbox {} (pid {pid}, {state})\n", sanitize::line(sandbox, 80));
    }
    if let Some(original) = &file.original {
        text += &format!("    given back at the end: {}\n", sanitize::line(original, 200));
    }
    if file.libvirt {
        text += "    libvirt's: its attributes are on the file\n";
    }
    if let Some(problem) = &file.problem {
        text += &format!("    {}\n", sanitize::line(problem, 400));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_file_reads_as_its_label_its_owners_and_what_it_gets_back() {
        let told = json!({ "path": "/srv/a.img", "label": "u:r:t:s0:c1,c2", "original": "u:r:o:s0", "libvirt": false,
            "owners": [{ "sandbox": "web", "pid": 7, "alive": false }], "problem": null });
        let label: FileLabel = serde_json::from_value(told).unwrap();
        assert!(label.is_wrong());
        let text = file(&label);
        for part in ["/srv/a.img: u:r:t:s0:c1,c2", "sandbox web (pid 7, dead", "given back at the end: u:r:o:s0"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_problem_stands_with_its_remedy_and_hostile_names_are_tamed() {
        let told = json!({ "selinux": false, "warnings": ["/etc/x: \u{1b}[31m"],
            "lines": [{ "kind": "lease", "level": "uid 7", "label": null, "object": "lease uid/7", "holder": "sandbox web (pid 1)",
                        "alive": false, "since": 1, "why": "its runner's uid" }],
            "problems": [{ "what": "lease uid/7 belongs to the dead", "remedy": "casemate repair" }] });
        let census: Census = serde_json::from_value(told).unwrap();
        let context = Context { format: crate::args::Format::Text, dirs: casemate_client::Dirs::from_env() };
        let text = table(&context, &census, false);
        for part in ["uid 7", "web (pid 1), dead", "no SELinux", "what to do: casemate repair"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains('\u{1b}'), "{text:?}");
        assert!(!table(&context, &census, true).contains("HOLDER"));
    }
}
