//! Subjects that keep to every rule.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::seccomp::{Filter, Verdicts};
use crate::subject::*;

const LABEL: &str = "system_u:system_r:casemate_runner_t:s0:c1,c2";
pub const IMAGE: &str = "system_u:object_r:casemate_image_t:s0:c1,c2";

fn verdicts(names: &[&str]) -> Known<Arc<Verdicts>> {
    let filter = |name: &&str| Filter {
        digest: "00".into(),
        instructions: 9,
        known: Some((*name).to_owned()),
        claims: None,
        differences: Vec::new(),
    };
    Known::Seen(Arc::new(Verdicts { filters: names.iter().map(filter).collect(), ..Verdicts::default() }))
}

fn thread(tid: u32, name: &str, uid: u32, filters: &[&str]) -> Thread {
    Thread {
        tid: Some(tid),
        name: name.into(),
        kernel: false,
        uid: [uid; 4],
        gid: [uid; 4],
        groups: Vec::new(),
        capabilities: Capabilities::default(),
        no_new_privs: true,
        seccomp_mode: 2,
        filter_count: filters.len() as u32,
        filters: verdicts(filters),
        speculation_store_bypass: "thread force mitigated".into(),
        speculation_indirect_branch: "conditional force disabled".into(),
    }
}

fn fd(number: i32, name: &str, kind: &str, target: &str, write: bool) -> Fd {
    Fd {
        number,
        target: target.into(),
        kind: kind.into(),
        read: true,
        write,
        planned: (!name.is_empty()).then(|| name.to_owned()),
        label: None,
        object: Some((1, number as u64)),
    }
}

fn limits() -> BTreeMap<String, Limit> {
    let rows = [
        ("Max core file size", 0),
        ("Max open files", 512),
        ("Max processes", 6),
        ("Max locked memory", 0),
        ("Max msgqueue size", 0),
    ];
    rows.map(|(name, value)| (name.to_owned(), Limit { soft: Some(value), hard: Some(value) })).into()
}

fn runner(uid: u32, id: u64) -> Process {
    let own = |kind: &str| (kind.to_owned(), NamespaceOf { id: format!("{kind}:[{id}]"), hosts: false });
    let cgroup = [("memory.max", "335544320"), ("pids.max", "64"), ("cpu.max", "max 100000")];
    let mut disk = fd(6, "disk.root", "file", "/srv/root.img", true);
    disk.label = Some(IMAGE.into());
    disk.object = Some((8, id));
    Process {
        role: "runner".into(),
        pid: Some(uid),
        parent: Some(1),
        start_time: Some(1),
        exe: Known::Seen("/usr/libexec/casemate/casemate-runner".into()),
        label: Known::Seen(Some(LABEL.into())),
        threads: Known::Seen(vec![
            thread(uid, "casemate-runner", uid, &["runner.main", "jailer.exec"]),
            thread(uid + 1, "vcpu0", uid, &["runner.vcpu", "jailer.exec"]),
        ]),
        namespaces: Known::Seen(["mnt", "pid", "net", "ipc", "uts", "cgroup"].map(own).into()),
        cgroups: Known::Seen(vec![CgroupOf {
            path: "/sys/fs/cgroup/casemate/web".into(),
            limits: cgroup.map(|(file, value)| (file.to_owned(), value.to_owned())).into(),
        }]),
        rlimits: Known::Seen(limits()),
        fds: Known::Seen(vec![
            fd(0, "", "chr", "/dev/null", false),
            fd(3, "plan", "file", "/memfd:plan (deleted)", false),
            fd(4, "kvm", "chr", "/dev/kvm", true),
            fd(5, "kernel", "file", "/var/lib/casemate/kernel", false),
            disk,
            fd(7, "disk.root.1", "file", "/srv/base.img", false),
            fd(8, "vsock", "socket", "socket:[1]", true),
            fd(20, "", "anon", "anon_inode:kvm-vm", true),
        ]),
        mounts: Known::Seen(vec![Mount {
            point: "/".into(),
            kind: "tmpfs".into(),
            options: BTreeSet::from(["ro", "nosuid", "nodev", "noexec"].map(String::from)),
        }]),
        environment: Known::Seen(Vec::new()),
        memory: Known::Seen(Memory {
            writable_executable: Vec::new(),
            coredump_filter: Some(0),
            dumpable: Known::Seen(false),
            locked: 0,
            executable_stack: false,
        }),
        landlock: Known::Seen(Landlock {
            abi: 6,
            handled: casemate_plan::landlock::handled(6),
            allowed: Vec::new(),
            probed: Some(vec![Probe { attempt: "open /".into(), outcome: "EACCES".into(), ok: true }]),
        }),
    }
}

