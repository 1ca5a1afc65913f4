//! Open descriptors and the environment: what was handed over, and nothing that was not.

use super::common::{ALL_OF_A_VM, LIVE, PROCESSES, each, named};
use crate::crowd::{keeps_content, level_of};
use crate::rule::{Check, Initial, Parameter, Rule, Scope, Severity};
use crate::subject::{Fd, Kind, Subject};

const LAYER: &str = "fds";

pub static RULES: &[Rule] = &[
    Rule {
        id: "fds.as-planned",
        title: "every open descriptor is in the plan, or of the runner's own making",
        layer: LAYER,
        threat: "a descriptor that leaked through an exec is an open door past every path check (CVE-2024-21626, CVE-2020-14339)",
        severity: Severity::Critical,
        remedy: "stop the VM; close_range before the exec; casemate inspect --attest NAME",
        kinds: ALL_OF_A_VM,
        parameters: &[Parameter {
            name: "own_making",
            what: "kinds that a runner can make without opening anything: KVM's and event descriptors, sockets that it accepted",
            default: Initial::Words(&["anon", "socket"]),
        }],
        check: as_planned,
    },
    Rule {
        id: "fds.no-directory",
        title: "no directory is open",
        layer: LAYER,
        threat: "from a directory's descriptor every path below it, and by .. above it, can be opened",
        severity: Severity::Critical,
        remedy: "close it before the exec",
        kinds: PROCESSES,
        parameters: &[],
        check: no_directory,
    },
    Rule {
        id: "fds.no-device",
        title: "no device is open but those that a VM needs",
        layer: LAYER,
        threat: "a device's driver is kernel surface, and /dev/mem, disks and terminals are the host itself",
        severity: Severity::High,
        remedy: "close it before the exec, or name the device in `allowed`",
        kinds: PROCESSES,
        parameters: &[Parameter {
            name: "allowed",
            what: "devices that may be open; those of the plan's disks may always",
            default: Initial::Words(&["/dev/kvm", "/dev/null", "/dev/vhost-net", "/dev/vhost-vsock", "/dev/net/tun"]),
        }],
        check: no_device,
    },
    Rule {
        id: "fds.host-sockets",
        title: "no more sockets than a VM needs",
        layer: LAYER,
        threat: "a socket of the host's (a manager's, D-Bus, a container engine's) is its peer's authority",
        severity: Severity::High,
        remedy: "close it before the exec",
        kinds: ALL_OF_A_VM,
        parameters: &[
            Parameter {
                name: "planned",
                what: "names that a planned socket may have",
                default: Initial::Words(&["warden", "vsock"]),
            },
            Parameter {
                name: "accepted",
                what: "most sockets of the runner's own making (connections to its vsock socket)",
                default: Initial::Number(256),
            },
        ],
        check: host_sockets,
    },
    Rule {
        id: "fds.content-read-only",
        title: "kernel, initramfs, plan and images below are open for reading only",
        layer: LAYER,
        threat: "a guest that rewrites the kernel or a shared image owns every VM that starts from it",
        severity: Severity::Critical,
        remedy: "open them O_RDONLY, and label them content",
        kinds: ALL_OF_A_VM,
        parameters: &[Parameter {
            name: "content",
            what: "names of descriptors that must be read-only; images below a disk always must",
            default: Initial::Words(&["kernel", "initrd", "guest-config", "plan"]),
        }],
        check: content_read_only,
    },
    Rule {
        id: "fds.nothing-shared",
        title: "nothing is open for writing in two VMs",
        layer: LAYER,
        threat: "what two VMs write joins them, and breaks a file system that is mounted twice",
        severity: Severity::High,
        remedy: "stop one of the two; or name the path in `allowed` if it is shared on request",
        kinds: LIVE,
        parameters: &[Parameter {
            name: "allowed",
            what: "paths that may be open for writing in several VMs",
            default: Initial::Words(&[]),
        }],
        check: nothing_shared,
    },
    Rule {
        id: "fds.levels",
        title: "no open object has another VM's level",
        layer: "selinux",
        threat: "an object of another VM that was open before the label change stays open",
        severity: Severity::Critical,
        remedy: "stop the VM; casemate labels shows who has the level",
        kinds: LIVE,
        parameters: &[],
        check: levels,
    },
    Rule {
        id: "environment.empty",
        title: "the environment is empty",
        layer: LAYER,
        threat: "secrets and loader settings of the starter go over to whoever takes the process (LD_PRELOAD, tokens)",
        severity: Severity::Medium,
        remedy: "exec with an empty environment",
        kinds: PROCESSES,
        parameters: &[Parameter {
            name: "allowed",
            what: "names of variables that may be there",
            default: Initial::Words(&[]),
        }],
        check: environment,
    },
];

