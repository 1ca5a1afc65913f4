//! The rules, a file per layer.

mod capabilities;
mod common;
mod host;
mod selinux;
mod uid;

use crate::rule::Rule;

/// Every rule, in the order of layers.
pub fn all() -> impl Iterator<Item = &'static Rule> {
    [selinux::RULES, capabilities::RULES, uid::RULES, host::RULES].into_iter().flatten()
}
