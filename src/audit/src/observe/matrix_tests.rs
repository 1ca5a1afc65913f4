use super::*;
use crate::seccomp::{Abi, Call, Verdicts};
use crate::subject::{Capabilities, CgroupOf, Host, NamespaceOf, Separation};
use crate::subject::{Known, Thread};

fn thread(uid: u32) -> Thread {
    Thread {
        tid: Some(uid),
        name: "main".into(),
        kernel: false,
        uid: [uid; 4],
        gid: [uid; 4],
        groups: vec![],
        capabilities: Capabilities::default(),
        no_new_privs: true,
        seccomp_mode: 2,
        filter_count: 2,
        filters: Known::Seen(Verdicts::default().into()),
        speculation_store_bypass: String::new(),
        speculation_indirect_branch: String::new(),
    }
}

fn fd(number: i32, target: &str, object: (u64, u64), write: bool) -> Fd {
    let kind = if target.starts_with("/dev/") { "chr" } else { "file" };
    Fd {
        number,
        target: target.into(),
        kind: kind.into(),
        read: true,
        write,
        planned: None,
        label: None,
        object: Some(object),
    }
}

/// A sandbox as it should be, number `n`, under SELinux.
fn vm(n: u32) -> Subject {
    let why = || "not asked";
    let namespace = |name: &&str| ((*name).to_owned(), NamespaceOf { id: format!("{name}:[{n}]"), hosts: false });
    let limits = BTreeMap::from([("memory.max".into(), "1024".into()), ("pids.max".into(), "9".into())]);
    let runner = Process {
        role: "runner".into(),
        pid: Some(n),
        parent: None,
        start_time: Some(1),
        exe: Known::unseen(why()),
        label: Known::Seen(Some(format!("u:r:casemate_runner_t:s0:c{n},c{}", n + 500))),
        threads: Known::Seen(vec![thread(10_000 + n)]),
        namespaces: Known::Seen(APART.iter().map(namespace).collect()),
        cgroups: Known::Seen(vec![
            CgroupOf { path: "/c/casemate".into(), limits: limits.clone() },
            CgroupOf { path: format!("/c/casemate/{n}"), limits },
        ]),
        rlimits: Known::unseen(why()),
        fds: Known::Seen(vec![fd(0, "/dev/null", (1, 1), true), fd(3, "/disk", (2, n.into()), true)]),
        mounts: Known::unseen(why()),
        environment: Known::unseen(why()),
        memory: Known::unseen(why()),
        landlock: super::super::landlock::runner(6, None),
    };
    Subject {
        kind: Kind::Vm,
        name: format!("vm{n}"),
        file: None,
        processes: vec![runner],
        objects: vec![],
        separation: Known::Seen(separation()),
        standing: Known::unseen(why()),
        host: Known::Seen(host("enforcing")),
        neighbours: Known::unseen(why()),
        leftovers: Known::unseen(why()),
    }
}

fn separation() -> Separation {
    Separation {
        origin: "live".into(),
        family: "casemate".into(),
        runner: String::new(),
        image: String::new(),
        other_runner: String::new(),
        other_image: String::new(),
        enforcing: Some(true),
        permissive_domain: false,
        reach: vec!["image file:getattr".into()],
        unconstrained: vec![],
        entries: vec![],
        others: vec![],
        booleans: BTreeMap::new(),
        flows: vec![],
    }
}

fn host(selinux: &str) -> Host {
    Host {
        kernel: String::new(),
        selinux: selinux.into(),
        landlock_abi: 6,
        cgroup: "v2".into(),
        vulnerabilities: BTreeMap::new(),
        smt: None,
        ksm: None,
        swap: vec![],
    }
}

fn runner_of(vm: &mut Subject) -> &mut Process {
    &mut vm.processes[0]
}

fn seen<T>(known: &mut Known<T>) -> &mut T {
    match known {
        Known::Seen(value) => value,
        Known::Unseen(why) => panic!("{why}"),
    }
}

/// Layers of the pair that do not pass.
fn weak(matrix: &Matrix, from: usize, to: usize) -> Vec<String> {
    let layers = &matrix.cell(from, to).unwrap().layers;
    layers.iter().filter(|(_, (verdict, _))| *verdict != Verdict::Pass).map(|(layer, _)| layer.clone()).collect()
}

