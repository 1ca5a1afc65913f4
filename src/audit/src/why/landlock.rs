//! What a Landlock domain denied (Linux 6.15, ABI 7): its rights, its maker, and why nothing loosens it.
//!
//! Records: Documentation/admin-guide/LSM/landlock.rst. A denial names its domain by number; who made that is told once.

use super::event::{Domain, Event};
use super::record::{Kind, Record};
use super::who::{Role, Who};
use super::{Expected, Reason};

/// What each start tries itself to see that its domain holds (`confine::landlock`): the right, and on what.
const CONTROL_SOCKET: &str = "casemate-control-";

pub fn explain(event: &Event, record: &Record, domain: Option<&Domain>, who: &Who) -> Option<Reason> {
    let blockers: Vec<&str> = record.field("blockers")?.split(',').take(32).collect();
    let id = record.field("domain")?;
    let object = object(record);
    let (expected, why) = expectation(&blockers, record, event, domain, who);
    let remedy = remedy(&blockers, expected, who);
    let maker = domain.map_or_else(
        || "who made it was told with its first denial, which these records do not have".to_owned(),
        |d| {
            let program = d.exe.as_deref().and_then(|exe| exe.rsplit('/').next()).unwrap_or("a program");
            let pid = d.pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
            match program {
                "casemate-jailer" => {
                    format!("made by casemate-jailer{pid}; it has one rule: execute and read the program")
                }
                "casemate-runner" => format!("made by casemate-runner{pid}; it has no rule: everything is denied"),
                other => format!("made by {other}{pid}"),
            }
        },
    );
    Some(Reason {
        what: format!("{} on {object}", blockers.join(", ")),
        layer: "landlock",
        outcome: "denied".into(),
        rule: format!("domain {id} handles {}; {maker}", blockers.join(", ")),
        expected,
        why,
        remedy,
    })
}

fn object(record: &Record) -> String {
    let port = |name: &str| record.field(name).map(|port| format!("TCP port {port}"));
    if let Some(path) = record.field("path") {
        return path.to_owned();
    }
    if let Some(pid) = record.field("opid") {
        return format!("process {pid} ({})", record.field("ocomm").unwrap_or("?"));
    }
    port("dest").or_else(|| port("src")).unwrap_or_else(|| "an object that the record does not name".into())
}

/// The attempts that a start makes to see its own domain hold.
fn is_control(blockers: &[&str], record: &Record) -> bool {
    let path = record.field("path").unwrap_or_default();
    match blockers {
        ["fs.read_dir"] => path == "/",
        ["net.connect_tcp"] => record.field("dest") == Some("1"),
        ["scope.abstract_unix_socket"] => path.trim_start_matches(['\0', '@']).starts_with(CONTROL_SOCKET),
        _ => false,
    }
}

fn expectation(
    blockers: &[&str],
    record: &Record,
    event: &Event,
    domain: Option<&Domain>,
    who: &Who,
) -> (Expected, String) {
    let ours = matches!(who.role, Role::Runner | Role::Jailer);
    if who.role == Role::Probe || probes(event, domain) {
        return (Expected::Probe, "a probe of selftest, attack or audit made the attempt; it must be denied".into());
    }
    if ours && is_control(blockers, record) {
        return (Expected::Control, "each start tries this itself, to see that the domain holds".into());
    }
    match ours {
        true => (Expected::Attempt, "a runner opens nothing: every file and socket is an inherited descriptor".into()),
        false => (Expected::Unclear, "the process is not one of ours".into()),
    }
}

fn probes(event: &Event, domain: Option<&Domain>) -> bool {
    let named = |exe: Option<&str>| exe.is_some_and(|exe| exe.ends_with("/casemate-probe"));
    named(event.first(Kind::SYSCALL).and_then(|s| s.field("exe"))) || named(domain.and_then(|d| d.exe.as_deref()))
}

fn remedy(blockers: &[&str], expected: Expected, who: &Who) -> String {
    match expected {
        Expected::Control => "none: this is the proof that the layer holds".into(),
        Expected::Probe => "nothing should allow it: it is an attempt that must fail".into(),
        _ if who.role == Role::Other => "ask the program that made the domain for a rule on this object".into(),
        _ if blockers.iter().all(|right| right.starts_with("fs.")) => {
            "nothing should: a runner's domain gets no path. What the VM needs is named in its specification (kernel, \
             initramfs, disks); the jailer opens it and the runner inherits the descriptor"
                .into()
        }
        _ => "nothing should: a runner has no network and signals nobody; guests are reached through vsock".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(role: Role) -> Who {
        Who { sandbox: None, certain: true, role, thread: None, pid: Some(7), uid: None, exe: None, label: None }
    }

    fn explained(fields: &str, role: Role, domain: Option<&Domain>) -> Reason {
        let line = format!("audit: type=1423 audit(1.002:3): domain=195ba459b {fields}");
        let record = Record::of_kernel(line.as_bytes()).unwrap();
        explain(&Event { records: vec![record.clone()] }, &record, domain, &who(role)).unwrap()
    }

    fn made_by(exe: &str) -> Domain {
        Domain { pid: Some(7), uid: Some(0), exe: Some(exe.into()), comm: None }
    }

    #[test]
    fn a_runners_attempt_is_told_with_right_object_and_domain() {
        let domain = made_by("/x/casemate-runner");
        let found =
            explained("blockers=fs.read_file path=\"/etc/shadow\" dev=\"vda\" ino=7", Role::Runner, Some(&domain));
        assert_eq!((found.expected, found.what.as_str()), (Expected::Attempt, "fs.read_file on /etc/shadow"));
        assert!(found.rule.contains("domain 195ba459b handles fs.read_file"));
        assert!(found.rule.contains("it has no rule"), "{}", found.rule);
        assert!(found.remedy.starts_with("nothing should"));
        let unknown = explained("blockers=net.connect_tcp daddr=10.0.0.1 dest=80", Role::Runner, None);
        assert!(unknown.what.ends_with("on TCP port 80") && unknown.rule.contains("first denial"), "{unknown:?}");
        let signal = explained("blockers=scope.signal opid=1 ocomm=\"init\"", Role::Runner, Some(&domain));
        assert_eq!(signal.what, "scope.signal on process 1 (init)");
    }

    #[test]
    fn the_starts_own_controls_are_known_and_their_neighbours_are_not() {
        let domain = made_by("/x/casemate-jailer");
        let expected = |fields: &str| explained(fields, Role::Jailer, Some(&domain)).expected;
        assert_eq!(expected("blockers=fs.read_dir path=\"/\""), Expected::Control);
        assert_eq!(expected("blockers=net.connect_tcp dest=1"), Expected::Control);
        assert_eq!(expected("blockers=fs.read_dir path=\"/etc\""), Expected::Attempt);
        assert_eq!(expected("blockers=net.connect_tcp dest=22"), Expected::Attempt);
        assert_eq!(
            explained("blockers=fs.read_dir path=\"/\"", Role::Other, Some(&domain)).expected,
            Expected::Unclear
        );
    }

    #[test]
    fn a_record_without_its_parts_is_none() {
        for line in ["audit: type=1423 audit(1.002:3): domain=1", "audit: type=1423 audit(1.002:3): blockers=fs.x"] {
            let record = Record::of_kernel(line.as_bytes()).unwrap();
            assert!(explain(&Event::default(), &record, None, &who(Role::Runner)).is_none());
        }
    }
}
