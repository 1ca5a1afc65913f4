//! Landlock of a role. The kernel has no read-back of a domain: what the plan demanded, and what a probe saw in one.

use casemate_plan::landlock::handled;

use crate::subject::{Known, Landlock, Probe};

/// Of a runner: its last domain has no rule, so it denies all that it handles (confine, landlock.rs).
pub(super) fn runner(abi: u32, probed: Option<&[Probe]>) -> Known<Landlock> {
    Known::Seen(Landlock { abi, handled: handled(abi), allowed: Vec::new(), probed: probed.map(<[Probe]>::to_vec) })
}

/// Of a warden: none, it gives back labels, files and cgroups at the end.
pub(super) fn warden() -> Known<Landlock> {
    Known::Seen(Landlock { abi: 0, handled: Vec::new(), allowed: Vec::new(), probed: None })
}

pub(super) fn foreign() -> Known<Landlock> {
    Known::unseen("the kernel shows nobody the Landlock domain of a process, and no plan tells of this one's")
}
