//! `audit plan`: a specification's plan, judged before anything starts; on any machine if the host's facts are in a file.

use std::path::Path;

use casemate_audit::observe::Observer;
use casemate_audit::planned::{self, Beside};
use casemate_audit::policy::separation::separation;
use casemate_audit::policy::vm::Family;
use casemate_audit::subject::{Known, Separation};
use casemate_audit::{Policy, PolicyError};
use casemate_client::jailer::Jailer;
use casemate_plan::{HostConfig, HostFacts, Plan, SelinuxMode};
use casemate_spec::SandboxSpec;
use casemate_spec::wire::SpecFile;

use super::output;
use crate::audit_args::AuditPlanArgs;
use crate::failure::{Failure, Result};
use crate::output::Context;
use crate::run_args::SpecArgs;
use crate::{options, resolve};

/// A file of facts is one line of JSON.
const MOST: u64 = 1 << 20;
/// Any two VMs: MCS compares sets and knows no number.
const LEVELS: [&str; 2] = ["s0:c1,c2", "s0:c3,c4"];

pub fn plan(context: &Context, args: &AuditPlanArgs) -> Result<u8> {
    let profile = output::profile(context, &args.output)?;
    let asked = options::spec_file(&SpecArgs { spec: Some(args.spec.clone()), ..SpecArgs::default() })?;
    let spec = resolve::look_up(asked, context)?;
    let (plan, facts) = match &args.facts {
        Some(file) => elsewhere(&spec, file)?,
        None => here(context, &spec)?,
    };
    let policy = policy(args, &facts)?;
    let observer = match args.facts {
        Some(_) => None,
        None => Some(Observer::new().map_err(|error| Failure::from_error(&error))?),
    };
    let beside = Beside {
        facts: &facts,
        allow_reduced: spec.allow_reduced.as_deref(),
        files: observer.as_ref(),
        digests: profile.assertions().want_digests(),
        separation: policy.as_ref().map(|policy| answers(policy, &plan)),
    };
    let mut subject = planned::subject(&plan, &beside);
    subject.file = Some(args.spec.display().to_string());
    let policy = policy.as_ref().and_then(Known::seen);
    output::tell_by(context, &args.output, &profile, vec![subject], policy)
}

/// The jailer's plan and facts of this host.
fn here(context: &Context, spec: &SpecFile) -> Result<(Plan, HostFacts)> {
    let jailer = Jailer::locate(&context.dirs)?;
    let plan = known(jailer.ask(&["plan"], Some(spec))?.json, "plan")?;
    let facts = known(jailer.ask(&["facts"], None)?.json, "facts")?;
    Ok((plan, facts))
}

fn known<T: serde::de::DeserializeOwned>(json: serde_json::Value, what: &str) -> Result<T> {
    serde_json::from_value(json).map_err(|error| {
        Failure::new(format!("the jailer's {what} is not one that this program knows: {error}"))
            .remedy("install all of Casemate's programs from one build")
    })
}

/// The same planner, with another host's facts; that host's own settings are not known here.
fn elsewhere(spec: &SpecFile, file: &Path) -> Result<(Plan, HostFacts)> {
    let reading = |error| Failure::io(format!("reading the facts {}", file.display()), error);
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(reading)?;
    std::io::Read::read_to_string(&mut std::io::Read::take(opened, MOST), &mut text).map_err(reading)?;
    let facts: HostFacts = serde_json::from_str(&text).map_err(|error| {
        Failure::new(format!("the facts {} are none: {error}", file.display()))
            .remedy("write them on the host that is to run it: casemate-jailer facts > FILE")
    })?;
    let spec = SandboxSpec::try_from(spec.clone())?;
    Ok((casemate_plan::plan(&spec, &facts, &HostConfig::default()), facts))
}

/// The named policy; else the loaded one, of a plan for this host where it has SELinux.
fn policy(args: &AuditPlanArgs, facts: &HostFacts) -> Result<Option<Known<Policy>>> {
    if let Some(file) = &args.policy {
        return Ok(Some(Known::Seen(Policy::read(file).map_err(|error| Failure::from_error(&error))?)));
    }
    let loaded = args.facts.is_none() && facts.selinux.mode != SelinuxMode::Disabled;
    Ok(loaded.then(|| Policy::live().into()))
}

fn answers(policy: &Known<Policy>, plan: &Plan) -> Known<Separation> {
    let policy = match policy {
        Known::Seen(policy) => policy,
        Known::Unseen(why) => return Known::Unseen(why.clone()),
    };
    let name = plan.family.as_ref().map(|family| family.name.as_str());
    let asked =
        || -> Result<Separation, PolicyError> { separation(policy, &Family::find(policy, name)?, LEVELS, None) };
    asked().into()
}
