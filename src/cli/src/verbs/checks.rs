//! `selftest` and `attack`: the jailer makes the trials, this shows the tables.

use casemate_client::jailer::Jailer;
use casemate_client::label;
use casemate_client::sanitize;
use casemate_client::store::{self, Status};
use serde_json::{Map, Value};
use std::fmt::Write;

use super::matrix;
use crate::args::AttackArgs;
use crate::failure::{OWN, Result};
use crate::output::{Context, Tone, cell, paint, table_text};

pub fn selftest(context: &Context) -> Result<u8> {
    trial(context, &["selftest"])
}

pub fn attack(context: &Context, args: &AttackArgs) -> Result<u8> {
    for name in [&args.attacker, &args.victim] {
        let status = store::load(&context.dirs, name)?.status;
        if !matches!(status, Status::Running | Status::Paused) {
            return Err(casemate_client::Error::NotRunning(name.clone()).into());
        }
    }
    if args.matrix {
        return matrix::matrix(context, args);
    }
    trial(context, &["attack", &args.attacker, &args.victim])
}

fn trial(context: &Context, verb: &[&str]) -> Result<u8> {
    let jailer = Jailer::locate(&context.dirs)?;
    let answer = if label::is_active() {
        // SELinux confines the jailer too: the other layers are alone only in a domain that may do everything.
        let mut selinux = jailer.ask(&[verb, &["--part", "selinux"]].concat(), None)?;
        let others = jailer.ask_in_own_domain(&[verb, &["--part", "others"]].concat())?;
        selinux.ok &= others.ok;
        merge(&mut selinux.json, others.json);
        selinux
    } else {
        jailer.ask(verb, None)?
    };
    if context.json() {
        context.print_json(&answer.json)?;
    } else {
        context.print(&text(context, &answer.json))?;
    }
    Ok(if answer.ok && passed(&answer.json) { 0 } else { OWN })
}

/// Adds the second report of a trial to the first. Rows of one attack become one row; others are added.
fn merge(report: &mut Value, others: Value) {
    let (Value::Object(report), Value::Object(others)) = (report, others) else { return };
    for (table, rows) in others {
        let (Value::Array(more), Some(Value::Array(mine))) = (rows, report.get_mut(&table)) else { continue };
        for row in more {
            match mine.iter_mut().find(|have| have.get("attack").is_some() && have["attack"] == row["attack"]) {
                Some(have) => fill(have, &row),
                None => mine.push(row),
            }
        }
    }
}

/// Takes over what the first row does not know (`-`), and a bad verdict.
fn fill(have: &mut Value, row: &Value) {
    let (Some(have), Some(row)) = (have.as_object_mut(), row.as_object()) else { return };
    for (key, value) in row {
        let unknown = have.get(key).is_none_or(|known| known == "-");
        if unknown || (key == "ok" && *value == Value::Bool(false)) {
            have.insert(key.clone(), value.clone());
        }
    }
}

/// No row says that it failed. A report without rows proves nothing.
fn passed(report: &Value) -> bool {
    let rows: Vec<&Value> = tables(report).into_iter().flat_map(|(_, rows)| rows).collect();
    !rows.is_empty() && rows.iter().all(|row| row["ok"] != Value::Bool(false))
}

/// The arrays of objects in a report, by name.
fn tables(report: &Value) -> Vec<(&str, Vec<&Value>)> {
    let rows = |value: &'_ Value| -> Option<usize> {
        value.as_array().filter(|a| !a.is_empty() && a.iter().all(Value::is_object)).map(Vec::len)
    };
    match report {
        Value::Array(all) if rows(report).is_some() => vec![("", all.iter().collect())],
        Value::Object(map) => map
            .iter()
            .filter(|(_, value)| rows(value).is_some())
            .filter_map(|(name, value)| Some((name.as_str(), value.as_array()?.iter().collect())))
            .collect(),
        _ => Vec::new(),
    }
}

