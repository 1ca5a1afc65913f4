//! Namespaces: the child is born into them (clone3); here their identities are compared.

use crate::confined::{Finding, held};
use crate::{Confined, Result};
use casemate_plan::{Layer, Namespace};
use casemate_sys::process::Namespaces;
use casemate_sys::procfs::{Proc, ProcessView};
use std::collections::BTreeMap;

const LAYER: Layer = Layer::Namespaces;

/// Name below /proc/PID/ns, and identity as `mnt:[4026531841]`.
pub type Identities = BTreeMap<&'static str, String>;

/// The file below /proc/PID/ns.
fn file(namespace: Namespace) -> &'static str {
    match namespace {
        Namespace::Mount => "mnt",
        Namespace::Pid => "pid",
        Namespace::Net => "net",
        Namespace::Ipc => "ipc",
        Namespace::Uts => "uts",
        Namespace::Cgroup => "cgroup",
    }
}

/// The flags for clone3.
pub fn flags(namespaces: &[Namespace]) -> Namespaces {
    namespaces.iter().fold(Namespaces::NONE, |all, namespace| {
        all.and(match namespace {
            Namespace::Mount => Namespaces::MOUNT,
            Namespace::Pid => Namespaces::PID,
            Namespace::Net => Namespaces::NET,
            Namespace::Ipc => Namespaces::IPC,
            Namespace::Uts => Namespaces::UTS,
            Namespace::Cgroup => Namespaces::CGROUP,
        })
    })
}

/// Does this kernel have all of them?
pub fn probe(proc: &Proc, namespaces: &[Namespace]) -> bool {
    namespaces.iter().all(|namespace| proc.read_link(&format!("self/ns/{}", file(*namespace))).is_ok())
}

/// Our own identities: the parent reads them before it clones.
pub fn own(proc: &Proc, namespaces: &[Namespace]) -> casemate_sys::Result<Identities> {
    let read = |namespace: &Namespace| {
        let name = file(*namespace);
        Ok((name, proc.read_link(&format!("thread-self/ns/{name}"))?))
    };
    namespaces.iter().map(read).collect()
}

/// In the child, right after clone3 and through the procfs handle that it inherited: each of our
/// namespaces is another one than the parent's. This is the layer's read-back.
pub fn apply(proc: &Proc, namespaces: &[Namespace], parents: &Identities) -> Result<Confined> {
    held(LAYER, compare(namespaces, parents, |name| proc.read_link(&format!("thread-self/ns/{name}"))))
}

/// From outside, against the warden's own.
pub fn attest(child: &ProcessView<'_>, namespaces: &[Namespace], own: &Identities) -> Vec<Finding> {
    compare(namespaces, own, |name| child.read_link(&format!("ns/{name}")))
}

fn compare(
    namespaces: &[Namespace],
    parents: &Identities,
    read: impl Fn(&str) -> casemate_sys::Result<String>,
) -> Vec<Finding> {
    let finding = |namespace: &Namespace| {
        let name = file(*namespace);
        let what = format!("{name} namespace");
        let Some(parent) = parents.get(name) else {
            return Finding::judged(LAYER, what, "known", "the parent's was not read", false);
        };
        match read(name) {
            Ok(seen) => {
                let ok = seen != *parent && seen.starts_with(name);
                Finding::judged(LAYER, what, format!("not {parent}"), seen, ok)
            }
            Err(error) => Finding::unreadable(LAYER, what, &error),
        }
    };
    namespaces.iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_namespaces_are_not_new() {
        let proc = Proc::host().unwrap();
        let all = [Namespace::Mount, Namespace::Net, Namespace::Uts];
        let parents = own(&proc, &all).unwrap();
        assert!(probe(&proc, &all));
        assert!(apply(&proc, &all, &parents).is_err());
    }

    #[test]
    fn the_flags_add_up() {
        let flags = flags(&[Namespace::Pid, Namespace::Net]);
        assert!(flags.contains(Namespaces::PID.and(Namespaces::NET)));
        assert!(!flags.contains(Namespaces::MOUNT));
    }
}