#[test]
fn vms_as_they_should_be_share_one_answer_in_which_every_layer_holds() {
    let matrix = of(&(1..=20).map(vm).collect::<Vec<_>>());
    assert_eq!((matrix.vms.len(), matrix.cells.len(), matrix.pairs.len()), (20, 1, 0));
    assert!(weak(&matrix, 3, 7).is_empty(), "{:?}", matrix.cell(3, 7));
    assert_eq!(matrix.cell(3, 7).unwrap().layers.len(), 7);
    assert!(matrix.cell(3, 3).is_none() && matrix.cell(3, 20).is_none());
    assert!(of(&[vm(1)]).vms.is_empty(), "one alone has no other");
}

#[test]
fn each_layer_that_does_not_hold_is_named_for_the_pair_alone() {
    type Spoil = fn(&mut Subject);
    // What is done to VM 2 of five, and in which of its rows it must show: as one who acts, towards all; or towards VM 1.
    let towards_all: [(&str, Spoil); 13] = [
        ("uid", |vm| seen(&mut runner_of(vm).threads)[0].capabilities.effective = 1 << 21),
        ("uid", |vm| seen(&mut runner_of(vm).threads)[0].uid[1] = 0),
        ("selinux", |vm| seen(&mut vm.separation).permissive_domain = true),
        ("selinux", |vm| seen(&mut vm.separation).reach.push("image file:read".into())),
        ("selinux", |vm| seen(&mut vm.separation).reach.push("image file:unlink".into())),
        ("landlock", |vm| runner_of(vm).landlock = super::super::landlock::runner(5, None)),
        ("seccomp", |vm| seen(&mut runner_of(vm).threads)[0].seccomp_mode = 0),
        ("seccomp", |vm| seen(&mut runner_of(vm).threads)[0].filters = Known::Seen(allows("ptrace").into())),
        ("seccomp", |vm| seen(&mut runner_of(vm).threads)[0].filters = Known::Seen(allows("shmat").into())),
        ("seccomp", |vm| seen(&mut runner_of(vm).threads)[0].filters = Known::Seen(allows("socketcall").into())),
        ("seccomp", |vm| seen(&mut runner_of(vm).threads)[0].filters = Known::Seen(allows("truncate").into())),
        ("namespaces", |vm| seen(&mut runner_of(vm).namespaces).get_mut("net").unwrap().hosts = true),
        ("cgroup", |vm| seen(&mut runner_of(vm).cgroups).iter_mut().for_each(|c| c.limits.clear())),
    ];
    for (layer, spoil) in towards_all {
        let mut vms: Vec<Subject> = (0..5).map(vm).collect();
        spoil(&mut vms[2]);
        let matrix = of(&vms);
        assert_eq!(weak(&matrix, 2, 4), [layer]);
        assert!(weak(&matrix, 4, 2).is_empty() && weak(&matrix, 0, 1).is_empty(), "{layer}");
        assert_eq!(matrix.pairs.len(), 4, "{layer}: its row alone differs");
    }
    let towards_one: [(&str, Spoil); 5] = [
        ("uid", |vm| seen(&mut runner_of(vm).threads)[0].uid = [10_001; 4]),
        ("selinux", |vm| runner_of(vm).label = Known::Seen(Some("u:r:t:s0:c1,c501".into()))),
        ("namespaces", |vm| seen(&mut runner_of(vm).namespaces).get_mut("net").unwrap().id = "net:[1]".into()),
        ("cgroup", |vm| seen(&mut runner_of(vm).cgroups)[1].path = "/c/casemate/1".into()),
        ("fds", |vm| seen(&mut runner_of(vm).fds).push(fd(9, "/disk", (2, 1), false))),
    ];
    for (layer, spoil) in towards_one {
        let mut vms: Vec<Subject> = (0..5).map(vm).collect();
        spoil(&mut vms[2]);
        let matrix = of(&vms);
        assert_eq!(weak(&matrix, 2, 1), [layer]);
        assert_eq!(weak(&matrix, 1, 2), [layer]);
        assert!(weak(&matrix, 2, 3).is_empty() && weak(&matrix, 0, 1).is_empty(), "{layer}");
    }
}

