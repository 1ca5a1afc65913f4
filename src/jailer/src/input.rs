//! What the client hands over: fd 3, a SEQPACKET socket for events; fd 4, a sealed memfd with the specification.
//! Nothing else of the caller's is used: no environment, no working directory.

use std::os::fd::OwnedFd;

use casemate_spec::{SandboxSpec, parse};
use casemate_sys::{exec, memfd};
use casemate_wire::Channel;

use crate::error::StepFailed;

const STAGE: &str = "take the specification";

/// The client's socket and specification.
pub struct Input {
    pub client: Channel,
    pub spec: Vec<u8>,
}

/// Takes descriptors 3 and 4. The memfd is sealed, so what is checked is what is used.
pub fn take() -> Result<Input, StepFailed> {
    let fds = exec::inherit(2).map_err(|e| StepFailed::stage(STAGE, e))?;
    let [client, spec]: [OwnedFd; 2] =
        fds.try_into().map_err(|_| StepFailed::because(STAGE, "descriptors 3 and 4 must be given"))?;
    let spec = memfd::read_sealed(&spec, parse::MAX_BYTES).map_err(|e| StepFailed::stage(STAGE, e))?;
    Ok(Input { client: Channel::new(client), spec })
}

/// Parses the specification anew: the client's checks count for nothing here.
pub fn spec(bytes: &[u8]) -> Result<SandboxSpec, StepFailed> {
    let file = parse::json(bytes).map_err(|e| StepFailed::stage(STAGE, e))?;
    SandboxSpec::try_from(file).map_err(|e| StepFailed::stage(STAGE, e))
}
