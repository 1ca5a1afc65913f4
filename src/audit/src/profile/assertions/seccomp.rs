//! `[[seccomp.deny]]` and `[[seccomp.allow]]`: what the filters of a role's threads must refuse or let through.

use toml::Table;

use super::{Stated, Wanted};
use crate::profile::Problem;
use crate::profile::read::{keys, like, needed, string};
use crate::rule::{Check, Finding};
use crate::seccomp::{Abi, Call};
use crate::subject::{Kind, Known, Process, Subject, Thread};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeccompAssertion {
    stated: Stated,
    wanted: Wanted,
    call: String,
    role: String,
    /// Threads whose name begins so; all if empty.
    thread: String,
}

const ROLES: [&str; 4] = ["runner", "warden", "backend", "process"];

impl SeccompAssertion {
    pub(super) fn of(entry: &Table, place: &str, wanted: Wanted) -> Result<Self, Problem> {
        keys(entry, place, &["call", "role", "thread", "reason", "severity"])?;
        let role = string(entry, place, "role")?.unwrap_or("runner");
        if !ROLES.contains(&role) {
            let problem = format!("{role} is none of {}", ROLES.join(", "));
            return Err(Problem::new(format!("{place}.role"), problem));
        }
        let call = needed(entry, place, "call")?;
        if Abi::ALL.iter().all(|abi| abi.number(call).is_none()) {
            let known: Vec<&str> = Abi::X86_64.table().map(|(_, name)| name).collect();
            let problem = format!("there is no system call {call}{}", like(call, &known));
            return Err(Problem::new(format!("{place}.call"), problem));
        }
        Ok(Self {
            stated: Stated::of(entry, place)?,
            wanted,
            call: call.into(),
            role: role.into(),
            thread: string(entry, place, "thread")?.unwrap_or_default().into(),
        })
    }

    pub(super) fn ask(&self, subject: &Subject) -> Option<Finding> {
        let applies = match self.role.as_str() {
            "process" => subject.kind == Kind::Process,
            _ => matches!(subject.kind, Kind::Plan | Kind::Vm),
        };
        if !applies {
            return None;
        }
        Some(self.stated.finding(super::IDS[1], "seccomp", subject, self.check(subject)))
    }

    fn check(&self, subject: &Subject) -> Check {
        let threads = if self.thread.is_empty() { "every thread".into() } else { format!("threads {}*", self.thread) };
        let what = format!("{} of {threads} of the {}", self.call, self.role);
        let expected = match self.wanted {
            Wanted::Denied => "refused, whatever the arguments, in every ABI",
            Wanted::Allowed => "allowed (x86-64), for some arguments at least",
        };
        let (mut looked, mut bad) = (0, Vec::new());
        for process in subject.processes.iter().filter(|process| process.role == self.role) {
            let threads = match &process.threads {
                Known::Seen(threads) => threads,
                Known::Unseen(why) => return Check::unknown(what, expected, why.clone()),
            };
            for thread in threads.iter().filter(|t| !t.kernel && t.name.starts_with(&self.thread)) {
                looked += 1;
                match self.thread(process, thread) {
                    Ok(None) => {}
                    Ok(Some(text)) => bad.push(text),
                    Err(why) => return Check::unknown(what, expected, why),
                }
            }
        }
        if looked == 0 {
            return Check::unknown(what, expected, "there is no such thread");
        }
        Check::none_of(&bad, format!("{what} ({looked} threads)"), expected)
    }

    /// What is not as it must be; `Err` if it could not be looked at.
    fn thread(&self, process: &Process, thread: &Thread) -> Result<Option<String>, String> {
        let verdicts = match (&thread.filters, thread.seccomp_mode) {
            (Known::Seen(verdicts), _) => verdicts,
            (Known::Unseen(_), 0) => {
                let open = self.wanted == Wanted::Denied;
                return Ok(open.then(|| format!("{}: no filter at all", thread.name)));
            }
            (Known::Unseen(why), _) => return Err(format!("{} {}: {why}", process.role, thread.name)),
        };
        let named = |call: &&Call| call.name.as_deref() == Some(self.call.as_str());
        let mut found = verdicts.calls.iter().filter(named);
        Ok(match self.wanted {
            Wanted::Denied => found.next().map(|call| format!("{}: {:?} {}", thread.name, call.abi, conditions(call))),
            Wanted::Allowed => {
                let allowed = found.any(|call| call.abi == Abi::X86_64);
                (!allowed).then(|| format!("{}: refused", thread.name))
            }
        })
    }
}

fn conditions(call: &Call) -> String {
    if call.when.is_empty() { "always".into() } else { format!("if {}", call.when.join(" or ")) }
}
