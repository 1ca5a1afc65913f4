//! `run`: from options to a sandbox; detached, or in the foreground (see [`super::foreground`]).

use casemate_client::jailer::{Jailer, Launch};
use casemate_client::signals::{Arrived, Signals};
use casemate_client::{sanitize, terminal, wait};
use casemate_plan::Layer;
use casemate_spec::wire::SpecFile;
use casemate_wire::jailer::{Event, Failure as StartFailure};
use casemate_wire::record::{ExitCause, ExitReport, PolicyNews, SandboxRecord};
use casemate_wire::runner::GuestNews;
use rustix::event::PollFlags;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::Duration;

use crate::failure::{Failure, OWN, Result};
use crate::output::{Context, say};
use crate::run_args::RunArgs;
use crate::verbs::foreground;
use crate::{options, resolve};

/// What came while waiting for the warden.
pub enum Came {
    Event(Event),
    Signal(i32),
    Nothing,
}

pub fn run(context: &Context, args: &RunArgs) -> Result<u8> {
    let asked = options::spec_file(&args.spec)?;
    need_terminal(&asked)?;
    need_root()?;
    let spec = resolve::resolve(asked, context)?;
    let jailer = Jailer::locate(&context.dirs)?;
    // Until here Ctrl-C ends this program as usual: nothing has been started.
    let signals = Signals::take()?;
    let mut launch = jailer.run(&spec)?;
    let record = loop {
        match next(&mut launch, &signals, None)? {
            Came::Event(Event::Started(record)) => break *record,
            Came::Event(Event::Failed(failure)) => {
                launch.finish();
                return Err(start_failed(failure));
            }
            Came::Event(Event::Exited(report)) => {
                launch.finish();
                return Err(ended_early("the sandbox", &report));
            }
            Came::Event(Event::Policy(news)) => policy(&news),
            Came::Event(Event::Guest(_)) | Came::Nothing => {}
            Came::Signal(signal) => return aborted(launch, signal),
        }
    };
    if !args.quiet {
        announce(context, &record);
    }
    if spec.detach {
        return detached(context, launch, &signals, &record, &spec);
    }
    let ending = foreground::foreground(context, launch, &signals, &record, &spec);
    drop(signals);
    if args.rm || ending.as_ref().is_ok_and(|ending| !ending.ran) {
        let removed = jailer.ask(&["rm", &record.name], None);
        if let (Ok(_), Err(error)) = (&ending, removed) {
            return Err(error.into());
        }
    }
    ending.map(|ending| ending.code)
}

/// The first line on stderr: the posture, and whatever weakens it.
fn announce(context: &Context, record: &SandboxRecord) {
    if context.json() {
        let line = serde_json::json!({
            "sandbox": record.name, "posture": record.posture, "categories": record.categories, "uid": record.uid,
            "landlock_abi": record.landlock_abi, "warnings": record.warnings,
        });
        let _ = writeln!(std::io::stderr(), "{line}");
        return;
    }
    say(&posture_line(record));
    for warning in &record.warnings {
        say(&format!("{}: {}", record.name, sanitize::line(warning, 400)));
    }
}

fn need_terminal(spec: &SpecFile) -> Result<()> {
    if spec.tty && !(terminal::is_terminal(std::io::stdin()) && terminal::is_terminal(std::io::stdout())) {
        return Err(Failure::new("--tty: standard input and output are not a terminal").remedy("leave out --tty"));
    }
    Ok(())
}

fn need_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::new("starting a sandbox needs root: namespaces, labels, cgroups and the leased uid do")
        .remedy("run it with sudo"))
}

/// SELinux stopped, or started again, to separate the sandbox.
pub fn policy(news: &PolicyNews) {
    say(&sanitize::line(&news.text, 600));
}

/// Waits for an event or a signal.
pub fn next(launch: &mut Launch, signals: &Signals, limit: Option<Duration>) -> Result<Came> {
    loop {
        // An event first: it may have come together with its signal.
        if let Some(event) = launch.try_event()? {
            return Ok(Came::Event(event));
        }
        if let Some(Arrived::End(signal)) = signals.next() {
            return Ok(Came::Signal(signal));
        }
        let set = [(launch.channel().as_fd(), PollFlags::IN), (signals.as_fd(), PollFlags::IN)];
        let ready = wait::ready(&set, limit).map_err(|e| Failure::io("waiting for the jailer", e))?;
        if ready.iter().all(PollFlags::is_empty) {
            return Ok(Came::Nothing);
        }
    }
}

/// The user ended it before the workload ran.
pub fn aborted(launch: Launch, signal: i32) -> Result<u8> {
    if launch.abort() {
        say("the start was interrupted; everything is undone");
        Ok(signal_code(signal))
    } else {
        Err(Failure::new("the start was interrupted, but the jailer has not ended yet")
            .remedy("`casemate ps -a` shows what is left; `casemate repair` cleans up once it is dead"))
    }
}

pub fn signal_code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(OWN)
}

