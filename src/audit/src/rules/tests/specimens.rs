//! One violation each, and what the audit must say that it saw.

use std::sync::Arc;

use super::good::IMAGE;
use crate::rule::Severity;
use crate::seccomp::{Remark, RemarkId, Verdicts};
use crate::subject::*;

pub struct Specimen {
    pub rule: &'static str,
    pub kind: Kind,
    pub seen: &'static str,
    pub info: bool,
    pub spoil: fn(&mut Vec<Subject>),
}

macro_rules! specimens {
    ($($rule:literal $kind:ident $seen:literal $spoil:expr;)*) => {
        pub const ALL: &[Specimen] = &[$(Specimen {
            rule: $rule, kind: Kind::$kind, seen: $seen, spoil: $spoil,
            info: matches!($rule.as_bytes(), b"posture.no-warnings" | b"mitigations.speculation" | b"selinux.others"),
        }),*];
    };
}

fn seen<T>(known: &mut Known<T>) -> &mut T {
    match known {
        Known::Seen(value) => value,
        Known::Unseen(why) => panic!("{why}"),
    }
}

fn runner(all: &mut [Subject]) -> &mut Process {
    &mut all[0].processes[0]
}

fn warden(all: &mut [Subject]) -> &mut Process {
    &mut all[0].processes[1]
}

/// The vCPU's: the one that a careless auditor forgets.
fn thread(all: &mut [Subject]) -> &mut Thread {
    &mut seen(&mut runner(all).threads)[1]
}

fn verdicts(all: &mut [Subject]) -> &mut Verdicts {
    Arc::make_mut(seen(&mut thread(all).filters))
}

fn remark(all: &mut [Subject], id: RemarkId, text: &str, call: Option<&str>) {
    let call = call.map(str::to_owned);
    let remark = Remark { id, severity: Severity::High, text: text.into(), call, filter: None, instruction: None };
    verdicts(all).remarks.push(remark);
}

fn standing(all: &mut [Subject]) -> &mut Standing {
    seen(&mut all[0].standing)
}

fn host(all: &mut [Subject]) -> &mut Host {
    seen(&mut all[0].host)
}

fn policy(all: &mut [Subject]) -> &mut Separation {
    seen(&mut all[0].separation)
}

fn landlock(all: &mut [Subject]) -> &mut Landlock {
    seen(&mut runner(all).landlock)
}

fn fds(all: &mut [Subject]) -> &mut Vec<Fd> {
    seen(&mut runner(all).fds)
}

fn leak(all: &mut [Subject], kind: &str, target: &str) {
    let fds = fds(all);
    let fd = Fd { number: 77, kind: kind.into(), target: target.into(), planned: None, ..fds[0].clone() };
    fds.push(fd);
}

fn limits(all: &mut [Subject]) -> &mut std::collections::BTreeMap<String, String> {
    &mut seen(&mut runner(all).cgroups)[0].limits
}

fn rlimit(all: &mut [Subject], name: &str, limit: Limit) {
    seen(&mut runner(all).rlimits).insert(name.into(), limit);
}

const UNLIMITED: Limit = Limit { soft: Some(0), hard: None };

