//! What a VM is as one who acts, layer by layer: would this one alone keep its runner from others?

use std::collections::BTreeSet;

use super::{APART, Answer};
use crate::observe::cgroup::is_limit;
use crate::policy::ask::HARMFUL;
use crate::rule::Verdict;
use crate::subject::{Known, Process, Subject, Thread};

/// System calls that name something that was not handed over: a process, a path, an address, a key, an IPC object (whose
/// number need not be asked for before it is used). socketcall and ipc are i386's for all of their kind.
const REACHING: [&str; 80] = [
    "open",
    "openat",
    "openat2",
    "creat",
    "open_by_handle_at",
    "execve",
    "execveat",
    "mknod",
    "mknodat",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "rmdir",
    "truncate",
    "chmod",
    "fchmodat",
    "fchmodat2",
    "chown",
    "lchown",
    "fchownat",
    "setxattr",
    "lsetxattr",
    "setxattrat",
    "removexattr",
    "lremovexattr",
    "removexattrat",
    "mount",
    "move_mount",
    "open_tree",
    "open_tree_attr",
    "fsopen",
    "fspick",
    "chroot",
    "pivot_root",
    "kill",
    "tkill",
    "tgkill",
    "rt_sigqueueinfo",
    "rt_tgsigqueueinfo",
    "pidfd_open",
    "pidfd_send_signal",
    "pidfd_getfd",
    "process_madvise",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "socket",
    "connect",
    "bind",
    "socketcall",
    "shmget",
    "shmat",
    "shmctl",
    "msgget",
    "msgsnd",
    "msgrcv",
    "msgctl",
    "semget",
    "semop",
    "semtimedop",
    "semctl",
    "ipc",
    "mq_open",
    "mq_unlink",
    "keyctl",
    "add_key",
    "request_key",
    "bpf",
    "perf_event_open",
    "io_uring_setup",
    "setns",
    "unshare",
];

pub(super) fn unknown(why: &str) -> Answer {
    (Verdict::Unknown, why.to_owned())
}

fn own_threads(runner: &Process) -> Result<Vec<&Thread>, Answer> {
    match &runner.threads {
        Known::Seen(threads) if threads.iter().all(|thread| thread.kernel) => Err(unknown("no thread of it was seen")),
        Known::Seen(threads) => Ok(threads.iter().filter(|thread| !thread.kernel).collect()),
        Known::Unseen(why) => Err(unknown(why)),
    }
}

pub(super) fn capabilities(runner: &Process) -> Answer {
    let threads = match own_threads(runner) {
        Ok(threads) => threads,
        Err(answer) => return answer,
    };
    if threads.iter().any(|thread| thread.uid.contains(&0)) {
        return (Verdict::Fail, "it is root's".into());
    }
    let held = |thread: &&&Thread| thread.capabilities.permitted | thread.capabilities.effective != 0;
    match threads.iter().find(held) {
        Some(thread) => (Verdict::Fail, format!("its thread {} has capabilities, which stand over uids", thread.name)),
        None => (Verdict::Pass, "each has a uid of its own, and no capability".into()),
    }
}

pub(super) fn policy(subject: &Subject) -> Answer {
    let separation = match &subject.separation {
        Known::Seen(separation) => separation,
        Known::Unseen(why) => {
            let off = subject.host.seen().is_some_and(|host| host.selinux == "disabled");
            return if off { (Verdict::Fail, "this host has no SELinux".into()) } else { unknown(why) };
        }
    };
    let harmful = |right: &&String| right.rsplit_once(':').is_some_and(|(_, permission)| HARMFUL.contains(&permission));
    let reached: Vec<&str> = separation.reach.iter().filter(harmful).map(String::as_str).collect();
    match separation.enforcing {
        Some(false) => (Verdict::Fail, "SELinux is permissive".into()),
        None => unknown("whether SELinux enforces is not known"),
        Some(true) if separation.permissive_domain => (Verdict::Fail, "its domain is permissive".into()),
        Some(true) if !reached.is_empty() => {
            (Verdict::Fail, format!("the loaded policy allows it, of another's: {}", reached.join(" ")))
        }
        Some(true) => {
            (Verdict::Pass, format!("the loaded policy lets {} touch nothing of another level", separation.family))
        }
    }
}

