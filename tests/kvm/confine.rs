//! Each layer by itself, against the kernel: a positive and a negative control, as root. The compiled
//! filters' every rule is a unit test of `casemate-confine`; here the kernel gives its verdict.
//!
//! The layers want a process with one thread, which no test harness has: each trial runs this binary
//! again with a case's name in its environment ([`case`]).

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use casemate_confine::cgroup::{self, Cgroup};
use casemate_confine::objects::Hands;
use casemate_confine::seccomp::{self, Filter};
use casemate_confine::trial::{Attempt, Narrowing, Outcome};
use casemate_confine::{attest_outside, capabilities, landlock, mounts, namespaces, rlimits, uid};
use casemate_plan::{CgroupFacts, CgroupPlan, Layer, Namespace, Rlimit, RolePlan, VmPlan};
use casemate_probe::perform;
use casemate_sys::process::{self, CloneOptions, Cloned, Exit, in_child};
use casemate_sys::procfs::{Proc, ProcessView};
use casemate_sys::{cred, exec, facts, fds, prctl, provoke, seqpacket};
use libtest_mimic::{Failed, Trial};

use crate::{audit_seccomp, confine_probe};

const VARIABLE: &str = "CASEMATE_CONFINE_CASE";
pub const ID: u32 = 10_000_011;
const SIGSYS: i32 = 31;
pub const ALL: [Namespace; 6] =
    [Namespace::Mount, Namespace::Pid, Namespace::Net, Namespace::Ipc, Namespace::Uts, Namespace::Cgroup];

type Case = fn() -> Result<(), String>;

const CASES: [(&str, Case); 16] = [
    ("each_layer_alone_denies_its_controls_and_leaves_the_own_disk", confine_probe::controls_alone),
    ("the_probe_gets_nowhere_in_a_full_jail_but_to_its_own_disk", confine_probe::in_full_jail),
    ("the_whole_sequence_holds_seen_from_outside", whole_sequence),
    ("what_a_runner_never_needs_dies_by_sigsys_in_every_thread", deny_twins),
    ("threads_start_under_the_coarse_filter_and_take_their_own", thread_filters),
    ("landlock_leaves_the_runner_file_and_nothing_else", landlock_alone),
    ("without_uid_and_capabilities_root_is_gone", ids_alone),
    ("the_empty_root_is_empty_and_the_host_keeps_its_mounts", mounts_alone),
    ("a_cgroup_is_made_joined_killed_and_removed", cgroup_alone),
    ("a_cgroup_mount_behind_a_symlink_works_and_a_second_sandbox_of_a_name_does_not", cgroup_paths),
    ("a_child_is_born_in_a_v2_cgroup", born_in_v2),
    ("exec_places_descriptors_and_closes_the_rest", exec_descriptors),
    ("a_process_with_threads_is_not_cloned", clone_with_threads),
    ("what_was_installed_is_what_the_auditor_reads_back", audit_seccomp::read_back),
    ("one_call_more_in_one_filter_is_found_out", audit_seccomp::one_call_more),
    ("the_kernel_takes_the_programs_that_the_auditor_takes", audit_seccomp::same_programs),
];

pub fn tests() -> Vec<Trial> {
    let root = cred::is_root();
    if !root {
        eprintln!("confine: {} tests skipped: they apply layers, which needs root", CASES.len());
    }
    let trial = |(name, _): &(&'static str, Case)| {
        let name = *name;
        Trial::test(format!("confine::{name}"), move || run_again(name)).with_ignored_flag(!root)
    };
    CASES.iter().map(trial).collect()
}

fn run_again(name: &str) -> Result<(), Failed> {
    let me = std::env::current_exe()?;
    let output = Command::new(me).env_clear().env(VARIABLE, name).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}\n{}", output.status, String::from_utf8_lossy(&output.stderr)).into())
}

/// The case that this process was started for, if it was. The first thing that main asks.
pub fn case() -> Option<ExitCode> {
    let name = std::env::var(VARIABLE).ok()?;
    let (_, run) = CASES.iter().find(|(known, _)| *known == name)?;
    Some(match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    })
}

