//! The verbs of the jailer. Only root's; JSON on stdout where something is answered, one sentence on stderr where it fails.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use casemate_plan::HostConfig;
use casemate_spec::SandboxId;
use lexopt::{Arg, Parser, ValueExt};
use serde::Serialize;

use crate::error::StepFailed;
use crate::{census, config, evidence, facts, input, policy, repair, run, trial};

const HELP: &str = "\
casemate-jailer: Casemate's only privileged program; started by `casemate`, not by hand

  run            start the sandbox whose specification is on descriptor 4; events on descriptor 3
  plan           print the plan for the specification on descriptor 4 as JSON; change nothing
  facts          print what this host offers, as JSON
  repair [NAME] [--dry-run] [--forget]   take back what dead sandboxes left, print what was done as JSON
  labels [FILE...]     who has which level, uid and label, on what and why, or what a file carries, as JSON
  rm NAME        remove an ended sandbox's record and logs
  selftest       positive and negative control of each layer in a real jail, as JSON
  probe NAME     each of Landlock's rights, and each layer alone, tried with NAME's confinement, as JSON
  attack A B     what code in A's confinement can do to B, layer by layer, as JSON
  policy build|check|install|remove|status   Casemate's SELinux module; in the caller's domain
  matrix A B     the same for every class of objects, beside what the policy says; --twin TYPE, a domain for categories alone
  seal           sign the evidence on standard input, append it to the host's chain, print both as JSON
  chain          print the chain of what was sealed here, as JSON
  key            print the host's public key, as JSON; made at the first use
  try NAME       attempts from inside NAME's confinement, for matrix: request on descriptor 3, JSON answer

options: --run-dir DIR, --state-dir DIR, --help, --version; selftest, probe and attack: --part whole|selinux|others;
policy: --from DIR, --base DIR, --output FILE, --without-deny
";

enum Verb {
    Run,
    Plan,
    Facts,
    Repair(repair::Asked),
    Labels(Vec<PathBuf>),
    Remove(SandboxId),
    Selftest(trial::Part),
    Probe(SandboxId, trial::Part),
    Attack(Option<(SandboxId, SandboxId)>, trial::Part),
    Policy(policy::Verb, policy::Options),
    Matrix { attacker: SandboxId, victim: SandboxId, twin: Option<String> },
    Try(SandboxId),
    Seal,
    Chain,
    Key,
    Help,
    Version,
}

struct Call {
    verb: Verb,
    run_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
}

/// Parses argv, takes the verb's one function, reports.
pub fn main() -> ExitCode {
    let call = match parse(std::env::args_os().skip(1).collect()) {
        Ok(call) => call,
        Err(problem) => return refuse(&format!("{problem}; see casemate-jailer --help"), 2),
    };
    match act(call) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => refuse(&failed.to_string(), 1),
    }
}

fn refuse(problem: &str, code: u8) -> ExitCode {
    eprintln!("casemate-jailer: {problem}");
    ExitCode::from(code)
}

fn act(call: Call) -> Result<(), StepFailed> {
    let mut config = match call.verb {
        Verb::Help => return print(HELP.trim_end()),
        Verb::Version => return print(concat!("casemate-jailer ", env!("CARGO_PKG_VERSION"))),
        _ => config::load()?,
    };
    config.run_dir = call.run_dir.unwrap_or(config.run_dir);
    config.state_dir = call.state_dir.unwrap_or(config.state_dir);
    need_root(&call.verb)?;
    match call.verb {
        Verb::Run => run::run(&config),
        Verb::Plan => plan(&config),
        Verb::Facts => json(&facts::gather(None)?.host),
        Verb::Repair(asked) => json(&repair::repair(&config, &asked)?),
        Verb::Labels(files) if files.is_empty() => json(&census::census(&config)?),
        Verb::Labels(files) => json(&files.iter().map(|f| census::file(f)).collect::<Result<Vec<_>, _>>()?),
        Verb::Remove(name) => repair::remove(&config, &name),
        Verb::Selftest(part) => json(&trial::selftest(&config, part)?),
        Verb::Probe(name, part) => json(&trial::probe(&config, &name, part)?),
        Verb::Attack(pair, part) => json(&trial::attack(&config, pair, part)?),
        Verb::Policy(verb, options) => json(&policy::act(verb, &options)?),
        Verb::Matrix { attacker, victim, twin } => {
            json(&trial::matrix(&config, (&attacker, &victim), twin.as_deref())?)
        }
        Verb::Try(name) => json(&trial::answer(&config, &name)?),
        Verb::Seal => json(&evidence::seal(&config)?),
        Verb::Chain => json(&evidence::chain(&config)?),
        Verb::Key => json(&evidence::key(&config)?),
        Verb::Help | Verb::Version => Ok(()),
    }
}

