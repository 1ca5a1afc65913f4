//! What the integration tiers share.

pub mod guest;
