//! The host-wide ledger of leases: MCS pairs, fixed levels and uids.
//!
//! Trust: RUN/leases is root's alone. Its *names* are the truth: a lease is the file `mcs/c<low>,c<high>`, `uid/<uid>` or
//! `static/<sandbox>=<level>`, made with its contents in one atomic rename, so two allocators can never both have it,
//! whatever else goes wrong, and everything that a conflict is judged by is read with one listing of a directory.
//! A flock serialises what a single rename cannot: the check against other levels, and
//! taking a dead owner's lease away. Called by the jailer (start, end, repair).
//!
//! A pair is never equal to, a subset or a superset of a level in use: ours, a fixed one,
//! or what [`InUse`] found with any other manager, process or file.
//!
//! Cost of a pair: some random candidates, each one stat; then, in a window that is nearly full, the names are listed,
//! the free pairs counted and one of them taken. It never searches, and it never tries twice.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::RenameFlags;
use serde::{Deserialize, Serialize};

use crate::context::{CategoryPair, CategorySet, Level};
use crate::in_use::{Holder, InUse};
pub use crate::lease_key::LeaseKey;
use crate::ledger_files::Files;
use crate::owner::Owner;
use crate::pairs::Occupied;
use crate::random;

/// Random candidates tried, each by one stat, before the ledger's names are listed.
const RANDOM_TRIES: usize = 32;
/// libvirt's floor: fewer categories leave too few pairs to be worth the name.
pub const MIN_WINDOW: usize = 8;
pub const DEFAULT_UIDS: UidRange = UidRange { first: 10_000_000, count: 65_536 };
const KINDS: [&str; 3] = ["mcs", "uid", "static"];

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("cannot {verb} {path}: {source}")]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
    #[error("{0} must be a directory of root with no access for others; remove it or fix its mode")]
    Untrusted(PathBuf),
    #[error(
        "the caller's categories {0} are fewer than {MIN_WINDOW}, too few to lease pairs from; start from a wider range"
    )]
    NarrowWindow(String),
    #[error("all {pairs} MCS pairs of the window {window} are in use, {who}; {remedy}")]
    NoPair { window: String, pairs: usize, who: String, remedy: &'static str },
    #[error("all {count} uids from {first} are in use, {leased} of them leased; {remedy}")]
    NoUid { first: u32, count: u32, leased: usize, remedy: &'static str },
    #[error("the uid range {first} with {count} uids holds uid 0 to 999 or wraps around")]
    BadUids { first: u32, count: u32 },
    #[error("level {level} is within reach of {other}, in use by {by}; choose another, or stop that one")]
    Reserved { level: String, other: String, by: String },
    #[error("level {0} cannot be reserved: {1}")]
    BadLevel(String, &'static str),
    #[error("{0:?} cannot name a lease")]
    BadName(String),
    #[error("lease {key} belongs to {by}, not to {asked}")]
    NotOwner { key: String, by: Owner, asked: String },
    #[error(
        "{key} is claimed by {claims}, and {other} is held by {holds}: two living sandboxes that nothing keeps apart; stop one of them"
    )]
    Duplicate { key: String, claims: String, other: String, holds: String },
}

const REMEDY: &str = "stop sandboxes, let `casemate repair` take the leases of dead ones back (`casemate labels` lists them), \
                      or start from a wider range";

/// A lease that is held. Dropping it releases nothing: leases outlive the code that took
/// them, and are released by name once every object is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub key: LeaseKey,
    pub owner: Owner,
    /// Seconds since the epoch.
    pub since: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UidRange {
    pub first: u32,
    pub count: u32,
}

/// What taking a living sandbox's lease up again came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readopted {
    /// It was there.
    Held,
    /// It had been lost, and is there again.
    Recreated,
    /// A dead owner's name stood on it.
    TakenFrom(Owner),
}

/// The ledger under RUN/leases.
#[derive(Debug)]
pub struct Ledger {
    files: Files,
}

