//! `pause`, `resume`, `stop`, `kill`, `rm`: requests to wardens, and forgetting what has ended.

use std::time::Duration;

use casemate_client::control::Control;
use casemate_client::jailer::Jailer;
use casemate_client::store::{self, SandboxDir, Status};
use casemate_client::{Error, agent};
use casemate_spec::values::parse_duration;

use crate::args::{NamesArgs, ResumeArgs, RmArgs, StopArgs};
use crate::failure::{Failure, Result};
use crate::output::{Context, say};

/// From the agent's answer to the end of the VM, besides the grace.
const POWER_OFF: Duration = Duration::from_secs(20);

/// Does it for every name; tells each failure, ends with the first.
fn each(context: &Context, names: &[String], verb: &str, one: impl Fn(&str) -> Result<()>) -> Result<()> {
    let mut first: Option<Failure> = None;
    let mut done = Vec::new();
    for name in names {
        match one(name) {
            Ok(()) => done.push(name.as_str()),
            Err(failure) => {
                if let Some(earlier) = first.replace(failure) {
                    earlier.print(context.format);
                }
            }
        }
    }
    if context.json() {
        context.print_json(&serde_json::json!({ "did": verb, "sandboxes": done }))?;
    } else {
        let lines: String = done.iter().map(|name| format!("{name}\n")).collect();
        context.print(&lines)?;
    }
    first.map_or(Ok(()), Err)
}

fn control(context: &Context, name: &str) -> Result<(SandboxDir, Control)> {
    let dir = store::open(&context.dirs, name)?;
    let control = Control::connect(&dir)?;
    Ok((dir, control))
}

pub fn pause(context: &Context, args: &NamesArgs) -> Result<()> {
    each(context, &args.names, "pause", |name| Ok(control(context, name)?.1.pause()?))
}

pub fn resume(context: &Context, args: &ResumeArgs) -> Result<()> {
    each(context, &args.names, "resume", |name| {
        let control = control(context, name)?.1;
        let resumed = match &args.allow_reduced {
            Some(reason) => control.resume_reduced(reason),
            None => control.resume(),
        };
        Ok(resumed?)
    })
}

pub fn kill(context: &Context, args: &NamesArgs) -> Result<()> {
    each(context, &args.names, "kill", |name| Ok(control(context, name)?.1.kill().map(drop)?))
}

pub fn stop(context: &Context, args: &StopArgs) -> Result<()> {
    let grace = if matches!(args.time.as_str(), "0" | "0s") {
        Duration::ZERO
    } else {
        parse_duration(&args.time)
            .map_err(|e| Failure::new(format!("--time: {e}")).remedy("write it as 500ms, 10s or 5m"))?
    };
    each(context, &args.names, "stop", |name| stop_one(context, name, grace))
}

fn stop_one(context: &Context, name: &str, grace: Duration) -> Result<()> {
    let dir = store::open(&context.dirs, name)?;
    let entry = dir.entry()?;
    if entry.status == Status::Exited {
        return Ok(());
    }
    let control = Control::connect(&dir)?;
    if entry.record.command.is_empty() {
        say(&format!("{name} is a bare guest: no agent can be asked, so it is killed"));
        return Ok(control.kill().map(drop)?);
    }
    if entry.status == Status::Paused {
        // Held because the policy does not separate it: a guest that may not run cannot be asked.
        if let Err(error) = control.resume() {
            say(&format!("{name}: {}; killed", Failure::from(error).sentence()));
            return Ok(Control::connect(&dir)?.kill().map(drop)?);
        }
    }
    let gone = || store::load(&context.dirs, name).map_or(true, |entry| !entry.status.is_alive());
    let asked = agent::connect(&dir, Duration::from_secs(5), gone).and_then(|stream| agent::stop(stream, Some(grace)));
    match asked {
        Ok(()) => {}
        Err(Error::Interrupted) => return Ok(()),
        Err(error) => {
            say(&format!("{name}: {}; killed", Failure::from(error).sentence()));
            return Ok(Control::connect(&dir)?.kill().map(drop)?);
        }
    }
    match Control::connect(&dir) {
        // It has ended already.
        Err(Error::NotRunning(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(waiting) => {
            if waiting.wait(Some(grace + POWER_OFF))?.is_some() {
                return Ok(());
            }
        }
    }
    say(&format!("{name} did not end in time; killed"));
    Ok(Control::connect(&dir)?.kill().map(drop)?)
}

pub fn rm(context: &Context, args: &RmArgs) -> Result<()> {
    let jailer = Jailer::locate(&context.dirs)?;
    each(context, &args.names, "rm", |name| rm_one(context, &jailer, name, args.force))
}

fn rm_one(context: &Context, jailer: &Jailer, name: &str, force: bool) -> Result<()> {
    let entry = match store::load(&context.dirs, name) {
        Err(Error::NoSandbox(_)) if force => return Ok(()),
        other => other?,
    };
    match entry.status {
        Status::Exited => {}
        Status::Lost => {
            return Err(Failure::new(format!("{name}: its warden died without cleaning up"))
                .remedy("`casemate repair` first: it gives labels, leases and the cgroup back"));
        }
        _ if force => match Control::connect(&store::open(&context.dirs, name)?).and_then(|c| c.kill()) {
            // It ended by itself in between.
            Ok(_) | Err(Error::NotRunning(_)) => wait_for_record(context, name),
            Err(error) => return Err(error.into()),
        },
        _ => return Err(Error::StillRunning(name.to_owned()).into()),
    }
    match store::open(&context.dirs, name) {
        // A foreground sandbox with --rm was quicker.
        Err(Error::NoSandbox(_)) => Ok(()),
        _ => Ok(jailer.ask(&["rm", name], None).map(drop)?),
    }
}

/// The warden answers before it has written its last record.
fn wait_for_record(context: &Context, name: &str) {
    for _ in 0..500 {
        match store::load(&context.dirs, name) {
            Ok(entry) if entry.status != Status::Exited => std::thread::sleep(Duration::from_millis(10)),
            _ => return,
        }
    }
}
