//! The jailer as a program: from a specification to a finished tiny guest, each end told apart, nothing left.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use casemate_tests::guest;
use casemate_tests::jail::{self, Host};
use casemate_wire::control::Request;
use casemate_wire::record::{ExitCause, SandboxRecord};
use iced_x86::code_asm::*;
use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(format!("jailer::{name}"), run);
    vec![
        trial("a_full_cycle_is_proven_and_leaves_a_record", a_full_cycle),
        trial("what_was_planned_is_what_runs", what_was_planned_is_what_runs),
        trial("ends: power off", || ends(guest::power_off, ExitCause::PowerOff)),
        trial("ends: reboot", || ends(guest::reset, ExitCause::Reboot)),
        trial("ends: triple fault", || ends(guest::triple_fault, ExitCause::TripleFault)),
        trial("ends: guest panic", || ends(guest::panic, ExitCause::GuestPanic)),
        trial("ends: timeout", timeout),
        trial("ends: killed on request", killed),
        trial("ends: SIGTERM to the warden", sigterm),
        trial("ends: the client is gone", client_gone),
        trial("ends: the runner is killed", runner_killed),
        trial("a_detached_sandbox_outlives_its_client", detached),
        trial("an_unnamed_sandbox_gets_a_name", unnamed),
        trial("a_reboot_may_restart", reboot_restarts),
        trial("a_record_is_removed_only_after_the_end", removal),
        trial("twenty_starts_at_once_are_apart", twenty_at_once),
        trial("a_writable_disk_is_written_and_left", writable_disk),
    ]
}

pub fn check(ok: bool, what: impl std::fmt::Display) -> Result<(), Failed> {
    if ok { Ok(()) } else { Err(what.to_string().into()) }
}

pub fn name_of(spec: &Value) -> &str {
    spec["name"].as_str().unwrap_or_default()
}

/// What the sandbox left as its record.
pub fn exit_record(host: &Host, name: &str) -> Result<SandboxRecord, Failed> {
    let path = host.run_dir().join("vms").join(name).join("exit.json");
    Ok(serde_json::from_slice(&fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?)?)
}

fn console(host: &Host, name: &str) -> Result<Vec<u8>, Failed> {
    let dir = host.run_dir().join("vms").join(name);
    let parts = ["console-log.0", "console-log.1"].map(|file| fs::read(dir.join(file)));
    let [first, second] = parts;
    Ok([first?, second?].concat())
}

fn a_full_cycle() -> Result<(), Failed> {
    let host = Host::new()?;
    let spec = host.bare(
        "cycle",
        guest::pvh_elf(|a| {
            guest::print(a, b"hello from inside")?;
            guest::power_off(a)
        }),
    )?;
    let name = name_of(&spec);
    let mut vm = host.start(&spec)?;
    let record = vm.started()?;
    check(record.posture.to_string() == "hardened" || in_selinux(), format!("posture {}", record.posture))?;
    let bad: Vec<_> = record.findings.iter().filter(|f| !f.ok).collect();
    check(bad.is_empty(), format!("{bad:?}"))?;
    let layers: BTreeSet<&str> = record.findings.iter().map(|f| f.layer.as_str()).collect();
    let wanted = ["capabilities", "cgroup", "fds", "landlock", "mounts", "namespaces", "rlimits", "seccomp", "uid"];
    let missing: Vec<_> = wanted.iter().filter(|layer| !layers.contains(*layer)).collect();
    check(missing.is_empty(), format!("nothing was attested of {missing:?}; there are {layers:?}"))?;
    for thread in ["main", "io", "vcpu0"] {
        check(record.findings.iter().any(|f| f.what.contains(thread)), format!("nothing of thread {thread}"))?;
    }
    let report = vm.exited()?;
    check(report.cause == ExitCause::PowerOff, format!("{report:?}"))?;
    check(console(&host, name)? == b"hello from inside", "the console's log is another")?;
    let kept = exit_record(&host, name)?;
    check(kept.exit == Some(report) && kept.findings == record.findings, format!("{kept:?}"))?;
    host.clean()?;
    check(host.verb(&["rm", name])?.status.success(), "rm failed")?;
    host.spotless()?;
    check(host.repair(&[])?["sandboxes"] == json!([]), "repair found something")
}

fn in_selinux() -> bool {
    std::path::Path::new("/sys/fs/selinux/enforce").exists()
}

