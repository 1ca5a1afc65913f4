//! A plan as a [`Subject`]: what will run is derived from its steps, so that a step that is missing is missing here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use casemate_filters::Filter as Ours;
use casemate_plan::landlock::handled;
use casemate_plan::{
    Action, CgroupFacts, CgroupPlan, FdAccess, FdKind, FdSource, HostFacts, Namespace, Plan, SelinuxMode,
};

use crate::crowd::WARDEN;
use crate::observe::Observer;
use crate::rules::{LEASED, NO_POLICY};
use crate::seccomp::{Cache, Verdicts};
use crate::subject::*;

/// What is known beside the plan.
pub struct Beside<'a> {
    /// Of the host that the plan is for.
    pub facts: &'a HostFacts,
    /// The specification's `allow_reduced`.
    pub allow_reduced: Option<&'a str>,
    /// Looks at the files that the plan names; `None` where the plan is for another machine.
    pub files: Option<&'a Observer>,
    /// Digests of the kernel and the initramfs are wanted.
    pub digests: bool,
    /// `None`: no policy was named.
    pub separation: Option<Known<Separation>>,
}

const NOT_YET: &str = "nothing runs yet";

/// The plan as it would be, step by step.
pub fn subject(plan: &Plan, beside: &Beside<'_>) -> Subject {
    let steps = Steps(plan);
    Subject {
        kind: Kind::Plan,
        name: plan.sandbox.clone().unwrap_or_else(|| "(unnamed)".into()),
        file: None,
        processes: vec![runner(plan, beside.facts, &steps), warden(&steps)],
        objects: objects(plan, beside),
        separation: beside.separation.clone().unwrap_or_else(|| Known::unseen(NO_POLICY)),
        standing: Known::Seen(standing(plan, beside, &steps)),
        host: Known::Seen(host(beside.facts)),
        neighbours: Known::unseen(NOT_YET),
        leftovers: Known::unseen(NOT_YET),
    }
}

struct Steps<'a>(&'a Plan);

impl<'a> Steps<'a> {
    fn has(&self, wanted: fn(&Action) -> bool) -> bool {
        self.0.steps.iter().any(|step| wanted(&step.action))
    }

