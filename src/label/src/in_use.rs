//! The levels in use on this host that our ledger does not know: who has each, and how we know.
//!
//! Trust: text of other programs and of the kernel; a label that does not parse is told, never guessed. Other managers
//! keep their tables to themselves (libvirt, go-selinux), so this is put together from what can be seen:
//!
//! | source | file | when it cannot be read |
//! |---|---|---|
//! | every thread of every process | `processes` | one that is gone holds nothing; one that refuses is a warning |
//! | libvirt's guests, also those that are only starting or have a fixed label | `libvirt` | warning |
//! | containers of podman, CRI-O, Buildah | `containers` | warning |
//! | labels on files in image directories | `images` | warning |
//!
//! A warning and not a refusal, because whoever can spoil one of these files would else stop every start of the host,
//! and because what it hides is found again: the warden looks at all processes once more before the guest runs. Our own
//! ledger is the other way round: what it cannot read fails the start. Called by the jailer and handed to `Ledger`.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::context::{CategorySet, Context};
use crate::pairs::Occupied;
use crate::{containers, images, libvirt, processes};

const MAX_WARNINGS: usize = 16;

/// Who has a level.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Holder {
    Process {
        pid: u32,
    },
    /// A guest or container as its manager's file tells of it; it may not run now.
    Manager {
        manager: &'static str,
        name: String,
        file: PathBuf,
    },
    /// A label at rest on a file.
    File {
        path: PathBuf,
    },
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid } => match processes::name_of(*pid) {
                Some(name) => write!(f, "process {pid} ({name})"),
                None => write!(f, "process {pid}"),
            },
            Self::Manager { manager, name, file } => write!(f, "{manager} {name} ({})", file.display()),
            Self::File { path } => write!(f, "file {}", path.display()),
        }
    }
}

/// A level and who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    pub label: Context,
    pub holder: Holder,
}

impl Found {
    /// What dominance looks at: the categories of the high level.
    pub fn categories(&self) -> CategorySet {
        self.label.range().map_or(CategorySet::EMPTY, |range| range.high().categories)
    }

    /// Of several with one set of categories the heaviest is kept: a level says more than a session's clearance, and a
    /// living holder more than a file.
    fn weight(&self) -> (bool, bool) {
        let level = self.label.range().is_some_and(|r| r.low() == r.high());
        (level, !matches!(self.holder, Holder::File { .. }))
    }

    /// A session's clearance (low and high differ) around the whole window: it is whom the window belongs to, and what
    /// is leased from the window is in its reach by design.
    fn is_clearance_for(&self, window: &CategorySet) -> bool {
        self.label.range().is_some_and(|r| r.low() != r.high() && window.is_subset(&r.high().categories))
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.holder, self.label)
    }
}

/// Where to look beside the running processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    pub processes: bool,
    /// Directories of libvirt's status and configuration files.
    pub libvirt: Vec<PathBuf>,
    /// Roots of containers-storage.
    pub containers: Vec<PathBuf>,
    /// Directories whose files may carry private labels, each with the depth to go down (0: its own files).
    pub images: Vec<(PathBuf, u32)>,
}

impl Sources {
    /// The places that the distributions' packages use, without image directories.
    pub fn host() -> Self {
        Self {
            processes: true,
            libvirt: libvirt::PLACES.iter().map(PathBuf::from).collect(),
            containers: containers::PLACES.iter().map(PathBuf::from).collect(),
            images: Vec::new(),
        }
    }

    /// Nothing: for a host without SELinux.
    pub fn none() -> Self {
        Self { processes: false, libvirt: Vec::new(), containers: Vec::new(), images: Vec::new() }
    }
}

/// Levels in use, one entry per different set of categories, or all of them.
#[derive(Debug, Clone, Default)]
pub struct InUse {
    found: Vec<Found>,
    by_set: HashMap<CategorySet, usize>,
    every: bool,
    /// Processes whose high level holds every category. Nothing can be apart from them by
    /// categories; on a sound policy they are trusted and not MCS-constrained.
    pub wide: usize,
    /// What could not be read or parsed, one sentence each.
    pub warnings: Vec<String>,
}

impl InUse {
    /// Nobody has a label: SELinux is off.
    pub fn none() -> Self {
        Self::default()
    }

    /// One holder for each set of categories: all that an allocation asks.
    pub fn survey(sources: &Sources) -> Self {
        Self::default().fill(sources)
    }

    /// Every holder: for a list.
    pub fn survey_all(sources: &Sources) -> Self {
        Self { every: true, ..Self::default() }.fill(sources)
    }

    fn fill(mut self, sources: &Sources) -> Self {
        if sources.processes {
            processes::scan(&mut self);
        }
        sources.libvirt.iter().for_each(|dir| libvirt::scan(dir, &mut self));
        sources.containers.iter().for_each(|root| containers::scan(root, &mut self));
        images::scan(&sources.images, &mut self);
        self
    }

    /// Counts a label in. One without categories reaches no private object.
    pub fn add(&mut self, label: Context, holder: Holder) {
        let found = Found { label, holder };
        let set = found.categories();
        if set == CategorySet::ALL {
            self.wide += 1;
        } else if !set.is_empty() {
            match self.by_set.get(&set) {
                Some(at) if !self.every => {
                    if found.weight() > self.found[*at].weight() {
                        self.found[*at] = found;
                    }
                }
                _ => {
                    self.by_set.insert(set, self.found.len());
                    self.found.push(found);
                }
            }
        }
    }

    /// Notes what could not be read; a directory full of such files is told once.
    pub fn warn(&mut self, what: String) {
        match self.warnings.len() {
            0..MAX_WARNINGS => self.warnings.push(what),
            MAX_WARNINGS => self.warnings.push("more of a host's labels could not be read".into()),
            _ => {}
        }
    }

    pub fn found(&self) -> &[Found] {
        &self.found
    }

    /// Those whose level is equal to, within or around `set`.
    pub fn in_reach_of<'a>(&'a self, set: &'a CategorySet) -> impl Iterator<Item = &'a Found> {
        self.found.iter().filter(|found| found.categories().comparable(set))
    }

    /// Those that take pairs of the window away.
    pub fn within<'a>(&'a self, window: &'a CategorySet) -> impl Iterator<Item = &'a Found> {
        self.found.iter().filter(|found| !found.is_clearance_for(window))
    }

    pub fn occupy(&self, window: &CategorySet, taken: &mut Occupied) {
        self.within(window).for_each(|found| taken.add(&found.categories()));
    }
}

#[cfg(test)]
#[path = "in_use_tests.rs"]
mod tests;
