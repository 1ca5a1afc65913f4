//! `exec`: a further process in a running guest, with its stdio and exit status as ours.

use std::os::fd::AsFd;
use std::time::Duration;

use casemate_agent_protocol::{ExecRequest, ExitStatus, ToAgent, User, WinSize};
use casemate_client::agent::{self, AgentStream};
use casemate_client::pump::{End, Pump, Stdio};
use casemate_client::signals::Signals;
use casemate_client::store::{self, SandboxDir, Status};
use casemate_client::terminal::{self, RawMode};
use casemate_client::{Error, dirs::Dirs};

use crate::args::ExecArgs;
use crate::failure::{Failure, Result};
use crate::options;
use crate::output::Context;
use crate::verbs::run::signal_code;

/// A guest that has just been started is waited for.
pub const CONNECT: Duration = Duration::from_secs(60);

pub fn exec(context: &Context, args: &ExecArgs) -> Result<u8> {
    let request = request(args)?;
    let tty = request.tty.is_some();
    let dir = running(&context.dirs, &args.name)?;
    let stream = connect(&context.dirs, &dir)?;
    let signals = Signals::take()?;
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let session = AgentStream::open(stream, &ToAgent::Exec(request))?;
    let raw = if tty && args.interactive { Some(RawMode::enter(&stdin)?) } else { None };
    let stdin = args.interactive.then(|| stdin.as_fd());
    let stdio = Stdio { stdin, stdout: stdout.as_fd(), stderr: stderr.as_fd() };
    let outcome = Pump::new(session, stdio, tty).signals(&signals).run();
    drop(raw);
    match outcome?.end {
        End::Exited(status) => Ok(ExitStatus::code(status)),
        End::GivenUp { signal } => Ok(signal_code(signal)),
        End::Closed => Err(Failure::new(format!("{}: the session ended without the command's exit status", dir.name))
            .remedy(format!("`casemate inspect {}` tells whether the sandbox still runs", dir.name))),
    }
}

fn request(args: &ExecArgs) -> Result<ExecRequest> {
    let stdin = std::io::stdin();
    if args.tty && !(terminal::is_terminal(&stdin) && terminal::is_terminal(std::io::stdout())) {
        return Err(Failure::new("--tty: standard input and output are not a terminal").remedy("leave out --tty"));
    }
    let user = match &args.user {
        Some(text) => text.parse::<User>().map_err(|e| {
            Failure::new(format!("--user {text}: {e}")).remedy("write UID, NAME, or either with :GROUP")
        })?,
        None => User::default(),
    };
    Ok(ExecRequest {
        argv: args.command.clone(),
        env: options::environment(&args.env)?,
        cwd: args.workdir.clone(),
        user,
        groups: Vec::new(),
        tty: args.tty.then(|| terminal::size(&stdin).unwrap_or(WinSize { rows: 24, cols: 80 })),
        stdin: args.interactive,
    })
}

/// The directory of a sandbox that runs an agent which can answer.
pub fn running(dirs: &Dirs, name: &str) -> Result<SandboxDir> {
    let dir = store::open(dirs, name)?;
    let entry = dir.entry()?;
    match entry.status {
        _ if entry.record.command.is_empty() => {
            Err(Failure::new(format!("{name} is a bare guest: no agent runs in it"))
                .remedy(format!("`casemate logs --console {name}` shows its console")))
        }
        Status::Running | Status::Starting => Ok(dir),
        Status::Paused => {
            Err(Failure::new(format!("{name} is paused")).remedy(format!("`casemate resume {name}` first")))
        }
        Status::Lost => Err(Failure::new(format!("{name}: its warden died without cleaning up"))
            .remedy("`casemate repair` gives back what it held")),
        Status::Exited => Err(Error::NotRunning(name.to_owned()).into()),
    }
}

/// Connects to the agent, and stops trying when the sandbox is gone.
pub fn connect(dirs: &Dirs, dir: &SandboxDir) -> Result<std::os::unix::net::UnixStream> {
    let name = dir.name.as_str();
    let gone = || store::load(dirs, name).map_or(true, |entry| !entry.status.is_alive());
    match agent::connect(dir, CONNECT, gone) {
        Err(Error::Interrupted) => Err(Error::NotRunning(name.to_owned()).into()),
        other => Ok(other?),
    }
}