fn need_root(verb: &Verb) -> Result<(), StepFailed> {
    if casemate_sys::cred::is_root()
        || matches!(verb, Verb::Facts | Verb::Plan | Verb::Policy(policy::Verb::Build | policy::Verb::Check, _))
    {
        return Ok(());
    }
    Err(StepFailed::because("start", "this needs root: namespaces, labels, cgroups and the leased uid do; use sudo"))
}

fn plan(config: &HostConfig) -> Result<(), StepFailed> {
    let input = input::take()?;
    let spec = input::spec(&input.spec)?;
    json(&casemate_plan::plan(&spec, &facts::gather(spec.selinux().profile)?.host, config))
}

fn json(value: &impl Serialize) -> Result<(), StepFailed> {
    let text = serde_json::to_string(value).map_err(|e| StepFailed::stage("print", e))?;
    print(&text)
}

fn print(text: &str) -> Result<(), StepFailed> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{text}").map_err(|e| StepFailed::stage("print", e))
}

/// The options as they are given, before it is known which go with the verb.
#[derive(Default)]
struct Given {
    run_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    dry_run: bool,
    forget: bool,
    part: Option<trial::Part>,
    module: policy::Options,
    twin: Option<String>,
}

fn parse(args: Vec<OsString>) -> Result<Call, lexopt::Error> {
    let mut parser = Parser::from_args(args);
    let mut given = Given::default();
    let mut words: Vec<String> = Vec::new();
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("run-dir") => given.run_dir = Some(absolute(parser.value()?)?),
            Arg::Long("state-dir") => given.state_dir = Some(absolute(parser.value()?)?),
            Arg::Long("dry-run") => given.dry_run = true,
            Arg::Long("forget") => given.forget = true,
            Arg::Long("part") => given.part = Some(layers(&parser.value()?.string()?)?),
            Arg::Long("from") => given.module.from = Some(absolute(parser.value()?)?),
            Arg::Long("base") => given.module.base = Some(absolute(parser.value()?)?),
            Arg::Long("output") => given.module.output = Some(absolute(parser.value()?)?),
            Arg::Long("without-deny") => given.module.without_deny = true,
            Arg::Long("twin") => given.twin = Some(parser.value()?.string()?),
            Arg::Long("json") => {}
            Arg::Long("help") | Arg::Short('h') => words = vec!["help".into()],
            Arg::Long("version") | Arg::Short('V') => words = vec!["version".into()],
            Arg::Value(value) => words.push(value.string()?),
            other => return Err(other.unexpected()),
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let verb = verb(&words, &given)?;
    fit(&verb, &given)?;
    Ok(Call { verb, run_dir: given.run_dir, state_dir: given.state_dir })
}

fn verb(words: &[&str], given: &Given) -> Result<Verb, lexopt::Error> {
    let Given { dry_run, forget, ref module, ref twin, .. } = *given;
    let part = given.part.unwrap_or(trial::Part::Whole);
    Ok(match *words {
        ["run"] => Verb::Run,
        ["plan"] => Verb::Plan,
        ["facts"] => Verb::Facts,
        ["repair"] => Verb::Repair(repair::Asked { only: None, dry_run, forget }),
        ["repair", name] => Verb::Repair(repair::Asked { only: Some(id(name)?), dry_run, forget }),
        ["labels", ref files @ ..] => {
            Verb::Labels(files.iter().map(|file| absolute(file.into())).collect::<Result<_, _>>()?)
        }
        ["rm", name] => Verb::Remove(id(name)?),
        ["selftest"] => Verb::Selftest(part),
        ["probe", name] => Verb::Probe(id(name)?, part),
        ["attack"] => Verb::Attack(None, part),
        ["attack", a, b] => Verb::Attack(Some((id(a)?, id(b)?)), part),
        ["policy", verb] => Verb::Policy(policy_verb(verb, module)?, module.clone()),
        ["matrix", a, b] => Verb::Matrix { attacker: id(a)?, victim: id(b)?, twin: twin.clone() },
        ["try", name] => Verb::Try(id(name)?),
        ["seal"] => Verb::Seal,
        ["chain"] => Verb::Chain,
        ["key"] => Verb::Key,
        ["help"] => Verb::Help,
        ["version"] => Verb::Version,
        [] => return Err("no verb is given".into()),
        _ => return Err(format!("'{}' is not a verb of the jailer's", words.join(" ")).into()),
    })
}