fn text(context: &Context, report: &Value) -> String {
    let mut out = String::new();
    if let Value::Object(map) = report {
        for (name, value) in map.iter().filter(|(_, v)| !v.is_array() && !v.is_object()) {
            let _ = writeln!(out, "{}: {}", words(name), shown(value));
        }
    }
    for (name, rows) in tables(report) {
        if !name.is_empty() {
            let _ = writeln!(out, "\n{}", paint(&words(name), Tone::Head));
        }
        let columns = columns(&rows);
        let heads: Vec<String> = columns.iter().map(|c| words(c).to_uppercase()).collect();
        let mut table = context.table(&heads.iter().map(String::as_str).collect::<Vec<_>>());
        for row in rows {
            let good = row["ok"].as_bool();
            table.add_row(columns.iter().map(|column| {
                let value = &row[column];
                let tone = match (column.as_str(), value.as_str(), good) {
                    (_, _, Some(false)) => Tone::Bad,
                    ("ok", ..) => Tone::Good,
                    // A layer that would have let an attack pass, were it alone.
                    (_, Some(word), _) if name == "attacks" && word.starts_with("allowed") => Tone::Weak,
                    _ => Tone::Plain,
                };
                cell(shown(value), tone)
            }));
        }
        out.push_str(&table_text(&table));
    }
    let _ = writeln!(out, "\n{}", verdict(report));
    out
}

fn verdict(report: &Value) -> String {
    let rows: Vec<&Value> =
        tables(report).into_iter().flat_map(|(_, rows)| rows).filter(|r| r["ok"].is_boolean()).collect();
    let failed = rows.iter().filter(|row| row["ok"] == Value::Bool(false)).count();
    match (rows.len(), failed) {
        (0, _) => paint("nothing was tried", Tone::Bad),
        (all, 0) => paint(&format!("{all} tried, all as they must be"), Tone::Good),
        (all, failed) => paint(&format!("{all} tried, {failed} NOT as they must be"), Tone::Bad),
    }
}

/// The order of columns; a JSON object has none.
const ORDER: [&str; 12] = [
    "attack",
    "layer",
    "control",
    "attempt",
    "outcome",
    "all",
    "selinux",
    "landlock",
    "seccomp",
    "uid_and_caps",
    "namespaces",
    "ok",
];

/// All keys of the rows, the known ones first and in their order.
fn columns(rows: &[&Value]) -> Vec<String> {
    let mut columns: Vec<String> = Vec::new();
    for key in rows.iter().filter_map(|r| r.as_object()).flat_map(Map::keys) {
        if !columns.contains(key) {
            columns.push(key.clone());
        }
    }
    let place = |name: &String| ORDER.iter().position(|known| known == name).unwrap_or(ORDER.len());
    columns.sort_by_key(place);
    columns
}

fn words(name: &str) -> String {
    sanitize::line(&name.replace('_', " "), 80)
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "NO".into(),
        Value::String(text) => sanitize::line(text, 200),
        other => sanitize::line(&other.to_string(), 200),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn two_reports_become_one_and_a_bad_verdict_stays() {
        let mut report = json!({ "attacks": [{ "attack": "x", "all": "EPERM", "landlock": "-", "ok": true }] });
        let others = json!({ "attacks": [{ "attack": "x", "all": "-", "landlock": "EACCES", "ok": false },
                                         { "attack": "y", "all": "-", "ok": true }] });
        merge(&mut report, others);
        let row = &report["attacks"][0];
        assert_eq!((&row["all"], &row["landlock"], &row["ok"]), (&json!("EPERM"), &json!("EACCES"), &json!(false)));
        assert_eq!(report["attacks"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn a_report_passes_only_with_rows_that_all_hold() {
        assert!(passed(&json!([{ "ok": true }, { "ok": true }])));
        assert!(passed(&json!({ "attacks": [{ "layer": "selinux", "ok": true }], "posture": "enforced" })));
        for bad in [
            json!([]),
            json!({}),
            json!(null),
            json!([{ "ok": true }, { "ok": false }]),
            json!({ "a": [{ "ok": false }] }),
        ] {
            assert!(!passed(&bad), "{bad}");
        }
    }
}
