//! The standard questions of a trial: each layer's positive and negative controls (`casemate selftest`),
//! and what code with one sandbox's confinement tries against another and the host (`casemate attack`).
//!
//! Pure data. A layer's controls are asked with *only that layer's* steps applied, so that the layer
//! itself has to say no; the attack's questions are asked with all of them and again layer by layer.

use crate::trial::{Attempt, Narrowing};
use casemate_plan::Layer;

/// What a control wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    Denied,
    Allowed,
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// For people: `read /etc/shadow`.
    pub what: String,
    pub attempt: Attempt,
    pub want: Want,
}

/// What there is to be tried on this host.
#[derive(Debug, Clone, Default)]
pub struct Ground {
    /// The descriptor of a file that the probe may read and write: the positive control everywhere.
    pub own_disk: i32,
    /// The descriptor of /dev/kvm, if it was passed.
    pub kvm: Option<i32>,
    /// A process outside of the jail: the warden, as the host numbers it.
    pub outsider: i32,
    /// An abstract socket and a TCP address that listen outside.
    pub abstract_name: Option<String>,
    pub tcp: Option<String>,
    /// A Unix seqpacket socket at a path that listens outside.
    pub socket: Option<String>,
    /// More than the jail's cgroup grants.
    pub too_many_processes: Option<u32>,
    pub too_much_memory: Option<u64>,
    /// More than RLIMIT_NOFILE grants.
    pub too_many_descriptors: Option<u32>,
    pub landlock_abi: u32,
    /// A directory with `file`, `gone`, `dir/` and `empty/` in it, open to everybody, and a stream socket that listens
    /// at `socket`: there each of Landlock's rights is tried.
    pub place: Option<String>,
}

/// Another sandbox, as the host sees it.
#[derive(Debug, Clone, Default)]
pub struct Target {
    pub name: String,
    /// Paths of its disks.
    pub disks: Vec<String>,
    /// Paths of images below its disks: read by many, written by nobody.
    pub below: Vec<String>,
    pub runner: i32,
    pub warden: i32,
    /// Its control socket (seqpacket) and its vsock socket (stream).
    pub control: String,
    pub vsock: String,
}

const SHADOW: &str = "/etc/shadow";

fn denied(what: impl Into<String>, attempt: Attempt) -> Control {
    Control { what: what.into(), attempt, want: Want::Denied }
}

fn call(name: &str) -> Control {
    denied(name, Attempt::Call { name: name.into() })
}

fn open(path: &str) -> Control {
    denied(format!("read {path}"), Attempt::Open { path: path.into(), write: false })
}

/// The positive controls, good for every layer: what was inherited works.
pub fn positive(ground: &Ground) -> Vec<Control> {
    let allowed = |what: &str, attempt| Control { what: what.into(), attempt, want: Want::Allowed };
    let number = ground.own_disk;
    let mut controls = vec![
        allowed("read the own disk", Attempt::ReadFd { number }),
        allowed("write the own disk", Attempt::WriteFd { number }),
    ];
    // One question of KVM's that only the coarse filter allows: asked where no thread filter is on.
    if let Some(number) = ground.kvm {
        controls.push(allowed("ask /dev/kvm for its version", Attempt::AskKvm { number }));
    }
    controls
}

/// The second narrowing that goes with a trial of this layer alone.
pub fn narrowing(layer: Layer) -> Narrowing {
    Narrowing { coarse: layer == Layer::Seccomp, ..Narrowing::default() }
}

