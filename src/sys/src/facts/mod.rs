//! Probes of the host: what it offers to confine with. Reading only; nothing is changed.
//! The jailer and `doctor` map these small types to the plan's view of the host.

pub mod cgroup;
pub mod kernel;
pub mod kvm;
pub mod selinux;