    fn find<T>(&self, pick: impl Fn(&'a Action) -> Option<T>) -> Option<T> {
        self.0.steps.iter().find_map(|step| pick(&step.action))
    }
}

fn standing(plan: &Plan, beside: &Beside<'_>, steps: &Steps<'_>) -> Standing {
    Standing {
        phase: "planned".into(),
        posture: plan.posture.to_string(),
        allow_reduced: beside.allow_reduced.map(str::to_owned),
        warnings: plan.warnings.iter().map(|warning| format!("{}: {}", warning.layer, warning.text)).collect(),
        blockers: plan.blockers.clone(),
        cpus: plan.vm.cpus.into(),
        memory: plan.vm.memory,
        unproven: Vec::new(),
        level_shared: steps.has(|action| matches!(action, Action::LeaseLevel { shared: true, .. })),
    }
}

fn host(facts: &HostFacts) -> Host {
    Host {
        kernel: facts.kernel_release.clone(),
        selinux: match facts.selinux.mode {
            SelinuxMode::Disabled => "disabled",
            SelinuxMode::Permissive => "permissive",
            SelinuxMode::Enforcing => "enforcing",
        }
        .into(),
        landlock_abi: facts.landlock_abi,
        cgroup: match facts.cgroup {
            CgroupFacts::V2 { .. } => "v2",
            CgroupFacts::V1 { .. } => "v1",
            CgroupFacts::None => "none",
        }
        .into(),
        // Judged of hosts, not of plans; facts do not hold them.
        vulnerabilities: BTreeMap::new(),
        smt: None,
        ksm: None,
        swap: Vec::new(),
    }
}

fn runner(plan: &Plan, facts: &HostFacts, steps: &Steps<'_>) -> Process {
    Process {
        role: "runner".into(),
        pid: None,
        parent: None,
        start_time: None,
        exe: Known::unseen(NOT_YET),
        label: Known::Seen(label(plan, facts, steps)),
        threads: Known::Seen(threads(plan, steps)),
        namespaces: Known::Seen(namespaces(steps)),
        cgroups: Known::Seen(steps.find(cgroup_of).map(cgroup).into_iter().collect()),
        rlimits: Known::Seen(rlimits(steps)),
        fds: Known::Seen(fds(plan, steps)),
        mounts: Known::Seen(mounts(steps)),
        environment: Known::Seen(match steps.has(|action| *action == Action::ExecRunner) {
            // The jailer has one way to exec, and no environment for it (sys::exec).
            true => Vec::new(),
            false => vec!["(no exec is planned)".into()],
        }),
        memory: Known::unseen(NOT_YET),
        landlock: Known::Seen(landlock(steps)),
    }
}

fn warden(steps: &Steps<'_>) -> Process {
    let narrowed = steps.has(|action| *action == Action::NarrowWarden);
    let why = || NOT_YET.to_owned();
    let thread = Thread {
        tid: None,
        name: WARDEN.into(),
        kernel: false,
        uid: [0; 4],
        gid: [0; 4],
        groups: Vec::new(),
        capabilities: Capabilities { effective: u64::MAX, permitted: u64::MAX, ..Capabilities::default() },
        no_new_privs: false,
        seccomp_mode: if narrowed { 2 } else { 0 },
        filter_count: narrowed.into(),
        filters: verdicts(if narrowed { &[Ours::Warden] } else { &[] }),
        speculation_store_bypass: "unknown".into(),
        speculation_indirect_branch: "unknown".into(),
    };
    Process {
        role: WARDEN.into(),
        pid: None,
        parent: None,
        start_time: None,
        exe: Known::Unseen(why()),
        label: Known::Unseen(why()),
        threads: Known::Seen(vec![thread]),
        namespaces: Known::Unseen(why()),
        cgroups: Known::Unseen(why()),
        rlimits: Known::Unseen(why()),
        fds: Known::Unseen(why()),
        mounts: Known::Unseen(why()),
        environment: Known::Unseen(why()),
        memory: Known::Unseen(why()),
        landlock: Known::Unseen(why()),
    }
}

/// The pair is leased at the start; a fixed level is known.
fn label(plan: &Plan, facts: &HostFacts, steps: &Steps<'_>) -> Option<String> {
    if facts.selinux.mode == SelinuxMode::Disabled {
        return None;
    }
    let level = steps.find(|action| match action {
        Action::LeaseMcs => Some(format!("s0:{LEASED}")),
        Action::LeaseLevel { level, .. } => Some(level.clone()),
        _ => None,
    });
    match (&plan.family, level) {
        (Some(family), Some(level)) if steps.has(|action| *action == Action::SetExecLabel) => {
            Some(format!("system_u:system_r:{}:{level}", family.runner))
        }
        _ => Some("(no label is planned)".into()),
    }
}

fn threads(plan: &Plan, steps: &Steps<'_>) -> Vec<Thread> {
    let lease = steps.find(|action| match action {
        Action::LeaseUid { first, .. } => Some(*first),
        _ => None,
    });
    let dropped = steps.has(|action| *action == Action::DropCapabilities);
    let bounded = steps.has(|action| *action == Action::DropBoundingSet);
    let (all, coarse) = (u64::MAX, steps.has(|action| *action == Action::InstallExecFilter));
    let own = steps.has(|action| *action == Action::InstallThreadFilters);
    let id = |set: bool| [lease.filter(|_| set).unwrap_or(0); 4];
    let thread = |name: String, filter: Ours| {
        let mut stack = Vec::new();
        stack.extend(own.then_some(filter));
        stack.extend(coarse.then_some(Ours::JailerExec));
        Thread {
            tid: None,
            name,
            kernel: false,
            uid: id(steps.has(|action| *action == Action::SetUid)),
            gid: id(steps.has(|action| *action == Action::SetGid)),
            groups: if steps.has(|action| *action == Action::DropGroups) { Vec::new() } else { vec![0] },
            capabilities: Capabilities {
                inheritable: 0,
                permitted: if dropped { 0 } else { all },
                effective: if dropped { 0 } else { all },
                bounding: if bounded { 0 } else { all },
                ambient: 0,
            },
            no_new_privs: steps.has(|action| *action == Action::SetNoNewPrivs),
            seccomp_mode: if stack.is_empty() { 0 } else { 2 },
            filter_count: stack.len() as u32,
            filters: verdicts(&stack),
            speculation_store_bypass: "unknown".into(),
            speculation_indirect_branch: "unknown".into(),
        }
    };
    let mut threads = vec![thread("casemate-runner".into(), Ours::RunnerMain), thread("io".into(), Ours::RunnerIo)];
    threads.extend((0..plan.vm.cpus).map(|n| thread(format!("vcpu{n}"), Ours::RunnerVcpu)));
    threads
}

/// Of a stack of our own filters, newest first: decided once for each, whatever the plan.
fn verdicts(stack: &[Ours]) -> Known<Arc<Verdicts>> {
    static DECIDED: LazyLock<Cache> = LazyLock::new(Cache::default);
    let programs: Vec<_> = stack.iter().map(|filter| filter.program().to_vec()).collect();
    DECIDED.judge(&programs).into()
}

fn namespaces(steps: &Steps<'_>) -> BTreeMap<String, NamespaceOf> {
    const ALL: [(&str, Namespace); 6] = [
        ("mnt", Namespace::Mount),
        ("pid", Namespace::Pid),
        ("net", Namespace::Net),
        ("ipc", Namespace::Ipc),
        ("uts", Namespace::Uts),
        ("cgroup", Namespace::Cgroup),
    ];
    let own = steps.find(|action| match action {
        Action::CloneRunner { namespaces, .. } => Some(namespaces.as_slice()),
        _ => None,
    });
    let hosts = |kind: Namespace| !own.unwrap_or_default().contains(&kind);
    let row =
        |(name, kind): (&str, Namespace)| (name.to_owned(), NamespaceOf { id: String::new(), hosts: hosts(kind) });
    ALL.into_iter().map(row).collect()
}

fn cgroup_of(action: &Action) -> Option<&CgroupPlan> {
    match action {
        Action::CreateCgroup(plan) => Some(plan),
        _ => None,
    }
}

/// The files that the jailer will write, of the controllers that the host has (confine, cgroup.rs).
fn cgroup(plan: &CgroupPlan) -> CgroupOf {
    let (v2, controllers): (bool, Vec<&str>) = match &plan.layout {
        CgroupFacts::V2 { controllers, .. } => (true, controllers.iter().map(String::as_str).collect()),
        CgroupFacts::V1 { controllers } => (false, controllers.keys().map(String::as_str).collect()),
        CgroupFacts::None => (true, Vec::new()),
    };
    let has = |name: &str| controllers.contains(&name);
    let mut limits = BTreeMap::new();
    if has("memory") {
        let file = if v2 { "memory.max" } else { "memory.limit_in_bytes" };
        limits.insert(file.to_owned(), plan.memory.to_string());
    }
    if has("pids") {
        limits.insert("pids.max".to_owned(), plan.pids.to_string());
    }
    if let Some(percent) = plan.cpu_percent.filter(|_| has("cpu")) {
        // Of a period of 100 ms.
        let quota = u64::from(percent) * 1000;
        let (file, value) = match v2 {
            true => ("cpu.max", format!("{quota} 100000")),
            false => ("cpu.cfs_quota_us", quota.to_string()),
        };
        limits.insert(file.to_owned(), value);
    }
    CgroupOf { path: plan.parent.clone(), limits }
}

/// Named as in /proc/PID/limits.
fn rlimits(steps: &Steps<'_>) -> BTreeMap<String, Limit> {
    const NAMES: [(&str, &str); 6] = [
        ("core", "Max core file size"),
        ("fsize", "Max file size"),
        ("memlock", "Max locked memory"),
        ("msgqueue", "Max msgqueue size"),
        ("nofile", "Max open files"),
        ("nproc", "Max processes"),
    ];
    let planned = steps.find(|action| match action {
        Action::SetRlimits { limits } => Some(limits.as_slice()),
        _ => None,
    });
    // What is not set stays the starter's: taken for unlimited.
    let limit = |name: &str| {
        let value = planned.unwrap_or_default().iter().find(|limit| limit.name == name).map(|limit| limit.value);
        Limit { soft: value, hard: value }
    };
    NAMES.into_iter().map(|(name, words)| (words.to_owned(), limit(name))).collect()
}

fn fds(plan: &Plan, steps: &Steps<'_>) -> Vec<Fd> {
    let fd = |number, target: &str, kind: &str, access: FdAccess, planned: Option<&str>| Fd {
        number,
        target: target.to_owned(),
        kind: kind.into(),
        read: access != FdAccess::WriteOnly,
        write: access != FdAccess::ReadOnly,
        planned: planned.map(str::to_owned),
        label: None,
        object: None,
    };
    let null = [(0, FdAccess::ReadOnly), (1, FdAccess::WriteOnly), (2, FdAccess::WriteOnly)];
    let mut all: Vec<Fd> = null.map(|(number, access)| fd(number, "/dev/null", "chr", access, None)).into();
    for slot in plan.fds.iter() {
        let target = match &slot.source {
            FdSource::Path(path) => path.as_str(),
            FdSource::Made => "(made by the jailer)",
        };
        let kind = match slot.kind {
            FdKind::RegularFile | FdKind::Image | FdKind::SealedMemfd | FdKind::SizedMemfd => "file",
            FdKind::BlockDevice => "blk",
            FdKind::CharDevice => "chr",
            FdKind::SeqpacketSocket | FdKind::StreamListener => "socket",
        };
        all.push(fd(slot.number, target, kind, slot.access, Some(&slot.name)));
    }
    if !steps.has(|action| *action == Action::ArrangeFds) {
        all.push(fd(-1, "(whatever the jailer has open: no step closes it)", "file", FdAccess::ReadWrite, None));
    }
    all
}

fn mounts(steps: &Steps<'_>) -> Vec<Mount> {
    let options = BTreeSet::from(["ro", "nosuid", "nodev", "noexec"].map(String::from));
    match steps.has(|action| *action == Action::EmptyRoot) {
        true => vec![Mount { point: "/".into(), kind: "tmpfs".into(), options }],
        false => vec![Mount { point: "/".into(), kind: "(the host's root)".into(), options: BTreeSet::new() }],
    }
}

/// The last domain, which denies all that it handles.
fn landlock(steps: &Steps<'_>) -> Landlock {
    let abi = steps.find(|action| match action {
        Action::RestrictLandlockFully { abi } => Some(*abi),
        _ => None,
    });
    let abi = abi.unwrap_or(0);
    Landlock { abi, handled: handled(abi), allowed: Vec::new(), probed: None }
}

/// Files that are opened by name, /dev/kvm not among them.
fn objects(plan: &Plan, beside: &Beside<'_>) -> Vec<Object> {
    let opened = plan.steps.iter().filter_map(|step| match &step.action {
        Action::OpenFile { fd, path, kind, access } if *kind != FdKind::CharDevice => Some((fd, path, *access)),
        _ => None,
    });
    let object = |(name, path, access): (&String, &String, FdAccess)| {
        let read_only = access == FdAccess::ReadOnly;
        match beside.files.filter(|_| path.starts_with('/')) {
            Some(files) => {
                let digest = beside.digests && (name == "kernel" || name == "initrd");
                files.file(name, Path::new(path), read_only, digest)
            }
            None => elsewhere(name, path, read_only),
        }
    };
    opened.map(object).collect()
}

fn elsewhere(name: &str, path: &str, read_only: bool) -> Object {
    let why = "it is not known on this machine";
    Object {
        name: name.into(),
        path: path.into(),
        read_only,
        label: Known::unseen(why),
        wanted: None,
        inode: Known::unseen(why),
        unchanged: None,
        writable_by: Known::unseen(why),
        sha256: Known::unseen(why),
    }
}

#[cfg(test)]
#[path = "planned_tests.rs"]
mod tests;
