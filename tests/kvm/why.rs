//! `casemate why` with a real kernel's records: each layer denies something to a probe in a live VM's confinement, and the
//! answer names who, which layer, which rule.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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

/// Is it a row of this layer whose deed and rule hold these words?
fn is(row: &Value, layer: &str, what: &str, rule: &str) -> bool {
    let has = |field: &str, text: &str| row[field].as_str().is_some_and(|t| t.contains(text));
    row["layer"] == layer && has("what", what) && has("rule", rule)
}

/// What `why` answers while the jailer's probe runs: the kernel's log is a ring of some hundred records, and all of the
/// machine writes there.
fn during_a_probe(
    host: &Host,
    name: &str,
    args: &[&str],
    wanted: &[&dyn Fn(&Value) -> bool],
) -> Result<Vec<Value>, Failed> {
    let mut rows: Vec<Value> = Vec::new();
    for _ in 0..3 {
        let mut child =
            Command::new(host.jailer()).args(["probe", name]).args(host.dirs()).stdout(Stdio::null()).spawn()?;
        loop {
            let over = child.try_wait()?.is_some();
            let (ok, answer, said) = why(host, args)?;
            check(ok, said)?;
            rows.extend(answer["denials"].as_array().cloned().unwrap_or_default());
            if wanted.iter().all(|wanted| rows.iter().any(wanted)) {
                child.wait()?;
                return Ok(rows);
            }
            if over {
                break;
            }
        }
    }
    let missing = wanted.iter().position(|wanted| !rows.iter().any(wanted));
    let told: BTreeSet<String> =
        rows.iter().map(|row| format!("{} {} | {}", row["layer"], row["what"], row["rule"])).collect();
    Err(format!("number {missing:?} of what is wanted is not among: {told:#?}").into())
}

fn layers() -> Result<(), Failed> {
    let mut auditing = Auditing::on()?;
    let host = Host::new()?;
    let since = now();
    let spec = host.bare("why", guest::pvh_elf(crate::matrix::asleep))?;
    let name = name_of(&spec).to_owned();
    let mut vm = host.start(&spec)?;
    let record = vm.started()?;
    let runner = record.runner.ok_or("a runner")?.pid;

    // The runner's own controls show that it is in a Landlock domain: with its own pid, as the kernel has it.
    let until = Instant::now() + Duration::from_secs(5);
    let own = loop {
        let (ok, answer, said) = why(&host, &[&name, "--all", "--since", &since])?;
        check(ok, said)?;
        let rows = answer["denials"].as_array().cloned().unwrap_or_default();
        let own = rows.into_iter().find(|row| {
            is(row, "landlock", "fs.read_dir on /", "made by casemate-runner") && row["who"]["pid"] == runner
        });
        if let Some(own) = own {
            break own;
        }
        check(Instant::now() < until, format!("the runner's own domain is not told: {answer:#}"))?;
    };
    check(own["who"]["sandbox"] == name.as_str() && own["who"]["certain"] == true, &own)?;
    check(own["expected"] == "control" && own["who"]["role"] == "runner", &own)?;

    auditing.watch_denials_of(record.uid)?;
    let probes = |row: &Value| row["expected"] == "probe" && row["who"]["role"] == "probe";
    let in_vm = |row: &Value| row["who"]["sandbox"] == name.as_str() && row["who"]["uid"] == record.uid;
    // Tried with all layers, so as the VM's uid; the filter is the io thread's.
    let seccomp = |row: &Value| {
        is(row, "seccomp", "mknod", "no rule in seccomp-filters/runner.io.json") && probes(row) && in_vm(row)
    };
    let other_abi = |row: &Value| is(row, "seccomp", "getpid [i386]", "another ABI") && probes(row);
    let mode = |row: &Value| is(row, "uid", "/etc/shadow: EACCES", "mode 06") && probes(row) && in_vm(row);
    // Landlock alone is tried as root: it is nobody's in particular.
    let landlock = |right: &'static str| {
        move |row: &Value| is(row, "landlock", right, "made by casemate-jailer") && row["expected"] == "probe"
    };
    let (read, fifo) = (landlock("fs.read_file on "), landlock("fs.make_fifo on "));
    let wanted: [&dyn Fn(&Value) -> bool; 5] = [&seccomp, &other_abi, &mode, &read, &fifo];
    during_a_probe(&host, &name, &["--all", "--since", &since], &wanted)?;
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
