//! A call that failed with EACCES or EPERM while no security module said anything: the file's mode and owner, or a
//! capability that the process has not. Recorded only where an audit rule asks for it.

use super::event::Event;
use super::record::{Kind, Record};
use super::seccomp::Call;
use super::who::{Role, Who};
use super::{Expected, Reason};

const EPERM: i64 = -1;
const EACCES: i64 = -13;

/// Calls that fail with EPERM for want of a capability (capabilities(7)).
const NEEDS: [(&str, &[&str]); 12] = [
    (
        "CAP_SYS_ADMIN",
        &["mount", "umount2", "pivot_root", "fsopen", "fsmount", "move_mount", "setns", "unshare", "bpf", "swapon"],
    ),
    ("CAP_SYS_CHROOT", &["chroot"]),
    ("CAP_MKNOD", &["mknod", "mknodat"]),
    ("CAP_CHOWN", &["chown", "fchown", "lchown", "fchownat"]),
    ("CAP_FOWNER", &["chmod", "fchmod", "fchmodat"]),
    ("CAP_SETUID", &["setuid", "setreuid", "setresuid", "setfsuid"]),
    ("CAP_SETGID", &["setgid", "setregid", "setresgid", "setfsgid", "setgroups"]),
    ("CAP_KILL (or the same uid)", &["kill", "tkill", "tgkill", "pidfd_send_signal"]),
    (
        "CAP_SYS_PTRACE (or the same uid, and a dumpable process)",
        &["ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp"],
    ),
    ("CAP_SYS_MODULE", &["init_module", "finit_module", "delete_module"]),
    ("CAP_NET_RAW or CAP_NET_ADMIN", &["socket", "setsockopt"]),
    ("CAP_SYS_RESOURCE", &["prlimit64", "setrlimit"]),
];

/// The event's failed call, if it is one that nobody else answers for.
pub fn record(event: &Event) -> Option<&Record> {
    let others = [Kind::AVC, Kind::USER_AVC, Kind::LANDLOCK_ACCESS, Kind::SECCOMP, Kind::SELINUX_ERR];
    if others.iter().any(|kind| event.first(*kind).is_some()) {
        return None;
    }
    let failed = |r: &&Record| matches!(exit(r), Some(EPERM | EACCES));
    event.all(Kind::SYSCALL).find(failed)
}

fn exit(record: &Record) -> Option<i64> {
    match record.field("exit")? {
        "EPERM" => Some(EPERM),
        "EACCES" => Some(EACCES),
        number => number.parse().ok(),
    }
}

pub fn explain(event: &Event, record: &Record, who: &Who) -> Option<Reason> {
    let call = Call::of(event, record)?;
    let name = call.name.clone().unwrap_or_default();
    let errno = if exit(record)? == EPERM { "EPERM" } else { "EACCES" };
    // The object itself; its directory where there is none.
    let paths = || event.all(Kind::PATH).filter(|p| p.field("name").is_some_and(|n| n != "(null)"));
    let path = paths().find(|p| p.field("nametype") != Some("PARENT")).or_else(|| paths().next());
    let needed = NEEDS.iter().find(|(_, calls)| calls.contains(&name.as_str())).map(|(capability, _)| *capability);
    let (layer, rule) = match (errno, needed, path.and_then(|p| denied_by_mode(p, record))) {
        ("EPERM", Some(capability), _) => {
            ("capabilities", format!("{name} needs {capability}; the process has it not"))
        }
        (_, _, Some(mode)) => ("uid", mode),
        ("EPERM", None, None) => ("uid", "the owner's, or a capability's, to do; or the file is immutable".into()),
        (_, _, None) => (
            "uid",
            "no record of a security module, and the mode of the object would do: a directory above it, an access \
             control list, or a dontaudit rule (semodule -DB shows those)"
                .into(),
        ),
    };
    let (expected, why) = match who.role {
        Role::Probe => (Expected::Probe, "a probe of selftest, attack or audit made the attempt; it must be denied"),
        Role::Runner => (Expected::Attempt, "a runner has no capability and owns no file: what it may use it inherits"),
        Role::Jailer | Role::Warden => (Expected::Host, "the host does not let the jailer do this"),
        Role::Other => (Expected::Unclear, "the process is not one of ours"),
    };
    let what = match path.and_then(|p| p.field("name")) {
        Some(path) => format!("{name} on {path}: {errno}"),
        None => format!("{}: {errno}", call.shown()),
    };
    let remedy = remedy(who, path);
    Some(Reason { what, layer, outcome: format!("failed with {errno}"), rule, expected, why: why.into(), remedy })
}

