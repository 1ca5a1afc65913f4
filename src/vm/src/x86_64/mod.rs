//! x86-64: everything that another architecture would do differently.
//!
//! The rest of the room reaches it through [`layout`], [`boot`], [`platform`] and [`Chip`]; a port to aarch64 brings
//! a module with the same names (its chip a GIC, its boot a flattened device tree).

pub mod acpi;
pub mod boot;
mod chip;
pub mod cpuid;
pub mod ioapic;
pub mod layout;
pub mod platform;
pub mod regs;
pub mod state;

pub(crate) use chip::Chip;
