//! What the warden sees of the runner through a verified procfs, guarded by its pidfd, and how it
//! compares with the plan. Nothing of it depends on the runner's good will.

use crate::cgroup::Cgroup;
use crate::confined::Finding;
use crate::namespaces::{self, Identities};
use crate::{fds, rlimits};
use casemate_plan::{Layer, Namespace, RolePlan};
use casemate_sys::procfs::ProcessView;

/// What the plan says of the process, beyond its [`RolePlan`].
#[derive(Debug)]
pub struct Expected<'a> {
    pub plan: &'a RolePlan,
    pub namespaces: &'a [Namespace],
    /// The warden's own, to differ from.
    pub own_namespaces: &'a Identities,
    pub cgroup: Option<&'a Cgroup>,
    /// After Go the runner holds descriptors of its own making (VM, vCPUs, eventfds); before CreateVm
    /// it holds the table only.
    pub only_the_table: bool,
    /// Filters on each thread: 2 after the second narrowing (the coarse one and its own).
    pub filters_per_thread: u32,
}

/// Reads and compares everything. A runner that ended meanwhile yields findings that are not ok.
pub fn attest(view: &ProcessView<'_>, expected: &Expected<'_>) -> Vec<Finding> {
    let plan = expected.plan;
    let mut findings = threads(view, expected);
    findings.push(label(view, plan.label.as_deref()));
    findings.extend(namespaces::attest(view, expected.namespaces, expected.own_namespaces));
    findings.extend(descriptors(view, expected));
    findings.extend(root(view));
    if let Some(cgroup) = expected.cgroup {
        findings.extend(match view.read("cgroup") {
            Ok(text) => cgroup.attest(&text),
            Err(error) => vec![Finding::unreadable(Layer::Cgroup, "cgroup", &error)],
        });
    }
    findings.extend(match view.read("limits") {
        Ok(text) => rlimits::attest_text(&plan.rlimits, &text),
        Err(error) => vec![Finding::unreadable(Layer::Rlimits, "limits", &error)],
    });
    findings
}

/// Every thread: a vCPU thread that a filter missed is found here.
fn threads(view: &ProcessView<'_>, expected: &Expected<'_>) -> Vec<Finding> {
    let tasks = match view.list("task") {
        Ok(tasks) if !tasks.is_empty() => tasks,
        Ok(_) => return vec![Finding::judged(Layer::None, "threads", "some", "none", false)],
        Err(error) => return vec![Finding::unreadable(Layer::None, "threads", &error)],
    };
    let mut findings = Vec::new();
    for task in tasks {
        match view.read(&format!("task/{task}/status")) {
            Ok(text) => findings.extend(thread(&text, expected)),
            Err(error) => findings.push(Finding::unreadable(Layer::None, format!("thread {task}"), &error)),
        }
    }
    findings
}

/// One thread's /proc/PID/task/TID/status.
fn thread(status: &str, expected: &Expected<'_>) -> Vec<Finding> {
    let plan = expected.plan;
    let field = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.map_or("absent".to_owned(), |rest| rest.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let name = field("Name");
    // A thread that KVM itself runs for us (kvm-nx-lpage-recovery) never returns to user space: the
    // kernel gives it our credentials, but no filter of ours was installed by it.
    let kernel_helper = name.starts_with("kvm-nx-lpage");
    let check =
        |layer, key: &str, want: String| Finding::equal(layer, format!("{key} of thread {name}"), want, field(key));
    let ids = |id: u32| [id; 4].map(|id| id.to_string()).join(" ");
    let none = "0".repeat(16);
    let mut findings = vec![
        check(Layer::Uid, "Uid", ids(plan.uid)),
        check(Layer::Uid, "Gid", ids(plan.gid)),
        check(Layer::Uid, "Groups", String::new()),
    ];
    for key in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        findings.push(check(Layer::Capabilities, key, none.clone()));
    }
    findings.push(check(Layer::Seccomp, "NoNewPrivs", "1".into()));
    if plan.seccomp {
        findings.push(check(Layer::Seccomp, "Seccomp", "2".into()));
        if !kernel_helper {
            findings.push(check(Layer::Seccomp, "Seccomp_filters", expected.filters_per_thread.to_string()));
        }
    }
    findings
}

