//! Reports as an audit makes them, for the tests of the page: a host with a few VMs, or with many.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use casemate_audit::report::{Cell, Matrix, Pair, Report, VERSION, Waived};
use casemate_audit::rule::{Check, Finding, Severity, Verdict};
use casemate_audit::seccomp::*;
use casemate_audit::subject::*;

const LAYERS: [&str; 8] = ["selinux", "landlock", "seccomp", "capabilities", "namespaces", "mounts", "uid", "cgroup"];

pub fn name(at: usize) -> String {
    ["web", "db", "ci-4711", "agent"].get(at).map_or_else(|| format!("job-{at}"), |name| (*name).to_owned())
}

/// With findings of every verdict and severity; the last two VMs share a level.
pub fn report(vms: usize) -> Report {
    let verdicts =
        [verdicts("runner.start", 41), verdicts("runner.vcpu", 9), verdicts("runner.vmm", 28), verdicts("warden", 52)];
    let mut subjects = vec![host()];
    subjects.extend((0..vms).map(|at| vm(at, &verdicts)));
    let mut findings: Vec<Finding> = Vec::new();
    for at in 0..vms {
        findings.extend(passed(&name(at)));
    }
    findings.extend(failed(vms));
    Report {
        version: VERSION,
        time: 1_795_408_200,
        host: "gate.example".into(),
        profile: "casemate".into(),
        subjects,
        findings,
        waived: vec![Waived {
            rule: "host.swap-off".into(),
            reason: "swap is encrypted with a key of this boot".into(),
        }],
        matrix: matrix(vms),
    }
}

fn matrix(vms: usize) -> Matrix {
    let all = |verdict, why: &str| (verdict, why.to_owned());
    let common: BTreeMap<_, _> = LAYERS
        .iter()
        .map(|layer| {
            (
                (*layer).to_owned(),
                all(Verdict::Pass, &format!("{layer} alone denies every attempt on the other's objects")),
            )
        })
        .collect();
    let mut weak = common.clone();
    weak.insert("selinux".into(), all(Verdict::Fail, "both have the level s0:c41,c977"));
    let mut unsure = common.clone();
    unsure.insert(
        "landlock".into(),
        all(Verdict::Unknown, "nothing was tried in this domain: the probe could not be started"),
    );
    let (a, b) = (vms - 2, vms - 1);
    let mut pairs = vec![Pair { from: a, to: b, cell: 1 }, Pair { from: b, to: a, cell: 1 }];
    pairs.extend((1..vms).map(|to| Pair { from: 0, to, cell: 2 }));
    pairs.sort_by_key(|pair| (pair.from, pair.to));
    pairs.dedup_by_key(|pair| (pair.from, pair.to));
    let cells = [common, weak, unsure].into_iter().map(|layers| Cell { layers }).collect();
    Matrix { vms: (0..vms).map(name).collect(), cells, common: 0, pairs }
}

fn finding(rule: &str, severity: Severity, subject: &str, check: Check) -> Finding {
    Finding {
        rule: rule.into(),
        title: rule.split_once('.').map_or(rule, |(_, title)| title).replace('-', " "),
        layer: rule.split('.').next().unwrap_or_default().into(),
        threat: "A guest that has taken over its runner goes on to the next one.".into(),
        severity,
        remedy: "Stop the VM, `casemate repair`, and start it again with this version's filters.".into(),
        kind: if subject == "gate.example" { Kind::Host } else { Kind::Vm },
        subject: subject.into(),
        check,
    }
}

fn check(verdict: Verdict, what: &str, expected: &str, seen: &str) -> Check {
    Check { verdict, what: what.into(), expected: expected.into(), seen: seen.into() }
}

fn passed(vm: &str) -> Vec<Finding> {
    let pass = |what: &str, expected: &str| check(Verdict::Pass, what, expected, expected);
    LAYERS
        .iter()
        .flat_map(|layer| {
            ["as-planned", "nothing-more", "read-back"].map(|rule| {
                finding(
                    &format!("{layer}.{rule}"),
                    Severity::High,
                    vm,
                    pass("runner, every thread", "as the plan says"),
                )
            })
        })
        .collect()
}

