//! What an audit tells: the report in the form that was asked for, to a file or standard output, and the exit status.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io::{IsTerminal, Write as _};
use std::path::Path;

use casemate_audit::profile::Profile;
use casemate_audit::report::visible::visible;
use casemate_audit::report::{Report, html, junit, kind, sarif};
use casemate_audit::rule::{Finding, Severity, Verdict};
use casemate_audit::subject::Subject;
use casemate_audit::{Around, Policy, judge};

use super::overview::overview;
use crate::args::Format;
use crate::audit_args::OutputArgs;
use crate::failure::{Failure, Result};
use crate::output::{Context, Tone, paint};

/// Judges the subjects by the profile that was asked for, prints the report, answers with the exit status of the audit.
pub fn tell(context: &Context, args: &OutputArgs, subjects: Vec<Subject>, policy: Option<&Policy>) -> Result<u8> {
    tell_by(context, args, &profile(context, args)?, subjects, policy)
}

/// The same, by a profile that was read before.
pub fn tell_by(
    context: &Context,
    args: &OutputArgs,
    profile: &Profile,
    subjects: Vec<Subject>,
    policy: Option<&Policy>,
) -> Result<u8> {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let report = judge(subjects, profile, &Around { time, host, policy });
    put(context, args.output.as_deref(), &report)
}

/// Prints a report, or writes it to a file; answers with the exit status of the audit.
pub fn put(context: &Context, output: Option<&Path>, report: &Report) -> Result<u8> {
    let text = form(context.format, report)?;
    match output {
        None => context.print(&text)?,
        Some(path) => write(path, &without_colours(&text))?,
    }
    Ok(report.exit_status())
}

/// The profile is read, and the output asked for, before anything is looked at: what is wrong with them costs no time.
pub fn profile(context: &Context, args: &OutputArgs) -> Result<Profile> {
    writable(context, args.output.as_deref())?;
    match &args.profile {
        None => Ok(Profile::default()),
        Some(path) => Profile::read(path).map_err(|error| {
            Failure::from_error(&error).remedy("docs/audit-rules.md names every rule, parameter and assertion")
        }),
    }
}

/// A page is for a browser, and a directory must be there.
pub fn writable(context: &Context, output: Option<&Path>) -> Result<()> {
    let Some(path) = output else {
        if context.format == Format::Html && std::io::stdout().is_terminal() {
            let failure = Failure::new("an HTML page is not for a terminal");
            return Err(failure.remedy("write it to a file with -o FILE, and open that in a browser"));
        }
        return Ok(());
    };
    let directory = directory(path);
    match directory.is_dir() {
        true => Ok(()),
        false => Err(Failure::new(format!("-o {}: {} is no directory", path.display(), directory.display()))
            .remedy("make it, or name another file")),
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Standard output may be a terminal while the report goes to a file. Of what the report quotes, no escape is left.
fn without_colours(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut pieces = text.split("\x1b[");
    out.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        out.push_str(piece.split_once('m').map_or(piece, |(_, rest)| rest));
    }
    out
}

/// Whole or not at all: a half report must not be taken for one.
fn write(path: &Path, text: &str) -> Result<()> {
    let failed = |error: std::io::Error| Failure::io(format!("writing {}", path.display()), error);
    let special = std::fs::metadata(path).is_ok_and(|meta| !meta.is_file());
    if special {
        return std::fs::write(path, text).map_err(failed);
    }
    let name = path.file_name().ok_or_else(|| Failure::new(format!("-o {}: not a file's name", path.display())))?;
    let draft = directory(path).join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    // New: in a directory that others may write, somebody's link could stand there.
    let mut file = std::fs::File::create_new(&draft).map_err(failed)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| std::fs::rename(&draft, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&draft);
    }
    written.map_err(failed)
}

fn form(format: Format, report: &Report) -> Result<String> {
    match format {
        Format::Text => Ok(text(report)),
        Format::Json => {
            let text = serde_json::to_string_pretty(report).map_err(|error| Failure::from_error(&error))?;
            Ok(text + "\n")
        }
        Format::Junit => junit::text(report).map_err(|why| Failure::new(format!("writing JUnit: {why}"))),
        Format::Html => Ok(html::page(report)),
        Format::Sarif => {
            let text =
                serde_json::to_string_pretty(&sarif::log(report)).map_err(|error| Failure::from_error(&error))?;
            Ok(text + "\n")
        }
    }
}

/// By subject, what failed first and the worst of it first; what passed in one line.
fn text(report: &Report) -> String {
    let mut out = overview(&report.subjects, &report.matrix);
    let mut by_subject: BTreeMap<(usize, &str), Vec<&Finding>> = BTreeMap::new();
    for finding in &report.findings {
        let place = report.subjects.iter().position(|s| s.name == finding.subject && s.kind == finding.kind);
        by_subject.entry((place.unwrap_or(usize::MAX), &finding.subject)).or_default().push(finding);
    }
    let mut told = Told::default();
    for ((_, name), findings) in by_subject {
        let kind = findings.first().map_or("", |finding| kind(finding.kind));
        let name = format!("{kind} {}", visible(name));
        let _ = writeln!(out, "{}", paint(&name, Tone::Head));
        subject(&mut out, &name, findings, &mut told);
        out.push('\n');
    }
    for waived in &report.waived {
        let _ = writeln!(out, "{}  {}: {}", paint("switched off", Tone::Weak), waived.rule, visible(&waived.reason));
    }
    let tone = match report.exit_status() {
        0 => Tone::Good,
        1 | 5 => Tone::Weak,
        _ => Tone::Bad,
    };
    let _ = writeln!(out, "{}", paint(&report.verdict(), tone));
    out
}

/// Bytes of what was seen that are told again rather than referred to.
const SHORT: usize = 60;

