//! What the runner is given: descriptor 3 is the plan, the others stand where it says and are what it says.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use casemate_plan::{RolePlan, names, role};
use casemate_sys::{exec, fds, memfd};
use casemate_wire::{Channel, codec};

use crate::error::{Error, Step};

const STEP: &str = "take the inherited descriptors";

/// Descriptors by name; each is taken once.
pub struct Table(HashMap<String, OwnedFd>);

impl Table {
    /// The descriptor of that name.
    pub fn take(&mut self, name: &str) -> Result<OwnedFd, Error> {
        self.0.remove(name).ok_or_else(|| Error::because(STEP, format!("the plan names no descriptor {name:?}")))
    }

    /// The descriptor of that name, if the plan has one.
    pub fn take_optional(&mut self, name: &str) -> Option<OwnedFd> {
        self.0.remove(name)
    }
}

/// Takes the table and reads the plan at its head. Must come before anything that opens a descriptor.
pub fn take() -> Result<(RolePlan, Vec<OwnedFd>), Error> {
    let count = (exec::FIRST_FD..).take_while(|number| fds::is_open(*number)).count();
    let inherited = exec::inherit(count).step(STEP)?;
    let first = inherited.first().ok_or_else(|| Error::because(STEP, "descriptor 3 is not open"))?;
    let bytes = memfd::read_sealed(first, codec::MAX_MESSAGE).step(STEP)?;
    let plan: RolePlan = codec::decode(&bytes).step(STEP)?;
    if plan.version != role::VERSION {
        let why = format!("the plan has version {}, this runner reads {}", plan.version, role::VERSION);
        return Err(Error::because(STEP, why));
    }
    Ok((plan, inherited))
}

/// Names the descriptors as the plan does, after they were attested, and picks the warden's out.
pub fn name(plan: &RolePlan, inherited: Vec<OwnedFd>) -> Result<(Table, Channel), Error> {
    let mut table = Table(plan.fds.iter().map(|fd| fd.name.clone()).zip(inherited).collect());
    let warden = Channel::new(table.take(names::WARDEN)?);
    Ok((table, warden))
}
