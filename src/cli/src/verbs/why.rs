//! `why`: what was denied, by which layer and rule, whether it should be, and the narrowest change that would allow it.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use casemate_audit::why::follow::{Follower, SETTLE};
use casemate_audit::why::sources::{self, Account, Sources};
use casemate_audit::why::{self, Denial, Expected, Known, Role, Sandbox, Who, status};
use casemate_audit::{Policy, PolicyError};
use casemate_client::{sanitize, store};
use casemate_plan::HostConfig;
use casemate_wire::record::{FailedStart, Past, SandboxRecord};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use crate::args::WhyArgs;
use crate::failure::{Failure, Result};
use crate::output::{Context, Tone, paint, say};

/// Characters of one part of a line: a path may be a page long.
const MAX_PART: usize = 500;
/// The last second of the year 9999, which is as far as RFC 3339 goes.
const LAST: u64 = 253_402_300_799;

#[derive(Serialize)]
struct Answer {
    denials: Vec<Denial>,
    /// What was read, and what could not be.
    sources: Vec<Account>,
    notes: Vec<String>,
}

pub fn why(context: &Context, args: &WhyArgs) -> Result<()> {
    let now = SystemTime::now();
    let since = time(&args.since, now)?;
    let until = args.until.as_deref().map_or(Ok(seconds(now)), |text| time(text, now))?;
    if since > until {
        return Err(Failure::new("--since is later than --until"));
    }
    // Asked before reading: what changes meanwhile shows as a change later.
    let kept = changed(context);
    let history = History::read(context)?;
    if let Some(name) = &args.name
        && !history.has(name)
    {
        let name = sanitize::line(name, 80);
        return Err(Failure::new(format!("there is no sandbox {name}, nor a record of one"))
            .remedy("`casemate ps -a` lists them; `casemate why` without a name tells of all"));
    }
    let (policy, unasked) = policy(args)?;
    let sources = Sources::host(since, until);
    let mut follower = args.follow.then(|| Follower::start(&sources));
    let (events, read) = match &mut follower {
        Some(follower) => follower.history(),
        None => sources::gather(&sources),
    };
    if follower.as_ref().is_some_and(|follower| !follower.can_see()) {
        let notes = read.iter().flat_map(|read| read.notes.iter().map(|note| format!("{}: {note}", read.name)));
        return Err(Failure::new(format!("there is nothing to follow: {}", notes.collect::<Vec<_>>().join("; ")))
            .remedy("ask as root; or start auditd, or journald"));
    }
    let failed: Vec<_> = history.failed.iter().filter(|f| (since..=until).contains(&f.at)).cloned().collect();
    let mut denials = why::denials(&events, &history.known, policy.as_ref(), &failed);
    denials.retain(|denial| wanted(denial, args));
    let mut notes = notes(&read);
    notes.extend(unasked);
    if events.dropped > 0 {
        notes.push(format!("too many records: the oldest {} were left out; narrow it with --since", events.dropped));
    }
    let answer = Answer { denials, sources: read, notes };
    let Some(follower) = follower else {
        return if context.json() { context.print_json(&answer) } else { context.print(&text(&answer)) };
    };
    if context.json() {
        tell(context, &answer.denials)?;
        answer.notes.iter().for_each(|note| say(&part(note)));
    } else {
        context.print(&text(&answer))?;
    }
    // The history holds up to 100,000 events.
    drop((events, answer));
    let told = history.failed.iter().map(start).collect();
    follow(context, args, follower, Starts { told, kept }, policy.as_ref())
}

/// Failed starts: which have been told, and when the jailer's records of them were last seen to change.
struct Starts {
    told: BTreeSet<(u64, u32, String)>,
    kept: Option<SystemTime>,
}

/// Until the reader of standard output leaves; ^C ends the program as it ends any.
fn follow(
    context: &Context,
    args: &WhyArgs,
    mut follower: Follower,
    mut starts: Starts,
    policy: Option<&Policy>,
) -> Result<()> {
    while !hung_up(SETTLE) {
        let events = follower.look();
        follower.notes().iter().for_each(|note| say(&part(note)));
        let now = changed(context);
        if events.is_empty() && now == starts.kept {
            continue;
        }
        // Sandboxes come and go meanwhile.
        let history = History::read(context)?;
        let mut denials = follower.denials(&events, &history.known, policy);
        if now != starts.kept {
            let new = history.failed.iter().filter(|failed| !starts.told.contains(&start(failed)));
            denials.extend(new.map(why::failed_start));
            starts = Starts { told: history.failed.iter().map(start).collect(), kept: now };
        }
        denials.retain(|denial| wanted(denial, args));
        tell(context, &denials)?;
    }
    Ok(())
}

