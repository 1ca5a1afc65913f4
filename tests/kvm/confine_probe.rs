//! casemate-probe in the runner's place: what it gets to with every layer on, and with one layer alone.
//! Cases of `confine.rs`, which runs each in a process of its own.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::path::Path;
use std::time::Duration;

use casemate_confine::cgroup::Cgroup;
use casemate_confine::controls::{Ground, Want, narrowing, negative, positive};
use casemate_confine::trial::{Attempt, Narrowing, Outcome};
use casemate_confine::{capabilities, landlock, mounts, namespaces, rlimits, uid};
use casemate_plan::{Layer, Namespace};
use casemate_sys::process::{self, CloneOptions, Cloned, Exit};
use casemate_sys::procfs::Proc;
use casemate_sys::{exec, seqpacket};

use crate::confine::{ALL, ID, cgroup_plan, ensure, layout, limits, show};

/// casemate-probe in the runner's place, all layers on: what it may reach and what not.
pub fn in_full_jail() -> Result<(), String> {
    let program = casemate_tests::rig::program("casemate-probe").map_err(|failed| format!("{failed:?}"))?;
    let own = tempfile::NamedTempFile::new().map_err(show)?;
    std::fs::write(own.path(), "disk").map_err(show)?;
    let attempts = vec![
        Attempt::ReadFd { number: 5 },
        Attempt::WriteFd { number: 5 },
        Attempt::Open { path: "/etc/shadow".into(), write: false },
        Attempt::Kill { pid: process::own_pid() },
        Attempt::Call { name: "mount".into() },
        Attempt::ConnectTcp { address: "127.0.0.1:1".into() },
        Attempt::Call { name: "setresuid-root".into() },
        Attempt::Execute { path: "/bin/true".into() },
    ];
    // Once with every filter, once without any: then the other layers have to say no by themselves.
    let none = Narrowing::default();
    for (name, narrowing) in [("io", Narrowing::of_thread("io", landlock::probe())), ("no filter", none)] {
        let trial = casemate_confine::trial::Trial { narrowing, attempts: attempts.clone(), ..Default::default() };
        let outcomes = run_probe(&program, &trial, own.path(), &EVERY)?;
        for (attempt, outcome) in attempts.iter().zip(&outcomes) {
            let control = matches!(attempt, Attempt::ReadFd { .. } | Attempt::WriteFd { .. });
            let right = if control { *outcome == Outcome::Allowed } else { outcome.is_denied() };
            ensure(right, || format!("{name}: {attempt:?}: {outcome}"))?;
        }
        ensure(outcomes.len() == attempts.len(), || format!("{name}: {} reports", outcomes.len()))?;
    }
    Ok(())
}

/// The controls of `casemate selftest`: one layer applied, and no other.
pub fn controls_alone() -> Result<(), String> {
    let program = casemate_tests::rig::program("casemate-probe").map_err(|failed| format!("{failed:?}"))?;
    let own = tempfile::NamedTempFile::new().map_err(show)?;
    std::fs::write(own.path(), "disk").map_err(show)?;
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").map_err(show)?;
    let name = format!("casemate-tests-{}", process::own_pid());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).map_err(show)?;
    let _listener = std::os::unix::net::UnixListener::bind_addr(&address).map_err(show)?;
    let ground = Ground {
        own_disk: 5,
        kvm: None,
        outsider: process::own_pid(),
        abstract_name: Some(name),
        tcp: Some(tcp.local_addr().map_err(show)?.to_string()),
        socket: None,
        too_many_processes: Some(40),
        too_much_memory: Some(512 << 20),
        too_many_descriptors: Some(600),
        landlock_abi: landlock::probe(),
        // The rights one by one are the jailer's selftest's, which lays out a place for them.
        place: None,
    };
    let mut wrong = Vec::new();
    for layer in [
        Layer::Landlock,
        Layer::Seccomp,
        Layer::Capabilities,
        Layer::Uid,
        Layer::Mounts,
        Layer::Namespaces,
        Layer::Cgroup,
        Layer::Rlimits,
    ] {
        let controls = [positive(&ground), negative(layer, &ground)].concat();
        let attempts = controls.iter().map(|control| control.attempt.clone()).collect();
        let trial = casemate_confine::trial::Trial { narrowing: narrowing(layer), attempts, ..Default::default() };
        let outcomes = run_probe(&program, &trial, own.path(), &[layer])?;
        ensure(outcomes.len() == controls.len(), || format!("{layer}: {} of {}", outcomes.len(), controls.len()))?;
        for (control, outcome) in controls.iter().zip(outcomes) {
            let right = match control.want {
                Want::Denied => outcome.is_denied(),
                Want::Allowed => outcome == Outcome::Allowed,
            };
            if !right {
                wrong.push(format!("{layer}: {}: {outcome}", control.what));
            }
        }
    }
    ensure(wrong.is_empty(), || format!("{wrong:#?}"))
}

