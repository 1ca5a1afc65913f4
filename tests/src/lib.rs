//! What the integration tiers share.

pub mod guest;
pub mod rig;
pub mod virtio;
