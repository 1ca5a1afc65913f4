//! `plan`: what a start would do. The jailer plans, from the same specification and facts as `run`; nothing is changed.

use casemate_client::jailer::Jailer;
use casemate_plan::{Plan, explain};

use crate::failure::{Failure, OWN, Result};
use crate::output::Context;
use crate::run_args::PlanArgs;
use crate::{options, resolve};

pub fn plan(context: &Context, args: &PlanArgs) -> Result<u8> {
    let spec = resolve::look_up(options::spec_file(&args.spec)?, context)?;
    let answer = Jailer::locate(&context.dirs)?.ask(&["plan"], Some(&spec))?;
    let plan: Plan = serde_json::from_value(answer.json.clone()).map_err(|e| {
        Failure::new(format!("the jailer's plan is not one that this program knows: {e}"))
            .remedy("install all of Casemate's programs from one build")
    })?;
    if context.json() {
        context.print_json(&answer.json)?;
    } else {
        context.print(&explain::text(&plan))?;
    }
    Ok(if plan.blockers.is_empty() { 0 } else { OWN })
}
