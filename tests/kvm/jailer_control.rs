//! The warden's control socket: each request, requests out of phase, garbage, and more connections than it serves.

use std::time::Duration;

use casemate_sys::rustix::net::{SendFlags, send};
use casemate_tests::guest;
use casemate_tests::jail::{Host, Launch, ask, soon};
use casemate_wire::control::{Request, Response};
use casemate_wire::record::{ExitCause, Phase};
use libtest_mimic::{Failed, Trial};

use crate::jailer::{check, name_of};

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(format!("jailer_control::{name}"), run);
    vec![
        trial("inspect_attest_pause_resume_wait_kill", every_request),
        trial("requests_out_of_phase_are_refused", out_of_phase),
        trial("garbage_ends_its_connection_only", garbage),
        trial("a_hundred_connections_harm_nobody", a_hundred_connections),
    ]
}

/// A spinning guest, started.
fn spinning(host: &Host) -> Result<(Launch, String), Failed> {
    let spec = host.bare("ctl", guest::pvh_elf(guest::spin))?;
    let mut vm = host.start(&spec)?;
    vm.started()?;
    Ok((vm, name_of(&spec).to_owned()))
}

fn phase(vm: &Launch, name: &str) -> Result<Phase, Failed> {
    match vm.ask(name, Request::Inspect)? {
        Response::Record(record) => Ok(record.phase),
        other => Err(format!("{other:?}").into()),
    }
}

fn every_request() -> Result<(), Failed> {
    let host = Host::new()?;
    let (mut vm, name) = spinning(&host)?;
    check(phase(&vm, &name)? == Phase::Running, "not running")?;
    match vm.ask(&name, Request::Attest)? {
        Response::Findings(f) => check(f.len() > 20 && f.iter().all(|f| f.ok), format!("{f:?}"))?,
        other => return Err(format!("{other:?}").into()),
    }
    let waiting = vm.control(&name)?;
    waiting.send(&Request::Wait)?;
    check(vm.ask(&name, Request::Pause)? == Response::Done, "pause")?;
    check(phase(&vm, &name)? == Phase::Paused, "not paused")?;
    let spent = cpu_time(&vm, &name)?;
    std::thread::sleep(Duration::from_millis(100));
    check(cpu_time(&vm, &name)? <= spent + 1, "a paused guest spends time")?;
    match vm.ask(&name, Request::Attest)? {
        Response::Findings(f) => check(f.iter().all(|f| f.ok), format!("while paused: {f:?}"))?,
        other => return Err(format!("{other:?}").into()),
    }
    check(vm.ask(&name, Request::Resume)? == Response::Done, "resume")?;
    check(phase(&vm, &name)? == Phase::Running, "not running again")?;
    let told = vm.ask(&name, Request::Kill)?;
    let exited = |r: &Response| matches!(r, Response::Exited(report) if report.cause == ExitCause::Killed);
    check(exited(&told), format!("{told:?}"))?;
    let waited = waiting.receive::<Response>()?;
    check(exited(&waited), format!("{waited:?}"))?;
    vm.exited()?;
    check(vm.control(&name).is_err(), "the control socket is still there")?;
    host.clean()
}

/// User and system time of the runner, in ticks.
fn cpu_time(vm: &Launch, name: &str) -> Result<u64, Failed> {
    let Response::Record(record) = vm.ask(name, Request::Inspect)? else { return Err("no record".into()) };
    let pid = record.runner.ok_or("no runner")?.pid;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').ok_or("stat")?.1.split_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

fn out_of_phase() -> Result<(), Failed> {
    let host = Host::new()?;
    let (mut vm, name) = spinning(&host)?;
    let refused = |r: &Response, phase: &str| matches!(r, Response::Refused(why) if why.contains(phase));
    let told = vm.ask(&name, Request::Resume)?;
    check(refused(&told, "running"), format!("{told:?}"))?;
    vm.ask(&name, Request::Pause)?;
    let told = vm.ask(&name, Request::Pause)?;
    check(refused(&told, "paused"), format!("{told:?}"))?;
    // The same connection goes on after a refusal.
    let control = vm.control(&name)?;
    check(refused(&ask(&control, Request::Pause)?, "paused"), "not refused")?;
    check(ask(&control, Request::Resume)? == Response::Done, "not resumed")?;
    vm.ask(&name, Request::Kill)?;
    vm.exited()?;
    host.clean()
}

fn garbage() -> Result<(), Failed> {
    let host = Host::new()?;
    let (mut vm, name) = spinning(&host)?;
    let giant = vec![0xff; 100_000];
    for bytes in [&[0xff_u8; 9][..], &[0x7f], &[0, 0], b"{\"kill\":1}", &giant] {
        let control = vm.control(&name)?;
        send(&control, bytes, SendFlags::NOSIGNAL)?;
        let told = control.receive::<Response>();
        check(told.is_err(), format!("{} bytes of garbage are answered: {told:?}", bytes.len()))?;
    }
    check(phase(&vm, &name)? == Phase::Running, "garbage reached the sandbox")?;
    vm.ask(&name, Request::Kill)?;
    vm.exited()?;
    host.clean()
}

fn a_hundred_connections() -> Result<(), Failed> {
    let host = Host::new()?;
    let (mut vm, name) = spinning(&host)?;
    let mut held = Vec::new();
    for _ in 0..100 {
        held.extend(vm.control(&name).ok());
    }
    check(held.len() >= 32, format!("{} connections", held.len()))?;
    let fds = || std::fs::read_dir(format!("/proc/{}/fd", vm.pid())).map_or(0, Iterator::count);
    check(fds() < 80, format!("the warden holds {} descriptors", fds()))?;
    drop(held);
    // Those that went away make room.
    soon("an answer after the crowd", || vm.ask(&name, Request::Inspect).is_ok())?;
    vm.ask(&name, Request::Kill)?;
    vm.exited()?;
    host.clean()
}