fn label(view: &ProcessView<'_>, planned: Option<&str>) -> Finding {
    let Some(planned) = planned else {
        return Finding::judged(Layer::Selinux, "label", "none planned", "not looked at", true);
    };
    match view.read("attr/current") {
        Ok(seen) => Finding::equal(Layer::Selinux, "label", planned, seen),
        Err(error) => Finding::unreadable(Layer::Selinux, "label", &error),
    }
}

fn descriptors(view: &ProcessView<'_>, expected: &Expected<'_>) -> Vec<Finding> {
    const LAYER: Layer = Layer::Fds;
    let open: Vec<i32> = match view.list("fd") {
        Ok(names) => names.iter().filter_map(|name| name.parse().ok()).collect(),
        Err(error) => return vec![Finding::unreadable(LAYER, "open descriptors", &error)],
    };
    let planned = &expected.plan.fds;
    let mut findings = Vec::new();
    if expected.only_the_table {
        findings.push(Finding::equal(
            LAYER,
            "open descriptors",
            fds::numbers(planned.iter().map(|fd| fd.number)),
            fds::numbers(open.iter().copied().filter(|number| *number > 2)),
        ));
    } else {
        findings.push(own_making(view, expected, &open));
    }
    for want in planned {
        let what = format!("descriptor {} ({})", want.number, want.name);
        let may_be_closed = !expected.only_the_table;
        findings.push(match view.fd_identity(want.number) {
            Ok(seen) => {
                let mut finding = fds::compare(what, want, &seen);
                if !finding.ok && may_be_closed && is_own_making(view, want.number) {
                    (finding.ok, finding.seen) = (true, "closed after use, its number taken again".into());
                }
                finding
            }
            // What a runner gave up it cannot misuse.
            Err(_) if may_be_closed && !open.contains(&want.number) => {
                Finding::judged(LAYER, what, format!("{:?} or closed", want.kind), "closed after use", true)
            }
            Err(error) => Finding::unreadable(LAYER, what, &error),
        });
    }
    findings
}

/// Is this what a runner can make without opening: an anonymous inode or a socket?
fn is_own_making(view: &ProcessView<'_>, number: i32) -> bool {
    let link = view.read_link(&format!("fd/{number}")).unwrap_or_default();
    link.starts_with("anon_inode:") || link.starts_with("socket:[")
}

/// Descriptors above the table may only be what a runner can make without opening: anonymous inodes
/// and sockets. A path there means a file that nobody planned.
fn own_making(view: &ProcessView<'_>, expected: &Expected<'_>, open: &[i32]) -> Finding {
    let above = open.iter().filter(|number| !expected.plan.fds.iter().any(|fd| fd.number == **number));
    let mut strange = Vec::new();
    for number in above.filter(|number| **number > 2) {
        if !is_own_making(view, *number) {
            let link = view.read_link(&format!("fd/{number}")).unwrap_or_else(|error| error.report());
            strange.push(format!("{number} -> {link}"));
        }
    }
    Finding::equal(Layer::Fds, "descriptors beyond the plan", "", strange.join(", "))
}

/// The root is one empty read-only mount, and the only mount there is.
fn root(view: &ProcessView<'_>) -> Vec<Finding> {
    const LAYER: Layer = Layer::Mounts;
    let text = match view.read("mountinfo") {
        Ok(text) => text,
        Err(error) => return vec![Finding::unreadable(LAYER, "mounts", &error)],
    };
    let mounts: Vec<&str> = text.lines().collect();
    let shown = mounts.first().copied().unwrap_or("no mount").to_owned();
    let (options, kind) = match shown.split_once(" - ") {
        Some((left, right)) => {
            let options = left.split(' ').nth(5).unwrap_or_default().to_owned();
            (options, right.split(' ').next().unwrap_or_default().to_owned())
        }
        None => (String::new(), String::new()),
    };
    let has = |name: &str| options.split(',').any(|option| option == name);
    let locked = ["ro", "nosuid", "nodev", "noexec"].into_iter().all(has);
    vec![
        Finding::equal(LAYER, "number of mounts", "1", mounts.len().to_string()),
        Finding::judged(
            LAYER,
            "root",
            "tmpfs ro,nosuid,nodev,noexec",
            format!("{kind} {options}"),
            locked && kind == "tmpfs",
        ),
    ]
}