fn failed(vms: usize) -> Vec<Finding> {
    let (a, b) = (name(vms - 2), name(vms - 1));
    let mut all = vec![
        finding(
            "selinux.level-is-its-own",
            Severity::Critical,
            &b,
            check(Verdict::Fail, "runner's level", "s0:cX,cY that no other VM has", "s0:c41,c977, also of agent"),
        ),
        finding(
            "selinux.level-is-its-own",
            Severity::Critical,
            &a,
            check(Verdict::Fail, "runner's level", "s0:cX,cY that no other VM has", "s0:c41,c977, also of job-4"),
        ),
        finding(
            "seccomp.no-unconditional-ioctl",
            Severity::High,
            &a,
            check(
                Verdict::Fail,
                "runner 4711, thread vcpu0",
                "ioctl with a list of commands",
                "ioctl, whatever the arguments",
            ),
        ),
        finding(
            "fds.as-planned",
            Severity::High,
            &a,
            check(
                Verdict::Fail,
                "runner 4711, fd 19",
                "only what the plan names",
                "/home/op/.ssh/id_ed25519 (file, read)",
            ),
        ),
        finding("cgroup.memory-limited", Severity::Medium, &a, check(Verdict::Fail, "memory.swap.max", "0", "max")),
        finding(
            "host.mitigations",
            Severity::Low,
            "gate.example",
            check(
                Verdict::Fail,
                "mds",
                "Mitigation: …",
                "Vulnerable: Clear CPU buffers attempted, no microcode; SMT vulnerable",
            ),
        ),
        finding(
            "host.ksm-off",
            Severity::Info,
            "gate.example",
            check(Verdict::Fail, "/sys/kernel/mm/ksm/run", "0", "1"),
        ),
    ];
    all.push(finding(
        "host.selinux-booleans",
        Severity::Low,
        "gate.example",
        check(Verdict::Inapplicable, "virt_use_nfs", "", "this policy has no such boolean"),
    ));
    all.extend((0..vms).map(|at| {
        finding(
            "landlock.probed",
            Severity::High,
            &name(at),
            check(
                Verdict::Unknown,
                "the runner's domain",
                "a probe in the same domain is denied",
                "not tried: the jailer is older than this auditor",
            ),
        )
    }));
    all
}

fn seen<T>(value: T) -> Known<T> {
    Known::Seen(value)
}

fn host() -> Subject {
    let says = [
        ("gather_data_sampling", "Not affected"),
        ("mds", "Vulnerable: Clear CPU buffers attempted, no microcode; SMT vulnerable"),
        ("meltdown", "Mitigation: PTI"),
        ("spectre_v2", "Mitigation: Retpolines; IBPB: conditional; STIBP: disabled; RSB filling"),
    ];
    let host = Host {
        kernel: "6.12.38+deb13-cloud-amd64".into(),
        selinux: "enforcing".into(),
        landlock_abi: 6,
        cgroup: "v2".into(),
        vulnerabilities: says.map(|(name, says)| (name.to_owned(), says.to_owned())).into(),
        smt: Some(true),
        ksm: Some(true),
        swap: vec![],
    };
    Subject {
        neighbours: seen(vec!["libvirt guest `win11` has s0:c120,c515".into()]),
        leftovers: seen(vec!["lease uid/10007 of a process that is gone".into()]),
        host: seen(host),
        ..nothing(Kind::Host, "gate.example")
    }
}

fn nothing(kind: Kind, name: &str) -> Subject {
    let why = "not asked of this kind of subject";
    Subject {
        kind,
        name: name.into(),
        file: None,
        processes: vec![],
        objects: vec![],
        separation: Known::unseen(why),
        standing: Known::unseen(why),
        host: Known::unseen(why),
        neighbours: Known::unseen(why),
        leftovers: Known::unseen(why),
    }
}

