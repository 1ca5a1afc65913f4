//! A call that a filter did not allow: which filter, which rule is missing, and what that rule would be.

mod tables;

use casemate_filters::{Condition, Filter, Rule};
use serde_json::json;

use self::tables::{KEYS, NEVER, NEVER_A_RUNNER};
use super::event::Event;
use super::record::{Kind, Record};
use super::who::{Role, Who};
use super::{Expected, Reason};
use crate::seccomp::Abi;

/// SECCOMP_RET_* (include/uapi/linux/seccomp.h).
const ACTIONS: [(u64, &str); 5] = [
    (0x8000_0000, "the process was killed"),
    (0x0000_0000, "the thread was killed"),
    (0x0003_0000, "the process got SIGSYS"),
    (0x0005_0000, "it got an error"),
    (0x7ffc_0000, "it was allowed and logged"),
];

/// What the io thread's filter and the probe's have in common: attempts meet that one.
const PROBE: Filter = Filter::RunnerIo;

/// Rules of one call that are told one by one.
const SHOWN: usize = 6;

/// A call as the record names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// `None` for a number that has no name.
    pub name: Option<String>,
    pub number: u64,
    /// `None` for an architecture that is none of this machine's.
    pub abi: Option<Abi>,
    /// From the event's SYSCALL record. A call that a filter stops has none: the filter decides before auditing sees the
    /// call (kernel/entry/common.c). Four of the six.
    pub args: Option<[u64; 4]>,
}

impl Call {
    pub fn of(event: &Event, record: &Record) -> Option<Self> {
        let number = record.number("syscall")?;
        let (abi, name) = named(record.hex("arch")?, number);
        let syscall = event.first(Kind::SYSCALL);
        let arg = |name: &str| syscall.and_then(|s| s.hex(name));
        let args = (|| Some([arg("a0")?, arg("a1")?, arg("a2")?, arg("a3")?]))();
        Some(Call { name, number, abi, args })
    }

    pub fn shown(&self) -> String {
        let name = self.name.clone().unwrap_or_else(|| format!("call {}", self.number));
        let args = self.args.map(|args| format!("({})", args.map(|a| format!("{a:#x}")).join(", ")));
        format!("{name}{} [{}]", args.unwrap_or_default(), self.abi_name())
    }

    fn abi_name(&self) -> String {
        self.abi.map_or_else(|| "another architecture".into(), |abi| abi.to_string())
    }

    /// The one ABI that our filters let through at all.
    fn is_ours(&self) -> bool {
        self.abi == Some(Abi::X86_64)
    }

    fn is(&self, name: &str) -> bool {
        self.name.as_deref() == Some(name)
    }
}

fn named(arch: u64, number: u64) -> (Option<Abi>, Option<String>) {
    let in_table =
        |abi: &Abi| u64::from(abi.arch()) == arch && (*abi == Abi::X32) == (number >= Abi::X32.base().into());
    let abi = match u64::from(Abi::I386.arch()) == arch {
        true => Some(Abi::I386),
        false => [Abi::X86_64, Abi::X32].into_iter().find(in_table),
    };
    let name = abi.and_then(|abi| abi.name(u32::try_from(number).ok()?));
    (abi, name.map(str::to_owned))
}

/// What one filter says of a call.
enum Said {
    Allows,
    NoRule,
    /// There are rules, for other arguments: in words, and whether they keep memory from being executable.
    Otherwise(String, bool),
}

pub fn explain(event: &Event, record: &Record, who: &Who) -> Option<Reason> {
    let call = Call::of(event, record)?;
    let action = record.hex("code").unwrap_or_default() & 0xffff_0000;
    let outcome = ACTIONS.iter().find(|(code, _)| *code == action).map_or("a filter answered", |(_, words)| words);
    let filters = filters_of(who);
    let mut said = Vec::new();
    for filter in &filters {
        said.push((*filter, if call.is_ours() { judge(*filter, &call) } else { Said::NoRule }));
    }
    let (expected, why) = expectation(&call, who, &said);
    let ip = record.field("ip").map_or_else(|| "its instruction pointer".into(), |ip| format!("ip {ip}"));
    let remedy = remedy(&call, &ip, &said, expected, &why);
    Some(Reason {
        what: call.shown(),
        layer: "seccomp",
        outcome: outcome.into(),
        rule: rule(&call, &said),
        expected,
        why,
        remedy,
    })
}