fn allows(name: &str) -> Verdicts {
    let call = |name: &str| Call { abi: Abi::X86_64, number: 1, name: Some(name.into()), when: vec![], why: vec![] };
    Verdicts { calls: vec![call("read"), call(name)], ..Verdicts::default() }
}

#[test]
fn threads_that_were_not_seen_keep_no_layer() {
    let mut vms: Vec<Subject> = (0..3).map(vm).collect();
    seen(&mut runner_of(&mut vms[2]).threads)[0].kernel = true;
    let matrix = of(&vms);
    let layers = &matrix.cell(2, 0).unwrap().layers;
    assert_eq!(["uid", "seccomp"].map(|layer| layers[layer].0), [Verdict::Unknown; 2]);
}

#[test]
fn a_signal_to_process_1_reaches_itself_and_a_signal_to_any_pid_reaches_others() {
    let of_filter = |when: &[&str]| {
        let when = when.iter().map(|term| (*term).to_owned()).collect();
        let call = Call { abi: Abi::X86_64, number: 234, name: Some("tgkill".into()), when, why: vec![] };
        let mut vms: Vec<Subject> = (0..3).map(vm).collect();
        let verdicts = Verdicts { calls: vec![call], ..Verdicts::default() };
        seen(&mut runner_of(&mut vms[2]).threads)[0].filters = Known::Seen(verdicts.into());
        weak(&of(&vms), 2, 0).iter().any(|layer| layer == "seccomp")
    };
    assert!(!of_filter(&["u32(arg0) == 0x1 && u32(arg2) == 0x6", "u32(arg0) == 0x1 && u32(arg2) == 0x22"]));
    assert!(of_filter(&["u32(arg0) == 0x1 && u32(arg2) == 0x6", "u32(arg2) == 0x22"]));
    assert!(of_filter(&["u32(arg0) == 0x11"]));
    assert!(of_filter(&["u32(arg1) == 0x1"]));
    assert!(of_filter(&[]));
}

#[test]
fn a_wider_level_reaches_a_narrower_one_and_not_the_other_way_round() {
    let mut vms: Vec<Subject> = (0..3).map(vm).collect();
    runner_of(&mut vms[2]).label = Known::Seen(Some("u:r:t:s0:c1,c501,c7".into()));
    let matrix = of(&vms);
    assert_eq!(weak(&matrix, 2, 1), ["selinux"]);
    assert!(weak(&matrix, 1, 2).is_empty());
}

#[test]
fn what_was_not_seen_never_holds() {
    let mut vms: Vec<Subject> = (0..3).map(vm).collect();
    let runner = runner_of(&mut vms[1]);
    runner.threads = Known::unseen("x");
    runner.namespaces = Known::unseen("x");
    runner.cgroups = Known::unseen("x");
    runner.fds = Known::unseen("x");
    runner.label = Known::unseen("x");
    runner.landlock = Known::unseen("x");
    vms[1].separation = Known::unseen("x");
    let matrix = of(&vms);
    assert_eq!(weak(&matrix, 1, 0), ["cgroup", "fds", "landlock", "namespaces", "seccomp", "selinux", "uid"]);
    assert!(matrix.cell(1, 0).unwrap().layers.values().all(|(verdict, _)| *verdict == Verdict::Unknown));
    // Nor for the one who acts on it, where it takes both to tell.
    assert_eq!(weak(&matrix, 0, 1), ["cgroup", "fds", "namespaces", "selinux", "uid"]);
    let mut without: Vec<Subject> = (0..2).map(vm).collect();
    for vm in &mut without {
        vm.separation = Known::unseen("this host has no SELinux");
        vm.host = Known::Seen(host("disabled"));
    }
    assert_eq!(of(&without).cell(0, 1).unwrap().layers["selinux"].0, Verdict::Fail);
}

#[test]
fn two_hundred_are_compared_quickly() {
    let vms: Vec<Subject> = (0..200).map(vm).collect();
    let begin = std::time::Instant::now();
    let matrix = of(&vms);
    assert_eq!((matrix.cells.len(), matrix.pairs.len()), (1, 0));
    // 39,800 pairs take some 40 ms in a debug build on a slow machine.
    assert!(begin.elapsed() < std::time::Duration::from_secs(5), "{:?}", begin.elapsed());
}