const EVERY: [Layer; 7] =
    [Layer::Namespaces, Layer::Cgroup, Layer::Mounts, Layer::Rlimits, Layer::Landlock, Layer::Capabilities, Layer::Uid];

/// Executes the probe with these layers applied, in the jailer's order. (Seccomp is the trial's own.)
fn run_probe(
    program: &Path,
    trial: &casemate_confine::trial::Trial,
    disk: &Path,
    layers: &[Layer],
) -> Result<Vec<Outcome>, String> {
    let proc = Proc::open().map_err(show)?;
    let has = |layer: Layer| layers.contains(&layer);
    // The mounts layer needs its namespace, whatever else is left out.
    let namespaces = match (has(Layer::Namespaces), has(Layer::Mounts)) {
        (true, _) => ALL.to_vec(),
        (false, true) => vec![Namespace::Mount],
        (false, false) => Vec::new(),
    };
    let parents = namespaces::own(&proc, &namespaces).map_err(show)?;
    let id = format!("probe-{}", process::own_pid());
    let cgroup = has(Layer::Cgroup).then(|| Cgroup::create(&cgroup_plan(layout()), &id)).transpose().map_err(show)?;
    let (ours, theirs) = seqpacket::pair().map_err(show)?;
    let program = OwnedFd::from(File::open(program).map_err(show)?);
    let disk = OwnedFd::from(File::options().read(true).write(true).open(disk).map_err(show)?);
    let memfd = casemate_sys::memfd::sealed("trial", &casemate_confine::trial::encode(trial)).map_err(show)?;
    let birthplace = cgroup.as_ref().and_then(Cgroup::birthplace);
    let options = CloneOptions { namespaces: namespaces::flags(&namespaces), cgroup: birthplace };
    let born = match process::clone3(&options).map_err(show)? {
        Cloned::Child => {
            let confined = (|| {
                let _ = namespaces::apply(&proc, &namespaces, &parents).map_err(show)?;
                let _ = cgroup.as_ref().map(|cgroup| cgroup.join(&proc)).transpose().map_err(show)?;
                apply_layers(layers, &program)
            })();
            let argv = vec![c"casemate-probe".into()];
            let failed = confined.map(|()| {
                let fds = vec![memfd, theirs, disk];
                exec::replace_process(exec::Image { program, argv, env: Vec::new(), fds }).error.report()
            });
            eprintln!("{failed:?}");
            process::exit_now(1)
        }
        Cloned::Parent(born) => born,
    };
    drop(theirs);
    let outcomes = reports(&ours)?;
    let exit = born.wait().map_err(show)?;
    if let Some(cgroup) = &cgroup {
        cgroup.remove(Duration::from_secs(5)).map_err(show)?;
    }
    ensure(exit == Exit::Exited(0), || format!("the probe ended with {exit}"))?;
    Ok(outcomes)
}

fn apply_layers(layers: &[Layer], program: &OwnedFd) -> Result<(), String> {
    let has = |layer: Layer| layers.contains(&layer);
    if has(Layer::Mounts) {
        let _ = mounts::apply().map_err(show)?;
    }
    if has(Layer::Rlimits) {
        let _ = rlimits::apply(&limits()).map_err(show)?;
    }
    if has(Layer::Landlock) {
        let _ = landlock::apply(landlock::probe(), program.as_fd()).map_err(show)?;
    }
    if has(Layer::Capabilities) {
        capabilities::drop_bounding().map_err(show)?;
    }
    if has(Layer::Uid) {
        uid::drop_groups().map_err(show)?;
        uid::set_gid(ID).map_err(show)?;
        let _ = uid::set_uid(ID, ID).map_err(show)?;
    }
    if has(Layer::Capabilities) {
        let _ = capabilities::drop_all().map_err(show)?;
    }
    Ok(())
}

fn reports(socket: &OwnedFd) -> Result<Vec<Outcome>, String> {
    let mut outcomes = Vec::new();
    let mut buffer = vec![0; casemate_confine::trial::MAX_REPORT];
    loop {
        let len = seqpacket::receive(socket, &mut buffer).map_err(show)?.len;
        if len == 0 {
            return Ok(outcomes);
        }
        let report: casemate_confine::trial::Report =
            casemate_confine::trial::decode(&buffer[..len]).ok_or("no report")?;
        outcomes.push(report.outcome);
    }
}
