//! SIGKILL: of the jailer after every single system call of a start, a run and an end; of the warden, the runner, the
//! client; and of `repair` itself. Then `repair` gives the host back, says what it did, and finds nothing the second time.

use std::collections::BTreeSet;
use std::fs;

use casemate_sys::memfd;
use casemate_tests::guest;
use casemate_tests::jail::{self, Host, Launch, gone};
use casemate_tests::step::{self, Steps};
use casemate_wire::jailer::Event;
use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};

use crate::jailer::{check, exit_record, name_of};

/// The matrix is split over this many trials, which run side by side.
const PARTS: usize = 4;
/// A start alone has more system calls than this; fewer would mean that the matrix does not reach its steps.
const LEAST: usize = 150;

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(format!("jailer_kill::{name}"), run);
    let mut trials = vec![
        trial("the_warden_of_a_running_sandbox", warden_killed),
        trial("the_warden_of_a_detached_sandbox_leaves_a_record", detached_warden_killed),
        trial("the_warden_while_its_sandbox_is_paused", paused_warden_killed),
        trial("warden_and_runner_together", both_killed),
        trial("many_wardens_at_once", many_killed),
        trial("repair_says_before_it_does", dry_run),
        trial("repair_killed_after_each_system_call", repair_killed),
        trial("repair_leaves_the_living_alone", living),
    ];
    for part in 0..PARTS {
        let name = format!("jailer_kill::after_each_system_call, part {} of {PARTS}", part + 1);
        trials.push(Trial::test(name, move || matrix(part)));
    }
    trials
}

/// A guest that says something and goes.
fn short(host: &Host) -> Result<Value, Failed> {
    let mut spec = host.bare("kill", guest::pvh_elf(|a| {
        guest::print(a, b"x")?;
        guest::power_off(a)
    }))?;
    let disk = host.file("disk.raw");
    fs::write(&disk, [0; 4096])?;
    spec["disks"] = json!([{ "id": "d", "path": disk, "format": "raw" }]);
    spec["vsock"] = json!(true);
    Ok(spec)
}

fn spinning(host: &Host) -> Result<(Launch, Value, u32), Failed> {
    let spec = host.bare("kill", guest::pvh_elf(guest::spin))?;
    let mut vm = host.start(&spec)?;
    let record = vm.started()?;
    Ok((vm, spec, record.runner.ok_or("no runner")?.pid))
}

/// What `repair` says of one sandbox.
fn said_of<'a>(repair: &'a Value, name: &str) -> Option<&'a Value> {
    repair["sandboxes"].as_array()?.iter().find(|s| s["sandbox"] == name)
}

/// Repairs; everything must be given back, and a second time there must be nothing to do.
fn repaired(host: &Host) -> Result<Value, Failed> {
    let first = host.repair(&[])?;
    let list = first["sandboxes"].as_array().ok_or("no list of sandboxes")?;
    let well = |s: &Value| matches!(s["state"].as_str(), Some("repaired" | "ended")) && s["error"].is_null();
    check(list.iter().all(well), format!("{first}"))?;
    host.clean().map_err(|e| format!("{} after {first}", e.message().unwrap_or_default()))?;
    let second = host.repair(&[])?;
    let idle = |s: &Value| s["state"] == "ended" && s["did"] == json!([]);
    let list = second["sandboxes"].as_array().ok_or("no list of sandboxes")?;
    check(list.iter().all(idle) && second["leases_dropped"] == json!([]), format!("a second repair: {second}"))?;
    Ok(first)
}

/// Where a jailer was killed.
struct Point {
    /// It was about to exit by itself.
    over: bool,
    /// Lines of its journal then.
    journal: usize,
    /// Phases that the client had heard of.
    started: bool,
}

/// Starts, kills after `calls` system calls, waits for whoever it had started.
fn kill_after(host: &Host, spec: &Value, calls: usize) -> Result<Point, Failed> {
    let held = step::held(&host.jailer());
    let mut vm = host.start_with(memfd::sealed("spec", spec.to_string().as_bytes())?, held)?;
    let steps = Steps::follow(vm.pid(), vm.stdin())?;
    let mut over = false;
    for _ in 0..calls {
        if !steps.next()? {
            over = true;
            break;
        }
    }
    let children = step::children(vm.pid())?;
    let journal = host.run_dir().join("vms").join(name_of(spec)).join("journal");
    let journal = fs::read_to_string(journal).map_or(0, |text| text.lines().count());
    steps.let_die()?;
    vm.kill()?;
    for child in children {
        gone(child).map_err(|e| format!("the runner outlives its jailer: {}", e.message().unwrap_or_default()))?;
    }
    let started = matches!(vm.event(), Ok(Event::Started(_)));
    Ok(Point { over, journal, started })
}

fn matrix(part: usize) -> Result<(), Failed> {
    let (mut journals, mut started, mut calls) = (BTreeSet::new(), 0, part);
    loop {
        let host = Host::new()?;
        let mut spec = short(&host)?;
        // Every other time detached: then a record is left.
        spec["detach"] = json!(calls % (2 * PARTS) >= PARTS);
        let told = |e: Failed| Failed::from(format!("after {calls} calls: {}", e.message().unwrap_or_default()));
        let point = kill_after(&host, &spec, calls).map_err(told)?;
        journals.insert(point.journal);
        started += usize::from(point.started);
        let said = repaired(&host).map_err(told)?;
        let did = said_of(&said, name_of(&spec)).is_some_and(|s| s["did"].as_array().is_some_and(|d| !d.is_empty()));
        // Two lines or more are an intent, unless it was undone by then.
        check(did || point.journal < 2 || point.started, format!("after {calls} calls repair did nothing: {said}"))?;
        if point.over {
            break;
        }
        calls += PARTS;
    }
    check(calls > LEAST, format!("a whole run is {calls} system calls only"))?;
    check(journals.len() > 8, format!("the journal was cut at {journals:?} lines only"))?;
    check(started > 5, "no jailer was killed as a warden")
}

