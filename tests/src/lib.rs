//! What the integration tiers share.

pub mod audit;
pub mod crash;
pub mod guest;
pub mod jail;
pub mod rig;
pub mod step;
pub mod virtio;