pub fn show(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

pub fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Runs in a child and wants success from it; the reason comes back over a socket.
fn child(body: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let (ours, theirs) = seqpacket::pair().map_err(show)?;
    let exit = in_child(|| {
        let Err(why) = body() else { return 0 };
        let _ = casemate_sys::rustix::io::write(&theirs, why.as_bytes());
        1
    });
    drop(theirs);
    match exit.map_err(show)? {
        Exit::Exited(0) => Ok(()),
        end => {
            let mut buffer = vec![0; 4096];
            let len = seqpacket::receive(&ours, &mut buffer).map_or(0, |received| received.len);
            Err(format!("{end}: {}", String::from_utf8_lossy(&buffer[..len])))
        }
    }
}

pub fn limits() -> Vec<Rlimit> {
    [("core", 0), ("nofile", 512), ("nproc", 8)].map(|(name, value)| Rlimit { name: name.into(), value }).into()
}

pub fn layout() -> CgroupFacts {
    let layout = facts::cgroup::layout().unwrap_or_default();
    match layout.v2 {
        Some(v2) if layout.v1.is_empty() => CgroupFacts::V2 { mount: v2.mount, controllers: v2.controllers },
        _ => CgroupFacts::V1 { controllers: layout.v1 },
    }
}

pub fn cgroup_plan(layout: CgroupFacts) -> CgroupPlan {
    CgroupPlan {
        layout,
        parent: "casemate-tests".into(),
        cpu_percent: Some(150),
        memory: 64 << 20,
        pids: 16,
        hugetlb: Vec::new(),
    }
}

fn role() -> RolePlan {
    RolePlan {
        version: casemate_plan::role::VERSION,
        sandbox: "test".into(),
        fds: Vec::new(),
        uid: ID,
        gid: ID,
        label: None,
        landlock_abi: landlock::probe(),
        seccomp: true,
        rlimits: limits(),
        vm: VmPlan {
            hugepage: None,
            cpus: 1,
            memory: 1 << 20,
            cmdline: String::new(),
            disks: Vec::new(),
            vsock_cid: None,
            console: false,
            rng: false,
            agent: false,
            boot_timeout_ms: 0,
            log_bytes: 0,
            restart_on_reboot: false,
        },
    }
}

/// The jailer's child's steps in their order, then the runner's second narrowing; the parent looks
/// through procfs as the warden does.
fn whole_sequence() -> Result<(), String> {
    let proc = Proc::open().map_err(show)?;
    let parents = namespaces::own(&proc, &ALL).map_err(show)?;
    let cgroup = Cgroup::create(&cgroup_plan(layout()), &format!("sequence-{}", process::own_pid())).map_err(show)?;
    let (ours, theirs) = seqpacket::pair().map_err(show)?;
    let options = CloneOptions { namespaces: namespaces::flags(&ALL), cgroup: cgroup.birthplace() };
    let born = match process::clone3(&options).map_err(show)? {
        Cloned::Child => {
            drop(ours);
            let message = match sequence_in_child(&proc, &cgroup, &parents) {
                Ok(()) => "confined".to_owned(),
                Err(why) => why,
            };
            let _ = casemate_sys::rustix::io::write(&theirs, message.as_bytes());
            // The end of the parent's side ends us.
            let _ = casemate_sys::rustix::io::read(&theirs, &mut [0; 1]);
            process::exit_now(0)
        }
        Cloned::Parent(born) => born,
    };
    drop(theirs);
    let mut buffer = vec![0; 4096];
    let len = seqpacket::receive(&ours, &mut buffer).map_err(show)?.len;
    let said = String::from_utf8_lossy(&buffer[..len]).into_owned();
    let view = ProcessView::new(&proc, born.pid(), born.as_fd());
    let plan = role();
    let findings = attest_outside::attest(
        &view,
        &attest_outside::Expected {
            plan: &plan,
            namespaces: &ALL,
            own_namespaces: &parents,
            cgroup: Some(&cgroup),
            only_the_table: false,
            filters_per_thread: 2,
        },
    );
    born.kill().map_err(show)?;
    born.wait().map_err(show)?;
    cgroup.remove(Duration::from_secs(5)).map_err(show)?;
    ensure(said == "confined", || format!("the child said: {said}"))?;
    // No table was planned for this child; what it inherited from the test is not the point here.
    let bad = findings.iter().filter(|finding| !finding.ok && finding.layer != Layer::Fds);
    let bad: Vec<_> = bad.map(|f| format!("{}: expected {}, saw {}", f.what, f.expected, f.seen)).collect();
    ensure(findings.len() > 25 && bad.is_empty(), || format!("{} findings; bad: {bad:#?}", findings.len()))
}

fn sequence_in_child(proc: &Proc, cgroup: &Cgroup, parents: &namespaces::Identities) -> Result<(), String> {
    let runner = File::open("/proc/self/exe").map_err(show)?;
    let _ = namespaces::apply(proc, &ALL, parents).map_err(show)?;
    let _ = cgroup.join(proc).map_err(show)?;
    let _ = mounts::apply().map_err(show)?;
    let _ = rlimits::apply(&limits()).map_err(show)?;
    let _ = landlock::apply(landlock::probe(), runner.as_fd()).map_err(show)?;
    let _ = seccomp::apply(Filter::JailerExec).map_err(show)?;
    capabilities::drop_bounding().map_err(show)?;
    uid::drop_groups().map_err(show)?;
    uid::set_gid(ID).map_err(show)?;
    let _ = uid::set_uid(ID, ID).map_err(show)?;
    let _ = capabilities::drop_all().map_err(show)?;
    prctl::set_no_new_privs().map_err(show)?;
    prctl::set_not_dumpable().map_err(show)?;
    prctl::die_with_parent().map_err(show)?;
    let _ = landlock::apply_fully(landlock::probe()).map_err(show)?;
    let inside = casemate_confine::attest_inside::attest(&role(), &[]);
    let bad = inside.iter().find(|finding| !finding.ok && finding.layer != Layer::Fds);
    ensure(bad.is_none(), || format!("from inside: {bad:?}"))?;
    let _ = seccomp::apply(Filter::RunnerMain).map_err(show)?;
    Ok(())
}

/// Attempts that no thread of a runner may even ask about.
fn twins() -> Vec<Attempt> {
    let calls = provoke::CALLS.iter().map(|name| Attempt::Call { name: (*name).into() });
    let own = process::own_pid();
    let sockets = [(2, 1), (10, 1), (16, 3), (38, 5), (40, 1), (17, 3), (1, 1)];
    let mut all: Vec<Attempt> = calls.collect();
    all.extend(sockets.map(|(family, kind)| Attempt::Socket { family, kind }));
    all.extend([
        Attempt::Kill { pid: own },
        Attempt::Trace { pid: own },
        Attempt::ReadMemory { pid: own },
        Attempt::StealDescriptor { pid: own },
        Attempt::Open { path: "/etc/shadow".into(), write: true },
        Attempt::Execute { path: "/bin/true".into() },
        Attempt::MakeNode { path: "/tmp/casemate-node".into() },
        Attempt::ConnectTcp { address: "127.0.0.1:1".into() },
        Attempt::ConnectAbstract { name: "casemate".into() },
        Attempt::I386,
    ]);
    all
}

fn outcome(narrowing: &Narrowing, attempt: &Attempt) -> Result<Outcome, String> {
    let (ours, theirs) = seqpacket::pair().map_err(show)?;
    let ended = in_child(|| {
        if narrowing.apply().is_err() {
            return 3;
        }
        let outcome = perform(attempt, Hands::EMPTY);
        let _ = casemate_sys::rustix::io::write(&theirs, &casemate_confine::trial::encode(&outcome));
        77
    });
    drop(theirs);
    match ended.map_err(show)? {
        Exit::Signaled(signal) => Ok(Outcome::Killed { signal }),
        Exit::Exited(77) => {
            let mut buffer = vec![0; 4096];
            let len = seqpacket::receive(&ours, &mut buffer).map_err(show)?.len;
            casemate_confine::trial::decode(&buffer[..len]).ok_or_else(|| "no outcome".into())
        }
        Exit::Exited(0) => Ok(Outcome::Allowed),
        Exit::Exited(code) => Err(format!("{attempt:?}: the child ended with {code}")),
    }
}

fn deny_twins() -> Result<(), String> {
    let mut wrong = Vec::new();
    let coarse = Narrowing { coarse: true, ..Narrowing::default() };
    let of = |thread: &str| Narrowing { coarse: true, thread: Some(thread.into()), ..Narrowing::default() };
    for attempt in twins() {
        // Without a filter nobody is killed: the filter is what kills below. (i386 may be absent.)
        let free = outcome(&Narrowing::default(), &attempt)?;
        if matches!(free, Outcome::Killed { signal: SIGSYS }) {
            wrong.push(format!("{attempt:?} is killed without any filter"));
        }
        for (name, narrowing) in [("coarse", &coarse), ("main", &of("main")), ("vcpu", &of("vcpu")), ("io", &of("io"))]
        {
            let seen = outcome(narrowing, &attempt)?;
            // Becoming root is a step of the jailer's own under the coarse filter; the uid and the
            // capabilities say no there.
            let jailers = matches!(&attempt, Attempt::Call { name } if name.starts_with("setres"));
            let expected = seen == Outcome::Killed { signal: SIGSYS } || (name == "coarse" && jailers);
            if !expected {
                wrong.push(format!("{name}: {attempt:?}: {seen}"));
            }
        }
    }
    ensure(wrong.is_empty(), || format!("{wrong:#?}"))
}

fn thread_filters() -> Result<(), String> {
    child(|| {
        let _ = seccomp::apply(Filter::JailerExec).map_err(show)?;
        let threads = [Filter::RunnerVcpu, Filter::RunnerIo].map(|filter| {
            std::thread::Builder::new().name(filter.name().into()).spawn(move || {
                let before = seccomp::attest(Filter::JailerExec).ok;
                let applied = seccomp::apply(filter).is_ok();
                before && applied && seccomp::attest(filter).ok && !seccomp::attest(Filter::RunnerMain).ok
            })
        });
        for thread in threads {
            let held = thread.map_err(show)?.join();
            ensure(matches!(held, Ok(true)), || "a thread's filter does not hold".into())?;
        }
        let _ = seccomp::apply(Filter::RunnerMain).map_err(show)?;
        ensure(!seccomp::attest(Filter::RunnerIo).ok, || "another thread's filter counts for main".into())
    })
}

fn landlock_alone() -> Result<(), String> {
    let open = |path: &str| perform(&Attempt::Open { path: path.into(), write: false }, Hands::EMPTY);
    let parent = process::own_pid();
    child(|| {
        ensure(open("/etc/shadow") == Outcome::Allowed, || "the positive control fails".into())?;
        let before = File::open("/etc/hostname").map_err(show)?;
        let runner = File::open("/etc/group").map_err(show)?;
        let _ = landlock::apply(landlock::probe(), runner.as_fd()).map_err(show)?;
        ensure(!prctl::no_new_privs().map_err(show)?, || "NNP was set".into())?;
        ensure(open("/etc/group") == Outcome::Allowed, || "the runner's file cannot be read".into())?;
        for path in ["/etc/shadow", "/proc/1/environ", "/dev/kvm", "/"] {
            let seen = open(path);
            ensure(seen == Outcome::Denied { errno: 13 }, || format!("{path}: {seen}"))?;
        }
        let written = perform(&Attempt::Open { path: "/etc/group".into(), write: true }, Hands::EMPTY);
        ensure(written == Outcome::Denied { errno: 13 }, || format!("writing the runner's file: {written}"))?;
        let seen = perform(&Attempt::Execute { path: "/bin/true".into() }, Hands::EMPTY);
        ensure(seen == Outcome::Denied { errno: 13 }, || format!("another program: {seen}"))?;
        let seen = perform(&Attempt::Call { name: "mount".into() }, Hands::EMPTY);
        ensure(seen == Outcome::Denied { errno: 1 }, || format!("mount under Landlock: {seen}"))?;
        if landlock::probe() >= 6 {
            let seen = perform(&Attempt::Kill { pid: parent }, Hands::EMPTY);
            ensure(seen == Outcome::Denied { errno: 1 }, || format!("a signal out of the domain: {seen}"))?;
        }
        std::io::Read::read(&mut &before, &mut [0; 1]).map_err(show)?;
        let _ = landlock::apply_fully(landlock::probe()).map_err(show)?;
        let seen = open("/etc/group");
        ensure(seen == Outcome::Denied { errno: 13 }, || format!("after the second ruleset: {seen}"))
    })
}

fn ids_alone() -> Result<(), String> {
    child(|| {
        capabilities::drop_bounding().map_err(show)?;
        uid::drop_groups().map_err(show)?;
        uid::set_gid(ID).map_err(show)?;
        let _ = uid::set_uid(ID, ID).map_err(show)?;
        let _ = capabilities::drop_all().map_err(show)?;
        for name in
            ["setresuid-root", "setresgid-root", "chroot", "mount", "fsopen", "unshare-net", "bpf", "init_module"]
        {
            let seen = perform(&Attempt::Call { name: name.into() }, Hands::EMPTY);
            ensure(matches!(seen, Outcome::Denied { .. }), || format!("{name}: {seen}"))?;
        }
        for attempt in [
            Attempt::Open { path: "/etc/shadow".into(), write: false },
            Attempt::Kill { pid: 1 },
            Attempt::Trace { pid: 1 },
            Attempt::ReadMemory { pid: 1 },
            Attempt::MakeNode { path: "/tmp/casemate-node".into() },
        ] {
            let seen = perform(&attempt, Hands::EMPTY);
            ensure(matches!(seen, Outcome::Denied { .. }), || format!("{attempt:?}: {seen}"))?;
        }
        Ok(())
    })
}

fn mounts_alone() -> Result<(), String> {
    let table = || std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let before = table();
    let options = CloneOptions { namespaces: namespaces::flags(&[Namespace::Mount]), cgroup: None };
    let exit = match process::clone3(&options).map_err(show)? {
        Cloned::Child => {
            let held = mounts::apply().map_err(show).and_then(|_token| {
                let seen = perform(&Attempt::Open { path: "/etc/hostname".into(), write: false }, Hands::EMPTY);
                ensure(seen == Outcome::Denied { errno: 2 }, || format!("the host is still there: {seen}"))
            });
            if let Err(why) = &held {
                eprintln!("{why}");
            }
            process::exit_now(i32::from(held.is_err()))
        }
        Cloned::Parent(born) => born.wait().map_err(show)?,
    };
    ensure(exit == Exit::Exited(0), || format!("the child: {exit}"))?;
    ensure(before == table(), || "the host's mounts changed".into())
}

fn cgroup_alone() -> Result<(), String> {
    let plan = cgroup_plan(layout());
    let id = format!("alone-{}", process::own_pid());
    let paths = cgroup::plan_paths(&plan, &id);
    let made = Cgroup::create(&plan, &id).map_err(show)?;
    ensure(made.paths() == paths && paths.iter().all(|path| path.is_dir()), || format!("{paths:?}"))?;
    let proc = Proc::host().map_err(show)?;
    let options = CloneOptions { cgroup: made.birthplace(), ..CloneOptions::default() };
    let born = match process::clone3(&options).map_err(show)? {
        Cloned::Child => {
            let joined = made.join(&proc).is_ok();
            if joined {
                std::thread::sleep(Duration::from_secs(60));
            }
            process::exit_now(9)
        }
        Cloned::Parent(born) => born,
    };
    let text = format!("{}/cgroup", born.pid());
    let joined = (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(2));
        proc.read(&text).is_ok_and(|text| made.attest(&text).iter().all(|finding| finding.ok))
    });
    let early = made.remove(Duration::ZERO);
    made.kill().map_err(show)?;
    let exit = born.wait().map_err(show)?;
    made.remove(Duration::from_secs(5)).map_err(show)?;
    ensure(joined, || "the child never showed up in its cgroup".into())?;
    ensure(early.is_err(), || "a cgroup with a live member was removed".into())?;
    ensure(exit == Exit::Signaled(9), || format!("the member ended with {exit}"))?;
    ensure(paths.iter().all(|path| !path.exists()), || "a directory is left".into())
}

