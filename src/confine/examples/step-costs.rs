//! What each step between clone3 and exec costs on this host: the jailer's child's sequence, in its
//! order, many times, medians printed. Needs root. `cargo run --release -p casemate-confine --example step-costs`

use casemate_confine::{capabilities, cgroup::Cgroup, landlock, mounts, namespaces, rlimits, seccomp, uid};
use casemate_plan::{CgroupFacts, CgroupPlan, Namespace, Rlimit};
use casemate_sys::process::{self, CloneOptions, Cloned};
use casemate_sys::procfs::Proc;
use casemate_sys::{facts, seqpacket};
use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

const ALL: [Namespace; 6] =
    [Namespace::Mount, Namespace::Pid, Namespace::Net, Namespace::Ipc, Namespace::Uts, Namespace::Cgroup];

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// Names and durations, in order.
#[derive(Default)]
struct Watch {
    steps: Vec<(String, u64)>,
}

impl Watch {
    fn time<T>(&mut self, name: &str, step: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let value = step();
        self.steps.push((name.into(), start.elapsed().as_nanos() as u64));
        value
    }
}

fn main() -> Fallible<()> {
    let rounds = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(60);
    let mut all: BTreeMap<usize, (String, Vec<u64>)> = BTreeMap::new();
    for round in 0..rounds {
        for (index, (name, nanos)) in one(round)?.into_iter().enumerate() {
            all.entry(index).or_insert_with(|| (name, Vec::new())).1.push(nanos);
        }
    }
    println!("median of {rounds}, microseconds");
    for (name, mut values) in all.into_values() {
        values.sort_unstable();
        println!("{:>8.1}  {name}", values.get(values.len() / 2).copied().unwrap_or(0) as f64 / 1000.0);
    }
    Ok(())
}

fn layout() -> Fallible<CgroupFacts> {
    let layout = facts::cgroup::layout()?;
    Ok(match layout.v2 {
        Some(v2) if layout.v1.is_empty() => CgroupFacts::V2 { mount: v2.mount, controllers: v2.controllers },
        _ => CgroupFacts::V1 { controllers: layout.v1 },
    })
}

fn one(round: usize) -> Fallible<Vec<(String, u64)>> {
    let mut watch = Watch::default();
    let proc = watch.time("private procfs", Proc::open)?;
    let parents = watch.time("own namespace ids", || namespaces::own(&proc, &ALL))?;
    let plan = CgroupPlan {
        layout: watch.time("cgroup layout", layout)?,
        parent: "casemate-cost".into(),
        cpu_percent: Some(100),
        memory: 1 << 28,
        pids: 64,
        hugetlb: Vec::new(),
    };
    let cgroup = watch.time("cgroup: create, limit, read back", || Cgroup::create(&plan, &format!("r{round}")))?;
    let (ours, theirs) = seqpacket::pair()?;
    let runner = std::fs::File::open("/proc/self/exe")?;
    let start = Instant::now();
    let options = CloneOptions { namespaces: namespaces::flags(&ALL), cgroup: cgroup.birthplace() };
    match process::clone3(&options)? {
        Cloned::Child => {
            let since = start.elapsed().as_nanos() as u64;
            let mut watch = Watch { steps: vec![("clone3 into 6 namespaces, until the child runs".into(), since)] };
            let result = child(&mut watch, &cgroup, &proc, &parents, &runner);
            let text: Vec<String> = watch.steps.iter().map(|(name, nanos)| format!("{name}\t{nanos}")).collect();
            let text = match result {
                Ok(()) => text.join("\n"),
                Err(error) => format!("error: {error}"),
            };
            // write(2): the one way out that every filter leaves.
            let _ = casemate_sys::rustix::io::write(&theirs, text.as_bytes());
            process::exit_now(0)
        }
        Cloned::Parent(child) => {
            drop(theirs);
            watch.steps.push(("clone3, until the parent returns".into(), start.elapsed().as_nanos() as u64));
            let mut buffer = vec![0; 8192];
            let len = seqpacket::receive(&ours, &mut buffer)?.len;
            let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
            watch.time("death and reaping", || child.wait())?;
            watch.time("cgroup: remove", || cgroup.remove(Duration::from_secs(2)))?;
            if text.starts_with("error") {
                return Err(text.into());
            }
            let inside = text.lines().filter_map(|line| line.split_once('\t'));
            let inside = inside.map(|(name, nanos)| (name.to_owned(), nanos.parse().unwrap_or(0)));
            let at = watch.steps.len() - 2;
            watch.steps.splice(at..at, inside);
            Ok(watch.steps)
        }
    }
}

fn child(
    watch: &mut Watch,
    cgroup: &Cgroup,
    proc: &Proc,
    parents: &namespaces::Identities,
    runner: &std::fs::File,
) -> Result<(), casemate_confine::Error> {
    const ID: u32 = 10_000_007;
    let limits: Vec<Rlimit> = [("core", 0), ("memlock", 0), ("msgqueue", 0), ("nofile", 512), ("nproc", 5)]
        .map(|(name, value)| Rlimit { name: name.into(), value })
        .into();
    let _ = watch.time("namespaces: compare ids", || namespaces::apply(proc, &ALL, parents))?;
    let _ = watch.time("cgroup: join (v1) and read back", || cgroup.join(proc))?;
    let _ = watch.time("mounts: private, empty root, pivot, read back", mounts::apply)?;
    let _ = watch.time("rlimits", || rlimits::apply(&limits))?;
    let _ = watch.time("landlock with its controls", || landlock::apply(landlock::probe(), runner.as_fd()))?;
    let _ = watch.time("seccomp: coarse filter", || seccomp::apply(seccomp::Filter::JailerExec))?;
    watch.time("capabilities: bounding set, securebits", capabilities::drop_bounding)?;
    watch.time("groups", uid::drop_groups)?;
    watch.time("gid", || uid::set_gid(ID))?;
    let _ = watch.time("uid", || uid::set_uid(ID, ID))?;
    let _ = watch.time("capabilities: all sets, read back", capabilities::drop_all)?;
    // The second narrowing, as the runner does it.
    let _ = watch.time("no_new_privs", casemate_sys::prctl::set_no_new_privs);
    let _ = watch.time("landlock fully", || landlock::apply_fully(landlock::probe()))?;
    let _ = watch.time("seccomp: runner.main on top", || seccomp::apply(seccomp::Filter::RunnerMain))?;
    Ok(())
}
