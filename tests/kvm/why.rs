//! `casemate why` with a real kernel's records: each layer denies something to a probe in a live VM's confinement, and the
//! answer names who, which layer, which rule.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
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
        trial("denials_are_told_as_they_happen", followed),
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

/// `casemate why --follow`, and the lines that it has written.
struct Following {
    child: Child,
    lines: Receiver<String>,
}

impl Following {
    fn start(host: &Host, args: &[&str]) -> Result<Self, Failed> {
        let mut command = Command::new(host.bin().join("casemate"));
        command.env("CASEMATE_RUN_DIR", host.run_dir()).env("CASEMATE_STATE_DIR", host.state_dir());
        let mut child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let out = BufReader::new(child.stdout.take().ok_or("its output")?);
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || out.lines().map_while(Result::ok).all(|line| tell.send(line).is_ok()));
        Ok(Following { child, lines })
    }

    /// Reads until a line is wanted, or nothing has come for a while.
    fn find(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let mut read = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(4)) {
            let found = wanted(&line);
            read.push(line);
            if found {
                break;
            }
        }
        read
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn followed() -> Result<(), Failed> {
    let _auditing = Auditing::on()?;
    let host = Host::new()?;
    let spec = host.bare("follow", guest::pvh_elf(crate::matrix::asleep))?;
    let name = name_of(&spec).to_owned();
    let mut vm = host.start(&spec)?;
    vm.started()?;
    let json = Following::start(&host, &["--format", "json", "why", &name, "--all", "--follow", "--since", &now()])?;
    let text = Following::start(&host, &["why", &name, "--all", "-f", "--since", &now()])?;
    check(
        text.find(|line| line.starts_with("note: ")).iter().any(|line| line.starts_with("read: ")),
        "the history first",
    )?;
    let is_call = |line: &str| {
        serde_json::from_str::<Value>(line).is_ok_and(|row| is(&row, "seccomp", "mknod", "no rule in seccomp-filters"))
    };
    let mut rows = Vec::new();
    for _ in 0..3 {
        let mut probe =
            Command::new(host.jailer()).args(["probe", &name]).args(host.dirs()).stdout(Stdio::null()).spawn()?;
        rows.extend(json.find(is_call));
        probe.wait()?;
        if rows.last().is_some_and(|line| is_call(line)) {
            break;
        }
    }
    let told: Result<Vec<Value>, _> = rows.iter().map(|line| serde_json::from_str(line)).collect();
    let told = told.map_err(|error| format!("each line is one denial: {error}: {rows:#?}"))?;
    check(rows.last().is_some_and(|line| is_call(line)), format!("the probe's call is not told: {rows:#?}"))?;
    check(told.iter().all(|row| row["who"]["sandbox"] == name.as_str()), format!("{told:#?}"))?;
    let lines = text.find(|line| line.contains("): mknod"));
    check(lines.last().is_some_and(|line| line.contains(" | seccomp: ")), format!("{lines:#?}"))?;
    vm.kill()?;
    host.repair(&[])?;
    // A start that fails is told too.
    let mut bad = host.bare("unstarted", guest::pvh_elf(guest::power_off))?;
    bad["kernel"] = "/nowhere/kernel.elf".into();
    let all = Following::start(&host, &["--format", "json", "why", "-f", "--since", &now()])?;
    std::thread::sleep(Duration::from_secs(1));
    host.refused(&bad)?;
    let failed = all.find(|line| line.contains("/nowhere/kernel.elf"));
    check(failed.last().is_some_and(|line| line.contains("/nowhere/kernel.elf")), format!("{failed:#?}"))?;
    it_ends(&host, all)?;
    host.clean()
}

/// When its reader leaves, though nothing happens; and the journal's reader when it is killed.
fn it_ends(host: &Host, following: Following) -> Result<(), Failed> {
    let pid = following.child.id();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    drop(following);
    let soon = |what: &str, is: &mut dyn FnMut() -> bool| -> Result<(), Failed> {
        let until = Instant::now() + Duration::from_secs(10);
        while !is() {
            check(Instant::now() < until, what)?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    };
    for child in children.split_whitespace() {
        // A dead one that nobody has waited for has no program either.
        let gone = || std::fs::read_link(format!("/proc/{child}/exe")).is_err();
        soon("journalctl outlives its reader", &mut { gone })?;
    }
    let mut left = Following::start(host, &["why", "-f", "--since", &now()])?;
    let mut silent = Command::new(host.bin().join("casemate"));
    silent.env("CASEMATE_RUN_DIR", host.run_dir()).env("CASEMATE_STATE_DIR", host.state_dir());
    let mut silent =
        silent.args(["--format", "json", "why", "-f"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    drop(silent.stdout.take());
    soon("it goes on without a reader", &mut || silent.try_wait().is_ok_and(|ended| ended.is_some()))?;
    check(silent.wait()?.success(), "and is content")?;
    check(left.child.try_wait()?.is_none(), "another goes on")
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