fn cgroup_paths() -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(show)?;
    let link = |target: &Path, name: &str| -> Result<PathBuf, String> {
        let path = dir.path().join(name);
        std::os::unix::fs::symlink(target, &path).map_err(show)?;
        Ok(path)
    };
    let linked = match layout() {
        CgroupFacts::V2 { mount, controllers } => CgroupFacts::V2 { mount: link(&mount, "unified")?, controllers },
        CgroupFacts::V1 { controllers } => {
            let linked = controllers.iter().map(|(name, mount)| Ok((name.clone(), link(mount, name)?)));
            CgroupFacts::V1 { controllers: linked.collect::<Result<_, String>>()? }
        }
        CgroupFacts::None => return Err("no cgroups on this host".into()),
    };
    let plan = cgroup_plan(linked);
    let id = format!("linked-{}", process::own_pid());
    let made = Cgroup::create(&plan, &id).map_err(show)?;
    let again = Cgroup::create(&plan, &id);
    let there = made.paths().iter().all(|path| path.is_dir());
    made.remove(Duration::from_secs(5)).map_err(show)?;
    ensure(again.is_err(), || "a directory that existed was taken over".into())?;
    ensure(there, || "the refused second one removed the first one's directory".into())
}

/// CLONE_INTO_CGROUP and cgroup.kill, on whatever v2 hierarchy there is; controllers do not matter here.
fn born_in_v2() -> Result<(), String> {
    let Some(v2) = facts::cgroup::layout().map_err(show)?.v2 else {
        eprintln!("skipped: no cgroup v2 is mounted");
        return Ok(());
    };
    let name = format!("casemate-tests-{}", process::own_pid());
    let path = v2.mount.join(&name);
    std::fs::create_dir(&path).map_err(show)?;
    let dir = casemate_sys::path::open_dir(&path).map_err(show)?;
    let proc = Proc::host().map_err(show)?;
    let options = CloneOptions { cgroup: Some(dir.as_fd()), ..CloneOptions::default() };
    let born = match process::clone3(&options).map_err(show)? {
        Cloned::Child => {
            std::thread::sleep(Duration::from_secs(60));
            process::exit_now(9)
        }
        Cloned::Parent(born) => born,
    };
    let text = proc.read(&format!("{}/cgroup", born.pid())).map_err(show)?;
    cgroup::kill(std::slice::from_ref(&path)).map_err(show)?;
    let exit = born.wait().map_err(show)?;
    cgroup::remove(&[path], Duration::from_secs(5)).map_err(show)?;
    ensure(text.lines().any(|line| line == format!("0::/{name}")), || text)?;
    ensure(exit == Exit::Signaled(9), || format!("the child: {exit}"))
}

