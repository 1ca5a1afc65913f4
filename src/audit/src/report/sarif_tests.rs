//! Held against the schema that OASIS publishes, as the crate serde-sarif carries it, and against what GitHub code scanning
//! asks beyond it (docs.github.com, "SARIF support for code scanning").

use std::collections::BTreeSet;

use super::*;
use crate::report::tests::{finding, report};

/// The schema, from the sources that cargo holds of a development dependency.
fn schema() -> Value {
    // Of other platforms' dependencies cargo may hold none.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .other_options(vec!["--offline".into(), "--locked".into(), "--filter-platform".into(), platform])
        .exec()
        .unwrap();
    let package = metadata.packages.iter().find(|package| *package.name == "serde-sarif").unwrap();
    let file = package.manifest_path.parent().unwrap().join("src/schema.json");
    let mut schema: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(schema["title"], "Static Analysis Results Format (SARIF) Version 2.1.0 JSON Schema");
    // The published one has an expression that is none, for the language of a tool, which is not told here.
    for owner in ["run", "toolComponent"] {
        let language = schema["definitions"][owner]["properties"]["language"].as_object_mut().unwrap();
        assert_eq!(language.remove("pattern").unwrap(), "^[a-zA-Z]{2}|^[a-zA-Z]{2}-[a-zA-Z]{2}]?$");
    }
    schema
}

fn validator() -> jsonschema::Validator {
    jsonschema::options().should_validate_formats(true).build(&schema()).unwrap()
}