impl Ledger {
    /// Opens RUN/leases and makes what is missing. RUN itself must exist.
    pub fn open(run_dir: &Path) -> Result<Self, LedgerError> {
        Ok(Self { files: Files::open(run_dir, &KINDS)? })
    }

    /// The ledger as it is; `None` where there is none, or not a whole one, and so no lease. Makes nothing.
    pub fn find(run_dir: &Path) -> Result<Option<Self>, LedgerError> {
        match Files::is_whole(run_dir, &KINDS) {
            true => Self::open(run_dir).map(Some),
            false => Ok(None),
        }
    }

    /// Leases a pair from `window`, out of reach of every level in `in_use` and in this ledger. Uniform among the free.
    pub fn lease_pair(
        &self,
        owner: &Owner,
        window: &CategorySet,
        in_use: &InUse,
    ) -> Result<(CategoryPair, Lease), LedgerError> {
        let categories: Vec<_> = window.iter().collect();
        if categories.len() < MIN_WINDOW {
            return Err(LedgerError::NarrowWindow(window.to_string()));
        }
        let mut taken = Occupied::default();
        in_use.occupy(window, &mut taken);
        let _lock = self.files.lock()?;
        self.occupy("static", &mut taken)?;
        let any = || categories[random::below(categories.len() as u32) as usize];
        for _ in 0..RANDOM_TRIES {
            let Ok(pair) = CategoryPair::new(any(), any()) else { continue };
            if taken.is_free(pair)
                && let Some(lease) = self.try_take(LeaseKey::Pair(pair), owner)?
            {
                return Ok((pair, lease));
            }
        }
        self.occupy("mcs", &mut taken)?;
        let free = u32::try_from(taken.free(window)).unwrap_or(u32::MAX);
        let chosen = (free > 0).then(|| taken.nth_free(window, random::below(free) as usize)).flatten();
        let lease = chosen.map(|pair| self.try_take(LeaseKey::Pair(pair), owner)).transpose()?.flatten();
        match (chosen, lease) {
            (Some(pair), Some(lease)) => Ok((pair, lease)),
            _ => Err(self.no_pair(window, in_use)?),
        }
    }

    /// Who has the pairs of the window.
    fn no_pair(&self, window: &CategorySet, in_use: &InUse) -> Result<LedgerError, LedgerError> {
        let touches = |set: CategorySet| window.iter().any(|c| set.contains(c));
        let mut leases = Vec::new();
        for key in self.keys("mcs")?.into_iter().chain(self.keys("static")?) {
            if key.categories().is_some_and(touches) {
                leases.extend(self.files.read(&key.file())?);
            }
        }
        let dead = leases.iter().filter(|lease| !lease.owner.is_alive()).count();
        let mut who = format!("{} by sandboxes of Casemate", leases.len());
        let names: Vec<&str> = leases.iter().take(4).map(|lease| lease.owner.sandbox.as_str()).collect();
        if !names.is_empty() {
            who += &format!(" ({}{})", names.join(", "), if leases.len() > 4 { ", ..." } else { "" });
        }
        if dead > 0 {
            who += &format!(", {dead} of which are dead");
        }
        let others: Vec<_> = in_use.within(window).filter(|found| touches(found.categories())).collect();
        if !others.is_empty() {
            let named: Vec<String> = others.iter().take(4).map(ToString::to_string).collect();
            who += &format!(
                ", {} by others ({}{})",
                others.len(),
                named.join("; "),
                if others.len() > 4 { "; ..." } else { "" }
            );
        }
        let n = window.len();
        Ok(LedgerError::NoPair { window: window.to_string(), pairs: n * (n - 1) / 2, who, remedy: REMEDY })
    }

