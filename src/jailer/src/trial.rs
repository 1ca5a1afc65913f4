//! Trials.
use crate::error::StepFailed;
use casemate_plan::HostConfig;
use casemate_spec::SandboxId;
pub fn selftest(_c: &HostConfig) -> Result<(), StepFailed> {
    Err(StepFailed::because("selftest", "wip"))
}
pub fn attack(_c: &HostConfig, _p: Option<(SandboxId, SandboxId)>) -> Result<(), StepFailed> {
    Err(StepFailed::because("attack", "wip"))
}