specimens! {
    "posture.not-reduced" Vm "reduced" |all| standing(all).posture = "reduced".into();
    "posture.not-reduced" Plan "nonsense" |all| standing(all).posture = "nonsense".into();
    "posture.reasoned" Vm "none" |all| {
        standing(all).posture = "reduced".into();
        standing(all).allow_reduced = Some(" ".into());
    };
    "posture.no-warnings" Plan "older" |all| standing(all).warnings.push("an older Landlock".into());
    "posture.no-blockers" Plan "no KVM" |all| standing(all).blockers.push("no KVM".into());
    "posture.proof-held" Vm "label" |all| standing(all).unproven.push("selinux: label is init_t".into());
    "processes.both-there" Vm "0 wardens" |all| { all[0].processes.pop(); };
    "processes.both-there" Vm "2 runners" |all| { let second = all[0].processes[0].clone(); all[0].processes.push(second); };
    "warden.filtered" Vm "mode 0" |all| seen(&mut warden(all).threads)[0].seccomp_mode = 0;
    "warden.filtered" Vm "not the warden's" |all| {
        Arc::make_mut(seen(&mut seen(&mut warden(all).threads)[0].filters)).filters[0].known = None;
    };
    "warden.domain" Vm "unconfined_t" |all| warden(all).label = Known::Seen(Some("u:r:unconfined_t:s0".into()));
    "leases.neighbours" Vm "libvirt" |all| seen(&mut all[0].neighbours).push("libvirt's guest x has s0:c1,c2".into());
    "leases.neighbours" Host "podman" |all| seen(&mut all[0].neighbours).push("podman's container y".into());
    "leases.leftovers" Host "cgroup" |all| seen(&mut all[0].leftovers).push("cgroup z is empty".into());
    "selinux.present" Host "disabled" |all| host(all).selinux = "disabled".into();
    "selinux.enforcing" Vm "permissive" |all| host(all).selinux = "permissive".into();
    "selinux.domain-enforced" Policy "permissive" |all| policy(all).permissive_domain = true;
    "selinux.no-reach" Policy "image file:read" |all| policy(all).reach.push("image file:read".into());
    "selinux.no-reach" Vm "runner process:ptrace" |all| policy(all).reach.push("runner process:ptrace".into());
    "selinux.no-rest" Policy "image file:getattr" |all| policy(all).reach.push("image file:getattr".into());
    "selinux.mcs-covers" Policy "blk_file" |all| policy(all).unconstrained.push("blk_file".into());
    "selinux.no-flows" Policy "tmp_t" |all| policy(all).flows.push("tmp_t:s0 file".into());
    "selinux.entries" Policy "httpd_t" |all| policy(all).entries.push("httpd_t".into());
    "selinux.others" Policy "httpd_t" |all| policy(all).others.push("httpd_t image file:write".into());
    "selinux.booleans" Policy "virt_use_nfs" |all| { policy(all).booleans.insert("virt_use_nfs".into(), true); };
    "selinux.two-categories" Vm "s0:c1" |all| runner(all).label = Known::Seen(Some("u:r:casemate_runner_t:s0:c1".into()));
    "selinux.two-categories" Vm "c0.c1023" |all| {
        runner(all).label = Known::Seen(Some("u:r:casemate_runner_t:s0-s0:c0.c1023".into()));
    };
    "selinux.two-categories" Plan "s0" |all| runner(all).label = Known::Seen(Some("u:r:casemate_runner_t:s0".into()));
    "selinux.level-exclusive" Vm "vm2 at s0:c1,c2" |all| {
        let label = all[0].processes[0].label.clone();
        all[1].processes[0].label = label;
    };
    "selinux.level-exclusive" Plan "level_shared" |all| standing(all).level_shared = true;
    "selinux.process-label" Process "virtd_t" |all| runner(all).label = Known::Seen(Some("u:r:virtd_t:s0".into()));
    "selinux.object-labels" Vm "etc_t" |all| all[0].objects[1].label = Known::Seen(Some("u:object_r:etc_t:s0".into()));
    "selinux.object-labels" Vm "none" |all| all[0].objects[1].label = Known::Seen(None);
    "landlock.present" Vm "no Landlock" |all| landlock(all).abi = 0;
    "landlock.complete" Vm "fs.truncate" |all| landlock(all).handled.retain(|right| right != "fs.truncate");
    "landlock.nothing-allowed" Plan "/etc" |all| landlock(all).allowed.push("/etc: read_file".into());
    "landlock.scopes" Host "ABI 5" |all| host(all).landlock_abi = 5;
    "landlock.probed" Vm "allowed" |all| {
        let probe = Probe { attempt: "open /".into(), outcome: "allowed".into(), ok: false };
        landlock(all).probed = Some(vec![probe]);
    };
    "seccomp.on-every-thread" Vm "vcpu0 (10001): mode 0" |all| thread(all).seccomp_mode = 0;
    "seccomp.on-every-thread" Process "mode 1" |all| thread(all).seccomp_mode = 1;
    "seccomp.both-filters" Vm ": 1" |all| thread(all).filter_count = 1;
    "seccomp.ours" Vm "another, jailer.exec" |all| verdicts(all).filters[0].known = None;
    "seccomp.ours" Vm "jailer.exec" |all| { verdicts(all).filters.remove(0); };
    "seccomp.ours" Vm "runner.vcpu" |all| { verdicts(all).filters.pop(); };
    "seccomp.denies-by-default" Process "empty" |all| remark(all, RemarkId::AllowsEverything, "it is empty", None);
    "seccomp.denies-by-default" Vm "unlisted" |all| remark(all, RemarkId::DefaultAllow, "unlisted", None);
    "seccomp.no-dangerous-call" Vm "bpf" |all| remark(all, RemarkId::DangerousCall, "bpf is allowed", Some("bpf"));
    "seccomp.no-dangerous-call" Vm "AF_ALG" |all| remark(all, RemarkId::SocketFamily, "socket(AF_ALG)", Some("socket"));
    "seccomp.narrow" Vm "openat" |all| {
        remark(all, RemarkId::DangerousCall, "openat is allowed", Some("openat"));
        verdicts(all).remarks[0].severity = Severity::Low;
    };
    "seccomp.no-unconditional-ioctl" Process "ioctl" |all| {
        remark(all, RemarkId::UnconditionalIoctl, "any ioctl", Some("ioctl"));
    };
    "seccomp.abi-checked" Process "i386" |all| remark(all, RemarkId::NoAbiCheck, "i386 as x86-64", None);
    "seccomp.abi-checked" Process "x32" |all| remark(all, RemarkId::X32Open, "x32 execve", Some("execve"));
    "seccomp.no-unreachable-rules" Vm "instruction 9" |all| remark(all, RemarkId::Unreachable, "instruction 9", None);
    "seccomp.whole-arguments" Vm "upper" |all| remark(all, RemarkId::UpperHalfUnchecked, "upper half", Some("mmap"));
    "capabilities.none" Vm "effective CAP_SYS_ADMIN" |all| thread(all).capabilities.effective = 1 << 21;
    "capabilities.none" Vm "bounding" |all| thread(all).capabilities.bounding = 1;
    "capabilities.none" Plan "ambient" |all| thread(all).capabilities.ambient = 1;
    "capabilities.no-new-privs" Process "not set" |all| thread(all).no_new_privs = false;
    "uid.not-root" Vm "uid 0" |all| thread(all).uid = [0; 4];
    "uid.not-root" Process "gid 10000 10000 10000 0 (real" |all| thread(all).gid[3] = 0;
    "uid.one-identity" Vm "10000 10000 77" |all| thread(all).uid[2] = 77;
    "uid.no-groups" Vm "[36]" |all| thread(all).groups = vec![36];
    "uid.exclusive" Vm "vm2 has 10000" |all| seen(&mut all[1].processes[0].threads)[0].uid = [10_000; 4];
    "namespaces.own" Vm "net is the host's" |all| {
        seen(&mut runner(all).namespaces).get_mut("net").unwrap().hosts = true;
    };
    "namespaces.exclusive" Vm "ipc:[1] with vm2" |all| {
        let ipc = seen(&mut runner(all).namespaces)["ipc"].clone();
        seen(&mut all[1].processes[0].namespaces).insert("ipc".into(), ipc);
    };
    "mounts.empty-root" Vm "2 mounts" |all| {
        let mounts = seen(&mut runner(all).mounts);
        mounts.push(Mount { point: "/proc".into(), kind: "proc".into(), options: mounts[0].options.clone() });
    };
    "mounts.empty-root" Vm "rw" |all| {
        let root = &mut seen(&mut runner(all).mounts)[0];
        root.options.remove("ro");
        root.options.insert("rw".into());
    };
    "cgroup.limited" Vm "memory is not limited" |all| { limits(all).insert("memory.max".into(), "max".into()); };
    "cgroup.limited" Process "pids is not limited" |all| { limits(all).remove("pids.max"); };
    "cgroup.bounds" Vm "memory 4611" |all| { limits(all).insert("memory.max".into(), "4611000000000000000".into()); };
    "rlimits.no-core" Vm "hard unlimited" |all| rlimit(all, "Max core file size", UNLIMITED);
    "rlimits.bounded" Vm "hard unlimited" |all| rlimit(all, "Max open files", UNLIMITED);
    "fds.as-planned" Vm "77 -> /etc/shadow" |all| leak(all, "file", "/etc/shadow");
    "fds.as-planned" Vm "1 -> /tmp/log" |all| { leak(all, "file", "/tmp/log"); fds(all).last_mut().unwrap().number = 1; };
    "fds.no-directory" Process "77 -> /" |all| leak(all, "dir", "/");
    "fds.no-device" Process "/dev/mapper/control" |all| leak(all, "chr", "/dev/mapper/control");
    "fds.no-device" Vm "/dev/sda" |all| leak(all, "blk", "/dev/sda");
    "fds.host-sockets" Vm "77 (bus)" |all| {
        leak(all, "socket", "socket:[9]");
        fds(all).last_mut().unwrap().planned = Some("bus".into());
    };
    "fds.host-sockets" Vm "300 sockets" |all| (0..300).for_each(|_| leak(all, "socket", "socket:[9]"));
    "fds.content-read-only" Vm "5 (kernel)" |all| fds(all)[3].write = true;
    "fds.content-read-only" Plan "7 (disk.root.1)" |all| fds(all)[5].write = true;
    "fds.nothing-shared" Vm "also in vm2" |all| {
        let disk = fds(all)[4].clone();
        seen(&mut all[1].processes[0].fds).push(disk);
    };
    "fds.levels" Vm "s0:c7,c8" |all| fds(all)[4].label = Some(IMAGE.replace("c1,c2", "c7,c8"));
    "environment.empty" Process "LD_PRELOAD" |all| seen(&mut runner(all).environment).push("LD_PRELOAD".into());
    "memory.no-writable-code" Vm "rwxp" |all| seen(&mut runner(all).memory).writable_executable.push("7f00-7f01 rwxp".into());
    "memory.stack" Process "executable" |all| seen(&mut runner(all).memory).executable_stack = true;
    "memory.not-dumpable" Vm "dumpable" |all| seen(&mut runner(all).memory).dumpable = Known::Seen(true);
    "mitigations.speculation" Vm "thread vulnerable" |all| {
        thread(all).speculation_store_bypass = "thread vulnerable".into();
    };
    "objects.protected" Vm "everybody may write it" |all| {
        all[0].objects[0].writable_by = Known::Seen(vec!["everybody may write it".into()]);
    };
    "objects.content-read-only" Plan "read-write" |all| all[0].objects[0].read_only = false;
    "objects.unchanged" Vm "another file" |all| all[0].objects[1].unchanged = Some(Known::Seen(false));
    "objects.one-name" Vm "2 links" |all| {
        all[0].objects[1].inode = Known::Seen(Inode { uid: 0, gid: 0, mode: 0o100_600, links: 2 });
    };
    "host.vulnerabilities" Host "Vulnerable" |all| {
        host(all).vulnerabilities.insert("retbleed".into(), "Vulnerable: no microcode".into());
    };
    "host.smt" Host "on" |all| host(all).smt = Some(true);
    "host.ksm" Host "on" |all| host(all).ksm = Some(true);
    "host.swap" Host "/dev/sda2" |all| host(all).swap.push("/dev/sda2".into());
}