    /// Leases a uid that no process has, chosen at random so that one is not reused soon.
    pub fn lease_uid(&self, owner: &Owner, range: UidRange) -> Result<(u32, Lease), LedgerError> {
        let UidRange { first, count } = range;
        // u32::MAX is "no change" to chown and setresuid
        if first < 1000 || count == 0 || first.checked_add(count).is_none() {
            return Err(LedgerError::BadUids { first, count });
        }
        let _lock = self.files.lock()?;
        for _ in 0..RANDOM_TRIES {
            let uid = first + random::below(count);
            if let Some(lease) = self.try_uid(uid, owner)? {
                return Ok((uid, lease));
            }
        }
        let leased: HashSet<u32> = self
            .keys("uid")?
            .into_iter()
            .filter_map(|key| if let LeaseKey::Uid(uid) = key { Some(uid) } else { None })
            .collect();
        let start = random::below(count);
        for i in 0..count {
            let uid = first + ((u64::from(start) + u64::from(i)) % u64::from(count)) as u32;
            if !leased.contains(&uid)
                && let Some(lease) = self.try_uid(uid, owner)?
            {
                return Ok((uid, lease));
            }
        }
        let remedy =
            "stop sandboxes, let `casemate repair` take the leases of dead ones back, or widen uid_first to uid_last";
        Err(LedgerError::NoUid { first, count, leased: leased.len(), remedy })
    }

    fn try_uid(&self, uid: u32, owner: &Owner) -> Result<Option<Lease>, LedgerError> {
        // getpriority(2) of a user: ESRCH when no process has that real uid, so a lease that was lost harms nobody
        let used = rustix::process::getpriority_user(rustix::process::Uid::from_raw(uid)).is_ok();
        if used { Ok(None) } else { self.try_take(LeaseKey::Uid(uid), owner) }
    }

    /// Reserves a level that the user fixed, as it is. `shared` allows it beside equal levels (a group); beside a level
    /// that only overlaps it is refused in any case. Returns what there is to warn of, too.
    pub fn lease_static(
        &self,
        owner: &Owner,
        level: &Level,
        shared: bool,
        in_use: &InUse,
    ) -> Result<(Lease, Vec<String>), LedgerError> {
        let set = level.categories;
        if set.is_empty() {
            return Err(LedgerError::BadLevel(
                level.to_string(),
                "without a category every sandbox reaches it; name two or more",
            ));
        }
        if set == CategorySet::ALL {
            return Err(LedgerError::BadLevel(
                level.to_string(),
                "with all categories it reaches every other guest; name two or more",
            ));
        }
        let key = LeaseKey::Static { sandbox: owner.sandbox.clone(), level: *level, shared };
        let bad = owner.sandbox.is_empty() || owner.sandbox.starts_with('.') || owner.sandbox.contains(['/', '=']);
        if bad || key.file().len() > 200 {
            return Err(LedgerError::BadName(key.file()));
        }
        let reserved = |other: String, by: String| LedgerError::Reserved { level: level.to_string(), other, by };
        let _lock = self.files.lock()?;
        let mut warnings = Vec::new();
        // our own first: a sandbox's name says more than its process
        for other in self.keys("static")?.into_iter().chain(self.keys("mcs")?) {
            if !other.compatible(&key)
                && let Some(lease) = self.files.read(&other.file())?
            {
                return Err(reserved(other.to_string(), lease.owner.to_string()));
            }
        }
        for found in in_use.in_reach_of(&set) {
            match &found.holder {
                Holder::File { path } => {
                    warnings.push(format!("{} carries {}, in reach of the level {level}", path.display(), found.label));
                }
                _ if shared && found.categories() == set => {}
                holder => return Err(reserved(found.label.to_string(), holder.to_string())),
            }
        }
        if set.len() == 1 {
            warnings.push(format!("level {level} has one category: another manager's pair that holds it reaches it"));
        }
        let lease = self.try_take(key, owner)?.ok_or_else(|| reserved(level.to_string(), owner.to_string()))?;
        Ok((lease, warnings))
    }

    /// Gives a lease back. The owner is compared, so nobody's newer lease is taken away.
    /// False when it was gone already.
    pub fn release(&self, key: &LeaseKey, owner: &Owner) -> Result<bool, LedgerError> {
        let _lock = self.files.lock()?;
        let Some(lease) = self.files.read(&key.file())? else { return Ok(false) };
        if lease.owner != *owner {
            return Err(LedgerError::NotOwner { key: key.to_string(), by: lease.owner, asked: owner.to_string() });
        }
        self.files.remove(&key.file())
    }