/// The kernel's own view of the running runner, read by the test and not by Casemate.
fn what_was_planned_is_what_runs() -> Result<(), Failed> {
    let host = Host::new()?;
    let spec = host.bare("seen", guest::pvh_elf(guest::spin))?;
    let mut vm = host.start(&spec)?;
    let record = vm.started()?;
    let pid = record.runner.ok_or("no runner in the record")?.pid;
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?.flatten().map(|t| t.path()).collect::<Vec<_>>();
    check(tasks.len() >= 3, format!("{} threads", tasks.len()))?;
    for task in tasks {
        let status = fs::read_to_string(task.join("status"))?;
        let value = |key: &str| status.lines().find_map(|l| l.strip_prefix(key)).map(str::trim).unwrap_or("absent");
        let uid = record.uid.to_string();
        check(value("Uid:").split_whitespace().all(|u| u == uid), format!("Uid: {}", value("Uid:")))?;
        check(value("Gid:").split_whitespace().all(|u| u == uid), format!("Gid: {}", value("Gid:")))?;
        check(value("Groups:").is_empty(), format!("Groups: {}", value("Groups:")))?;
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            check(value(set).trim_start_matches('0').is_empty(), format!("{set} {}", value(set)))?;
        }
        check(value("NoNewPrivs:") == "1" && value("Seccomp:") == "2", "no_new_privs or seccomp is off")?;
    }
    check(fs::read_to_string(format!("/proc/{pid}/environ"))?.is_empty(), "an environment was inherited")?;
    for ns in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{ns}"));
        check(of(&pid.to_string())? != of("self")?, format!("namespace {ns} is the host's"))?;
    }
    let root: Vec<_> = fs::read_dir(format!("/proc/{pid}/root/"))?.flatten().map(|e| e.file_name()).collect();
    check(root.is_empty(), format!("the root holds {root:?}"))?;
    check(!record.cgroups.is_empty(), "no cgroup")?;
    for cgroup in &record.cgroups {
        let members = fs::read_to_string(format!("{cgroup}/cgroup.procs"))?;
        check(members.lines().any(|l| l == pid.to_string()), format!("{cgroup} is without the runner"))?;
    }
    vm.ask(name_of(&spec), Request::Kill)?;
    vm.exited()?;
    host.clean()
}

fn ends(code: fn(&mut CodeAssembler) -> guest::Asm, cause: ExitCause) -> Result<(), Failed> {
    let host = Host::new()?;
    let spec = host.bare("ends", guest::pvh_elf(code))?;
    ended(&host, &spec, cause, |_, _| Ok(()))
}

/// Starts, does something, and expects this end, told the same to the client and in the record.
fn ended(
    host: &Host,
    spec: &Value,
    cause: ExitCause,
    what: impl FnOnce(&mut jail::Launch, &SandboxRecord) -> Result<(), Failed>,
) -> Result<(), Failed> {
    let mut vm = host.start(spec)?;
    let record = vm.started()?;
    what(&mut vm, &record)?;
    let report = vm.exited()?;
    check(report.cause == cause, format!("{report:?}, not {cause:?}"))?;
    let kept = exit_record(host, name_of(spec))?;
    check(kept.exit == Some(report.clone()), format!("{report:?} was said, {:?} written", kept.exit))?;
    jail::gone(record.runner.ok_or("no runner")?.pid)?;
    host.clean()
}

fn spinning(host: &Host, hint: &str) -> Result<Value, Failed> {
    host.bare(hint, guest::pvh_elf(guest::spin))
}

fn timeout() -> Result<(), Failed> {
    let host = Host::new()?;
    let mut spec = spinning(&host, "timeout")?;
    spec["timeout"] = json!("1s");
    let begin = Instant::now();
    ended(&host, &spec, ExitCause::Timeout, |_, _| Ok(()))?;
    let took = begin.elapsed();
    check(took > Duration::from_millis(900) && took < Duration::from_secs(10), format!("after {took:?}"))
}

fn killed() -> Result<(), Failed> {
    let host = Host::new()?;
    let spec = spinning(&host, "killed")?;
    let control = |vm: &mut jail::Launch, _: &SandboxRecord| vm.ask(name_of(&spec), Request::Kill).map(drop);
    ended(&host, &spec, ExitCause::Killed, control)
}

fn sigterm() -> Result<(), Failed> {
    let host = Host::new()?;
    let spec = spinning(&host, "term")?;
    let term = casemate_sys::rustix::process::Signal::TERM;
    ended(&host, &spec, ExitCause::Killed, |_, record| jail::signal(record.warden, term))
}

fn client_gone() -> Result<(), Failed> {
    let host = Host::new()?;
    let spec = spinning(&host, "gone")?;
    let mut vm = host.start(&spec)?;
    let record = vm.started()?;
    vm.hang_up();
    check(vm.wait()?.success(), "the warden failed")?;
    let kept = exit_record(&host, name_of(&spec))?;
    check(kept.exit.as_ref().is_some_and(|e| e.cause == ExitCause::ClientGone), format!("{:?}", kept.exit))?;
    jail::gone(record.runner.ok_or("no runner")?.pid)?;
    host.clean()
}

fn runner_killed() -> Result<(), Failed> {
    let host = Host::new()?;
    let spec = spinning(&host, "died")?;
    ended(&host, &spec, ExitCause::RunnerDied, |_, record| jail::kill(record.runner.ok_or("no runner")?))?;
    let detail = exit_record(&host, name_of(&spec))?.exit.and_then(|e| e.detail).unwrap_or_default();
    check(detail.contains("signal 9") || detail.contains("KILL"), detail)
}