/// What the mode denies this uid, as far as a PATH record tells; `None` where the mode would do, or is not told.
fn denied_by_mode(path: &Record, call: &Record) -> Option<String> {
    let mode = u32::from_str_radix(path.field("mode")?, 8).ok()?;
    let id = |record: &Record, name: &str| record.number(name).and_then(|n| u32::try_from(n).ok());
    let (uid, gid) = (id(call, "fsuid").or(id(call, "uid"))?, id(call, "fsgid").or(id(call, "gid")));
    let (owner, group) = (id(path, "ouid")?, id(path, "ogid")?);
    let (class, bits) = match (uid == owner, gid == Some(group)) {
        (true, _) => ("its owner", mode >> 6),
        (_, true) => ("its group", mode >> 3),
        _ => ("others", mode),
    };
    // Read and write both granted: the mode is not what is in the way of an open.
    if bits & 0o6 == 0o6 || uid == 0 {
        return None;
    }
    let may = format!("{}{}{}", rwx(bits, 4, 'r'), rwx(bits, 2, 'w'), rwx(bits, 1, 'x'));
    Some(format!("mode {:04o} of uid {owner}, gid {group}: uid {uid} is {class}, with {may}", mode & 0o7777))
}

fn rwx(bits: u32, bit: u32, letter: char) -> char {
    if bits & bit != 0 { letter } else { '-' }
}

fn remedy(who: &Who, path: Option<&Record>) -> String {
    match (who.role, path.and_then(|p| p.field("name"))) {
        (Role::Probe, _) => "nothing should allow it: it is an attempt that must fail".into(),
        (Role::Runner, _) => {
            "nothing should: name what the VM needs in its specification, and the runner inherits the descriptor".into()
        }
        (_, Some(path)) => {
            format!("give this user the access it lacks on the object alone: setfacl, or the owner of {path}")
        }
        (_, None) => "run the command as the user who has the right (root for what changes the host)".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(role: Role, lines: &[&str]) -> Option<Reason> {
        let kernel = |l: &&str| Record::of_kernel(format!("audit: {l}").as_bytes()).unwrap();
        let event = Event { records: lines.iter().map(kernel).collect() };
        let who =
            Who { sandbox: None, certain: true, role, thread: None, pid: None, uid: None, exe: None, label: None };
        explain(&event, record(&event)?, &who)
    }

    const OPEN: &str = "type=1300 audit(1.002:3): arch=c000003e syscall=257 success=no exit=-13 a0=1 a1=2 a2=0 a3=0 pid=7 uid=1000 gid=1000 fsuid=1000 fsgid=1000 comm=\"x\"";

    #[test]
    fn the_mode_of_the_object_is_what_denied_it() {
        let path =
            "type=1302 audit(1.002:3): item=0 name=\"/etc/shadow\" inode=7 mode=0100640 ouid=0 ogid=42 nametype=NORMAL";
        let found = explained(Role::Probe, &[OPEN, path]).unwrap();
        assert_eq!((found.layer, found.expected), ("uid", Expected::Probe));
        assert_eq!(found.rule, "mode 0640 of uid 0, gid 42: uid 1000 is others, with ---");
        assert!(found.what == "openat on /etc/shadow: EACCES", "{}", found.what);
        let open = "type=1302 audit(1.002:3): item=0 name=\"/x\" mode=0100666 ouid=0 ogid=42 nametype=NORMAL";
        assert!(explained(Role::Other, &[OPEN, open]).unwrap().rule.contains("a directory above"));
    }

    #[test]
    fn a_missing_capability_is_named() {
        let mount =
            "type=1300 audit(1.002:3): arch=c000003e syscall=165 success=no exit=-1 a0=1 a1=2 a2=0 a3=0 pid=7 uid=5";
        let found = explained(Role::Runner, &[mount]).unwrap();
        assert_eq!((found.layer, found.rule.contains("CAP_SYS_ADMIN")), ("capabilities", true));
        assert!(found.remedy.starts_with("nothing should"));
    }

    #[test]
    fn another_layers_denial_is_not_the_modes() {
        let avc = "type=1400 audit(1.002:3): avc:  denied  { read } for  pid=7 scontext=a tcontext=b tclass=file";
        assert!(explained(Role::Probe, &[OPEN, avc]).is_none());
        let fine = "type=1300 audit(1.002:3): arch=c000003e syscall=257 success=yes exit=3 pid=7 uid=0";
        assert!(explained(Role::Probe, &[fine]).is_none());
        let other = "type=1300 audit(1.002:3): arch=c000003e syscall=257 success=no exit=-2 pid=7 uid=0";
        assert!(explained(Role::Probe, &[other]).is_none());
    }
}
