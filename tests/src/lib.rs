//! What the integration tiers share.

pub mod audit;
pub mod crash;
pub mod guest;
pub mod jail;
pub mod rig;
pub mod step;
pub mod virtio;

use std::time::{Duration, Instant};

use libtest_mimic::Failed;

/// Waits until something holds; half a minute on a machine with other work is too long for anything that is meant to.
pub fn soon(mut holds: impl FnMut() -> Result<bool, Failed>, otherwise: &str) -> Result<(), Failed> {
    let until = Instant::now() + Duration::from_secs(30);
    while !holds()? {
        if Instant::now() > until {
            return Err(otherwise.into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