fn warden() -> Process {
    let mut warden = runner(900, 0);
    warden.role = "warden".into();
    warden.label = Known::Seen(Some("system_u:system_r:casemate_warden_t:s0-s0:c0.c1023".into()));
    let mut only = thread(900, "casemate-jailer", 0, &["warden"]);
    only.capabilities.effective = u64::MAX;
    warden.threads = Known::Seen(vec![only]);
    warden.landlock = Known::Seen(Landlock { abi: 0, handled: vec![], allowed: vec![], probed: None });
    warden
}

fn object(name: &str, path: &str, read_only: bool, wanted: &str) -> Object {
    Object {
        name: name.into(),
        path: path.into(),
        read_only,
        label: Known::Seen(Some(wanted.into())),
        wanted: Some(wanted.into()),
        inode: Known::Seen(Inode { uid: 0, gid: 0, mode: 0o100_600, links: 1 }),
        unchanged: Some(Known::Seen(true)),
        writable_by: Known::Seen(Vec::new()),
        sha256: Known::unseen("not read"),
    }
}

fn separation() -> Separation {
    Separation {
        origin: "the policy".into(),
        family: "casemate".into(),
        runner: LABEL.into(),
        image: IMAGE.into(),
        other_runner: LABEL.replace("c1,c2", "c3,c4"),
        other_image: IMAGE.replace("c1,c2", "c3,c4"),
        enforcing: Some(true),
        permissive_domain: false,
        reach: Vec::new(),
        unconstrained: vec!["capability".into()],
        entries: vec!["casemate_jailer_t".into()],
        others: vec!["casemate_jailer_t image file:write".into()],
        booleans: BTreeMap::from([("casemate_use_host_disks".into(), false)]),
        flows: Vec::new(),
    }
}

fn host() -> Host {
    Host {
        kernel: "6.12".into(),
        selinux: "enforcing".into(),
        landlock_abi: 6,
        cgroup: "v2".into(),
        vulnerabilities: BTreeMap::from([
            ("meltdown".into(), "Not affected".into()),
            ("mds".into(), "Mitigation: Clear CPU buffers; SMT disabled".into()),
        ]),
        smt: Some(false),
        ksm: Some(false),
        swap: vec!["/dev/zram0".into()],
    }
}

fn standing() -> Standing {
    Standing {
        phase: "running".into(),
        posture: "enforced".into(),
        allow_reduced: None,
        warnings: Vec::new(),
        blockers: Vec::new(),
        cpus: 1,
        memory: 256 << 20,
        unproven: Vec::new(),
        level_shared: false,
    }
}

/// A sandbox with the `n`th uid, level and namespaces.
pub fn vm(n: u32) -> Subject {
    let mut runner = runner(10_000 * n, u64::from(n));
    let level = format!("c{},c{}", 2 * n - 1, 2 * n);
    let at = |text: &str| text.replace("c1,c2", &level);
    runner.label = Known::Seen(Some(at(LABEL)));
    if let Known::Seen(fds) = &mut runner.fds {
        fds[4].label = Some(at(IMAGE));
    }
    Subject {
        kind: Kind::Vm,
        name: format!("vm{n}"),
        file: None,
        processes: vec![runner, warden()],
        objects: vec![
            object("kernel", "/var/lib/casemate/kernel", true, "system_u:object_r:casemate_content_t:s0"),
            object("disk.root", "/srv/root.img", false, &at(IMAGE)),
        ],
        separation: Known::Seen(separation()),
        standing: Known::Seen(standing()),
        host: Known::Seen(host()),
        neighbours: Known::Seen(Vec::new()),
        leftovers: Known::Seen(Vec::new()),
    }
}

/// A subject of any kind.
pub fn subject(kind: Kind) -> Subject {
    let mut subject = vm(1);
    subject.kind = kind;
    match kind {
        Kind::Vm => {}
        Kind::Plan => {
            if let Known::Seen(standing) = &mut subject.standing {
                standing.phase = "planned".into();
            }
        }
        Kind::Policy => {
            subject.processes.clear();
            subject.objects.clear();
            subject.host = Known::unseen("a policy alone");
        }
        Kind::Process => {
            subject.processes.truncate(1);
            subject.processes[0].role = "process".into();
            subject.objects.clear();
            subject.standing = none_standing();
            subject.separation = Known::unseen("a foreign process");
        }
        Kind::Host => {
            subject.processes.clear();
            subject.objects.clear();
            subject.standing = none_standing();
            subject.separation = Known::unseen("a host");
        }
    }
    subject
}

fn none_standing() -> Known<Standing> {
    Known::unseen("no sandbox")
}