fn vm(at: usize, verdicts: &[Known<Arc<Verdicts>>; 4]) -> Subject {
    let pid = 4700 + 10 * at as u32;
    let uid = 10_000 + at as u32;
    let level = format!("s0:c{},c{}", 41 + at, 977 - at);
    let runner = format!("system_u:system_r:casemate_t:{level}");
    let image = format!("system_u:object_r:casemate_image_t:{level}");
    let standing = Standing {
        posture: "enforced".into(),
        phase: "running".into(),
        allow_reduced: None,
        warnings: vec!["Landlock ABI 6: no audit of denials (ABI 7)".into()],
        blockers: vec![],
        cpus: 2,
        memory: 256 << 20,
        unproven: vec![],
        level_shared: false,
    };
    let object = |name: &str, path: &str, read_only: bool| Object {
        name: name.into(),
        path: path.into(),
        read_only,
        label: seen(Some(image.clone())),
        wanted: Some(image.clone()),
        inode: seen(Inode { uid: 0, gid: 0, mode: 0o100_600, links: 1 }),
        writable_by: seen(vec![]),
        unchanged: Some(seen(true)),
        sha256: Known::unseen("a live audit does not read images"),
    };
    let warden =
        process("warden", pid, None, 0, "system_u:system_r:casemate_warden_t:s0", [("main", &verdicts[3])].as_slice());
    let threads =
        [("vmm", &verdicts[2]), ("vcpu0", &verdicts[1]), ("vcpu1", &verdicts[1]), ("disk.root", &verdicts[0])];
    let runner_process = process("runner", pid + 1, Some(pid), uid, &runner, &threads);
    Subject {
        processes: vec![warden, runner_process],
        objects: vec![
            object("kernel", "/var/lib/casemate/kernels/6.12/vmlinux", true),
            object("disk.root", "/srv/vm/root.qcow2", false),
        ],
        separation: seen(separation(&runner, &image)),
        standing: seen(standing),
        neighbours: seen(vec![]),
        leftovers: seen(vec![]),
        ..nothing(Kind::Vm, &name(at))
    }
}

fn separation(runner: &str, image: &str) -> Separation {
    Separation {
        origin: "/sys/fs/selinux/policy".into(),
        family: "casemate".into(),
        runner: runner.into(),
        image: image.into(),
        other_runner: "system_u:system_r:casemate_t:s0:c1,c2".into(),
        other_image: "system_u:object_r:casemate_image_t:s0:c1,c2".into(),
        enforcing: Some(true),
        permissive_domain: false,
        reach: vec![],
        unconstrained: vec!["bpf".into(), "perf_event".into()],
        entries: vec!["casemate_jailer_t".into()],
        others: vec!["casemate_jailer_t file:write".into(), "unconfined_t file:write".into()],
        booleans: BTreeMap::from([("casemate_nfs".into(), false)]),
        flows: vec![],
    }
}

fn process(
    role: &str,
    pid: u32,
    parent: Option<u32>,
    uid: u32,
    label: &str,
    threads: &[(&str, &Known<Arc<Verdicts>>)],
) -> Process {
    let root = uid == 0;
    let bits = if root { 1 << 21 | 1 << 1 } else { 0 };
    let thread = |(at, (name, filters)): (usize, &(&str, &Known<Arc<Verdicts>>))| Thread {
        tid: Some(pid + at as u32),
        name: (*name).into(),
        kernel: false,
        uid: [uid; 4],
        gid: [uid; 4],
        groups: vec![],
        capabilities: Capabilities { effective: bits, permitted: bits, bounding: bits, ..Capabilities::default() },
        no_new_privs: true,
        seccomp_mode: 2,
        filter_count: 2,
        filters: (*filters).clone(),
        speculation_store_bypass: "thread force mitigated".into(),
        speculation_indirect_branch: "conditional force disabled".into(),
    };
    let namespaces = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];
    let fd = |number, target: &str, kind: &str, write, planned: Option<&str>| Fd {
        number,
        target: target.into(),
        kind: kind.into(),
        read: true,
        write,
        planned: planned.map(str::to_owned),
        label: Some(label.into()),
        object: Some((8, number as u64)),
    };
    let mount = |point: &str, kind: &str, options: &[&str]| Mount {
        point: point.into(),
        kind: kind.into(),
        options: options.iter().map(|o| (*o).to_owned()).collect::<BTreeSet<_>>(),
    };
    Process {
        role: role.into(),
        pid: Some(pid),
        parent,
        start_time: Some(8_151_623),
        exe: seen(format!("/usr/libexec/casemate/casemate-{role}")),
        label: seen(Some(label.into())),
        threads: seen(threads.iter().enumerate().map(thread).collect()),
        namespaces: seen(
            namespaces
                .map(|ns| {
                    (
                        ns.to_owned(),
                        NamespaceOf { id: format!("{ns}:[4026{pid}]"), hosts: root || ["time", "user"].contains(&ns) },
                    )
                })
                .into(),
        ),
        cgroups: seen(vec![CgroupOf {
            path: "/sys/fs/cgroup/casemate/web".into(),
            limits: BTreeMap::from([("memory.max".into(), "402653184".into()), ("pids.max".into(), "64".into())]),
        }]),
        rlimits: seen(BTreeMap::from([
            ("Max core file size".into(), Limit { soft: Some(0), hard: Some(0) }),
            ("Max locked memory".into(), Limit { soft: None, hard: None }),
        ])),
        fds: seen(vec![
            fd(0, "/dev/null", "chr", false, Some("stdin")),
            fd(3, "/memfd:plan (deleted)", "file", false, Some("plan")),
            fd(9, "anon_inode:kvm-vm", "anon", true, Some("kvm.vm")),
            fd(19, "/home/op/.ssh/id_ed25519", "file", false, None),
        ]),
        mounts: seen(vec![mount("/", "tmpfs", &["ro", "nosuid", "nodev", "noexec"])]),
        environment: seen(vec![]),
        memory: seen(Memory {
            writable_executable: vec![],
            coredump_filter: Some(0),
            dumpable: seen(false),
            locked: 0,
            executable_stack: false,
        }),
        landlock: seen(Landlock {
            abi: 6,
            handled: ["fs.execute", "fs.write_file", "fs.read_file", "net.bind_tcp", "net.connect_tcp", "scope.signal"]
                .map(str::to_owned)
                .into(),
            allowed: vec![],
            probed: (!root)
                .then(|| vec![Probe { attempt: "open /etc/shadow".into(), outcome: "EACCES".into(), ok: true }]),
        }),
    }
}

