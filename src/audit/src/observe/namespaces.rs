//! Namespaces against the host's (namespaces(7)).

use std::collections::BTreeMap;

use casemate_sys::procfs::{Proc, ProcessView};

use crate::subject::{Known, NamespaceOf};

/// As below /proc/PID/ns; `user` and `time` too, which a runner shares with the host on purpose.
const NAMES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

/// PID 1's; the auditor's own where those may not be read, as in a container.
#[derive(Debug)]
pub(super) struct Hosts(BTreeMap<&'static str, String>);

impl Hosts {
    pub(super) fn read(proc: &Proc) -> Self {
        let of = |name| {
            let first = proc.read_link(&format!("1/ns/{name}"));
            first.or_else(|_| proc.read_link(&format!("thread-self/ns/{name}"))).ok().map(|id| (name, id))
        };
        Hosts(NAMES.into_iter().filter_map(of).collect())
    }
}

pub(super) fn of(view: &ProcessView<'_>, hosts: &Hosts) -> Known<BTreeMap<String, NamespaceOf>> {
    let mut all = BTreeMap::new();
    // A name that is not known here cannot be read: an old kernel without time namespaces.
    for (name, host) in &hosts.0 {
        match view.read_link(&format!("ns/{name}")) {
            Ok(id) => all.insert((*name).to_owned(), NamespaceOf { hosts: id == *host, id }),
            Err(error) => return Known::Unseen(error.report()),
        };
    }
    if all.is_empty() { Known::unseen("neither PID 1's namespaces nor our own may be read") } else { Known::Seen(all) }
}