    /// Takes a living sandbox's lease up again from what its journal says, if the ledger lost it. Another living
    /// sandbox that has the same, or something in reach, is an error that names both: nothing is changed then.
    pub fn readopt(&self, key: &LeaseKey, owner: &Owner) -> Result<Readopted, LedgerError> {
        let _lock = self.files.lock()?;
        let duplicate = |other: &LeaseKey, holds: Owner| LedgerError::Duplicate {
            key: key.to_string(),
            claims: owner.to_string(),
            other: other.to_string(),
            holds: holds.to_string(),
        };
        let mut result = Readopted::Recreated;
        if let Some(lease) = self.files.read(&key.file())? {
            if lease.owner == *owner {
                return Ok(Readopted::Held);
            }
            if lease.owner.is_alive() {
                return Err(duplicate(key, lease.owner));
            }
            result = Readopted::TakenFrom(lease.owner);
        }
        for other in KINDS.into_iter().map(|kind| self.keys(kind)).collect::<Result<Vec<_>, _>>()?.concat() {
            if other == *key || other.compatible(key) {
                continue;
            }
            if let Some(lease) = self.files.read(&other.file())?.filter(|lease| lease.owner.is_alive()) {
                return Err(duplicate(&other, lease.owner));
            }
        }
        let lease = Lease { key: key.clone(), owner: owner.clone(), since: now() };
        self.files.write(&key.file(), &lease, RenameFlags::empty())?;
        Ok(result)
    }

    /// Who has a lease.
    pub fn holder(&self, key: &LeaseKey) -> Result<Option<Lease>, LedgerError> {
        self.files.read(&key.file())
    }

    /// Every lease, living or dead.
    pub fn list(&self) -> Result<Vec<Lease>, LedgerError> {
        let mut all = Vec::new();
        for kind in KINDS {
            for key in self.keys(kind)? {
                // one that vanished meanwhile was released
                all.extend(self.files.read(&key.file())?);
            }
        }
        Ok(all)
    }

    /// Drops the leases of dead owners for whom `restored` says that every object was given
    /// back: a pair may not be used again while a file still carries it. Sweeps what killed allocators left half made.
    pub fn drop_dead(&self, mut restored: impl FnMut(&Lease) -> bool) -> Result<Vec<Lease>, LedgerError> {
        let _lock = self.files.lock()?;
        self.files.sweep()?;
        let mut dropped = Vec::new();
        for kind in KINDS {
            for key in self.keys(kind)? {
                let Some(lease) = self.files.read(&key.file())? else { continue };
                if !lease.owner.is_alive() && restored(&lease) && self.files.remove(&key.file())? {
                    dropped.push(lease);
                }
            }
        }
        Ok(dropped)
    }

    fn try_take(&self, key: LeaseKey, owner: &Owner) -> Result<Option<Lease>, LedgerError> {
        let file = key.file();
        // the common conflict costs one stat, not a temporary file
        if self.files.exists(&file) {
            return Ok(None);
        }
        let lease = Lease { key, owner: owner.clone(), since: now() };
        match self.files.write(&file, &lease, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(Some(lease)),
            Err(LedgerError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The leases of a kind, by their names alone. A name that is none is not ours to judge: it fails.
    fn keys(&self, kind: &str) -> Result<Vec<LeaseKey>, LedgerError> {
        let names = self.files.names(kind)?;
        names.iter().map(|name| LeaseKey::parse(kind, name).ok_or_else(|| LedgerError::BadName(name.clone()))).collect()
    }

    fn occupy(&self, kind: &str, taken: &mut Occupied) -> Result<(), LedgerError> {
        self.keys(kind)?.iter().filter_map(LeaseKey::categories).for_each(|set| taken.add(&set));
        Ok(())
    }
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
