//! `audit`: judges policies, plans and what runs, by one set of rules.

mod output;
mod plan;
mod policy;

pub use output::tell;

use crate::audit_args::AuditCommand;
use crate::failure::Result;
use crate::output::Context;

pub fn audit(context: &Context, command: &AuditCommand) -> Result<u8> {
    match command {
        AuditCommand::Policy(args) => policy::policy(context, args),
        AuditCommand::Plan(args) => plan::plan(context, args),
    }
}
