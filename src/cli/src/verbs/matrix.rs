//! `attack --matrix`: the jailer makes every attempt on every class of objects, this shows the matrix.

use casemate_client::jailer::Jailer;
use casemate_client::label;
use casemate_client::sanitize;
use serde_json::Value;
use std::fmt::Write;

use crate::args::AttackArgs;
use crate::failure::{OWN, Result};
use crate::output::{Context, Tone, cell, paint, table_text};

/// Runs it. Exit status 0: all was denied, and as the policy says.
pub fn matrix(context: &Context, args: &AttackArgs) -> Result<u8> {
    let jailer = Jailer::locate(&context.dirs)?;
    let mut verb = vec!["matrix", &args.attacker, &args.victim];
    verb.extend(args.twin.iter().flat_map(|twin| ["--twin", twin]));
    // The stage is set in the caller's domain, where objects of every class can be made; the jailer goes back into its
    // own for what only that may.
    let answer = if label::is_active() { jailer.ask_in_own_domain(&verb)? } else { jailer.ask(&verb, None)? };
    if context.json() {
        context.print_json(&answer.json)?;
    } else {
        context.print(&text(context, &answer.json))?;
    }
    Ok(if answer.ok && Count::of(&answer.json).holds() { 0 } else { OWN })
}

/// What the last line says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    tried: usize,
    denied: usize,
    compared: usize,
    agree: usize,
    makes: usize,
    wrong: usize,
    skipped: usize,
}

impl Count {
    fn of(report: &Value) -> Count {
        let mut count = Count { skipped: rows(report, "skipped").len(), ..Count::default() };
        for row in rows(report, "matrix") {
            count.tried += 1;
            count.denied += usize::from(denies(&row["all"]));
        }
        count.makes = rows(report, "makes").len();
        for row in rows(report, "matrix").iter().chain(&rows(report, "makes")) {
            count.wrong += usize::from(row["ok"] != Value::Bool(true));
            for pair in ["selinux", "categories", "own_selinux", "own_categories"].map(|key| &row[key]) {
                count.compared += usize::from(pair.is_object());
                count.agree += usize::from(pair["agree"] == Value::Bool(true));
            }
        }
        count
    }

    /// A report without rows proves nothing.
    fn holds(&self) -> bool {
        self.tried > 0 && self.wrong == 0 && self.denied == self.tried && self.agree == self.compared
    }

    fn sentence(&self) -> String {
        let mut text = format!("{} attempts on another's objects, {} denied by all layers", self.tried, self.denied);
        if self.compared > 0 {
            let _ = write!(text, "; {} verdicts of SELinux, {} as its policy says", self.compared, self.agree);
        }
        if self.skipped > 0 {
            let _ = write!(text, "; {} could not be tried here", self.skipped);
        }
        let verdict = match self.wrong {
            0 if self.tried == 0 => "; nothing was tried".into(),
            0 => "; all as they must be".into(),
            wrong => format!("; {wrong} rows NOT as they must be"),
        };
        paint(&(text + &verdict), if self.holds() { Tone::Good } else { Tone::Bad })
    }
}

fn rows<'a>(report: &'a Value, table: &str) -> Vec<&'a Value> {
    report[table].as_array().map(|rows| rows.iter().collect()).unwrap_or_default()
}

fn denies(word: &Value) -> bool {
    word.as_str().is_some_and(|word| word != "allowed" && word != "-" && !word.starts_with("unclear"))
}

fn word(value: &Value) -> String {
    match value {
        Value::String(word) if word.starts_with("unclear") => "unclear".into(),
        Value::String(word) => sanitize::line(word, 80),
        _ => "-".into(),
    }
}

fn text(context: &Context, report: &Value) -> String {
    let mut out = String::new();
    for (who, label) in [("attacker", 0), ("victim", 1)] {
        let label = report["labels"][label].as_str().map(|label| format!("  {}", sanitize::line(label, 200)));
        let _ = writeln!(out, "{who:<9} {}{}", word(&report[who]), label.unwrap_or_default());
    }
    out.push('\n');
    let with_selinux = report["labels"].is_array();
    let with_twin = report["twin"].is_string();
    out.push_str(&attempts(context, report, with_selinux, with_twin));
    out.push_str(&makes(context, report, with_selinux));
    out.push_str(&legend(with_selinux, with_twin));
    out.push_str(&remarks(report, with_selinux, with_twin));
    let _ = writeln!(out, "\n{}", Count::of(report).sentence());
    out
}

/// A cell of a layer that is asked alone: it is weak to allow, but another may deny.
fn layer(value: &Value) -> comfy_table::Cell {
    let tone = if word(value) == "allowed" { Tone::Weak } else { Tone::Plain };
    cell(word(value), tone)
}

/// Cells of expected and actual.
fn compared(pair: &Value) -> [comfy_table::Cell; 2] {
    let tone = if pair["agree"] == Value::Bool(false) { Tone::Bad } else { Tone::Plain };
    [
        cell(word(&pair["expected"]), tone),
        if tone == Tone::Bad { cell(word(&pair["actual"]), tone) } else { layer(&pair["actual"]) },
    ]
}