/// One line each.
fn tell(context: &Context, denials: &[Denial]) -> Result<()> {
    let mut out = String::new();
    for denial in denials {
        let line = match context.json() {
            true => serde_json::to_string(denial).map_err(|error| Failure::from_error(&error))?,
            false => line(denial),
        };
        let _ = writeln!(out, "{line}");
    }
    if out.is_empty() { Ok(()) } else { context.print(&out) }
}

/// Which start it was.
fn start(failed: &FailedStart) -> (u64, u32, String) {
    (failed.at, failed.pid, failed.name.clone())
}

/// When the jailer last kept or dropped a record of one.
fn changed(context: &Context) -> Option<SystemTime> {
    std::fs::metadata(context.dirs.run.join("past")).and_then(|meta| meta.modified()).ok()
}

/// Waits; whether nobody reads standard output any more.
fn hung_up(wait: Duration) -> bool {
    let out = rustix::stdio::stdout();
    let mut polled = [PollFd::new(&out, PollFlags::empty())];
    let timeout = Timespec::try_from(wait).ok();
    poll(&mut polled, timeout.as_ref()).is_ok_and(|ready| ready > 0)
}

fn wanted(denial: &Denial, args: &WhyArgs) -> bool {
    let named = args.name.as_ref().is_none_or(|name| denial.who.sandbox.as_ref() == Some(name));
    let told = args.all || !matches!(denial.expected, Expected::Control | Expected::Probe);
    named && told
}

/// What is known of the sandboxes that are or were.
struct History {
    known: Known,
    failed: Vec<FailedStart>,
}

impl History {
    fn read(context: &Context) -> Result<Self> {
        let mut sandboxes = Vec::new();
        for entry in store::list(&context.dirs)?.entries {
            let ended = store::open(&context.dirs, &entry.record.name).ok().and_then(|dir| dir.ended());
            sandboxes.push(of_record(&entry.record, ended));
        }
        let mut failed = Vec::new();
        for past in store::past(&context.dirs)? {
            match past {
                Past::Failed(start) => failed.push(start),
                Past::Ended(e) => sandboxes.push(Sandbox {
                    name: e.name,
                    uid: e.uid,
                    label: e.label,
                    runner: e.runner.map(|p| p.pid),
                    warden: e.warden.pid,
                    created: e.created,
                    ended: Some(e.ended),
                }),
            }
        }
        // The host's settings may name other uids; a sandbox's own uid is in its record in any case.
        let config = HostConfig::default();
        let uids = Some(config.uid_first..=config.uid_last);
        Ok(History { known: Known { sandboxes, uids }, failed })
    }

    fn has(&self, name: &str) -> bool {
        self.known.sandboxes.iter().any(|s| s.name == name) || self.failed.iter().any(|f| f.name == name)
    }
}

fn of_record(record: &SandboxRecord, ended: Option<u64>) -> Sandbox {
    Sandbox {
        name: record.name.clone(),
        uid: record.uid,
        label: record.label.clone(),
        runner: record.runner.map(|p| p.pid),
        warden: record.warden.pid,
        created: record.created,
        ended,
    }
}

/// The policy that decides, and what is to be said if there is none.
fn policy(args: &WhyArgs) -> Result<(Option<Policy>, Option<String>)> {
    let loaded = match &args.policy {
        Some(file) => return Policy::read(file).map(|p| (Some(p), None)).map_err(|e| Failure::from_error(&e)),
        None => Policy::live(),
    };
    match loaded {
        Ok(policy) => Ok((Some(policy), None)),
        // No SELinux: there are no vectors to decide.
        Err(PolicyError::NotLoaded) => Ok((None, None)),
        Err(error) => {
            let why = Failure::from_error(&error).sentence();
            let note =
                format!("the loaded policy could not be asked, so types and categories are not told apart: {why}");
            Ok((None, Some(note)))
        }
    }
}

fn notes(read: &[Account]) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    let suppressed: u64 = read.iter().map(|r| r.suppressed).max().unwrap_or_default();
    if suppressed > 0 {
        notes.push(format!(
            "the kernel says that it left {suppressed} lines out of its log, so there may have been more denials: \
             sysctl kernel.printk_ratelimit_burst=1000, or run auditd"
        ));
    }
    let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    notes.extend(status::notes(&status::status(), &cmdline));
    notes
}