fn text(fd: &Fd) -> String {
    let name = fd.planned.as_deref().map(|name| format!(" ({name})")).unwrap_or_default();
    format!("{}{name} -> {}", fd.number, fd.target)
}

fn found(subject: &Subject, expected: &str, bad: impl Fn(&Fd) -> Option<String>) -> Vec<Check> {
    each(
        subject,
        expected,
        |process| &process.fds,
        |process, fds| {
            let found: Vec<String> = fds.iter().filter_map(&bad).collect();
            vec![Check::none_of(&found, format!("{}, {} descriptors", named(process), fds.len()), expected)]
        },
    )
}

/// 0, 1 and 2 are /dev/null.
fn is_null(fd: &Fd) -> bool {
    fd.number <= 2 && fd.target == "/dev/null" && fd.kind == "chr"
}

fn as_planned(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let own = scope.words("own_making");
    found(subject, "nothing beyond the plan", |fd| {
        let fits = fd.planned.is_some() || is_null(fd) || own.contains(&fd.kind.as_str());
        (!fits).then(|| text(fd))
    })
}

fn no_directory(subject: &Subject, _: &Scope) -> Vec<Check> {
    found(subject, "no directory", |fd| (fd.kind == "dir").then(|| text(fd)))
}

fn no_device(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let allowed = scope.words("allowed");
    found(subject, "only the devices that a VM needs", |fd| {
        let device = matches!(fd.kind.as_str(), "chr" | "blk");
        let planned = fd.planned.as_deref().is_some_and(|name| name.starts_with("disk."));
        (device && !planned && !allowed.contains(&fd.target.as_str())).then(|| text(fd))
    })
}

fn host_sockets(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let (names, most) = (scope.words("planned"), scope.number("accepted"));
    let expected = format!("planned: {}; of its own making: at most {most}", names.join(", "));
    each(
        subject,
        &expected,
        |process| &process.fds,
        |process, fds| {
            let sockets: Vec<&Fd> = fds.iter().filter(|fd| fd.kind == "socket").collect();
            let strange = sockets.iter().filter(|fd| fd.planned.as_deref().is_some_and(|name| !names.contains(&name)));
            let mut found: Vec<String> = strange.map(|fd| text(fd)).collect();
            let own = sockets.iter().filter(|fd| fd.planned.is_none()).count();
            if own as u64 > most {
                found.push(format!("{own} sockets of its own making"));
            }
            vec![Check::none_of(&found, format!("{}, {} sockets", named(process), sockets.len()), expected.as_str())]
        },
    )
}

fn content_read_only(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let content = scope.words("content");
    found(subject, "content is read-only", |fd| {
        let name = fd.planned.as_deref()?;
        // disk.ID.DEPTH is an image below a disk's own.
        let below = name.starts_with("disk.") && name.matches('.').count() > 1;
        let is_content = content.contains(&name) || below;
        (is_content && fd.write).then(|| text(fd))
    })
}

fn nothing_shared(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let allowed = scope.words("allowed");
    found(subject, "nothing that another VM writes", |fd| {
        let object = fd.object.filter(|_| fd.write && keeps_content(fd) && !allowed.contains(&fd.target.as_str()))?;
        let others = scope.crowd.writing(object, &subject.name);
        (!others.is_empty()).then(|| format!("{} also in {}", text(fd), others.join(", ")))
    })
}

fn levels(subject: &Subject, _: &Scope) -> Vec<Check> {
    let expected = "s0, or the VM's own level";
    each(
        subject,
        expected,
        |process| &process.label,
        |process, label| {
            let Some(own) = label.as_deref().and_then(level_of) else {
                return vec![Check::inapplicable(named(process), "the host has no SELinux (selinux.present)")];
            };
            let fds = match &process.fds {
                crate::subject::Known::Seen(fds) => fds,
                crate::subject::Known::Unseen(why) => {
                    return vec![Check::unknown(named(process), expected, why.clone())];
                }
            };
            let strange = fds.iter().filter_map(|fd| {
                let level = fd.label.as_deref().and_then(level_of)?;
                let categories = level.contains(":c") && level != own && !level.contains('-');
                categories.then(|| format!("{} is {level}", text(fd)))
            });
            let found: Vec<String> = strange.collect();
            vec![Check::none_of(&found, format!("{} at {own}", named(process)), expected)]
        },
    )
}

fn environment(subject: &Subject, scope: &Scope) -> Vec<Check> {
    let allowed = scope.words("allowed");
    let expected =
        if subject.kind == Kind::Process { "no variable, or only those of the profile" } else { "no variable" };
    each(
        subject,
        expected,
        |process| &process.environment,
        |process, names| {
            let found: Vec<String> = names.iter().filter(|name| !allowed.contains(&name.as_str())).cloned().collect();
            vec![Check::none_of(&found, named(process), expected)]
        },
    )
}