/// What a report of many VMs would otherwise repeat for each of them.
#[derive(Default)]
struct Told<'a> {
    /// Rules whose threat and remedy stand above.
    rules: BTreeSet<&'a str>,
    /// What a rule saw, and of whom first.
    seen: BTreeMap<(&'a str, &'a str), String>,
    /// The rules that passed, or did not apply, and for whom first.
    lists: BTreeMap<String, String>,
}

fn subject<'a>(out: &mut String, name: &str, mut findings: Vec<&'a Finding>, told: &mut Told<'a>) {
    let rank = |finding: &Finding| match finding.check.verdict {
        Verdict::Fail => 0,
        Verdict::Unknown => 1,
        Verdict::Inapplicable => 2,
        Verdict::Pass => 3,
    };
    findings.sort_by_key(|finding| (rank(finding), std::cmp::Reverse(finding.severity)));
    for &finding in findings.iter().filter(|f| f.check.verdict == Verdict::Fail) {
        let word = if finding.is_note() { "NOTE" } else { "FAIL" };
        let word = format!("{word} {}", finding.severity.word());
        let first = told.seen.entry((&finding.rule, &finding.check.seen)).or_insert_with(|| name.to_owned());
        let elsewhere = (first != name && finding.check.seen.len() > SHORT).then_some(first.as_str());
        one(out, finding, &word, severe(finding.severity), elsewhere);
        if told.rules.insert(&finding.rule) {
            let _ = writeln!(out, "    threat: {}", visible(&finding.threat));
            let _ = writeln!(out, "    what to do: {}", visible(&finding.remedy));
        }
    }
    unknown(out, &findings);
    for (verdict, word) in [(Verdict::Inapplicable, "not applicable"), (Verdict::Pass, "passed")] {
        let mut rules: Vec<&str> =
            findings.iter().filter(|f| f.check.verdict == verdict).map(|f| f.rule.as_str()).collect();
        let count = rules.len();
        rules.sort_unstable();
        rules.dedup();
        if count > 0 {
            let list = rules.join(", ");
            let first = told.lists.entry(list.clone()).or_insert_with(|| name.to_owned());
            let list = if first == name { list } else { format!("the same rules as of {first}") };
            let _ = writeln!(out, "  {} ({count}): {list}", paint(word, Tone::Good));
        }
    }
}

/// With the name of another subject, of which the same was seen and told.
fn one(out: &mut String, finding: &Finding, word: &str, tone: Tone, elsewhere: Option<&str>) {
    let check = &finding.check;
    let _ = writeln!(out, "  {}  {}: {}", paint(word, tone), finding.rule, visible(&finding.title));
    let _ = writeln!(out, "    {}: expected {}", visible(&check.what), visible(&check.expected));
    let seen = elsewhere.map_or_else(|| visible(&check.seen), |name| format!("as of {name}"));
    let _ = writeln!(out, "    seen: {seen}");
}

/// What many rules could not look at for one reason, as of a process that ended, is told once.
fn unknown(out: &mut String, findings: &[&Finding]) {
    let mut alike: BTreeMap<(&str, &str), Vec<&Finding>> = BTreeMap::new();
    for finding in findings.iter().filter(|f| f.check.verdict == Verdict::Unknown) {
        alike.entry((&finding.check.what, &finding.check.seen)).or_default().push(finding);
    }
    for ((what, seen), group) in alike {
        if let [finding] = group[..] {
            one(out, finding, "unknown", Tone::Weak, None);
            continue;
        }
        let mut rules: Vec<&str> = group.iter().map(|f| f.rule.as_str()).collect();
        rules.dedup();
        let word = paint(&format!("unknown ({})", group.len()), Tone::Weak);
        let _ = writeln!(out, "  {word}  {}: {}", visible(what), visible(seen));
        let _ = writeln!(out, "    rules: {}", rules.join(", "));
    }
}

fn severe(severity: Severity) -> Tone {
    match severity {
        Severity::Critical | Severity::High => Tone::Bad,
        Severity::Medium | Severity::Low => Tone::Weak,
        Severity::Info => Tone::Head,
    }
}

#[cfg(test)]
mod tests {
    use casemate_audit::rule::Check;
    use casemate_audit::subject::Kind;

    use super::*;

    fn finding(subject: &str, rule: &str, seen: &str) -> Finding {
        let check = Check {
            verdict: Verdict::Fail,
            what: format!("of {subject}"),
            expected: "nothing".into(),
            seen: seen.into(),
        };
        Finding {
            rule: rule.into(),
            title: "title".into(),
            layer: "layer".into(),
            severity: Severity::Low,
            threat: format!("threat of {rule}"),
            remedy: format!("remedy of {rule}"),
            subject: subject.into(),
            kind: Kind::Vm,
            check,
        }
    }

    #[test]
    fn what_two_vms_share_is_told_once_and_what_differs_for_each() {
        let long = "x".repeat(SHORT + 1);
        let all = [
            finding("a", "one", &long),
            finding("b", "one", &long),
            finding("b", "two", "short"),
            finding("c", "two", "short"),
            finding("c", "one", &format!("{long}y")),
        ];
        let (mut out, mut told) = (String::new(), Told::default());
        for name in ["a", "b", "c"] {
            subject(&mut out, name, all.iter().filter(|finding| finding.subject == name).collect(), &mut told);
        }
        let count = |text: &str| out.matches(text).count();
        assert_eq!((count("threat of one"), count("remedy of one"), count("threat of two")), (1, 1, 1), "{out}");
        assert_eq!((count(&long), count("as of a")), (2, 1), "{out}");
        assert_eq!((count("seen: short"), count("of b: expected"), count("of c: expected")), (2, 2, 2), "{out}");
    }
}