/// One line for each denial; then what was read, and what is missing.
fn text(answer: &Answer) -> String {
    let mut out = String::new();
    for denial in &answer.denials {
        let _ = writeln!(out, "{}", line(denial));
    }
    if answer.denials.is_empty() {
        let _ = writeln!(out, "no denial is recorded (those of tests and of each start's controls: --all)");
    }
    let _ = writeln!(out);
    for source in &answer.sources {
        let notes: String = source.notes.iter().map(|note| format!("; {}", part(note))).collect();
        let read = format!("read: {}: {} records{notes}", part(&source.name), source.records);
        let _ = writeln!(out, "{}", paint(&read, Tone::Dim));
    }
    for note in &answer.notes {
        let _ = writeln!(out, "{}", paint(&format!("note: {}", part(note)), Tone::Weak));
    }
    out
}

fn line(denial: &Denial) -> String {
    let at = UNIX_EPOCH + Duration::from_secs(denial.last.seconds.min(LAST));
    let at = humantime::format_rfc3339_seconds(at);
    let times = if denial.times > 1 { format!(" ({} times)", denial.times) } else { String::new() };
    let tone = match denial.expected {
        Expected::Gap => Tone::Bad,
        Expected::Attempt => Tone::Weak,
        _ => Tone::Plain,
    };
    format!(
        "{at} {}: {}{times} | {}: {} | {} | {}: {} | allow: {}",
        paint(&who(&denial.who), Tone::Head),
        part(&denial.what),
        part(&denial.layer),
        part(&denial.outcome),
        part(&denial.rule),
        paint(denial.expected.words(), tone),
        part(&denial.why),
        part(&denial.remedy)
    )
}

fn who(who: &Who) -> String {
    let sandbox = match (&who.sandbox, who.certain) {
        (Some(name), true) => part(name),
        (Some(name), false) => format!("probably {}", part(name)),
        (None, _) => "no known sandbox".into(),
    };
    let role = match who.role {
        Role::Runner => "runner",
        Role::Warden => "warden",
        Role::Jailer => "jailer",
        Role::Probe => "probe",
        Role::Other => "process",
    };
    let mut parts = Vec::new();
    parts.extend(who.exe.as_deref().filter(|_| who.role == Role::Other).map(part));
    parts.extend(who.thread.as_deref().map(|thread| format!("thread {}", part(thread))));
    parts.extend(who.pid.map(|pid| format!("pid {pid}")));
    parts.extend(who.uid.map(|uid| format!("uid {uid}")));
    parts.extend(who.label.as_deref().map(part));
    format!("{sandbox} {role} ({})", parts.join(", "))
}

/// Names of programs and paths are anybody's.
fn part(text: &str) -> String {
    sanitize::line(text, MAX_PART)
}

/// `90s`, `10m`, `2h` ago; a moment as RFC 3339 writes it, in UTC; `@SECONDS` since the epoch; `boot`.
fn time(text: &str, now: SystemTime) -> Result<u64> {
    let bad = || {
        Failure::new(format!("'{}' is no time", sanitize::line(text, 80)))
            .remedy("use 10m, 2h or 3d (ago), 2026-11-23T04:00:00Z, @SECONDS, or boot")
    };
    if text == "boot" {
        return booted(Path::new("/proc/stat")).ok_or_else(|| Failure::new("/proc/stat tells no time of boot"));
    }
    if let Some(seconds) = text.strip_prefix('@') {
        return seconds.parse().map_err(|_| bad());
    }
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(seconds(now).saturating_sub(ago.as_secs()));
    }
    humantime::parse_rfc3339_weak(text).map(seconds).map_err(|_| bad())
}

fn booted(stat: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(stat).ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let at = |text: &str| time(text, now).ok();
        assert_eq!((at("90s"), at("10m"), at("2h")), (Some(999_910), Some(999_400), Some(992_800)));
        assert_eq!((at("3d"), at("@5")), (Some(740_800), Some(5)));
        assert_eq!((at("1970-01-02T00:00:00Z"), at("1970-01-02 00:00:00")), (Some(86_400), Some(86_400)));
        assert!(at("boot").is_some());
        for bad in ["", "yesterday", "@", "@-1", "99", "2026-13-01T00:00:00Z", "\x1b[2J"] {
            assert_eq!(at(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_hostile_name_is_shown_and_not_sent() {
        let hostile = Who {
            sandbox: Some("vm".into()),
            certain: false,
            role: Role::Runner,
            thread: Some("\x1b]0;x\x07\nio".into()),
            pid: Some(7),
            uid: None,
            exe: None,
            label: None,
        };
        let shown = who(&hostile);
        assert!(shown.starts_with("probably vm runner"), "{shown:?}");
        assert!(!shown.contains('\x1b') && !shown.contains('\n'), "{shown:?}");
    }
}
