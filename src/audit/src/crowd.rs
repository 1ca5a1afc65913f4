//! What all subjects of one audit have together: who shares a uid, a level, a writable file.

use std::collections::{BTreeMap, BTreeSet};

use crate::subject::{Fd, Kind, Process, Subject};

/// Made once for an audit, so that its cost grows with the number of VMs and not with its square.
#[derive(Debug, Default)]
pub struct Crowd {
    uids: BTreeMap<u32, BTreeSet<String>>,
    levels: BTreeMap<String, BTreeSet<String>>,
    /// Identities of files and block devices that are open for writing.
    written: BTreeMap<(u64, u64), BTreeSet<String>>,
    namespaces: BTreeMap<String, BTreeSet<String>>,
}

impl Crowd {
    /// Of live VMs; a plan has no uid and no level yet.
    pub fn of(subjects: &[Subject]) -> Self {
        let mut crowd = Self::default();
        for vm in subjects.iter().filter(|subject| subject.kind == Kind::Vm) {
            for process in serving(vm) {
                crowd.add(&vm.name, process);
            }
        }
        crowd
    }

    fn add(&mut self, vm: &str, process: &Process) {
        for id in process.threads.seen().into_iter().flatten().flat_map(|thread| thread.uid) {
            self.uids.entry(id).or_default().insert(vm.to_owned());
        }
        if let Some(level) = process.label.seen().and_then(|label| level_of(label.as_deref()?)) {
            self.levels.entry(level.to_owned()).or_default().insert(vm.to_owned());
        }
        for namespace in process.namespaces.seen().into_iter().flat_map(BTreeMap::values) {
            self.namespaces.entry(namespace.id.clone()).or_default().insert(vm.to_owned());
        }
        for fd in process.fds.seen().into_iter().flatten().filter(|fd| fd.write && keeps_content(fd)) {
            if let Some(object) = fd.object {
                self.written.entry(object).or_default().insert(vm.to_owned());
            }
        }
    }

    /// Other VMs with a process of this uid.
    pub fn with_uid(&self, uid: u32, than: &str) -> Vec<String> {
        others(self.uids.get(&uid), than)
    }

    pub fn with_level(&self, level: &str, than: &str) -> Vec<String> {
        others(self.levels.get(level), than)
    }

    pub fn in_namespace(&self, id: &str, than: &str) -> Vec<String> {
        others(self.namespaces.get(id), than)
    }

    /// Other VMs that have this open for writing, by device and inode number.
    pub fn writing(&self, object: (u64, u64), than: &str) -> Vec<String> {
        others(self.written.get(&object), than)
    }
}

fn others(set: Option<&BTreeSet<String>>, than: &str) -> Vec<String> {
    set.into_iter().flatten().filter(|name| *name != than).cloned().collect()
}

/// What one writes and another can read. Every VM has /dev/null and /dev/kvm open.
pub fn keeps_content(fd: &Fd) -> bool {
    matches!(fd.kind.as_str(), "file" | "blk" | "pipe")
}

/// The processes that carry a VM's rights; the warden is root's.
pub fn serving(subject: &Subject) -> impl Iterator<Item = &Process> {
    subject.processes.iter().filter(|process| process.role != WARDEN)
}

pub const WARDEN: &str = "warden";

/// `s0:c1,c2` of `user:role:type:s0:c1,c2`.
pub fn level_of(context: &str) -> Option<&str> {
    context.splitn(4, ':').nth(3)
}

pub fn type_of(context: &str) -> Option<&str> {
    context.split(':').nth(2)
}
