//! SIGKILL: of the jailer after each line of its journal and between any system calls of its life; of the warden, the runner, the
//! client; and of `repair` itself. Then `repair` gives the host back, says what it did, and finds nothing the second time.

use std::fs;

use casemate_sys::memfd;
use casemate_tests::crash::Site;
use casemate_tests::guest;
use casemate_tests::jail::{self, Host, Launch, gone};
use casemate_tests::step::{self, Steps};
use casemate_wire::jailer::Event;
use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};

use crate::jailer::{check, exit_record, name_of};

/// System calls between two kills; odd, so that attached and detached sandboxes take turns.
const STRIDE: usize = 5;
/// A start alone has more system calls than this; fewer would mean that the matrix does not reach its steps.
const LEAST: usize = 150;

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(format!("jailer_kill::{name}"), run);
    vec![
        trial("the_warden_of_a_running_sandbox", warden_killed),
        trial("the_warden_of_a_detached_sandbox_leaves_a_record", detached_warden_killed),
        trial("the_warden_while_its_sandbox_is_paused", paused_warden_killed),
        trial("warden_and_runner_together", both_killed),
        trial("many_wardens_at_once", many_killed),
        trial("repair_says_before_it_does", dry_run),
        trial("repair_killed_at_any_time", repair_killed),
        trial("repair_leaves_the_living_alone", living),
        trial("the_jailer_after_each_line_of_its_journal", after_each_line),
        trial("the_jailer_after_system_calls_all_along", after_calls),
        // One host for all kills: what one leaves, the next would find.
        trial("svirt_12_34_after_each_line_the_host_is_byte_for_byte_as_before", || told(Site::new()?.each_line(1, 1))),
        trial("svirt_34_after_system_calls_the_host_is_byte_for_byte_as_before", || told(Site::new()?.each_call(31))),
        trial("svirt_34_after_a_killed_repair_too", || told(Site::new()?.each_call_of_repair(17))),
        trial("svirt_34_what_a_reboot_leaves_is_repaired", || told(Site::new()?.reboot())),
    ]
}

fn told(result: Result<String, Failed>) -> Result<(), Failed> {
    result.map(drop)
}

/// A guest that says something and goes.
fn short(host: &Host) -> Result<Value, Failed> {
    let mut spec = host.bare(
        "kill",
        guest::pvh_elf(|a| {
            guest::print(a, b"x")?;
            guest::power_off(a)
        }),
    )?;
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
    calls: usize,
    /// It was about to exit by itself.
    over: bool,
    /// Its journal then.
    journal: Vec<String>,
    /// The client had heard that it runs.
    started: bool,
}

fn journal_of(host: &Host, spec: &Value) -> Vec<String> {
    let path = host.run_dir().join("vms").join(name_of(spec)).join("journal");
    fs::read_to_string(path).unwrap_or_default().lines().map(String::from).collect()
}

/// Starts, kills after the first system call that `when` picks by its number and the lines of the journal, and waits
/// for whoever the jailer had started.
fn kill_when(host: &Host, spec: &Value, when: impl Fn(usize, usize) -> bool) -> Result<Point, Failed> {
    let held = step::held(&host.jailer());
    let mut vm = host.start_with(memfd::sealed("spec", spec.to_string().as_bytes())?, held)?;
    let mut steps = Steps::follow(vm.pid(), vm.stdin())?;
    let (mut calls, mut most, mut over) = (0, 0, false);
    loop {
        // At the end the journal is removed: what it once had counts.
        most = most.max(journal_of(host, spec).len());
        if when(calls, most) {
            break;
        }
        over = !steps.advance()?;
        if over {
            break;
        }
        calls += 1;
    }
    let (children, journal) = (step::children(vm.pid())?, journal_of(host, spec));
    steps.let_die()?;
    vm.kill()?;
    for child in children {
        gone(child).map_err(|e| format!("the runner outlives its jailer: {}", e.message().unwrap_or_default()))?;
    }
    let started = matches!(vm.event(), Ok(Event::Started(_)));
    Ok(Point { calls, over, journal, started })
}

/// One kill and its repair.
fn once(detached: bool, when: impl Fn(usize, usize) -> bool) -> Result<Point, Failed> {
    let host = Host::new()?;
    let mut spec = short(&host)?;
    spec["detach"] = json!(detached);
    let point = kill_when(&host, &spec, when)?;
    let told = |why: &str| format!("{why}\nkilled after {} calls, with {:#?}", point.calls, point.journal);
    let said = repaired(&host).map_err(|e| told(e.message().unwrap_or_default()))?;
    // Entry 0 is the directory's own end; the others are the journal's.
    let of_journal = |d: &Vec<Value>| d.iter().any(|report| report["n"] != 0);
    let did = said_of(&said, name_of(&spec)).is_some_and(|s| s["did"].as_array().is_some_and(of_journal));
    let marks = |mark: &str| point.journal.iter().filter(|line| line.contains(mark)).count();
    check(did == (marks("\"intent\"") > marks("undone")), told(&format!("repair says: {said}")))?;
    Ok(point)
}

/// Right after each line that the journal gets, in a whole life: start, run, end.
fn after_each_line() -> Result<(), Failed> {
    let (mut lines, mut started) = (1, 0);
    loop {
        let point = once(lines % 2 == 0, |_, journal| journal >= lines)?;
        if point.over {
            break;
        }
        check(point.journal.len() == lines, format!("{} lines, not {lines}", point.journal.len()))?;
        started += usize::from(point.started);
        lines += 1;
    }
    check(lines > 14, format!("a whole life is {lines} lines only"))?;
    check(started > 3, format!("{started} were killed as wardens"))
}

/// After every n-th system call; CASEMATE_EACH_CALL=1 means every one, which takes minutes.
fn after_calls() -> Result<(), Failed> {
    let each = std::env::var_os("CASEMATE_EACH_CALL").is_some();
    let (mut calls, stride) = (0, if each { 1 } else { STRIDE });
    while !once(calls % 2 == 0, |now, _| now >= calls)?.over {
        calls += stride;
    }
    check(calls > LEAST, format!("a whole run is {calls} system calls only"))
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
    for calls in (0..).step_by(STRIDE) {
        let host = Host::new()?;
        let (mut vm, _, _) = spinning(&host)?;
        vm.kill()?;
        let mut held = step::held(&host.jailer());
        let mut repair = held.arg("repair").args(host.dirs()).stdout(std::process::Stdio::null()).spawn()?;
        let mut steps = Steps::follow(repair.id(), repair.stdin.take())?;
        let over = (0..calls).map(|_| steps.advance()).find(|more| !matches!(more, Ok(true))).transpose()?.is_some();
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
