//! Whose event was it? A pid and a uid are used again, so each is believed only within the time of the sandbox that had
//! it, and what is not certain is called probable.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::event::{Domain, Event};
use super::record::{Kind, Record, Stamp};

/// A start's first denials come a little before the record that says when it began; an end's last a little after.
const BEFORE: u64 = 3;
const AFTER: u64 = 2;

/// What is known of a sandbox, living or ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    pub name: String,
    pub uid: u32,
    pub label: Option<String>,
    /// Pids as this host's first namespace numbers them.
    pub runner: Option<u32>,
    pub warden: u32,
    /// Seconds since the epoch.
    pub created: u64,
    /// `None` while it lives.
    pub ended: Option<u64>,
}

/// What tells one process of ours from others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Any order.
    pub sandboxes: Vec<Sandbox>,
    /// Uids that Casemate leases.
    pub uids: Option<RangeInclusive<u32>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Runner,
    Warden,
    /// The jailer's first half, and its child until it executes the runner.
    Jailer,
    /// What selftest and attack put in a runner's place.
    Probe,
    /// The command line, or another process that has to do with one of ours.
    Other,
}

/// A process, as far as an event tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Who {
    pub sandbox: Option<String>,
    /// Nothing else can have had these numbers at that time.
    pub certain: bool,
    pub role: Role,
    /// The thread's name, which is its program's where it has none of its own.
    pub thread: Option<String>,
    pub pid: Option<u32>,
    pub uid: Option<u32>,
    pub exe: Option<String>,
    pub label: Option<String>,
}

/// What an event says of its process.
#[derive(Debug, Clone, Default)]
struct Said {
    pid: Option<u32>,
    uid: Option<u32>,
    comm: Option<String>,
    exe: Option<String>,
    label: Option<String>,
}

/// Who did what this event is about; `None` if it is nothing of ours. `target` is the label of the object, which may be
/// what makes it ours.
pub fn who(
    stamp: &Stamp,
    event: &Event,
    record: &Record,
    domain: Option<&Domain>,
    known: &Known,
    target: Option<&str>,
) -> Option<Who> {
    let said = said(event, record, domain);
    let (sandbox, certain) = match sandbox(stamp.seconds, &said, known) {
        Some((sandbox, certain)) => (Some(sandbox), certain),
        None => (None, false),
    };
    let role = role(&said, sandbox);
    let in_range = || said.uid.zip(known.uids.as_ref()).is_some_and(|(uid, uids)| uids.contains(&uid));
    let is_named = || role != Role::Other && said.uid.is_none_or(|uid| uid == 0);
    let label = |label: Option<&str>| label.and_then(type_of).is_some_and(|t| t.starts_with("casemate_"));
    let ours = sandbox.is_some() || in_range() || is_named() || label(said.label.as_deref()) || label(target);
    ours.then(|| Who {
        sandbox: sandbox.map(|s| s.name.clone()),
        certain,
        role,
        thread: said.comm,
        pid: said.pid,
        uid: said.uid,
        exe: said.exe,
        label: said.label,
    })
}

fn said(event: &Event, record: &Record, domain: Option<&Domain>) -> Said {
    // A USER_AVC is written by a daemon about somebody else: only the label is that one's.
    if record.kind == Kind::USER_AVC {
        return Said { label: record.field("scontext").map(str::to_owned), ..Said::default() };
    }
    let syscall = event.first(Kind::SYSCALL);
    let either = |name: &str| record.field(name).or_else(|| syscall.and_then(|s| s.field(name))).map(str::to_owned);
    let number = |name: &str| either(name).and_then(|text| text.parse().ok());
    let of_domain = domain.filter(|_| record.kind == Kind::LANDLOCK_ACCESS && syscall.is_none());
    Said {
        pid: number("pid").or_else(|| of_domain.and_then(|d| d.pid)),
        uid: number("uid").or_else(|| of_domain.and_then(|d| d.uid)),
        comm: either("comm").or_else(|| of_domain.and_then(|d| d.comm.clone())),
        exe: either("exe").or_else(|| of_domain.and_then(|d| d.exe.clone())),
        label: either("scontext").or_else(|| either("subj")).filter(|label| label.contains(':')),
    }
}

