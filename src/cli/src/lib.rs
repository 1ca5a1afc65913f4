//! The command line: parse what the user asked, resolve names to files, start the jailer, show what comes back.
//!
//! Trust: runs with the caller's rights and holds no privilege; everything that changes the host is `casemate-jailer`'s work.
//! Whatever a guest wrote is shown through `casemate_client::sanitize`.
#![forbid(unsafe_code)]

mod args;
mod audit_args;
mod evidence_args;
mod failure;
mod options;
mod output;
mod progress;
mod resolve;
mod run_args;
mod verbs;

use std::process::ExitCode;

use casemate_client::{Dirs, terminal};
use clap::Parser;
use clap::error::ErrorKind;

use args::{Cli, Command, Format, KernelCommand};
use failure::{Failure, OWN, Result};
use output::Context;

/// Parses argv, takes the verb's one function, reports.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    if matches!(cli.format, Format::Junit | Format::Sarif | Format::Html) && !matches!(cli.command, Command::Audit(_)) {
        let failure = Failure::new("--format junit, sarif and html are forms of an audit's report");
        failure.remedy("use --format text or json here").print(Format::Text);
        return ExitCode::from(OWN);
    }
    let context = Context { format: cli.format, dirs: Dirs::from_env() };
    let code = match dispatch(&context, cli.command) {
        Ok(code) => code,
        Err(failure) => {
            terminal::restore();
            failure.print(context.format);
            failure.code
        }
    };
    ExitCode::from(code)
}

/// Help goes to stdout and succeeds; a wrong command line is a failure of ours, as text or JSON.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return if error.use_stderr() { ExitCode::from(OWN) } else { ExitCode::SUCCESS };
    }
    let args: Vec<_> = std::env::args().take_while(|arg| arg != "--").collect();
    let json = args.windows(2).any(|pair| pair == ["--format", "json"]) || args.iter().any(|a| a == "--format=json");
    if json {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        Failure::new(first).remedy("see `casemate --help`").print(Format::Json);
    } else {
        let _ = error.print();
    }
    ExitCode::from(OWN)
}

fn dispatch(context: &Context, command: Command) -> Result<u8> {
    match command {
        Command::Run(args) => return verbs::run::run(context, &args),
        Command::Exec(args) => return verbs::exec::exec(context, &args),
        Command::Doctor => return verbs::doctor::doctor(context),
        Command::Selftest => return verbs::checks::selftest(context),
        Command::Attack(args) => return verbs::checks::attack(context, &args),
        Command::Repair(args) => return verbs::repair::repair(context, &args),
        Command::Labels(args) => return verbs::labels::labels(context, &args),
        Command::Ps(args) => verbs::ps::ps(context, &args),
        Command::Inspect(args) => verbs::inspect::inspect(context, &args),
        Command::Logs(args) => verbs::logs::logs(context, &args),
        Command::Cp(args) => verbs::cp::cp(context, &args),
        Command::Pause(args) => verbs::life::pause(context, &args),
        Command::Resume(args) => verbs::life::resume(context, &args),
        Command::Stop(args) => verbs::life::stop(context, &args),
        Command::Kill(args) => verbs::life::kill(context, &args),
        Command::Rm(args) => verbs::life::rm(context, &args),
        Command::Plan(args) => return verbs::plan::plan(context, &args),
        Command::Kernel(KernelCommand::Import(args)) => verbs::kernel::import(context, &args),
        Command::Kernel(KernelCommand::List) => verbs::kernel::list(context),
        Command::Kernel(KernelCommand::Remove { names }) => verbs::kernel::remove(context, &names),
        Command::Kernel(KernelCommand::Default { name }) => verbs::kernel::default(context, &name),
        Command::Policy(verb) => return verbs::policy::policy(context, verb),
        Command::Audit(args) => return verbs::audit::audit(context, &args),
        Command::Why(args) => verbs::why::why(context, &args),
        Command::Evidence(args) => return verbs::evidence::evidence(context, &args),
        Command::Completion { shell } => verbs::docs::completion(shell),
        Command::Man { directory } => verbs::docs::man(&directory),
        Command::Version => verbs::docs::version(context),
    }
    .map(|()| 0)
}