/// The negative controls of one layer; empty for a layer that the attestations alone can show (fds,
/// SELinux: its objects belong to a sandbox, see [`attack`]).
pub fn negative(layer: Layer, ground: &Ground) -> Vec<Control> {
    let mut controls = Vec::new();
    let kill = denied("signal a process outside", Attempt::Kill { pid: ground.outsider });
    match layer {
        Layer::Landlock => {
            controls.extend([open(SHADOW), open("/proc/1/environ"), open("/"), call("mount")]);
            controls.push(denied("execute /bin/true", Attempt::Execute { path: "/bin/true".into() }));
            controls.extend(rights(ground).into_iter().map(|(_, control)| control));
            if ground.landlock_abi >= 4 {
                controls.extend(tcp(ground));
            }
            if ground.landlock_abi >= 6 {
                controls.extend(abstract_socket(ground));
                controls.push(kill);
            }
        }
        Layer::Seccomp => {
            let calls = casemate_sys::provoke::CALLS.into_iter();
            // Becoming the runner's uid is a step that comes after the coarse filter.
            controls.extend(calls.filter(|name| !name.starts_with("setres")).map(call));
            controls.extend(process(ground.outsider));
            controls.push(denied("a system call of i386", Attempt::I386));
            for (name, family) in [("AF_INET", 2), ("AF_NETLINK", 16), ("AF_ALG", 38), ("AF_VSOCK", 40)] {
                controls.push(denied(format!("open a socket {name}"), Attempt::Socket { family, kind: 3 }));
            }
        }
        Layer::Capabilities => {
            controls.extend(["mount", "fsopen", "chroot", "unshare-net", "bpf", "fanotify_init"].map(call));
            controls.push(denied("make a device node", Attempt::MakeNode { path: "/tmp/casemate-node".into() }));
        }
        Layer::Uid => {
            controls.extend([open(SHADOW), call("setresuid-root"), call("setresgid-root"), kill]);
            controls.extend(process(ground.outsider));
        }
        Layer::Mounts => controls.extend([open(SHADOW), open("/proc/1/environ"), open("/dev/kvm")]),
        Layer::Namespaces => {
            controls.push(kill);
            controls.extend(process(ground.outsider));
            controls.extend(tcp(ground).into_iter().chain(abstract_socket(ground)));
        }
        Layer::Cgroup => {
            if let Some(count) = ground.too_many_processes {
                controls.push(denied(format!("{count} processes"), Attempt::Processes { count }));
            }
            if let Some(bytes) = ground.too_much_memory {
                controls.push(denied(format!("{bytes} bytes of memory"), Attempt::Allocate { bytes }));
            }
        }
        Layer::Rlimits => {
            if let Some(count) = ground.too_many_descriptors {
                controls.push(denied(format!("{count} descriptors"), Attempt::Descriptors { count }));
            }
        }
        Layer::Selinux | Layer::Fds | Layer::None => {}
    }
    controls
}

/// Each right that a domain of this ABI handles, with the attempt to use it. Scopes need somebody outside.
pub fn rights(ground: &Ground) -> Vec<(String, Control)> {
    let Some(place) = &ground.place else { return Vec::new() };
    let attempt = |right: &str| match right {
        "fs.execute" => Some(Attempt::Execute { path: "/bin/true".into() }),
        "scope.abstract_unix_socket" => ground.abstract_name.clone().map(|name| Attempt::ConnectAbstract { name }),
        "scope.signal" => Some(Attempt::Kill { pid: ground.outsider }),
        "fs.resolve_unix" => Some(Attempt::ConnectPath { path: format!("{place}/socket"), seqpacket: false }),
        right => Some(Attempt::Right { right: right.into(), place: place.clone() }),
    };
    let control = |right: String| attempt(&right).map(|a| (right.clone(), denied(format!("use {right}"), a)));
    casemate_plan::landlock::handled(ground.landlock_abi).into_iter().filter_map(control).collect()
}

fn tcp(ground: &Ground) -> Option<Control> {
    let address = ground.tcp.clone()?;
    Some(denied(format!("connect to {address}"), Attempt::ConnectTcp { address }))
}

fn abstract_socket(ground: &Ground) -> Option<Control> {
    let name = ground.abstract_name.clone()?;
    Some(denied(format!("connect to the abstract socket {name}"), Attempt::ConnectAbstract { name }))
}

/// What one process can do to another.
fn process(pid: i32) -> [Control; 3] {
    [
        denied(format!("trace process {pid}"), Attempt::Trace { pid }),
        denied(format!("read the memory of process {pid}"), Attempt::ReadMemory { pid }),
        denied(format!("take a descriptor of process {pid}"), Attempt::StealDescriptor { pid }),
    ]
}

