//! What a specification may ask of SELinux: whose types, which level, whose labels, and what a changed policy does.
//!
//! Only the form is checked here. Whether the policy knows a label, whether a level is free and whether it separates
//! is the jailer's question, put to the loaded policy.

use crate::error::SpecError;
use crate::values::{Label, LevelText, PolicyChange, Posture, SelinuxProfile};
use crate::wire::{DiskFile, SelinuxFile, SpecFile};

/// The checked `[selinux]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selinux {
    /// `None`: Casemate's own types if the policy has them, else the first other family that separates.
    pub profile: Option<SelinuxProfile>,
    /// A fixed level instead of a leased pair.
    pub level: Option<LevelText>,
    /// Other sandboxes may have the same fixed level: a pod.
    pub level_shared: bool,
    /// `false`: nothing is relabelled, objects must carry fitting labels already.
    pub relabel: bool,
    pub on_policy_change: PolicyChange,
}

/// What a disk asks for beside its class's label.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskLabel {
    /// Set this label instead of the one that follows from the disk's class.
    pub label: Option<Label>,
    /// `Some(false)`: leave the disk's label alone, but check it. `None`: as the whole sandbox does.
    pub relabel: Option<bool>,
}

pub(crate) fn selinux(file: &SpecFile) -> Result<Selinux, SpecError> {
    let asked = file.selinux.clone().unwrap_or_default();
    let SelinuxFile { profile, level, level_shared, relabel, on_policy_change } = asked;
    let level = level.as_deref().map(LevelText::parse).transpose().map_err(|problem| {
        SpecError::field("selinux.level", problem, "write one level, as s0:c5,c6; a leased pair when absent")
    })?;
    if level_shared && level.is_none() {
        return Err(SpecError::field("selinux.level_shared", "without 'level'", "name the level that is shared"));
    }
    let relabel = relabel.unwrap_or(true);
    if let Some(field) = kept_private(file, relabel).filter(|_| level.is_none()) {
        return Err(SpecError::field(
            field,
            "no writable disk can carry a pair that is leased only now",
            "name the level that the disk carries (selinux.level), or let Casemate relabel",
        ));
    }
    // Whoever demands a posture wants it kept: the guest stands still until somebody looks.
    let kept = if file.require == Some(Posture::Enforced) { PolicyChange::Pause } else { PolicyChange::Warn };
    Ok(Selinux { profile, level, level_shared, relabel, on_policy_change: on_policy_change.unwrap_or(kept) })
}

/// The field that keeps the label of an object that this sandbox alone may write to.
fn kept_private(file: &SpecFile, relabel: bool) -> Option<String> {
    let private = |d: &DiskFile| !d.read_only && !d.shared && d.label.is_none();
    let mut disks = file.disks.iter().enumerate().filter(|(_, d)| private(d) && !d.relabel.unwrap_or(relabel));
    if let Some((at, disk)) = disks.next() {
        return Some(disk.relabel.map_or("selinux.relabel".into(), |_| format!("disks[{at}].relabel")));
    }
    let root = file.root.as_ref().is_some_and(|root| root.writable);
    (root && !relabel).then(|| "selinux.relabel".into())
}

pub(crate) fn disk_label(field: &str, asked: &DiskFile) -> Result<DiskLabel, SpecError> {
    let label = asked.label.as_deref().map(Label::parse).transpose().map_err(|problem| {
        SpecError::field(format!("{field}.label"), problem, "write user:role:type:level, as ls -Z prints it")
    })?;
    if label.is_some() && asked.relabel == Some(false) {
        return Err(SpecError::field(format!("{field}.label"), "together with relabel = false", "leave one out"));
    }
    Ok(DiskLabel { label, relabel: asked.relabel })
}

#[cfg(test)]
#[path = "selinux_tests.rs"]
mod tests;
