//! The auditor's look from outside, at real processes: a jailed VM as planned; specimens that violate one thing each and
//! show exactly that; processes that end, change place or bear hostile names while they are looked at.
//!
//! A specimen confines itself with the layers of the jailer's child, but for its one fault, and says its pid. The layers
//! want a process with one thread, so each is this binary again ([`case`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use casemate_audit::observe::{LiveVm, Observer, Survey};
use casemate_audit::profile::Profile;
use casemate_audit::rule::Verdict;
use casemate_audit::subject::{Kind, Known, Process, Subject, Thread};
use casemate_audit::{Around, judge};
use casemate_confine::cgroup::Cgroup;
use casemate_confine::seccomp::{self, Filter};
use casemate_confine::{capabilities, mounts, namespaces, rlimits, uid};
use casemate_plan::Namespace;
use casemate_sys::process::{self, CloneOptions, Cloned};
use casemate_sys::procfs::Proc;
use casemate_sys::{cred, prctl, seqpacket};
use casemate_tests::guest;
use casemate_tests::jail::Host;
use casemate_wire::control::Request;
use libtest_mimic::{Failed, Trial};

use crate::confine::{ALL, ID, cgroup_plan, layout, limits, show};
use crate::jailer::{check, name_of};

const VARIABLE: &str = "CASEMATE_OBSERVE_SPECIMEN";
const GOOD: &str = "good";

/// The fault, and the words with which every line begins that tells it from a good one.
const FAULTS: [(&str, &[&str]); 12] = [
    ("bounding set left", &["thread 0 capabilities", "thread 1 capabilities"]),
    ("another uid", &["thread 0 uid", "thread 1 uid"]),
    ("the host's network", &["namespace net"]),
    ("a leaked descriptor", &["fd file"]),
    ("the host's mounts", &["mount"]),
    ("a mapping to write and execute", &["memory writable_executable"]),
    ("dumpable", &["memory dumpable"]),
    ("new privileges", &["thread 0 no_new_privs", "thread 1 no_new_privs", "thread 0 filters", "thread 1 filters"]),
    ("core dumps", &["limit Max core file size"]),
    ("no cgroup", &["cgroup"]),
    ("a thread that the second filter missed", &["thread 1 filters"]),
    ("a secret in the environment", &["environment"]),
];

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(format!("observe::{name}"), run);
    vec![
        trial("a_jailed_vm_is_seen_as_planned", jailed),
        trial("a_process_that_took_the_pid_is_not_taken_for_the_runner", reused),
        trial("a_lost_warden_is_told", lost),
    ]
}

/// These need root, not KVM.
pub fn specimens() -> Vec<Trial> {
    let root = cred::is_root();
    if !root {
        eprintln!("observe: specimens skipped: they apply layers, which needs root");
    }
    let trial = |name: String, run: Box<dyn FnOnce() -> Result<(), Failed> + Send>| {
        Trial::test(format!("observe::{name}"), run).with_ignored_flag(!root)
    };
    let mut trials: Vec<Trial> = FAULTS
        .iter()
        .map(|(fault, shows)| trial(format!("shows exactly: {fault}"), Box::new(move || shows_exactly(fault, shows))))
        .collect();
    trials.push(trial("processes_that_end_meanwhile_show_nothing_or_themselves".into(), Box::new(ending)));
    trials.push(trial("a_hostile_name_is_text".into(), Box::new(hostile)));
    trials.push(trial("another_user_is_told_what_may_not_be_seen".into(), Box::new(unprivileged)));
    trials.push(trial("a_thread_is_not_taken_for_a_process".into(), Box::new(a_thread)));
    trials
}

// ---- specimens

