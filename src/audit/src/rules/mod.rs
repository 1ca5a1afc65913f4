//! The rules, a file per layer.

mod capabilities;
mod common;
mod descriptors;
mod host;
mod landlock;
mod memory;
mod namespaces;
mod objects;
pub mod page;
mod posture;
mod resources;
mod seccomp;
mod selinux;
#[cfg(test)]
pub(crate) mod tests;
mod uid;

pub use selinux::{LEASED, NO_POLICY};

use crate::rule::Rule;

/// Every rule, in the order of layers.
pub fn all() -> impl Iterator<Item = &'static Rule> {
    let layers = [
        posture::RULES,
        selinux::RULES,
        landlock::RULES,
        seccomp::RULES,
        capabilities::RULES,
        uid::RULES,
        namespaces::RULES,
        resources::RULES,
        descriptors::RULES,
        memory::RULES,
        objects::RULES,
        host::RULES,
    ];
    layers.into_iter().flatten()
}