fn complaints(validator: &jsonschema::Validator, log: &Value) -> Vec<String> {
    validator.iter_errors(log).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// A hostile report, and what every rule says of a specimen that violates it.
fn logs() -> impl Iterator<Item = Value> {
    std::iter::once(report()).chain(crate::rules::tests::violated()).map(|report| log(&report))
}

#[test]
fn every_report_is_of_the_official_schema() {
    let validator = validator();
    for log in logs() {
        assert_eq!(complaints(&validator, &log), [""; 0], "{log:#}");
    }
    // The types that were made from it take the same, and lose nothing.
    for log in logs() {
        let typed: serde_sarif::sarif::Sarif = serde_json::from_value(log.clone()).unwrap();
        assert_eq!(serde_json::to_value(typed).unwrap(), log);
    }
}

/// The validator sees each kind of fault that this module could have.
#[test]
fn the_schema_refuses_what_is_none() {
    let validator = validator();
    let good = log(&report());
    let faults: [(&str, Value); 9] = [
        ("/version", "2.0".into()),
        ("/runs/0/results/0/level", "critical".into()),
        ("/runs/0/results/0/kind", "failed".into()),
        ("/runs/0/results/0/ruleIndex", "0".into()),
        ("/runs/0/results/0/message", json!({})),
        ("/runs/0/results/0/locations/0/physicalLocation/artifactLocation/uri", "a b".into()),
        ("/runs/0/results/0/locations/0/physicalLocation/region/startLine", 0.into()),
        ("/runs/0/invocations/0/executionSuccessful", "yes".into()),
        ("/runs/0/tool/driver/rules/0/properties/tags", "security".into()),
    ];
    for (pointer, fault) in faults {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = fault;
        assert!(!complaints(&validator, &bad).is_empty(), "{pointer}");
    }
    let mut unknown = good;
    unknown["runs"][0]["results"][0]["severity"] = "high".into();
    assert!(!complaints(&validator, &unknown).is_empty());
}

/// What an upload to code scanning is refused or not shown without.
#[test]
fn code_scanning_finds_what_it_asks_for() {
    for log in logs() {
        let run = &log["runs"][0];
        let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
        let ids: BTreeSet<&str> = rules.iter().map(|rule| rule["id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), rules.len(), "each once");
        for rule in rules {
            for text in ["shortDescription", "fullDescription", "help"] {
                assert!(!rule[text]["text"].as_str().unwrap().is_empty());
            }
            let score: f64 = rule["properties"]["security-severity"].as_str().unwrap().parse().unwrap();
            let level = match score {
                0.0 => "note",
                0.1..7.0 => "warning",
                _ => "error",
            };
            assert_eq!(rule["defaultConfiguration"]["level"], level);
            assert!(rule["properties"]["tags"].as_array().unwrap().contains(&"security".into()));
        }
        let mut prints = BTreeSet::new();
        for result in run["results"].as_array().unwrap() {
            let index = result["ruleIndex"].as_u64().unwrap() as usize;
            assert_eq!(rules[index]["id"], result["ruleId"]);
            // Each result becomes an alert, whatever its kind: what passed is none.
            assert!(["fail", "open"].contains(&result["kind"].as_str().unwrap()), "{result}");
            // 3.27.10: a kind other than fail has the level none.
            assert_eq!(result["level"] != "none", result["kind"] == "fail");
            let place = &result["locations"][0]["physicalLocation"]["artifactLocation"];
            assert!(!place["uri"].as_str().unwrap().is_empty());
            let artifact = &run["artifacts"][place["index"].as_u64().unwrap() as usize];
            assert_eq!(artifact["location"]["uri"], place["uri"]);
            let base = place["uriBaseId"].as_str().unwrap();
            assert!(run["originalUriBaseIds"][base]["description"]["text"].is_string());
            let print = result["partialFingerprints"]["primaryLocationLineHash"].as_str().unwrap();
            assert!(prints.insert(print), "{result}");
        }
    }
}

#[test]
fn what_passed_is_counted() {
    let log = log(&report());
    let rules = log["runs"][0]["tool"]["driver"]["rules"].as_array().unwrap();
    let directory = rules.iter().find(|rule| rule["id"] == "fds.no-directory").unwrap();
    let counted = json!({ "passed": 1, "failed": 1, "unknown": 0, "notApplicable": 0 });
    assert_eq!(directory["properties"]["checks"], counted);
    assert_eq!(log["runs"][0]["results"].as_array().unwrap().len(), 3, "failed, unknown, noted");
    assert_eq!(log["runs"][0]["invocations"][0]["exitCode"], 4);
}

#[test]
fn hostile_text_stays_text() {
    fn texts(value: &Value) -> Vec<&str> {
        match value {
            Value::String(text) => vec![text],
            Value::Array(all) => all.iter().flat_map(texts).collect(),
            Value::Object(all) => all.values().flat_map(texts).collect(),
            _ => Vec::new(),
        }
    }
    let log = log(&report());
    assert!(texts(&log).iter().all(|text| text.chars().all(|c| !c.is_control() && c != '\u{202e}')));
    let result = &log["runs"][0]["results"][0];
    assert!(result["message"]["text"].as_str().unwrap().contains("[link] (https"), "no link for a viewer: {result}");
}

#[test]
fn a_file_is_where_its_user_said() {
    let mut report = report();
    let mut uri = |file: Option<&str>| {
        report.subjects[0].file = file.map(str::to_owned);
        let log = log(&report);
        let place = &log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"];
        (place["uri"].as_str().unwrap().to_owned(), place["uriBaseId"].as_str().map(str::to_owned))
    };
    let sources = || Some("%SRCROOT%".to_owned());
    assert_eq!(uri(Some("./specs/web.toml")), ("specs/web.toml".into(), sources()));
    assert_eq!(uri(Some("specs/a b%.toml")), ("specs/a%20b%25.toml".into(), sources()));
    assert_eq!(uri(Some("/etc/x?#.toml")), ("file:///etc/x%3F%23.toml".into(), None));
    let (name, base) = uri(None);
    assert!(name.starts_with("process/a%5E%5B%5D0") && !name["process/".len()..].contains('/'), "{name}");
    assert_eq!(base.as_deref(), Some("SUBJECTS"));
}

/// An alert is the same one after a restart, which changes the numbers of processes, and another for another subject.
#[test]
fn fingerprints_last_from_one_audit_to_the_next() {
    let of = |what: &[&str], subject: &str| {
        let mut report = report();
        report.subjects[0].name = subject.into();
        report.findings = what
            .iter()
            .map(|what| {
                let mut finding = finding("fds.no-directory", Verdict::Fail, Severity::High);
                (finding.subject, finding.check.what) = (subject.into(), (*what).into());
                finding
            })
            .collect();
        let log = log(&report);
        let results = log["runs"][0]["results"].as_array().unwrap().clone();
        let print =
            |result: &Value| result["partialFingerprints"]["primaryLocationLineHash"].as_str().unwrap().to_owned();
        results.iter().map(print).collect::<Vec<_>>()
    };
    let first = of(&["runner 4711, thread io", "runner 4711, thread vcpu0", "runner 4711, thread vcpu1"], "web");
    assert_eq!(first, of(&["runner 99, thread io", "runner 99, thread vcpu0", "runner 99, thread vcpu1"], "web"));
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 3);
    assert!(first[1].ends_with(":1") && first[2].ends_with(":2"), "{first:?}");
    assert_ne!(first, of(&["runner 4711, thread io", "runner 4711, thread vcpu0", "runner 4711, thread vcpu1"], "db"));
}