fn detached() -> Result<(), Failed> {
    let host = Host::new()?;
    let mut spec = spinning(&host, "detached")?;
    spec["detach"] = json!(true);
    let name = name_of(&spec).to_owned();
    let mut vm = host.start(&spec)?;
    check(vm.started()?.detached, "not recorded as detached")?;
    vm.hang_up();
    std::thread::sleep(Duration::from_millis(50));
    check(!host.files(&name).contains(&"exit.json".into()), "it ended with its client")?;
    let control = vm.control(&name)?;
    let told = jail::ask(&control, Request::Kill)?;
    check(format!("{told:?}").contains("Killed"), format!("{told:?}"))?;
    vm.wait()?;
    host.clean()
}

fn unnamed() -> Result<(), Failed> {
    let host = Host::new()?;
    let mut spec = host.bare("x", guest::pvh_elf(guest::power_off))?;
    spec.as_object_mut().and_then(|s| s.remove("name"));
    let mut vm = host.start(&spec)?;
    let name = vm.started()?.name;
    check(name.starts_with("sb-") && name.len() == 13, &name)?;
    vm.exited()?;
    check(host.sandboxes() == [name], format!("{:?}", host.sandboxes()))?;
    host.clean()
}

/// Guest memory is as the kernel left it, so the second life knows that it is one.
fn reboot_restarts() -> Result<(), Failed> {
    let host = Host::new()?;
    let mut spec = host.bare(
        "again",
        guest::pvh_elf(|a| {
            guest::print(a, b"r")?;
            guest::reset(a)
        }),
    )?;
    spec["on_reboot"] = json!("restart");
    spec["timeout"] = json!("2s");
    let mut vm = host.start(&spec)?;
    vm.started()?;
    let report = vm.exited()?;
    let lives = console(&host, name_of(&spec))?.len();
    check(report.cause == ExitCause::Timeout && lives >= 2, format!("{report:?} after {lives} lives"))?;
    host.clean()
}

fn removal() -> Result<(), Failed> {
    let host = Host::new()?;
    let spec = spinning(&host, "rm")?;
    let name = name_of(&spec);
    let mut vm = host.start(&spec)?;
    vm.started()?;
    let early = host.verb(&["rm", name])?;
    let said = String::from_utf8_lossy(&early.stderr).into_owned();
    check(!early.status.success() && said.contains("has not ended") && said.contains("stop"), said)?;
    vm.ask(name, Request::Kill)?;
    vm.exited()?;
    check(host.verb(&["rm", name])?.status.success(), "rm failed")?;
    let again = host.verb(&["rm", name])?;
    check(String::from_utf8_lossy(&again.stderr).contains("there is no sandbox"), "a second rm is told nothing")?;
    host.spotless()
}

fn twenty_at_once() -> Result<(), Failed> {
    let host = Host::new()?;
    let specs: Vec<Value> = (0..20).map(|_| spinning(&host, "many")).collect::<Result<_, _>>()?;
    let mut vms: Vec<_> = specs.iter().map(|spec| host.start(spec)).collect::<Result<_, _>>()?;
    let records: Vec<_> = vms.iter_mut().map(|vm| vm.started()).collect::<Result<_, _>>()?;
    let distinct = |key: fn(&SandboxRecord) -> String| records.iter().map(key).collect::<BTreeSet<_>>().len();
    check(distinct(|r| r.uid.to_string()) == 20, "two have the same uid")?;
    check(distinct(|r| r.cgroups.join(",")) == 20, "two have the same cgroup")?;
    check(host.leases().len() >= 20, format!("{} leases", host.leases().len()))?;
    let alive = host.repair(&[])?;
    let states = alive["sandboxes"].as_array().ok_or("no list")?;
    check(states.len() == 20 && states.iter().all(|s| s["state"] == "alive"), format!("{alive}"))?;
    for (vm, spec) in vms.iter_mut().zip(&specs) {
        vm.ask(name_of(spec), Request::Kill)?;
    }
    for vm in &mut vms {
        vm.exited()?;
    }
    host.clean()
}

/// The disk is opened by the jailer, and its owner, mode and content stay but for what the guest wrote.
fn writable_disk() -> Result<(), Failed> {
    let host = Host::new()?;
    let mut spec = host.bare(
        "disk",
        guest::pvh_elf(|a| {
            guest::load32(a, 0xd000_0008)?;
            guest::print_al(a)?;
            guest::power_off(a)
        }),
    )?;
    let path = host.file("disk.raw");
    fs::write(&path, [7; 8192])?;
    spec["disks"] = json!([{ "id": "d", "path": path, "format": "raw" }]);
    let before = casemate_sys::path::identity(&fs::File::open(&path)?)?;
    let mut vm = host.start(&spec)?;
    vm.started()?;
    vm.exited()?;
    check(console(&host, name_of(&spec))? == [2], "the guest found no block device")?;
    let after = casemate_sys::path::identity(&fs::File::open(&path)?)?;
    check((after.uid, after.mode, after.ino) == (before.uid, before.mode, before.ino), "the image was changed")?;
    check(fs::read(&path)? == [7; 8192], "the image was written")?;
    host.clean()
}
