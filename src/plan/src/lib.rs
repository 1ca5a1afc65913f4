//! Pure planning: `(SandboxSpec, HostFacts, HostConfig) -> Plan`. No I/O, no clock, no randomness.
//!
//! A [`Plan`] is data: ordered [`Step`]s, each with the role that takes it, the layer it belongs to, its
//! reason and its undo; the [`FdTable`]; the posture; the warnings. `casemate plan` prints it, the jailer applies
//! it, the attestations compare against it. What only the host can give (the leased uid and MCS pair, open
//! file descriptors) is bound later, into the [`RolePlan`] that the runner receives.
#![forbid(unsafe_code)]

pub mod config;
pub mod explain;
pub mod facts;
pub mod fds;
mod images;
pub mod landlock;
mod make;
pub mod posture;
pub mod role;
pub mod step;
mod steps;

pub use config::HostConfig;
pub use facts::{CgroupFacts, HostFacts, KvmFacts, SelinuxFacts, SelinuxFamily, SelinuxMode, Shortcoming};
pub use fds::{FdAccess, FdKind, FdSlot, FdSource, FdTable, names};
pub use make::{Plan, PlanError, plan};
pub use role::{BoundFd, DiskPlan, LayerPlan, RolePlan, VmPlan};
pub use step::{Action, CgroupPlan, HugetlbLimit, ImageClass, LabelChoice, Layer, Namespace, Rlimit, Role, Step};