/// The sandbox, and whether it must be that one.
fn sandbox<'a>(at: u64, said: &Said, known: &'a Known) -> Option<(&'a Sandbox, bool)> {
    let lived = |s: &&Sandbox| {
        s.created.saturating_sub(BEFORE) <= at && s.ended.is_none_or(|end| at <= end.saturating_add(AFTER))
    };
    let fits = |s: &Sandbox| {
        let pid = said.pid.is_some_and(|pid| s.runner == Some(pid) || s.warden == pid);
        let uid = said.uid.is_some_and(|uid| uid == s.uid);
        let label = s.label.is_some() && s.label == said.label;
        u8::from(pid) * 4 + u8::from(label) * 2 + u8::from(uid)
    };
    // The nearest in time, of those that fit best: a number that was used again belongs to the later one.
    let best = known.sandboxes.iter().filter(lived).map(|s| (fits(s), s)).filter(|(fit, _)| *fit > 0);
    let (fit, found) = best.max_by_key(|(fit, s)| (*fit, s.created))?;
    let others = known.sandboxes.iter().filter(lived).filter(|s| s.name != found.name || s.created != found.created);
    let alone = others.clone().all(|other| fits(other) < fit);
    // A pid alone may be anybody's who got it when the sandbox had just ended; root's processes have no uid of theirs.
    let inside = found.created <= at && found.ended.is_none_or(|end| at <= end);
    let contradicted = said.uid.is_some_and(|uid| uid != found.uid && uid != 0);
    let two = fit.count_ones() >= 2 || (fit == 4 && said.uid == Some(0));
    Some((found, alone && inside && two && !contradicted))
}

fn role(said: &Said, sandbox: Option<&Sandbox>) -> Role {
    let program = said.exe.as_deref().and_then(|exe| exe.rsplit('/').next()).unwrap_or_default();
    let program = program.strip_suffix(" (deleted)").unwrap_or(program);
    let is = |pid: Option<u32>| pid.is_some() && pid == said.pid;
    match program {
        "casemate-probe" => return Role::Probe,
        "casemate-runner" => return Role::Runner,
        "casemate-jailer" if sandbox.is_some_and(|s| is(Some(s.warden))) => return Role::Warden,
        "casemate-jailer" => return Role::Jailer,
        _ => {}
    }
    // The domain tells where the program does not: an access vector names none.
    match said.label.as_deref().and_then(type_of) {
        Some("casemate_runner_t" | "svirt_t" | "container_kvm_t") if sandbox.is_some() => Role::Runner,
        Some("casemate_runner_t") => match said.comm.as_deref() {
            Some("casemate-probe") => Role::Probe,
            _ => Role::Runner,
        },
        Some("casemate_jailer_t") if sandbox.is_some_and(|s| is(Some(s.warden))) => Role::Warden,
        Some("casemate_jailer_t") => Role::Jailer,
        _ if sandbox.is_some_and(|s| is(s.runner)) => Role::Runner,
        _ if sandbox.is_some_and(|s| is(Some(s.warden))) => Role::Warden,
        _ => match said.comm.as_deref() {
            Some("casemate-runner") => Role::Runner,
            Some("casemate-jailer") => Role::Jailer,
            Some("casemate-probe") => Role::Probe,
            _ => Role::Other,
        },
    }
}

/// The third field of `user:role:type[:level]`.
pub fn type_of(label: &str) -> Option<&str> {
    label.split(':').nth(2)
}

