//! Resource limits of the calling process.

use crate::{Attempt, Result};
pub use rustix::process::Resource;
use rustix::process::{Rlimit, getrlimit, setrlimit};

/// Soft and hard limit; `None` is unlimited.
pub type Limit = (Option<u64>, Option<u64>);

/// Sets soft and hard limit to the same value: nothing is left to raise.
pub fn set(resource: Resource, value: u64) -> Result<()> {
    setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
        .attempt_with(|| format!("set the limit {resource:?} to {value}"))
}

/// Reads soft and hard limit.
pub fn get(resource: Resource) -> Limit {
    let limit = getrlimit(resource);
    (limit.current, limit.maximum)
}