fn attempts(context: &Context, report: &Value, with_selinux: bool, with_twin: bool) -> String {
    let mut heads = vec!["B'S OBJECT"];
    heads.extend(if with_selinux { &["POLICY", "SELINUX"][..] } else { &[] });
    heads.extend(if with_twin { &["MCS POLICY", "MCS"][..] } else { &[] });
    heads.extend(["LANDLOCK", "SECCOMP", "UID+CAPS", "NAMESPACES", "ALL", "OWN"]);
    heads.extend(if with_twin { &["MCS OWN"][..] } else { &[] });
    let mut table = context.table(&heads);
    let mut class = String::new();
    for row in rows(report, "matrix") {
        let group = word(&row["class"]);
        if group != class {
            table.add_row([cell(&group, Tone::Head)]);
            class = group;
        }
        let mut cells = vec![cell(format!("  {}", word(&row["attempt"])), Tone::Plain)];
        if with_selinux {
            cells.extend(compared(&row["selinux"]));
        }
        if with_twin {
            cells.extend(compared(&row["categories"]));
        }
        cells.extend(["landlock", "seccomp", "uid_and_caps", "namespaces"].map(|key| layer(&row[key])));
        let all = if denies(&row["all"]) { Tone::Good } else { Tone::Bad };
        cells.push(cell(word(&row["all"]), all));
        cells.push(cell(word(&row["own_all"]), Tone::Dim));
        if with_twin {
            let own = &row["own_categories"];
            let tone = if own["agree"] == Value::Bool(false) { Tone::Bad } else { Tone::Dim };
            cells.push(cell(word(&own["actual"]), tone));
        }
        table.add_row(cells);
    }
    table_text(&table)
}

fn makes(context: &Context, report: &Value, with_selinux: bool) -> String {
    let mut heads = vec!["A MAKES ONE"];
    heads.extend(if with_selinux { &["POLICY", "SELINUX"][..] } else { &[] });
    heads.extend(["LANDLOCK", "SECCOMP", "UID+CAPS", "NAMESPACES", "ALL"]);
    let mut table = context.table(&heads);
    for row in rows(report, "makes") {
        let mut cells = vec![cell(format!("  {}", word(&row["class"])), Tone::Plain)];
        if with_selinux {
            cells.extend(compared(&row["selinux"]));
        }
        cells.extend(["landlock", "seccomp", "uid_and_caps", "namespaces"].map(|key| layer(&row[key])));
        cells.push(cell(word(&row["all"]), Tone::Plain));
        table.add_row(cells);
    }
    format!("\n{}", table_text(&table))
}

fn legend(with_selinux: bool, with_twin: bool) -> String {
    let mut lines = vec![""];
    if with_selinux {
        lines.push("POLICY    computed from the loaded policy for the real labels: denied by types or by categories, or allows");
        lines.push("SELINUX   what the kernel did with SELinux alone: root, all capabilities, no other layer");
    }
    if with_twin {
        lines.push("MCS       the same in a domain whose types may do all this to each other: categories are alone");
    }
    lines.push("LANDLOCK, SECCOMP, UID+CAPS, NAMESPACES   each alone, without SELinux; ALL   as the sandbox has it");
    lines.push(
        "OWN       A on its own object of the class, with all layers: it opens nothing, and uses what it was given",
    );
    lines.push("passed: sent over a Unix socket by whoever holds it; inherited: open at exec");
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// What is worth a sentence: what one layer does not hold, what was not as it must be, what could not be tried.
fn remarks(report: &Value, with_selinux: bool, with_twin: bool) -> String {
    let mut out = String::from("\n");
    let name = |row: &Value| format!("{}: {}", word(&row["class"]), word(&row["attempt"]));
    if with_selinux {
        let open: Vec<&Value> =
            rows(report, "matrix").into_iter().filter(|row| !denies(&row["selinux"]["actual"])).collect();
        if open.is_empty() {
            out.push_str("SELinux alone holds back every one of them\n");
        }
        for row in open {
            let by: Vec<String> = row["denied_by"].as_array().into_iter().flatten().map(word).collect();
            let by = if by.is_empty() { "nothing alone".into() } else { by.join(", ") };
            let _ = writeln!(out, "SELinux alone does not hold back {}; denied by {by}", name(row));
        }
    }
    if with_twin {
        for row in rows(report, "matrix").iter().filter(|row| row["categories"]["actual"] == "allowed") {
            let _ = writeln!(out, "categories do not hold back {}: there it is the types that do", name(row));
        }
    }
    for row in rows(report, "matrix").iter().chain(&rows(report, "makes")) {
        for wrong in row["wrong"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let line = format!("{}: {}", name(row), sanitize::line(wrong, 300));
            let _ = writeln!(out, "{}", paint(&line, Tone::Bad));
        }
    }
    for row in rows(report, "skipped") {
        let _ = writeln!(out, "not tried: {} ({})", word(&row["attempt"]), word(&row["why"]));
    }
    if out == "\n" { String::new() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(all: &str, agree: bool, ok: bool) -> Value {
        json!({ "matrix": [{ "class": "regular file", "attempt": "open to read", "all": all, "ok": ok,
            "selinux": { "expected": "types", "actual": "EACCES", "agree": agree } }], "makes": [], "skipped": [] })
    }

    #[test]
    fn svirt_13_a_matrix_holds_only_if_all_is_denied_and_as_the_policy_says() {
        assert!(Count::of(&report("EACCES", true, true)).holds());
        for bad in [
            report("allowed", true, true),
            report("unclear: x", true, true),
            report("-", true, true),
            report("EACCES", false, true),
            report("EACCES", true, false),
            json!({ "matrix": [] }),
            json!(null),
        ] {
            assert!(!Count::of(&bad).holds(), "{bad}");
        }
    }

    #[test]
    fn a_bad_row_is_counted_aloud() {
        let line = Count::of(&report("allowed", true, false)).sentence();
        assert!(line.contains("1 attempts") && line.contains("0 denied") && line.contains("1 rows NOT"), "{line}");
    }
}