pub(super) fn landlock(runner: &Process) -> Answer {
    let landlock = match &runner.landlock {
        Known::Seen(landlock) => landlock,
        Known::Unseen(why) => return unknown(why),
    };
    if let Some(probe) = landlock.probed.iter().flatten().find(|probe| !probe.ok) {
        return (Verdict::Fail, format!("a probe in its domain: {} was {}", probe.attempt, probe.outcome));
    }
    let handles = |right: &str| landlock.handled.iter().any(|handled| handled == right);
    let lacks: Vec<&str> = [
        ("fs.read_file", "files"),
        ("fs.write_file", "files"),
        ("net.connect_tcp", "TCP"),
        ("scope.abstract_unix_socket", "abstract sockets"),
        ("scope.signal", "signals"),
    ]
    .into_iter()
    .filter(|(right, _)| !handles(right))
    .map(|(_, what)| what)
    .collect();
    let abi = landlock.abi;
    match (lacks.is_empty(), landlock.allowed.is_empty()) {
        (true, true) => {
            let how = if landlock.probed.is_some() { "as a probe in its domain saw" } else { "as planned" };
            (
                Verdict::Pass,
                format!("ABI {abi}: no path, no TCP, no signal or abstract socket out of its domain, {how}"),
            )
        }
        (true, false) => (Verdict::Fail, format!("its ruleset allows: {}", landlock.allowed.join(", "))),
        (false, _) if abi == 0 => (Verdict::Fail, "it has no Landlock domain".into()),
        (false, _) => (Verdict::Fail, format!("ABI {abi} does not cover {}", lacks.join(", "))),
    }
}

pub(super) fn seccomp(runner: &Process) -> Answer {
    let threads = match own_threads(runner) {
        Ok(threads) => threads,
        Err(answer) => return answer,
    };
    if let Some(thread) = threads.iter().find(|thread| thread.seccomp_mode == 0) {
        return (Verdict::Fail, format!("its thread {} has no filter", thread.name));
    }
    let mut reaching = BTreeSet::new();
    for thread in threads {
        match &thread.filters {
            Known::Unseen(why) => return unknown(&format!("the filters of its threads were not read: {why}")),
            Known::Seen(verdicts) => {
                let calls = verdicts.calls.iter().filter_map(|call| Some((call.name.as_deref()?, &call.when)));
                let calls = calls.filter(|(name, when)| REACHING.contains(name) && !itself_only(name, when));
                reaching.extend(calls.map(|(name, when)| match when.as_slice() {
                    [] => name.to_owned(),
                    when => format!("{name} when {}", when.join(" or ")),
                }));
            }
        }
    }
    if reaching.is_empty() {
        return (Verdict::Pass, "no thread may make a call that names what it was not given".into());
    }
    let list: Vec<String> = reaching.into_iter().collect();
    (Verdict::Fail, format!("its filters allow: {}", list.join("; ")))
}

/// Whether a filter lets it signal process 1 only. It is that itself, in a pid namespace of its own; and should it be in
/// another's, the first process there is no VM.
fn itself_only(call: &str, when: &[String]) -> bool {
    let names_1 = |alternative: &String| alternative.split(" && ").any(|term| term == "u32(arg0) == 0x1");
    matches!(call, "kill" | "tgkill") && !when.is_empty() && when.iter().all(names_1)
}

pub(super) fn hosts_namespaces(runner: &Process) -> Answer {
    let namespaces = match &runner.namespaces {
        Known::Seen(namespaces) => namespaces,
        Known::Unseen(why) => return unknown(why),
    };
    let hosts: Vec<&str> =
        APART.into_iter().filter(|name| namespaces.get(*name).is_none_or(|namespace| namespace.hosts)).collect();
    match hosts.is_empty() {
        true => (Verdict::Pass, format!("each has its own: {}", APART.join(", "))),
        false => (Verdict::Fail, format!("it is in the host's: {}", hosts.join(", "))),
    }
}

pub(super) fn limits(runner: &Process) -> Answer {
    let cgroups = match &runner.cgroups {
        Known::Seen(cgroups) => cgroups,
        Known::Unseen(why) => return unknown(why),
    };
    let limited = |controller: &str| {
        let mut files = cgroups.iter().flat_map(|cgroup| &cgroup.limits);
        files.any(|(file, value)| file.starts_with(controller) && is_limit(value))
    };
    let missing: Vec<&str> = ["memory", "pids"].into_iter().filter(|controller| !limited(controller)).collect();
    match missing.is_empty() {
        true => (Verdict::Pass, "each has a cgroup of its own, with memory and tasks limited".into()),
        false => (Verdict::Fail, format!("nothing limits its {}", missing.join(" and "))),
    }
}

pub(super) fn descriptors(runner: &Process) -> Answer {
    match &runner.fds {
        Known::Seen(_) => (Verdict::Pass, "no object is open in both with one writing".into()),
        Known::Unseen(why) => unknown(why),
    }
}