fn exec_descriptors() -> Result<(), String> {
    let (read, write) = casemate_sys::rustix::pipe::pipe().map_err(show)?;
    let extra = File::open("/dev/null").map_err(show)?;
    let exit = in_child(|| {
        let table = [File::open("/etc/passwd"), File::open("/etc/group"), File::open("/etc/hostname")];
        let Ok(mut table) = table.into_iter().map(|file| file.map(OwnedFd::from)).collect::<Result<Vec<_>, _>>() else {
            return 3;
        };
        // Highest number first: a naive dup2 loop overwrites a source before it is placed.
        table.reverse();
        let _leaked = fds::leak(extra.try_clone().map(OwnedFd::from).unwrap_or_else(|_| process::exit_now(4)));
        if fds::redirect_stdio(&write, 1).is_err() {
            return 5;
        }
        let Ok(shell) = File::open("/bin/sh") else { return 6 };
        let script = c"for n in 3 4 5; do readlink /proc/$$/fd/$n; done; ls /proc/$$/fd; :";
        let argv = vec![c"sh".into(), c"-c".into(), script.into()];
        let env = vec![c"PATH=/usr/bin:/bin".into()];
        let failed = exec::replace_process(exec::Image { program: shell.into(), argv, env, fds: table });
        eprintln!("{}", failed.error.report());
        7
    });
    drop(write);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut File::from(read), &mut text).map_err(show)?;
    ensure(exit.map_err(show)? == Exit::Exited(0), || "the shell failed".into())?;
    let want = "/etc/hostname\n/etc/group\n/etc/passwd\n0\n1\n2\n3\n4\n5\n";
    ensure(text == want, || format!("{text:?}"))
}

fn clone_with_threads() -> Result<(), String> {
    let (stop, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || wait.recv());
    let refused = process::clone3(&CloneOptions::default());
    drop(stop);
    let _ = thread.join();
    match refused {
        Err(_) => child(|| Ok(())),
        Ok(Cloned::Child) => process::exit_now(0),
        Ok(Cloned::Parent(_)) => Err("a process with two threads was cloned".into()),
    }
}