/// What code that took over one sandbox's runner tries against another sandbox and the host.
pub fn attack(target: &Target, ground: &Ground) -> Vec<Control> {
    let of = &target.name;
    let mut controls = Vec::new();
    for path in &target.disks {
        for write in [false, true] {
            let verb = if write { "write" } else { "read" };
            controls.push(denied(format!("{verb} {of}'s disk {path}"), Attempt::Open { path: path.clone(), write }));
        }
    }
    for path in &target.below {
        controls.push(denied(format!("write {of}'s disk {path}"), Attempt::Open { path: path.clone(), write: true }));
    }
    for (who, pid) in [("runner", target.runner), ("warden", target.warden)] {
        controls.push(denied(format!("signal {of}'s {who}"), Attempt::Kill { pid }));
        controls.push(denied(format!("trace {of}'s {who}"), Attempt::Trace { pid }));
        controls.push(denied(format!("read the memory of {of}'s {who}"), Attempt::ReadMemory { pid }));
        controls.push(denied(format!("take a descriptor of {of}'s {who}"), Attempt::StealDescriptor { pid }));
        let path = format!("/proc/{pid}/mem");
        controls.push(denied(format!("open {path} ({of}'s {who})"), Attempt::Open { path, write: false }));
    }
    for (what, path, seqpacket) in [("control socket", &target.control, true), ("vsock socket", &target.vsock, false)] {
        let attempt = Attempt::ConnectPath { path: path.clone(), seqpacket };
        controls.push(denied(format!("connect to {of}'s {what}"), attempt));
    }
    controls.push(open(SHADOW));
    controls.push(denied(format!("write {SHADOW}"), Attempt::Open { path: SHADOW.into(), write: true }));
    controls.extend(tcp(ground));
    controls.push(denied("open a network socket", Attempt::Socket { family: 2, kind: 1 }));
    controls.push(denied("execute /bin/sh", Attempt::Execute { path: "/bin/sh".into() }));
    controls.extend(
        ["mount", "setresuid-root", "unshare-user", "bpf", "io_uring_setup", "keyctl", "init_module"].map(call),
    );
    controls
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ground() -> Ground {
        Ground {
            outsider: 1,
            abstract_name: Some("x".into()),
            tcp: Some("127.0.0.1:1".into()),
            too_many_processes: Some(99),
            too_much_memory: Some(1 << 30),
            too_many_descriptors: Some(600),
            landlock_abi: 7,
            ..Ground::default()
        }
    }

    #[test]
    fn every_layer_that_a_probe_can_test_has_a_negative_control() {
        use Layer::{Capabilities, Cgroup, Landlock, Mounts, Namespaces, Rlimits, Seccomp, Uid};
        for layer in [Landlock, Seccomp, Capabilities, Uid, Mounts, Namespaces, Cgroup, Rlimits] {
            let controls = negative(layer, &ground());
            assert!(!controls.is_empty(), "{layer}");
            assert!(controls.iter().all(|control| control.want == Want::Denied));
        }
        assert!(positive(&ground()).iter().all(|control| control.want == Want::Allowed));
    }

    #[test]
    fn an_old_landlock_is_not_asked_for_what_it_cannot_do() {
        let old = Ground { landlock_abi: 3, ..ground() };
        let asks_tcp = negative(Layer::Landlock, &old).iter().any(|c| matches!(c.attempt, Attempt::ConnectTcp { .. }));
        assert!(!asks_tcp);
    }

    #[test]
    fn every_right_that_a_domain_handles_is_tried() {
        let ground = Ground { place: Some("/p".into()), landlock_abi: 10, ..ground() };
        let tried: Vec<String> = rights(&ground).into_iter().map(|(right, _)| right).collect();
        assert_eq!(tried, casemate_plan::landlock::handled(10));
        assert!(rights(&Ground { place: None, ..ground }).is_empty());
    }

    #[test]
    fn the_attack_names_its_target() {
        let target = Target { name: "b".into(), disks: vec!["/d".into()], runner: 7, ..Target::default() };
        let attack = attack(&target, &ground());
        assert!(attack.iter().any(|control| control.what == "write b's disk /d"));
        assert!(attack.len() > 20);
    }
}
