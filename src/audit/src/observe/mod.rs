//! Looking from outside: live VMs, any process, the host, each as a [`Subject`].
//!
//! Trust: what is read of a runner or of a foreign process is an attacker's as far as that process chooses it (names,
//! paths, what it holds open); it is taken as text and compared, never obeyed. Every read goes through a verified procfs
//! and is guarded by a pidfd: it is that process's, or [`Known::Unseen`]. Nothing here changes the host.
//!
//! ```text
//! Observer::new ── vm(record) ──> Subject ┐
//!      │           process(pid) ─> Subject ├─> rules, matrix::of
//!      │           host(…) ──────> Subject ┘
//!      └ read once: PID 1's namespaces, cgroup mounts, the policy's answers per family, directories on paths
//! ```

mod cgroup;
mod fds;
mod host;
mod landlock;
pub mod matrix;
mod memory;
mod namespaces;
mod objects;
mod orphans;
mod process;
mod separation;
mod status;
mod survey;
mod tables;
mod vm;

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use casemate_sys as sys;
use casemate_sys::facts::cgroup::Layout;
use casemate_sys::procfs::Proc;

use crate::Policy;
use crate::seccomp::Cache;
use crate::subject::{Host, Known, Separation};

pub use host::Kept;
pub use separation::OTHERS;
pub use survey::{Line, Problem, ProblemKind, Survey};
pub use vm::LiveVm;

/// Why a process shows nothing any more.
pub(crate) const ENDED: &str = "the process ended during the audit";

/// Looks, and remembers what is the same for every VM of the host.
#[derive(Debug)]
pub struct Observer {
    proc: Proc,
    selinux: bool,
    namespaces: namespaces::Hosts,
    layout: Known<Layout>,
    host: OnceCell<Host>,
    policy: OnceCell<Known<Policy>>,
    /// Verdicts by filters: nearly all threads of a role have the same.
    filters: Cache,
    separations: RefCell<HashMap<String, Known<Separation>>>,
    /// Limits by cgroup directory.
    limits: RefCell<HashMap<PathBuf, BTreeMap<String, String>>>,
    /// Who may replace what is in a directory.
    directories: RefCell<HashMap<PathBuf, Known<objects::Directory>>>,
}

impl Observer {
    /// # Errors
    /// /proc is no procfs, or may not be opened.
    pub fn new() -> sys::Result<Self> {
        // The mounted one, not one of our own: an audit mounts nothing.
        let proc = Proc::host()?;
        let namespaces = namespaces::Hosts::read(&proc);
        Ok(Self {
            selinux: sys::facts::selinux::selinux().is_some(),
            namespaces,
            layout: known(sys::facts::cgroup::layout()),
            proc,
            host: OnceCell::new(),
            policy: OnceCell::new(),
            filters: Cache::default(),
            separations: RefCell::default(),
            limits: RefCell::default(),
            directories: RefCell::default(),
        })
    }

    /// The filters that were seen, and their programs.
    pub fn filters(&self) -> &Cache {
        &self.filters
    }
}

/// What was found stands, whether or not all could be looked at; that nothing was found counts only if all could.
pub(crate) fn together(parts: impl IntoIterator<Item = Known<Vec<String>>>) -> Known<Vec<String>> {
    let (mut found, mut unseen) = (Vec::new(), None);
    for part in parts {
        match part {
            Known::Seen(more) => found.extend(more),
            Known::Unseen(why) => unseen = unseen.or(Some(why)),
        }
    }
    match unseen {
        Some(why) if found.is_empty() => Known::Unseen(why),
        _ => Known::Seen(found),
    }
}

/// The value, or attempt and reason in one sentence.
pub(crate) fn known<T>(result: sys::Result<T>) -> Known<T> {
    match result {
        Ok(value) => Known::Seen(value),
        Err(error) => Known::Unseen(error.report()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_was_found_only_where_everything_was_looked_at() {
        let seen = |texts: &[&str]| Known::Seen(texts.iter().map(|text| (*text).to_owned()).collect());
        assert_eq!(together([seen(&[]), seen(&[])]), seen(&[]));
        assert_eq!(together([seen(&[]), Known::unseen("why"), Known::unseen("more")]), Known::unseen("why"));
        assert_eq!(together([seen(&["a"]), Known::unseen("why"), seen(&["b"])]), seen(&["a", "b"]));
    }
}