fn warden_killed() -> Result<(), Failed> {
    let host = Host::new()?;
    let (mut vm, spec, runner) = spinning(&host)?;
    vm.kill()?;
    gone(runner)?;
    let said = repaired(&host)?;
    let said = said_of(&said, name_of(&spec)).ok_or("repair says nothing of it")?;
    check(said["state"] == "repaired", format!("{said}"))?;
    for what in ["lease", "cgroup", "runner process"] {
        check(said["did"].to_string().contains(what), format!("nothing of the {what}: {said}"))?;
    }
    host.spotless()
}

fn detached_warden_killed() -> Result<(), Failed> {
    let host = Host::new()?;
    let mut spec = host.bare("kept", guest::pvh_elf(guest::spin))?;
    spec["detach"] = json!(true);
    let mut vm = host.start(&spec)?;
    vm.started()?;
    vm.kill()?;
    repaired(&host)?;
    let kept = exit_record(&host, name_of(&spec))?;
    let detail = kept.exit.and_then(|e| e.detail).unwrap_or_default();
    check(detail.contains("warden was killed"), detail)?;
    check(host.verb(&["rm", name_of(&spec)])?.status.success(), "rm failed")?;
    host.spotless()
}

fn paused_warden_killed() -> Result<(), Failed> {
    let host = Host::new()?;
    let (mut vm, spec, runner) = spinning(&host)?;
    vm.ask(name_of(&spec), casemate_wire::control::Request::Pause)?;
    vm.kill()?;
    gone(runner)?;
    repaired(&host)?;
    host.spotless()
}

/// The runner is stopped, so that it cannot end by itself: `repair` has to see to it.
fn both_killed() -> Result<(), Failed> {
    let host = Host::new()?;
    let (mut vm, spec, runner) = spinning(&host)?;
    let process = casemate_wire::record::ProcessName { pid: runner, start_time: 0 };
    jail::signal(process, casemate_sys::rustix::process::Signal::STOP)?;
    vm.kill()?;
    let said = repaired(&host)?;
    check(said_of(&said, name_of(&spec)).is_some(), format!("{said}"))?;
    gone(runner)?;
    host.spotless()
}

fn many_killed() -> Result<(), Failed> {
    let host = Host::new()?;
    let mut vms: Vec<_> = (0..8).map(|_| spinning(&host)).collect::<Result<_, _>>()?;
    for (vm, _, _) in &mut vms {
        vm.kill()?;
    }
    let said = repaired(&host)?;
    check(said["sandboxes"].as_array().is_some_and(|s| s.len() == 8), format!("{said}"))?;
    vms.iter().try_for_each(|(_, _, runner)| gone(*runner))?;
    host.spotless()
}

fn dry_run() -> Result<(), Failed> {
    let host = Host::new()?;
    let (mut vm, spec, _) = spinning(&host)?;
    vm.kill()?;
    let (leases, cgroups, files) = (host.leases(), host.cgroups(), host.files(name_of(&spec)));
    let would = host.repair(&["--dry-run"])?;
    let said = said_of(&would, name_of(&spec)).ok_or("nothing is said of it")?;
    check(said["state"] == "would-repair" && said["did"].to_string().contains("lease"), format!("{said}"))?;
    let now = (host.leases(), host.cgroups(), host.files(name_of(&spec)));
    check(now == (leases, cgroups, files), format!("a dry run changed something: {now:?}"))?;
    repaired(&host)?;
    host.spotless()
}

fn repair_killed() -> Result<(), Failed> {
    for calls in (0..).step_by(3) {
        let host = Host::new()?;
        let (mut vm, _, _) = spinning(&host)?;
        vm.kill()?;
        let mut held = step::held(&host.jailer());
        let mut repair = held.args(["repair", "--run-dir"]).arg(host.run_dir()).stdout(std::process::Stdio::null()).spawn()?;
        let steps = Steps::follow(repair.id(), repair.stdin.take())?;
        let over = (0..calls).map(|_| steps.next()).find(|more| !matches!(more, Ok(true))).transpose()?.is_some();
        steps.let_die()?;
        repair.kill()?;
        repair.wait()?;
        repaired(&host).map_err(|e| format!("after {calls} calls: {}", e.message().unwrap_or_default()))?;
        host.spotless()?;
        if over {
            return check(calls > 60, format!("a repair is {calls} system calls only"));
        }
    }
    Ok(())
}

fn living() -> Result<(), Failed> {
    let host = Host::new()?;
    let (mut alive, spec, _) = spinning(&host)?;
    let (mut dead, dead_spec, _) = spinning(&host)?;
    dead.kill()?;
    let said = host.repair(&[])?;
    let state = |spec: &Value| said_of(&said, name_of(spec)).map(|s| s["state"].clone()).unwrap_or_default();
    check(state(&spec) == "alive" && state(&dead_spec) == "repaired", format!("{said}"))?;
    check(host.leases().len() == 1 && !host.cgroups().is_empty(), format!("leases {:?}", host.leases()))?;
    alive.ask(name_of(&spec), casemate_wire::control::Request::Kill)?;
    alive.exited()?;
    host.spotless().or_else(|_| host.clean())
}