/// The specimen that this process was started for, if it was.
pub fn case() -> Option<ExitCode> {
    let fault = std::env::var(VARIABLE).ok()?;
    let done = specimen(&fault);
    if let Err(why) = &done {
        eprintln!("{fault}: {why}");
    }
    Some(if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Clones a child that confines itself, prints its pid, and ends it when stdin ends.
fn specimen(fault: &str) -> Result<(), String> {
    let proc = Proc::open().map_err(show)?;
    let wanted: Vec<Namespace> =
        ALL.into_iter().filter(|n| !(fault == "the host's network" && *n == Namespace::Net)).collect();
    let parents = namespaces::own(&proc, &wanted).map_err(show)?;
    let cgroup = Cgroup::create(&cgroup_plan(layout()), &format!("observe-{}", process::own_pid())).map_err(show)?;
    let (ours, theirs) = seqpacket::pair().map_err(show)?;
    let birthplace = cgroup.birthplace().filter(|_| fault != "no cgroup");
    let options = CloneOptions { namespaces: namespaces::flags(&wanted), cgroup: birthplace };
    let born = match process::clone3(&options).map_err(show)? {
        Cloned::Child => {
            drop(ours);
            let done = confine(fault, &proc, &cgroup, &wanted, &parents);
            let message = done.as_ref().map_or_else(Clone::clone, |_| "confined".into());
            let _ = casemate_sys::rustix::io::write(&theirs, message.as_bytes());
            let _ = casemate_sys::rustix::io::read(&theirs, &mut [0; 1]);
            process::exit_now(0)
        }
        Cloned::Parent(born) => born,
    };
    drop(theirs);
    let mut buffer = vec![0; 4096];
    let len = seqpacket::receive(&ours, &mut buffer).map_err(show)?.len;
    let said = String::from_utf8_lossy(&buffer[..len]).into_owned();
    if said == "confined" {
        println!("{}", born.pid());
        let _ = std::io::stdin().read(&mut [0; 1]);
    }
    born.kill().map_err(show)?;
    born.wait().map_err(show)?;
    cgroup.remove(Duration::from_secs(5)).map_err(show)?;
    if said == "confined" { Ok(()) } else { Err(said) }
}

/// What is to stay open and mapped while the specimen lives.
#[derive(Default)]
struct Kept {
    _leak: Option<File>,
    _mapping: Option<vm_memory::MmapRegion<()>>,
}

fn confine(
    fault: &str,
    proc: &Proc,
    cgroup: &Cgroup,
    wanted: &[Namespace],
    parents: &namespaces::Identities,
) -> Result<Kept, String> {
    let is = |name: &str| fault == name;
    let mut kept = Kept::default();
    let _ = namespaces::apply(proc, wanted, parents).map_err(show)?;
    if !is("no cgroup") {
        let _ = cgroup.join(proc).map_err(show)?;
    }
    if is("a leaked descriptor") {
        kept._leak = Some(File::open("/etc/passwd").map_err(show)?);
    }
    if is("a mapping to write and execute") {
        // PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS.
        kept._mapping = Some(vm_memory::MmapRegion::build(None, 4096, 7, 0x22).map_err(show)?);
    }
    if !is("the host's mounts") {
        let _ = mounts::apply().map_err(show)?;
    }
    let bounds: Vec<_> = limits().into_iter().filter(|limit| !(is("core dumps") && limit.name == "core")).collect();
    if is("core dumps") {
        casemate_sys::rlimit::set(casemate_sys::rlimit::Resource::Core, 1 << 20).map_err(show)?;
    }
    let _ = rlimits::apply(&bounds).map_err(show)?;
    let _ = seccomp::apply(Filter::JailerExec).map_err(show)?;
    if !is("bounding set left") {
        capabilities::drop_bounding().map_err(show)?;
    }
    uid::drop_groups().map_err(show)?;
    uid::set_gid(ID).map_err(show)?;
    let id = if is("another uid") { ID + 1 } else { ID };
    let _ = uid::set_uid(id, ID).map_err(show)?;
    if is("bounding set left") {
        cred::drop_capabilities().map_err(show)?;
    } else {
        let _ = capabilities::drop_all().map_err(show)?;
    }
    if !is("new privileges") {
        prctl::set_no_new_privs().map_err(show)?;
    }
    if is("dumpable") {
        // A change of uid has taken it away.
        use casemate_sys::rustix::process::{DumpableBehavior, set_dumpable_behavior};
        set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(show)?;
    } else {
        prctl::set_not_dumpable().map_err(show)?;
    }
    let second = !is("a thread that the second filter missed");
    let (tell, told) = std::sync::mpsc::channel();
    // It takes what its maker has by now; filters it installs itself.
    std::thread::spawn(move || {
        let done = if second && prctl::no_new_privs().unwrap_or(false) {
            seccomp::apply(Filter::RunnerIo).map(drop).map_err(show)
        } else {
            Ok(())
        };
        let _ = tell.send(done);
        loop {
            std::thread::park();
        }
    });
    told.recv().map_err(show)??;
    if !is("new privileges") {
        let _ = seccomp::apply(Filter::RunnerMain).map_err(show)?;
    }
    Ok(kept)
}

/// A specimen that runs, until this is dropped.
struct Specimen {
    child: Child,
    pid: u32,
}

impl Specimen {
    fn start(fault: &str) -> Result<Self, Failed> {
        let mut command = Command::new(std::env::current_exe()?);
        command.env_clear().env(VARIABLE, fault).stdin(Stdio::piped()).stdout(Stdio::piped());
        if fault == "a secret in the environment" {
            command.env("TOKEN", "hunter2");
        }
        let mut child = command.spawn()?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        let pid = line.trim().parse().map_err(|_| format!("the specimen '{fault}' did not start"));
        if pid.is_err() {
            let _ = child.wait();
        }
        Ok(Self { child, pid: pid? })
    }
}

impl Drop for Specimen {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn shows_exactly(fault: &str, shows: &[&str]) -> Result<(), Failed> {
    let observer = Observer::new()?;
    let (good, bad) = (Specimen::start(GOOD)?, Specimen::start(fault)?);
    let lines = |specimen: &Specimen| -> Result<BTreeSet<String>, Failed> {
        let subject = observer.process(specimen.pid);
        lines(subject.processes.first().ok_or("no process")?)
    };
    let (good, bad) = (lines(&good)?, lines(&bad)?);
    let other: Vec<&String> = good.symmetric_difference(&bad).collect();
    let unexpected: Vec<_> = other.iter().filter(|line| !shows.iter().any(|words| line.starts_with(words))).collect();
    check(unexpected.is_empty(), format!("differs also in {unexpected:#?}"))?;
    for words in shows {
        check(
            other.iter().any(|line| line.starts_with(words)),
            format!("'{words}' looks like a good one's: {bad:#?}"),
        )?;
    }
    check(!bad.iter().any(|line| line.contains("hunter2")), "a variable's value is in the report")
}

/// A process in lines, without what differs between any two.
fn lines(process: &Process) -> Result<BTreeSet<String>, Failed> {
    let mut lines = BTreeSet::new();
    for (n, thread) in seen(&process.threads)?.iter().enumerate() {
        lines.extend(thread_lines(thread)?.into_iter().map(|line| format!("thread {n} {line}")));
    }
    let namespaces = seen(&process.namespaces)?;
    lines.extend(namespaces.iter().map(|(name, is)| format!("namespace {name} hosts {}", is.hosts)));
    for cgroup in seen(&process.cgroups)? {
        lines.extend(cgroup.limits.iter().map(|(file, value)| format!("cgroup {file} {value}")));
    }
    lines.extend(seen(&process.rlimits)?.iter().map(|(name, limit)| format!("limit {name} {limit:?}")));
    let mut kinds: BTreeMap<(&str, bool, bool), usize> = BTreeMap::new();
    for fd in seen(&process.fds)? {
        *kinds.entry((&fd.kind, fd.read, fd.write)).or_default() += 1;
    }
    lines.extend(kinds.iter().map(|((kind, read, write), count)| format!("fd {kind} {read} {write} {count}")));
    lines.extend(seen(&process.mounts)?.iter().map(|m| format!("mount {} {} {:?}", m.point, m.kind, m.options)));
    lines.extend(seen(&process.environment)?.iter().map(|name| format!("environment {name}")));
    let memory = seen(&process.memory)?;
    lines.insert(format!("memory writable_executable {}", memory.writable_executable.len()));
    lines.insert(format!("memory dumpable {:?}", memory.dumpable));
    lines.insert(format!("memory rest {:?} {} {}", memory.coredump_filter, memory.locked, memory.executable_stack));
    Ok(lines)
}

fn thread_lines(thread: &Thread) -> Result<Vec<String>, Failed> {
    let filters = match &thread.filters {
        Known::Seen(verdicts) => format!("{:?}", verdicts.filters.iter().map(|f| &f.digest).collect::<Vec<_>>()),
        Known::Unseen(why) => return Err(format!("the filters were not read: {why}").into()),
    };
    Ok(vec![
        format!("uid {:?} {:?} {:?}", thread.uid, thread.gid, thread.groups),
        format!("capabilities {:?}", thread.capabilities),
        format!("no_new_privs {}", thread.no_new_privs),
        format!("filters {} {} {filters}", thread.seccomp_mode, thread.filter_count),
    ])
}

fn seen<T>(known: &Known<T>) -> Result<&T, Failed> {
    match known {
        Known::Seen(value) => Ok(value),
        Known::Unseen(why) => Err(format!("not seen: {why}").into()),
    }
}

// ---- races and hostile names

/// Everything of it, or nothing but why.
fn whole_or_nothing(process: &Process) -> Result<bool, Failed> {
    let unseen: Vec<String> = [
        process.threads.clone().map(drop),
        process.fds.clone().map(drop),
        process.namespaces.clone().map(drop),
        process.memory.clone().map(drop),
        process.environment.clone().map(drop),
    ]
    .into_iter()
    .filter_map(|part| match part {
        Known::Unseen(why) => Some(why),
        Known::Seen(()) => None,
    })
    .collect();
    match unseen.len() {
        0 => Ok(true),
        5 => {
            let told = unseen.iter().all(|why| why.contains("ended") || why.contains("there is no process"));
            check(told, format!("{unseen:?}")).map(|()| false)
        }
        _ => Err(format!("half of it: {unseen:?}").into()),
    }
}

/// Processes are killed at every moment of being looked at; their numbers go round meanwhile.
fn ending() -> Result<(), Failed> {
    const EACH: u32 = 150;
    let observer = Observer::new()?;
    let (mut whole, mut gone) = (0, 0);
    for n in 0..EACH {
        let mut child = Command::new("/bin/sleep").arg("100").env_clear().env("NUMBER", "x").spawn()?;
        let pid = child.id();
        let killed = AtomicBool::new(false);
        let process = std::thread::scope(|scope| -> Result<Process, Failed> {
            scope.spawn(|| {
                // From before the first read to after the last.
                let wait = Duration::from_micros(u64::from(n) * 25);
                let begin = Instant::now();
                while begin.elapsed() < wait {
                    std::hint::spin_loop();
                }
                let _ = child.kill();
                let _ = child.wait();
                killed.store(true, Ordering::Release);
            });
            Ok(observer.process(pid).processes.remove(0))
        })?;
        if whole_or_nothing(&process)? {
            whole += 1;
            let exe = seen(&process.exe)?;
            check(exe.contains("sleep") || exe.contains("kvm") || exe.contains("box"), format!("another's: {exe}"))?;
        } else {
            gone += 1;
        }
        check(killed.load(Ordering::Acquire), "the killer did not run")?;
    }
    check(gone > 0, format!("none ended in time ({whole} whole): the trial shows nothing"))
}

fn hostile() -> Result<(), Failed> {
    let dir = tempfile::tempdir()?;
    let program = dir.path().join("a)\u{1b}[31m\n<script>");
    std::fs::copy("/bin/sleep", &program)?;
    let mut child = Command::new(&program).arg0("x").arg("100").spawn()?;
    // The program is there once exec is done; its name is what the file is called.
    let observer = Observer::new()?;
    let deadline = Instant::now() + Duration::from_secs(10);
    let subject = loop {
        let subject = observer.process(child.id());
        let arrived = subject.processes[0].exe.seen().is_some_and(|exe| exe.contains("<script>"));
        if arrived || Instant::now() > deadline {
            break subject;
        }
    };
    let judged = judged(vec![subject.clone()]);
    let done = (|| {
        let process = &subject.processes[0];
        let threads = seen(&process.threads)?;
        check(threads.len() == 1 && threads[0].tid == Some(child.id()), format!("{threads:?}"))?;
        check(process.start_time.is_some() && process.parent == Some(std::process::id()), "stat was misread")?;
        check(threads[0].uid == [0; 4], "a forged line was believed")?;
        let exe = seen(&process.exe)?;
        check(exe.contains("\u{1b}[31m\n<script>"), format!("the name is not as it is: {exe:?}"))?;
        let page = casemate_audit::report::html::page(&judged);
        check(!page.contains("<script") && !page.contains('\u{1b}'), "the page holds the name unescaped")
    })();
    child.kill()?;
    child.wait()?;
    done
}

fn judged(subjects: Vec<Subject>) -> casemate_audit::report::Report {
    judge(subjects, &Profile::default(), &Around::default())
}

/// The program itself, as nobody: what may not be seen is told, and nothing passes for it.
fn unprivileged() -> Result<(), Failed> {
    let bin = Host::new()?.bin().join("casemate");
    check(bin.exists(), format!("{} is not built: scripts/build", bin.display()))?;
    let dir = tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir()?;
    let copy = dir.path().join("casemate");
    std::fs::copy(&bin, &copy)?;
    let good = Specimen::start(GOOD)?;
    let mut command = Command::new(&copy);
    command.args(["--format", "json", "audit", "process"]).arg(good.pid.to_string());
    let output = command.uid(65534).gid(65534).current_dir("/").output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let report: casemate_audit::report::Report =
        serde_json::from_str(&said).map_err(|e| format!("{e}: {}", String::from_utf8_lossy(&output.stderr)))?;
    let process = &report.subjects[0].processes[0];
    for (what, part) in [("fds", process.fds.clone().map(drop)), ("environment", process.environment.clone().map(drop))]
    {
        let Known::Unseen(why) = part else { return Err(format!("nobody sees {what} of another's").into()) };
        check(why.contains("denied"), format!("{what}: {why}"))?;
    }
    check(report.findings.iter().any(|finding| finding.check.verdict == Verdict::Unknown), "nothing is unknown")?;
    check(output.status.code() != Some(0), "a half audit ended as a whole one")
}

fn a_thread() -> Result<(), Failed> {
    let good = Specimen::start(GOOD)?;
    let observer = Observer::new()?;
    let tids = seen(&observer.process(good.pid).processes[0].threads)?.iter().filter_map(|t| t.tid).collect::<Vec<_>>();
    let other = tids.into_iter().find(|tid| *tid != good.pid).ok_or("one thread alone")?;
    let why = observer.find(other).err().ok_or("a thread was taken for a process")?;
    check(why.contains("is a thread of another process"), why)?;
    check(observer.find(good.pid).is_ok(), "the process itself is not found")?;
    let none = observer.find(4_194_304).err().ok_or("no process has that pid")?;
    check(none.contains("there is no process"), none)
}

// ---- a jailed VM

fn vm_of(host: &Host, record: &casemate_wire::record::SandboxRecord, phase: &str) -> Result<Subject, Failed> {
    let directory = host.run_dir().join("vms").join(&record.name);
    let survey = Known::Seen(Survey::default());
    Ok(Observer::new()?.vm(&LiveVm { record, phase, directory: &directory, landlock: None }, &survey))
}

/// What holds for a bare guest on a machine without SELinux whose processor has known faults.
const OF_THE_HOST: [&str; 5] = ["selinux.", "posture.", "mitigations.", "host.", "landlock.probed"];

fn jailed() -> Result<(), Failed> {
    let host = Host::new()?;
    let spec = host.bare("seen", guest::pvh_elf(guest::spin))?;
    let mut vm = host.start(&spec)?;
    let record = vm.started()?;
    let subject = vm_of(&host, &record, "running")?;
    let done = as_planned(&subject, record.uid);
    vm.ask(name_of(&spec), Request::Kill)?;
    vm.exited()?;
    done?;
    // The same record, when all is over: nobody runs, and nothing is left.
    let after = vm_of(&host, &record, "exited")?;
    check(after.processes.is_empty() && seen(&after.leftovers)?.is_empty(), format!("{after:?}"))?;
    host.clean()
}

fn as_planned(subject: &Subject, uid: u32) -> Result<(), Failed> {
    check(subject.kind == Kind::Vm && subject.processes.len() == 2, format!("{} processes", subject.processes.len()))?;
    let runner = &subject.processes[0];
    let threads = seen(&runner.threads)?;
    let own: Vec<&Thread> = threads.iter().filter(|thread| !thread.kernel).collect();
    check(own.len() == 3, format!("{} threads", own.len()))?;
    for thread in own {
        check(thread.uid == [uid; 4] && thread.groups.is_empty() && thread.no_new_privs, format!("{thread:?}"))?;
        let ours: Vec<_> = seen(&thread.filters)?.filters.iter().filter_map(|f| f.known.as_deref()).collect();
        check(ours.len() == 2, format!("the filters of {} are not ours: {ours:?}", thread.name))?;
    }
    let fds = seen(&runner.fds)?;
    let planned: BTreeSet<&str> = fds.iter().filter_map(|fd| fd.planned.as_deref()).collect();
    check(planned.contains("warden") && planned.contains("console-log.0"), format!("{planned:?}"))?;
    let strange: Vec<_> = fds.iter().filter(|fd| fd.number > 2 && fd.planned.is_none() && fd.kind != "anon").collect();
    check(strange.is_empty(), format!("{strange:?}"))?;
    check(seen(&runner.environment)?.is_empty(), "an environment")?;
    check(subject.objects.iter().any(|object| object.name == "kernel"), "no kernel")?;
    check(
        subject.objects.iter().all(|object| object.unchanged != Some(Known::Seen(false))),
        "an object was exchanged",
    )?;
    check(seen(&subject.leftovers)?.is_empty(), format!("{:?}", subject.leftovers))?;
    let report = judged(vec![subject.clone()]);
    let failed: Vec<String> = report
        .findings
        .iter()
        .filter(|finding| finding.check.verdict == Verdict::Fail)
        .filter(|finding| !OF_THE_HOST.iter().any(|layer| finding.rule.starts_with(layer)))
        // The tests' own kernel lies in a directory that everybody may write to.
        .filter(|finding| finding.rule != "objects.protected")
        .map(|finding| format!("{}: {} saw {}", finding.rule, finding.check.what, finding.check.seen))
        .collect();
    check(failed.is_empty(), format!("{failed:#?}"))
}

fn reused() -> Result<(), Failed> {
    let host = Host::new()?;
    let spec = host.bare("reused", guest::pvh_elf(guest::spin))?;
    let mut vm = host.start(&spec)?;
    let mut record = vm.started()?;
    // Another process has the runner's number now, by the start time.
    if let Some(runner) = &mut record.runner {
        runner.start_time += 1;
    }
    let subject = vm_of(&host, &record, "running")?;
    vm.ask(name_of(&spec), Request::Kill)?;
    vm.exited()?;
    let Known::Unseen(why) = &subject.processes[0].threads else { return Err("another's threads".into()) };
    check(why.contains("is another process now"), why)?;
    check(seen(&subject.processes[1].threads).is_ok(), "the warden was not seen")?;
    host.clean()
}

fn lost() -> Result<(), Failed> {
    let host = Host::new()?;
    let spec = host.bare("lost", guest::pvh_elf(guest::spin))?;
    let mut vm = host.start(&spec)?;
    let record = vm.started()?;
    vm.kill()?;
    casemate_tests::jail::gone(record.runner.ok_or("no runner")?.pid)?;
    let subject = vm_of(&host, &record, "lost")?;
    let left = seen(&subject.leftovers)?;
    check(left.iter().any(|line| line.contains("died without cleaning up")), format!("{left:?}"))?;
    check(Path::new(record.cgroups.first().ok_or("no cgroup")?).exists(), "its cgroup is gone already")?;
    host.repair(&[])?;
    host.verb(&["rm", name_of(&spec)])?;
    host.spotless()
}
