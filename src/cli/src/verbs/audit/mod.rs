//! `audit`: judges policies, plans and what runs, by one set of rules.

mod calls;
mod kept;
mod live;
mod output;
mod overview;
mod plan;
mod policy;
mod probe;

pub use live::{live, observer, survey};
pub use output::tell;

use crate::audit_args::{AuditArgs, AuditCommand};
use crate::failure::Result;
use crate::output::Context;

pub fn audit(context: &Context, args: &AuditArgs) -> Result<u8> {
    match &args.command {
        None => live::host(context, &args.output),
        Some(AuditCommand::Vm(args)) => live::vms(context, args),
        Some(AuditCommand::Process(args)) => live::processes(context, args),
        Some(AuditCommand::Report(args)) => kept::report(context, args),
        Some(AuditCommand::Policy(args)) => policy::policy(context, args),
        Some(AuditCommand::Plan(args)) => plan::plan(context, args),
    }
}