fn verdicts(known: &str, calls: usize) -> Known<Arc<Verdicts>> {
    const NAMES: [&str; 12] = [
        "read",
        "write",
        "close",
        "futex",
        "epoll_wait",
        "eventfd2",
        "mmap",
        "munmap",
        "exit",
        "exit_group",
        "rt_sigreturn",
        "recvmsg",
    ];
    let call = |at: usize| Call {
        abi: Abi::X86_64,
        number: at as u32,
        name: Some(NAMES.get(at).map_or_else(|| format!("call_{at}"), |name| (*name).to_owned())),
        when: if at == 6 { vec!["u32(arg2) & 0x4 == 0 (no PROT_EXEC)".into()] } else { vec![] },
        why: vec!["the event loop".into()],
    };
    let mut all: Vec<Call> = (0..calls).map(call).collect();
    all.push(Call {
        abi: Abi::X86_64,
        number: 16,
        name: Some("ioctl".into()),
        when: vec!["u32(arg1) == 0xae80 (KVM_RUN)".into(), "u32(arg1) == 0x4010aeab (KVM_SIGNAL_MSI)".into()],
        why: vec!["runs the vCPU".into(), "raises a message-signalled interrupt".into()],
    });
    let filter = |known: Option<&str>, digest: u8| Filter {
        digest: format!("{digest:02x}").repeat(32),
        instructions: calls * 3,
        known: known.map(str::to_owned),
        claims: None,
        differences: vec![],
    };
    let range = |first, last, answers: &[Action]| Range { first, last, answers: answers.to_vec() };
    let table = |abi| Table {
        abi,
        ranges: vec![
            range(0, calls as u32, &[Action::Allow]),
            range(calls as u32 + 1, u32::MAX, &[Action::KillProcess]),
        ],
    };
    let refused = |abi| Table { abi, ranges: vec![range(0, u32::MAX, &[Action::KillProcess])] };
    seen(Arc::new(Verdicts {
        filters: vec![filter(Some(known), 0xa7 ^ calls as u8), filter(None, 0x3c)],
        calls: all,
        tables: vec![table(Abi::X86_64), refused(Abi::X32), refused(Abi::I386)],
        remarks: vec![Remark {
            id: RemarkId::UpperHalfUnchecked,
            severity: Severity::Info,
            text: "ioctl compares the lower half of arg1 only; the kernel reads no more of it".into(),
            call: Some("ioctl".into()),
            filter: Some(0),
            instruction: Some(12),
        }],
    }))
}