/// The filters that a role's thread has, the narrowest first.
fn filters_of(who: &Who) -> Vec<Filter> {
    let thread = who.thread.as_deref().unwrap_or_default();
    match who.role {
        Role::Warden => vec![Filter::Warden],
        Role::Jailer => vec![Filter::JailerExec],
        Role::Probe => vec![PROBE, Filter::JailerExec],
        Role::Runner if thread.starts_with("vcpu") => vec![Filter::RunnerVcpu, Filter::JailerExec],
        Role::Runner if thread == "io" => vec![Filter::RunnerIo, Filter::JailerExec],
        Role::Runner => vec![Filter::RunnerMain, Filter::JailerExec],
        Role::Other => Vec::new(),
    }
}

fn judge(filter: Filter, call: &Call) -> Said {
    let allowing = |rule: &&Rule| rule.refused.is_none() && call.is(rule.syscall);
    let rules: Vec<&Rule> = filter.rules().iter().filter(allowing).collect();
    if rules.is_empty() {
        return Said::NoRule;
    }
    let holds = |rule: &&Rule| rule.conditions.iter().all(|c| met(c, call.args));
    match rules.iter().any(holds) {
        true => Said::Allows,
        false => {
            let mut words: Vec<String> = rules.iter().take(SHOWN).map(|rule| conditions(rule)).collect();
            if rules.len() > SHOWN {
                words.push(format!("one of {} more", rules.len() - SHOWN));
            }
            // PROT_EXEC alone: the rule is there to keep memory from being executable.
            let executable = rules.iter().all(|r| r.conditions.iter().any(|c| (c.mask, c.value) == (4, 0)));
            Said::Otherwise(words.join(" or "), executable)
        }
    }
}

fn met(condition: &Condition, args: Option<[u64; 4]>) -> bool {
    let arg = args.and_then(|args| args.get(usize::from(condition.arg)).copied());
    arg.is_some_and(|arg| arg & condition.mask == condition.value)
}

fn conditions(rule: &Rule) -> String {
    let one = |c: &Condition| {
        let value = c.constant.map_or_else(|| format!("{:#x}", c.value), str::to_owned);
        match c.mask {
            u64::MAX | 0xffff_ffff => format!("argument {} = {value}", c.arg),
            mask => format!("argument {} & {mask:#x} = {value}", c.arg),
        }
    };
    rule.conditions.iter().map(one).collect::<Vec<_>>().join(" and ")
}

fn file(filter: Filter) -> String {
    format!("seccomp-filters/{}.json", filter.name())
}

fn rule(call: &Call, said: &[(Filter, Said)]) -> String {
    if !call.is_ours() {
        return format!("every filter kills calls of another ABI than x86-64; this was {}", call.abi_name());
    }
    let none: Vec<String> = said.iter().filter(|(_, s)| matches!(s, Said::NoRule)).map(|(f, _)| file(*f)).collect();
    let mut parts = Vec::new();
    if !none.is_empty() {
        parts.push(format!("no rule in {}", none.join(" nor ")));
    }
    for (filter, said) in said {
        if let Said::Otherwise(words, _) = said {
            let unknown = if call.args.is_none() { "; the record has no arguments" } else { "" };
            parts.push(format!("{} allows it only with {words}{unknown}", file(*filter)));
        }
    }
    match parts.is_empty() {
        false => parts.join("; "),
        true if said.is_empty() => "a filter that is none of ours".into(),
        true => "the filters of this build allow it: another build's runner, or a filter from outside".into(),
    }
}