pub fn start_failed(failure: StartFailure) -> Failure {
    // The console's end may come inside the error, after a line of its own.
    let (error, console) = match failure.error.split_once("\nconsole:\n") {
        Some((error, console)) => (error.to_owned(), Some(console.to_owned())),
        None => (failure.error, failure.console),
    };
    let mut told = Failure::new(match failure.layer.as_str() {
        "" | "-" => format!("the start failed: {}", failure.step),
        layer => format!("the start failed at layer {layer}: {}", failure.step),
    });
    told.causes.push(error);
    told.attached = console;
    if !failure.left.is_empty() {
        told = told.remedy(format!("not undone: {}; try `casemate repair`", failure.left.join("; ")));
    }
    told
}

fn ended_early(name: &str, report: &ExitReport) -> Failure {
    let mut told = Failure::new(format!("{name} ended before its workload ran: {}", cause(report.cause)));
    told.causes.extend(report.detail.iter().map(|d| sanitize::line(d, 400)));
    told
}

/// A detached sandbox is left alone once its workload runs.
fn detached(
    context: &Context,
    mut launch: Launch,
    signals: &Signals,
    record: &SandboxRecord,
    spec: &SpecFile,
) -> Result<u8> {
    if !spec.bare
        && let Some(code) = settle(context, &mut launch, signals, record)?
    {
        return Ok(code);
    }
    if context.json() {
        context.print_json(record)?;
    } else {
        context.print(&format!("{}\n", record.name))?;
    }
    Ok(0)
}

/// Waits until a detached workload runs. `Some`: it was interrupted.
fn settle(context: &Context, launch: &mut Launch, signals: &Signals, record: &SandboxRecord) -> Result<Option<u8>> {
    loop {
        match next(launch, signals, None)? {
            Came::Event(Event::Guest(GuestNews::Started | GuestNews::Exited { .. })) => return Ok(None),
            Came::Event(Event::Guest(GuestNews::Failed { detail })) => {
                let told = Failure::new(format!("{}: the guest could not run the workload", record.name));
                return Err(not_run(told, &detail));
            }
            Came::Event(Event::Exited(report)) => {
                let remedy = format!("`casemate logs --console {}` shows what its kernel said", record.name);
                return Err(ended_early(&record.name, &report).remedy(remedy));
            }
            Came::Event(Event::Policy(news)) => policy(&news),
            Came::Event(_) | Came::Nothing => {}
            Came::Signal(signal) => {
                let dir = casemate_client::store::open(&context.dirs, &record.name)?;
                casemate_client::control::Control::connect(&dir)?.kill()?;
                say(&format!("{}: interrupted before its workload ran; killed", record.name));
                return Ok(Some(signal_code(signal)));
            }
        }
    }
}

/// The agent's reason, with the exit status that podman gives it.
pub fn not_run(mut told: Failure, detail: &str) -> Failure {
    told.code = match detail {
        text if text.contains("no program") || text.contains("No such file") => 127,
        text if text.contains("not executable") || text.contains("Permission denied") => 126,
        _ => OWN,
    };
    told.causes.push(sanitize::line(detail, 400));
    told
}

/// `casemate: web: posture enforced (selinux c12,c340 · landlock 7 · ...)`: every layer that holds, or is missing.
pub fn posture_line(record: &SandboxRecord) -> String {
    let attested = |layer: Layer| record.findings.iter().any(|f| f.layer == layer.to_string() && f.ok);
    let or = |holds: bool, text: String, missing: &str| if holds { text } else { missing.to_owned() };
    let selinux = match (&record.label, &record.categories) {
        (Some(_), Some(pair)) => match record.profile.as_deref() {
            None | Some("casemate") => format!("selinux {pair}"),
            Some(profile) => format!("selinux {profile} {pair}"),
        },
        _ => "no selinux".into(),
    };
    let parts = [
        selinux,
        or(record.landlock_abi > 0, format!("landlock {}", record.landlock_abi), "no landlock"),
        or(attested(Layer::Seccomp), "seccomp".into(), "no seccomp"),
        or(attested(Layer::Capabilities), "caps none".into(), "caps not attested"),
        format!("uid {}", record.uid),
        or(attested(Layer::Namespaces), "namespaces".into(), "namespaces not attested"),
        or(!record.cgroups.is_empty(), "cgroup".into(), "no cgroup"),
    ];
    let reason = match &record.allow_reduced {
        Some(reason) => format!(", accepted: {}", sanitize::line(reason, 200)),
        None => String::new(),
    };
    format!("{}: posture {} ({}{reason})", record.name, record.posture, parts.join(" · "))
}

/// Why a VM is gone, in words.
pub fn cause(cause: ExitCause) -> &'static str {
    match cause {
        ExitCause::PowerOff => "the guest powered off",
        ExitCause::Reboot => "the guest rebooted",
        ExitCause::TripleFault => "the guest's CPU shut down (triple fault)",
        ExitCause::GuestPanic => "the guest's kernel panicked",
        ExitCause::BootTimeout => "the guest's agent did not answer in time",
        ExitCause::AgentFailed => "the guest's agent could not run the workload",
        ExitCause::Timeout => "its time was over",
        ExitCause::Killed => "it was killed",
        ExitCause::ClientGone => "its client went away",
        ExitCause::PolicyChanged => "the loaded policy stopped separating it",
        ExitCause::RunnerDied => "the runner died",
        ExitCause::InternalError => "the runner or KVM failed",
    }
}
