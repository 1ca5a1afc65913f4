//! `casemate why` with a real kernel's records: each layer denies something to a probe in a live VM's confinement, and the
//! answer names who, which layer, which rule.

use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use casemate_tests::audit::Auditing;
use casemate_tests::guest;
use casemate_tests::jail::Host;
use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use crate::jailer::{check, name_of};

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(format!("why::{name}"), run);
    vec![
        trial("each_layers_denial_is_named_with_its_rule", layers),
        trial("a_failed_start_and_a_removed_sandbox_are_remembered", remembered),
        trial("what_cannot_be_answered_is_refused_or_said", refused),
    ]
}

fn why(host: &Host, args: &[&str]) -> Result<(bool, Value, String), Failed> {
    let mut command = Command::new(host.bin().join("casemate"));
    command.env("CASEMATE_RUN_DIR", host.run_dir()).env("CASEMATE_STATE_DIR", host.state_dir());
    let out = command.args(["--format", "json", "why"]).args(args).output()?;
    let value = serde_json::from_slice(&out.stdout).unwrap_or_default();
    Ok((out.status.success(), value, String::from_utf8_lossy(&out.stderr).into_owned()))
}

fn now() -> String {
    format!("@{}", SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()))
}

/// Rows of this layer whose deed and rule hold these words.
fn found<'a>(answer: &'a Value, layer: &str, what: &str, rule: &str) -> Option<&'a Value> {
    let has = |row: &Value, field: &str, text: &str| row[field].as_str().is_some_and(|t| t.contains(text));
    let rows = answer["denials"].as_array()?;
    rows.iter().find(|row| row["layer"] == layer && has(row, "what", what) && has(row, "rule", rule))
}

fn layers() -> Result<(), Failed> {
    let mut auditing = Auditing::on()?;
    let host = Host::new()?;
    let since = now();
    let spec = host.bare("why", guest::pvh_elf(crate::matrix::asleep))?;
    let name = name_of(&spec).to_owned();
    let mut vm = host.start(&spec)?;
    let record = vm.started()?;
    auditing.watch_denials_of(record.uid)?;
    let out = host.verb(&["probe", &name])?;
    check(out.status.success(), String::from_utf8_lossy(&out.stderr))?;
    // The kernel's log is written by a thread of its own.
    std::thread::sleep(Duration::from_millis(300));

    let (ok, mine, said) = why(&host, &[&name, "--all", "--since", &since])?;
    check(ok, said)?;
    // seccomp, by the uid that the VM has: the probe's filter is the io thread's.
    let killed = found(&mine, "seccomp", "ptrace(", "no rule in seccomp-filters/runner.io.json")
        .ok_or_else(|| format!("no seccomp: {mine:#}"))?;
    check(killed["who"]["role"] == "probe" && killed["expected"] == "probe", killed)?;
    check(killed["what"].as_str().is_some_and(|what| what.contains("0x4206")), format!("the arguments: {killed:#}"))?;
    // The mode of a file, by the VM's uid.
    let mode = found(&mine, "uid", "/etc/shadow: EACCES", "mode 06").ok_or_else(|| format!("no DAC: {mine:#}"))?;
    check(mode["who"]["uid"] == record.uid, mode)?;
    // The runner's own controls show that it is in a Landlock domain: with its own pid, as the kernel has it.
    let runner = record.runner.ok_or("a runner")?.pid;
    let own = mine["denials"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|row| row["layer"] == "landlock" && row["who"]["pid"] == runner && row["expected"] == "control");
    let own = own.ok_or_else(|| format!("the runner's own domain: {mine:#}"))?;
    check(own["who"]["sandbox"] == name.as_str() && own["who"]["certain"] == true, own)?;

    // Landlock alone is tried as root, so it is nobody's in particular.
    let (_, all, _) = why(&host, &["--all", "--since", &since])?;
    for right in ["fs.read_file", "fs.make_fifo", "fs.remove_dir"] {
        let denied =
            found(&all, "landlock", right, "made by casemate-jailer").ok_or_else(|| format!("{right}: {all:#}"))?;
        check(denied["expected"] == "probe", denied)?;
    }
    // Without --all neither tests nor controls are told.
    let (_, few, _) = why(&host, &[&name, "--since", &since])?;
    check(few["denials"].as_array().is_some_and(Vec::is_empty), format!("{few:#}"))?;
    vm.kill()?;
    host.repair(&[])?;
    host.clean()
}

fn remembered() -> Result<(), Failed> {
    let host = Host::new()?;
    let mut spec = host.bare("gone", guest::pvh_elf(guest::power_off))?;
    let name = name_of(&spec).to_owned();
    spec["kernel"] = "/nowhere/kernel.elf".into();
    host.refused(&spec)?;
    let (ok, answer, said) = why(&host, &[&name])?;
    check(ok, said)?;
    let rows = answer["denials"].as_array().cloned().unwrap_or_default();
    let failed = rows.iter().any(|row| {
        row["who"]["sandbox"] == name.as_str()
            && row["rule"].as_str().is_some_and(|r| r.contains("/nowhere/kernel.elf"))
    });
    check(failed, format!("{answer:#}"))?;
    // One that ended and was removed is still known by its name.
    let spec = host.bare("over", guest::pvh_elf(guest::power_off))?;
    let name = name_of(&spec).to_owned();
    let mut vm = host.start(&spec)?;
    vm.started()?;
    vm.exited()?;
    check(host.verb(&["rm", &name])?.status.success(), "rm")?;
    check(host.files(&name).is_empty(), "its record is gone")?;
    check(why(&host, &[&name])?.0, "a removed sandbox is known")
}

fn refused() -> Result<(), Failed> {
    let host = Host::new()?;
    for (args, want) in [
        (&["nobody"][..], "nor a record of one"),
        (&["--since", "yesterday"], "is no time"),
        (&["--since", "@9999999999"], "later than"),
        (&["--policy", "/etc/hostname"], "no kernel policy"),
    ] {
        let (ok, _, said) = why(&host, args)?;
        check(!ok && said.contains(want), format!("{args:?}: {said}"))?;
    }
    let (ok, answer, said) = why(&host, &["--since", "1s"])?;
    check(ok, said)?;
    // Somebody else's test may have auditing on at this moment: then there are other notes.
    let notes = answer["notes"].as_array().map_or(0, Vec::len);
    check(notes > 0 && answer["sources"].as_array().is_some_and(|s| s.len() == 3), format!("{answer:#}"))
}