/// Why no rule should ever allow it.
fn never(call: &Call, who: &Who, said: &[(Filter, Said)]) -> Option<String> {
    if !call.is_ours() {
        return Some("a call of another ABI can only be there to get around the filter".into());
    }
    if said.iter().any(|(_, s)| matches!(s, Said::Otherwise(_, true))) && call.args.is_some() {
        return Some("no memory of a confined role becomes executable".into());
    }
    let name = call.name.as_deref()?;
    let runner = matches!(who.role, Role::Runner | Role::Probe);
    if runner && NEVER_A_RUNNER.contains(&name) {
        return Some("a runner opens nothing: every file and socket is an inherited descriptor".into());
    }
    NEVER.iter().find(|(_, names)| names.contains(&name)).map(|(why, _)| (*why).to_owned())
}

fn expectation(call: &Call, who: &Who, said: &[(Filter, Said)]) -> (Expected, String) {
    let never = never(call, who, said);
    match (who.role, never) {
        (Role::Probe, _) => {
            (Expected::Probe, "a probe of selftest, attack or audit made the attempt; it must be denied".into())
        }
        (_, Some(why)) => (Expected::Attempt, why),
        (Role::Other, None) => (Expected::Unclear, "the process is not one of ours".into()),
        (_, None) => (
            Expected::Gap,
            "a call that no test of Casemate's has met: a newer libc or kernel, or a fault of ours; please report it"
                .into(),
        ),
    }
}