/// Does each option that was given go with the verb?
fn fit(verb: &Verb, given: &Given) -> Result<(), lexopt::Error> {
    if given.module != policy::Options::default() && !matches!(verb, Verb::Policy(..)) {
        return Err("--from, --base, --output and --without-deny go with policy only".into());
    }
    match verb {
        Verb::Repair(repair::Asked { only: None, forget: true, .. }) => {
            return Err("--forget needs the name of the sandbox".into());
        }
        Verb::Repair(_) => {}
        _ if given.dry_run || given.forget => return Err("--dry-run and --forget go with repair only".into()),
        _ => {}
    }
    if given.twin.is_some() && !matches!(verb, Verb::Matrix { .. }) {
        return Err("--twin goes with matrix only".into());
    }
    if given.part.is_some() && !matches!(verb, Verb::Selftest(_) | Verb::Probe(..) | Verb::Attack(..)) {
        return Err("--part goes with selftest, probe and attack only".into());
    }
    Ok(())
}

fn absolute(value: OsString) -> Result<PathBuf, lexopt::Error> {
    let path = PathBuf::from(value);
    if path.is_absolute() { Ok(path) } else { Err(format!("{} is not an absolute path", path.display()).into()) }
}

/// The verb, if all options that are given go with it.
fn policy_verb(word: &str, given: &policy::Options) -> Result<policy::Verb, lexopt::Error> {
    use policy::Verb::{Build, Check, Install, Remove, Status};
    let (verb, from, base, output) = match word {
        "build" => (Build, true, true, true),
        "check" => (Check, given.base.is_some(), true, false),
        "install" => (Install, true, false, false),
        "remove" => (Remove, false, false, false),
        "status" => (Status, false, false, false),
        other => return Err(format!("'policy {other}' is not a verb of the jailer's").into()),
    };
    let idle = [
        ("--from", given.from.is_some() && !from),
        ("--without-deny", given.without_deny && !from),
        ("--base", given.base.is_some() && !base),
        ("--output", given.output.is_some() && !output),
    ];
    match idle.iter().find(|(_, idle)| *idle) {
        Some((option, _)) => Err(format!("{option} does not go with policy {word}").into()),
        None => Ok(verb),
    }
}

fn layers(text: &str) -> Result<trial::Part, lexopt::Error> {
    match text {
        "whole" => Ok(trial::Part::Whole),
        "selinux" => Ok(trial::Part::Selinux),
        "others" => Ok(trial::Part::Others),
        other => Err(format!("--part {other}: use whole, selinux or others").into()),
    }
}

fn id(text: &str) -> Result<SandboxId, lexopt::Error> {
    SandboxId::parse(text).map_err(|problem| problem.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Call, lexopt::Error> {
        parse(args.iter().map(Into::into).collect())
    }

    #[test]
    fn bad_calls_are_refused() {
        for bad in [
            &[][..],
            &["runs"],
            &["rm"],
            &["rm", "../x"],
            &["rm", "-x"],
            &["run", "--run-dir", "relative"],
            &["run", "--dry-run"],
            &["run", "--forget"],
            &["repair", "--forget"],
            &["repair", "../x"],
            &["repair", "a", "b"],
            &["probe"],
            &["probe", "../x"],
            &["attack", "a"],
            &["policy", "eat"],
            &["policy", "remove", "--from", "/x"],
            &["policy", "check", "--without-deny"],
            &["policy", "install", "--base", "/x"],
            &["facts", "--base", "/x"],
            &["facts", "--part", "others"],
            &["repair", "--twin", "x"],
            &["labels", "relative"],
            &["seal", "x"],
            &["chain", "x"],
            &["key", "--dry-run"],
        ] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn directories_can_be_given() {
        let call = parsed(&["repair", "--dry-run", "--run-dir", "/x"]).unwrap();
        assert_eq!(call.run_dir, Some("/x".into()));
        assert!(matches!(call.verb, Verb::Repair(repair::Asked { dry_run: true, only: None, forget: false })));
    }
}
