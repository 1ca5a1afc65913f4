//! The program as a user meets it: help, refusals, JSON errors; and nothing is left behind.

use std::path::Path;
use std::process::{Command, Output};

fn casemate(home: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_casemate"))
        .args(args)
        .env("CASEMATE_RUN_DIR", home.join("run"))
        .env("CASEMATE_STATE_DIR", home.join("state"))
        .env_remove("NO_COLOR")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn help_succeeds_everywhere_and_names_every_verb() {
    let home = tempfile::tempdir().unwrap();
    let out = casemate(home.path(), &["--help"]);
    assert!(out.status.success());
    let verbs = [
        "run",
        "ps",
        "inspect",
        "logs",
        "exec",
        "cp",
        "pause",
        "resume",
        "stop",
        "kill",
        "rm",
        "plan",
        "doctor",
        "selftest",
        "attack",
        "repair",
        "kernel",
        "policy",
        "completion",
        "man",
        "version",
    ];
    for verb in verbs {
        assert!(text(&out.stdout).contains(&format!("\n  {verb} ")), "{verb}");
        let out = casemate(home.path(), &[verb, "--help"]);
        assert!(out.status.success() && out.stdout.len() > 40, "{verb}");
    }
    assert!(!text(&out.stdout).contains('\x1b'), "no colours into a pipe");
}

#[test]
fn bad_input_fails_with_125_a_sentence_and_no_trace() {
    let home = tempfile::tempdir().unwrap();
    for (args, said) in [
        (&["run"][..], "field 'root'"),
        (&["run", "--root", "dir:/", "--memory", "1X", "--", "x"], "field 'memory'"),
        (&["run", "--root", "/no/such/root", "--", "x"], "/no/such/root"),
        (&["run", "--nonsense"], "--nonsense"),
        (&["run", "--spec", "/no/such/spec"], "/no/such/spec"),
        (&["run", "--root", "dir:/", "-t", "--", "x"], "terminal"),
        (&["exec", "nobody", "--", "x"], "there is no sandbox 'nobody'"),
        (&["exec", "../x", "--", "x"], "is not a sandbox name"),
        (&["inspect", "nobody"], "there is no sandbox"),
        (&["logs", "nobody"], "there is no sandbox"),
        (&["stop", "nobody"], "there is no sandbox"),
        (&["stop", "--time", "x", "nobody"], "--time"),
        (&["cp", "a", "b"], "neither of the two is in a guest"),
        (&["cp", "x:rel", "b"], "not absolute"),
        (&["cp", "/no/such/file", "x:/y"], "/no/such/file"),
        (&["kernel", "import", "/no/such/kernel"], "/no/such/kernel"),
        (&["kernel", "import"], "FILE"),
        (&["audit", "report", "/no/such/report"], "/no/such/report"),
        (&["audit", "report", "/proc/version"], "not JSON"),
        (&["audit", "--format", "html", "-o", "/no/such/directory/x.html"], "/no/such/directory is no directory"),
        (&["audit", "process", "1", "--profile", "/no/such/profile"], "/no/such/profile"),
        (&["ps", "--format", "html"], "forms of an audit's report"),
        (&["frobnicate"], "frobnicate"),
    ] {
        let out = casemate(home.path(), args);
        let stderr = text(&out.stderr);
        assert_eq!(out.status.code(), Some(125), "{args:?}: {stderr}");
        assert!(stderr.contains(said), "{args:?}: {stderr}");
        assert!(out.stdout.is_empty(), "{args:?}");
        assert!(!stderr.contains("panicked") && !stderr.contains("Err("), "{args:?}: {stderr}");
    }
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "something was left behind");
}

#[test]
fn json_errors_are_one_object() {
    let home = tempfile::tempdir().unwrap();
    for args in [
        &["--format", "json", "inspect", "nobody"][..],
        &["run", "--format=json", "--cpus", "x"],
        &["run", "--format", "json", "--root", "dir:/", "--cpus", "0", "x"],
    ] {
        let out = casemate(home.path(), args);
        let object: serde_json::Value = serde_json::from_slice(&out.stderr).unwrap();
        assert_eq!(object["exit_code"], 125, "{args:?}");
        assert!(object["error"].as_str().is_some_and(|e| !e.is_empty()));
        assert!(out.stdout.is_empty());
    }
}

#[test]
fn an_empty_host_lists_nothing() {
    let home = tempfile::tempdir().unwrap();
    let out = casemate(home.path(), &["ps", "-a", "-q"]);
    assert!(out.status.success() && out.stdout.is_empty(), "{out:?}");
    let out = casemate(home.path(), &["ps", "--format", "json"]);
    let listing: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(listing, serde_json::json!({ "sandboxes": [], "damaged": [] }));
}

/// A report is kept as JSON and told again in every form, with the same exit status; a file is written whole.
#[test]
fn a_kept_report_takes_every_form() {
    let home = tempfile::tempdir().unwrap();
    let kept = home.path().join("kept.json");
    let pid = std::process::id().to_string();
    let made = casemate(home.path(), &["audit", "process", &pid, "--format", "json", "-o", kept.to_str().unwrap()]);
    assert!(made.stdout.is_empty(), "{}", text(&made.stdout));
    let status = made.status.code().unwrap();
    assert_ne!(status, 125, "{}", text(&made.stderr));
    for (form, has) in [
        ("text", "passed"),
        ("json", "\"findings\""),
        ("junit", "<testsuite"),
        ("sarif", "\"2.1.0\""),
        ("html", "<!DOCTYPE html>"),
    ] {
        let file = home.path().join(form);
        let args = ["audit", "report", kept.to_str().unwrap(), "--format", form];
        let told = casemate(home.path(), &args);
        let written = casemate(home.path(), &[&args[..], &["-o", file.to_str().unwrap()]].concat());
        assert_eq!((told.status.code(), written.status.code()), (Some(status), Some(status)), "{form}");
        assert!(text(&told.stdout).contains(has), "{form}");
        assert!(written.stdout.is_empty());
        assert_eq!(std::fs::read(&file).unwrap(), told.stdout, "{form}");
    }
    let names: Vec<_> = std::fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 6, "no draft is left: {names:?}");
}

#[test]
fn completions_manual_pages_and_version_are_generated() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let out = casemate(home.path(), &["completion", shell]);
        assert!(out.status.success() && text(&out.stdout).contains("casemate"), "{shell}");
    }
    let pages = home.path().join("man");
    assert!(casemate(home.path(), &["man", pages.to_str().unwrap()]).status.success());
    for page in ["casemate.1", "casemate-run.1", "casemate-kernel-import.1"] {
        assert!(pages.join(page).is_file(), "{page}");
    }
    let out = casemate(home.path(), &["version", "--format", "json"]);
    let versions: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(versions["specification"], 1);
}

#[test]
fn a_closed_output_is_no_panic() {
    let home = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = Command::new(env!("CARGO_BIN_EXE_casemate"))
        .args(["version"])
        .env("CASEMATE_RUN_DIR", home.path())
        .stdout(writer)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .unwrap();
    assert!(status.stderr.is_empty(), "{}", text(&status.stderr));
}