/// What follows the type: `s0:c1,c2`.
pub fn level_of(label: &str) -> Option<&str> {
    label.splitn(4, ':').nth(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(name: &str, uid: u32, runner: u32, created: u64, ended: Option<u64>) -> Sandbox {
        let label = Some(format!("u:r:casemate_runner_t:s0:c1,c{uid}"));
        Sandbox { name: name.into(), uid, label, runner: Some(runner), warden: runner - 1, created, ended }
    }

    fn seccomp(at: u64, uid: u32, pid: u32, exe: &str) -> Record {
        let line = format!("audit: type=1326 audit({at}.000:1): uid={uid} pid={pid} comm=\"io\" exe=\"{exe}\" sig=31");
        Record::of_kernel(line.as_bytes()).unwrap()
    }

    fn ask(record: &Record, known: &Known) -> Option<Who> {
        let event = Event { records: vec![record.clone()] };
        who(&record.stamp, &event, record, None, known, None)
    }

    fn known() -> Known {
        let sandboxes = vec![
            sandbox("old", 10_000_001, 50, 1000, Some(2000)),
            sandbox("new", 10_000_001, 90, 3000, None),
            sandbox("other", 10_000_002, 91, 500, None),
        ];
        Known { sandboxes, uids: Some(10_000_000..=10_065_535) }
    }

    #[test]
    fn a_uid_that_was_leased_again_belongs_to_who_had_it_then() {
        let found = |at, pid| ask(&seccomp(at, 10_000_001, pid, "/x/casemate-runner"), &known()).unwrap();
        assert_eq!((found(1500, 50).sandbox.as_deref(), found(1500, 50).certain), (Some("old"), true));
        assert_eq!((found(3500, 90).sandbox.as_deref(), found(3500, 90).certain), (Some("new"), true));
        // By the uid alone, as a probe in its place has it: probably.
        assert_eq!((found(3500, 7).sandbox.as_deref(), found(3500, 7).certain), (Some("new"), false));
        // Between the two nobody had it, and ours it is all the same.
        assert_eq!((found(2500, 7).sandbox, found(2500, 7).role), (None, Role::Runner));
    }

    #[test]
    fn a_pid_that_was_used_again_is_not_certain_or_not_ours() {
        let stranger = |at, pid, uid| ask(&seccomp(at, uid, pid, "/usr/bin/firefox"), &known());
        assert_eq!(stranger(2500, 50, 1000), None, "the sandbox had ended");
        let same = stranger(1500, 50, 1000).unwrap();
        assert!(!same.certain, "another's uid contradicts it");
        assert_eq!(stranger(1500, 7777, 1000), None);
    }

    #[test]
    fn a_program_that_calls_itself_ours_is_not_unless_it_is_roots_or_has_a_leased_uid() {
        assert_eq!(ask(&seccomp(1, 1000, 7, "/home/eve/casemate-runner"), &known()), None);
        let leased = ask(&seccomp(1, 10_000_009, 7, "/x/casemate-probe"), &known()).unwrap();
        assert_eq!((leased.role, leased.certain), (Role::Probe, false));
        assert!(ask(&seccomp(1, 0, 7, "/x/casemate-jailer"), &known()).is_some());
    }

    #[test]
    fn a_domain_names_the_process_that_a_landlock_denial_does_not() {
        let line = "audit: type=1423 audit(3500.000:1): domain=1ab blockers=fs.read_file path=\"/etc/shadow\"";
        let record = Record::of_kernel(line.as_bytes()).unwrap();
        let event = Event { records: vec![record.clone()] };
        let domain = Domain { pid: Some(90), uid: Some(0), exe: Some("/x/casemate-jailer".into()), comm: None };
        let found = who(&record.stamp, &event, &record, Some(&domain), &known(), None).unwrap();
        assert_eq!((found.sandbox.as_deref(), found.pid), (Some("new"), Some(90)));
        assert_eq!(who(&record.stamp, &event, &record, None, &known(), None), None);
    }

    #[test]
    fn what_touches_an_object_of_ours_is_told_too() {
        let line = "audit: type=1400 audit(1.000:1): avc:  denied  { read } for  pid=5 comm=\"qemu\" scontext=s:r:svirt_t:s0:c8,c9 tcontext=s:o:casemate_image_t:s0:c1,c2 tclass=file";
        let record = Record::of_kernel(line.as_bytes()).unwrap();
        let event = Event { records: vec![record.clone()] };
        let found = who(&record.stamp, &event, &record, None, &Known::default(), record.field("tcontext")).unwrap();
        assert_eq!((found.role, found.sandbox), (Role::Other, None));
        assert_eq!(who(&record.stamp, &event, &record, None, &Known::default(), None), None);
    }
}