fn remedy(call: &Call, ip: &str, said: &[(Filter, Said)], expected: Expected, why: &str) -> String {
    if matches!(expected, Expected::Attempt | Expected::Probe) {
        let why = if expected == Expected::Probe { "it is an attempt that must fail" } else { why };
        return format!("nothing should allow it: {why}");
    }
    let Some(name) = &call.name else { return "none: the number is no call of this kernel's".into() };
    let keys = KEYS.iter().find(|(key, _)| key == name).map_or(&[][..], |(_, keys)| keys);
    if !keys.is_empty() && call.args.is_none() {
        return format!(
            "not without its arguments, for {name} is many calls in one, and no record of a stopped call has them: find the \
             call in the program at {ip}, and fix argument {} in the rule",
            keys.iter().map(u8::to_string).collect::<Vec<_>>().join(" and ")
        );
    }
    let fixed = |at: &u8| Some(json!({ "arg": at, "equals": format!("{:#x}", call.args?.get(usize::from(*at))?) }));
    let args: Vec<_> = keys.iter().filter_map(fixed).collect();
    let line = match args.is_empty() {
        true => json!({ "syscall": name, "why": "…" }),
        false => json!({ "syscall": name, "args": args, "why": "…" }),
    };
    let files: Vec<String> = said.iter().filter(|(_, s)| !matches!(s, Said::Allows)).map(|(f, _)| file(*f)).collect();
    match files.is_empty() {
        true => "none here: start the sandbox again with this build".into(),
        false => format!("in {}, under \"allow\": {line}", files.join(" and ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(role: Role, thread: &str) -> Who {
        Who {
            sandbox: None,
            certain: true,
            role,
            thread: Some(thread.into()),
            pid: Some(7),
            uid: Some(10_000_000),
            exe: None,
            label: None,
        }
    }

    fn reason(who: &Who, call: &str, args: Option<[u64; 4]>) -> Reason {
        let number = (0..500).find(|n| named(Abi::X86_64.arch().into(), *n).1.as_deref() == Some(call)).unwrap();
        explained(who, &format!("arch=c000003e syscall={number} code=0x80000000"), args)
    }

    fn explained(who: &Who, fields: &str, args: Option<[u64; 4]>) -> Reason {
        let kernel = |line: String| Record::of_kernel(line.as_bytes()).unwrap();
        let record = kernel(format!("audit: type=1326 audit(1.002:3): {fields}"));
        let mut records = vec![record.clone()];
        if let Some([a, b, c, d]) = args {
            records.push(kernel(format!("audit: type=1300 audit(1.002:3): a0={a:x} a1={b:x} a2={c:x} a3={d:x}")));
        }
        explain(&Event { records }, &record, who).unwrap()
    }

    #[test]
    fn what_no_runner_does_is_an_attempt_that_nothing_should_allow() {
        for call in ["execve", "openat", "ptrace", "io_uring_setup", "mount", "socket", "setresuid"] {
            let found = reason(&who(Role::Runner, "io"), call, None);
            assert_eq!(found.expected, Expected::Attempt, "{call}");
            assert!(found.remedy.starts_with("nothing should allow it"), "{call}: {}", found.remedy);
        }
        let found = reason(&who(Role::Runner, "io"), "ptrace", None);
        assert_eq!(found.rule, "no rule in seccomp-filters/runner.io.json nor seccomp-filters/jailer.exec.json");
        assert_eq!(found.outcome, "the process was killed");
    }

    #[test]
    fn a_call_that_may_be_missing_is_a_gap_with_the_line_for_each_filter_of_the_thread() {
        for (thread, file) in [("vcpu0", "runner.vcpu"), ("io", "runner.io"), ("casemate-runner", "runner.main")] {
            let found = reason(&who(Role::Runner, thread), "getcpu", None);
            assert_eq!(found.expected, Expected::Gap);
            assert!(found.remedy.contains(file) && found.remedy.contains("jailer.exec.json"), "{}", found.remedy);
            assert!(found.remedy.contains(r#"{"syscall":"getcpu","why":"…"}"#), "{}", found.remedy);
        }
        // The coarse filter has it: one line is enough.
        let one = reason(&who(Role::Runner, "vcpu0"), "accept4", None);
        assert!(one.remedy.contains("runner.vcpu.json") && !one.remedy.contains("jailer.exec"), "{}", one.remedy);
        let warden = reason(&who(Role::Warden, "casemate-jailer"), "getcpu", None);
        assert!(warden.remedy.contains("seccomp-filters/warden.json"));
    }

    #[test]
    fn a_call_that_is_many_is_never_proposed_without_its_argument() {
        let blind = reason(&who(Role::Runner, "io"), "ioctl", None);
        assert!(blind.remedy.contains("not without its arguments"), "{}", blind.remedy);
        assert!(blind.rule.contains("the record has no arguments"), "{}", blind.rule);
        let seen = reason(&who(Role::Runner, "io"), "ioctl", Some([3, 0x1234, 0, 0]));
        assert!(seen.remedy.contains(r#""args":[{"arg":1,"equals":"0x1234"}]"#), "{}", seen.remedy);
        assert!(seen.rule.contains("runner.io.json allows it only with argument 1 = FIONBIO"), "{}", seen.rule);
        assert_eq!(seen.what, "ioctl(0x3, 0x1234, 0x0, 0x0) [x86-64]");
    }

    #[test]
    fn executable_memory_and_other_abis_are_never_allowed() {
        let found = reason(&who(Role::Runner, "io"), "mmap", Some([0, 4096, 7, 0x22]));
        assert_eq!((found.expected, found.remedy.contains("executable")), (Expected::Attempt, true), "{found:?}");
        for (fields, abi) in [
            ("arch=40000003 syscall=20 code=0x80000000", "i386"),
            ("arch=c000003e syscall=1073741863 code=0x80000000", "x32"),
        ] {
            let found = explained(&who(Role::Runner, "vcpu0"), fields, None);
            assert_eq!((found.expected, found.what.contains(abi)), (Expected::Attempt, true), "{found:?}");
            assert!(found.what.starts_with("getpid"), "{}", found.what);
        }
    }

    #[test]
    fn numbers_that_nobody_knows_are_said_as_they_are() {
        for fields in [
            "arch=c000003e syscall=18446744073709551615 code=0x80000000",
            "arch=ffffffffffffffff syscall=1 code=0x1",
            "arch=c000003e syscall=9999",
        ] {
            let found = explained(&who(Role::Runner, "io"), fields, None);
            assert!(found.what.contains("call "), "{}", found.what);
        }
        let record = Record::of_kernel(b"audit: type=1326 audit(1.002:3): arch=c000003e").unwrap();
        assert!(explain(&Event::default(), &record, &who(Role::Runner, "io")).is_none());
    }

    #[test]
    fn a_probes_attempt_is_known_as_one() {
        assert_eq!(reason(&who(Role::Probe, "casemate-probe"), "getcpu", None).expected, Expected::Probe);
    }
}
