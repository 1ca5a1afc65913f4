//! The host-wide ledger of leases: MCS pairs, static levels and uids.
//!
//! Trust: RUN/leases is root's alone. Its names are the truth: a lease *is* the file
//! `mcs/c<low>,c<high>`, `uid/<uid>` or `static/<sandbox>`, made with its contents in one
//! atomic rename, so two allocators can never both have it, whatever else goes wrong.
//! A flock serialises what a single rename cannot: the check against static levels, and
//! taking a dead owner's lease away. Called by the jailer (start, end, repair).
//!
//! A pair is never equal to, a subset or a superset of a level in use: ours, a static one,
//! or that of any live process of any manager (libvirt, podman, an administrator).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags};
use serde::{Deserialize, Serialize};

use crate::context::{Category, CategoryPair, CategorySet, Level};
use crate::live::LiveLevels;
use crate::owner::Owner;

/// Random candidates tried before the window is walked from a random place.
const RANDOM_TRIES: usize = 64;
/// libvirt's floor: fewer categories leave too few pairs to be worth the name.
pub const MIN_WINDOW: usize = 8;
pub const DEFAULT_UIDS: UidRange = UidRange { first: 10_000_000, count: 65_536 };

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("cannot {verb} {path}: {source}")]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
    #[error("{0} must be a directory of root with no access for others; remove it or fix its mode")]
    Untrusted(PathBuf),
    #[error("the category window {0} has fewer than {MIN_WINDOW} categories")]
    NarrowWindow(String),
    #[error("all MCS pairs of the window {window} are in use ({ours} by Casemate); stop sandboxes or widen the window")]
    NoPair { window: String, ours: usize },
    #[error("all {count} uids from {first} are leased; stop sandboxes or configure a wider range")]
    NoUid { first: u32, count: u32 },
    #[error("the uid range {first} with {count} uids holds uid 0 to 999 or wraps around")]
    BadUids { first: u32, count: u32 },
    #[error("level {level} is already reserved by {by}")]
    Reserved { level: String, by: String },
    #[error("{0:?} cannot name a lease")]
    BadName(String),
    #[error("lease {key} belongs to {by}, not to {asked}")]
    NotOwner { key: LeaseKey, by: Owner, asked: String },
}

/// What is leased.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseKey {
    Pair(CategoryPair),
    Uid(u32),
    /// A level that the user fixed; named by sandbox, because levels may overlap on request.
    Static(String),
}

impl LeaseKey {
    fn file(&self) -> String {
        match self {
            Self::Pair(p) => format!("mcs/{p}"),
            Self::Uid(u) => format!("uid/{u}"),
            Self::Static(s) => format!("static/{s}"),
        }
    }
}

impl std::fmt::Display for LeaseKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.file())
    }
}

/// A lease that is held. Dropping it releases nothing: leases outlive the code that took
/// them, and are released by name once every object is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub key: LeaseKey,
    pub owner: Owner,
    /// The level, for a static lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Seconds since the epoch.
    pub since: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UidRange {
    pub first: u32,
    pub count: u32,
}

/// The ledger under RUN/leases.
#[derive(Debug)]
pub struct Ledger {
    dir: OwnedFd,
    path: PathBuf,
}

/// The ledger's lock, held while this lives.
struct Locked(#[allow(dead_code)] OwnedFd);

impl Ledger {
    /// Opens RUN/leases and makes what is missing. RUN itself must exist.
    pub fn open(run_dir: &Path) -> Result<Self, LedgerError> {
        let path = run_dir.join("leases");
        let run = open_dir(rustix::fs::CWD, run_dir, run_dir)?;
        let dir = make_dir(run.as_fd(), "leases", &path)?;
        for kind in ["mcs", "uid", "static", "tmp"] {
            make_dir(dir.as_fd(), kind, &path.join(kind))?;
        }
        Ok(Self { dir, path })
    }

    /// Leases a pair from `window`, apart from every level in `live` and in this ledger.
    pub fn lease_pair(
        &self,
        owner: &Owner,
        window: &CategorySet,
        live: &LiveLevels,
    ) -> Result<(CategoryPair, Lease), LedgerError> {
        let categories: Vec<Category> = window.iter().collect();
        if categories.len() < MIN_WINDOW {
            return Err(LedgerError::NarrowWindow(window.to_string()));
        }
        let _lock = self.lock()?;
        let fixed: Vec<CategorySet> = self.static_levels()?.into_iter().map(|(_, l)| l.categories).collect();
        let free = |p: &CategoryPair| {
            !live.conflicts(&p.set()) && !fixed.iter().any(|s| !s.is_empty() && s.comparable(&p.set()))
        };
        for pair in candidates(&categories) {
            if !free(&pair) {
                continue;
            }
            if let Some(lease) = self.try_take(LeaseKey::Pair(pair), owner, None)? {
                return Ok((pair, lease));
            }
        }
        Err(LedgerError::NoPair { window: window.to_string(), ours: self.list_kind("mcs")?.len() })
    }

    /// Leases a uid, chosen at random so that one is not reused soon.
    pub fn lease_uid(&self, owner: &Owner, range: UidRange) -> Result<(u32, Lease), LedgerError> {
        let UidRange { first, count } = range;
        // u32::MAX is "no change" to chown and setresuid
        if first < 1000 || count == 0 || first.checked_add(count).is_none() {
            return Err(LedgerError::BadUids { first, count });
        }
        let _lock = self.lock()?;
        let start = random_below(count);
        for i in 0..count {
            let offset = ((u64::from(start) + u64::from(i)) % u64::from(count)) as u32;
            let uid = first + offset;
            if let Some(lease) = self.try_take(LeaseKey::Uid(uid), owner, None)? {
                return Ok((uid, lease));
            }
        }
        Err(LedgerError::NoUid { first, count })
    }

    /// Reserves a level that the user fixed. `shared` allows it beside equal levels (a pod).
    pub fn lease_static(
        &self,
        owner: &Owner,
        level: &Level,
        shared: bool,
        live: &LiveLevels,
    ) -> Result<Lease, LedgerError> {
        if owner.sandbox.is_empty() || owner.sandbox.starts_with('.') || owner.sandbox.contains('/') {
            return Err(LedgerError::BadName(owner.sandbox.clone()));
        }
        let _lock = self.lock()?;
        if !shared {
            let taken = |by: String| LedgerError::Reserved { level: level.to_string(), by };
            if live.conflicts(&level.categories) {
                return Err(taken("a running process".into()));
            }
            for (lease, other) in self.static_levels()? {
                if other.categories.comparable(&level.categories) {
                    return Err(taken(lease.owner.to_string()));
                }
            }
            for lease in self.list_kind("mcs")? {
                let LeaseKey::Pair(p) = lease.key else { continue };
                if p.set().comparable(&level.categories) {
                    return Err(taken(lease.owner.to_string()));
                }
            }
        }
        let key = LeaseKey::Static(owner.sandbox.clone());
        self.try_take(key, owner, Some(level.to_string()))?
            .ok_or_else(|| LedgerError::Reserved { level: level.to_string(), by: owner.to_string() })
    }

    /// Gives a lease back. The owner is compared, so nobody's newer lease is taken away.
    /// False when it was gone already.
    pub fn release(&self, key: &LeaseKey, owner: &Owner) -> Result<bool, LedgerError> {
        let _lock = self.lock()?;
        let Some(lease) = self.read(&key.file())? else { return Ok(false) };
        if lease.owner != *owner {
            return Err(LedgerError::NotOwner { key: key.clone(), by: lease.owner, asked: owner.to_string() });
        }
        self.remove(&key.file())
    }

    /// Binds a lease to another process, after the holder of the sandbox restarted.
    pub fn adopt(&self, key: &LeaseKey, from: &Owner, to: &Owner) -> Result<Lease, LedgerError> {
        let _lock = self.lock()?;
        let not_owner = |by: Owner| LedgerError::NotOwner { key: key.clone(), by, asked: from.to_string() };
        let Some(mut lease) = self.read(&key.file())? else { return Err(not_owner(to.clone())) };
        if lease.owner != *from {
            return Err(not_owner(lease.owner));
        }
        lease.owner = to.clone();
        self.write(&key.file(), &lease, RenameFlags::empty())?;
        Ok(lease)
    }

    /// Every lease, living or dead.
    pub fn list(&self) -> Result<Vec<Lease>, LedgerError> {
        let mut all = Vec::new();
        for kind in ["mcs", "uid", "static"] {
            all.extend(self.list_kind(kind)?);
        }
        Ok(all)
    }

    /// Drops the leases of dead owners for whom `restored` says that every object was given
    /// back: a pair may not be used again while a file still carries it.
    pub fn drop_dead(&self, mut restored: impl FnMut(&Lease) -> bool) -> Result<Vec<Lease>, LedgerError> {
        let _lock = self.lock()?;
        let mut dropped = Vec::new();
        for kind in ["mcs", "uid", "static"] {
            for lease in self.list_kind(kind)? {
                if !lease.owner.is_alive() && restored(&lease) && self.remove(&lease.key.file())? {
                    dropped.push(lease);
                }
            }
        }
        Ok(dropped)
    }

    fn lock(&self) -> Result<Locked, LedgerError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd =
            rustix::fs::openat(&self.dir, "lock", flags, Mode::from(0o600)).map_err(|e| self.io("open", "lock", e))?;
        rustix::fs::flock(&fd, FlockOperation::LockExclusive).map_err(|e| self.io("lock", "lock", e))?;
        Ok(Locked(fd))
    }

    fn try_take(&self, key: LeaseKey, owner: &Owner, level: Option<String>) -> Result<Option<Lease>, LedgerError> {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let lease = Lease { key, owner: owner.clone(), level, since };
        let file = lease.key.file();
        // the common conflict costs one stat, not a temporary file
        if rustix::fs::statat(&self.dir, &file, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Ok(None);
        }
        match self.write(&file, &lease, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(Some(lease)),
            Err(LedgerError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Contents first, then the name: nobody ever reads half a lease.
    fn write(&self, file: &str, lease: &Lease, how: RenameFlags) -> Result<(), LedgerError> {
        let temporary = format!("tmp/{}.{}", std::process::id(), random_below(u32::MAX));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.dir, &temporary, flags, Mode::from(0o600))
            .map_err(|e| self.io("create", &temporary, e))?;
        let mut out = File::from(fd);
        let bytes = serde_json::to_vec(lease).expect("a lease of strings and numbers is JSON");
        let done = out
            .write_all(&bytes)
            .and_then(|()| out.sync_all())
            .map_err(|source| self.io_std("write", &temporary, source))
            .and_then(|()| {
                rustix::fs::renameat_with(&self.dir, &temporary, &self.dir, file, how)
                    .map_err(|e| self.io("rename to", file, e))
            });
        if done.is_err() {
            let _ = rustix::fs::unlinkat(&self.dir, &temporary, AtFlags::empty());
        }
        done
    }

    fn read(&self, file: &str) -> Result<Option<Lease>, LedgerError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = match rustix::fs::openat(&self.dir, file, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(e) => return Err(self.io("open", file, e)),
        };
        let mut bytes = Vec::new();
        File::from(fd).take(65536).read_to_end(&mut bytes).map_err(|e| self.io_std("read", file, e))?;
        let lease = serde_json::from_slice(&bytes).map_err(|e| self.io_std("parse", file, io::Error::other(e)))?;
        Ok(Some(lease))
    }

    fn remove(&self, file: &str) -> Result<bool, LedgerError> {
        match rustix::fs::unlinkat(&self.dir, file, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(e) => Err(self.io("remove", file, e)),
        }
    }

    fn list_kind(&self, kind: &str) -> Result<Vec<Lease>, LedgerError> {
        let fd = open_dir(self.dir.as_fd(), Path::new(kind), &self.path.join(kind))?;
        let dir = rustix::fs::Dir::new(fd).map_err(|e| self.io("list", kind, e))?;
        let mut all = Vec::new();
        for entry in dir {
            let entry = entry.map_err(|e| self.io("list", kind, e))?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name.starts_with('.') {
                continue;
            }
            // one that vanished meanwhile was released
            all.extend(self.read(&format!("{kind}/{name}"))?);
        }
        Ok(all)
    }

    fn static_levels(&self) -> Result<Vec<(Lease, Level)>, LedgerError> {
        let with_level = |lease: Lease| {
            let level = lease.level.as_deref()?.parse().ok()?;
            Some((lease, level))
        };
        Ok(self.list_kind("static")?.into_iter().filter_map(with_level).collect())
    }

    fn io(&self, verb: &'static str, file: &str, e: rustix::io::Errno) -> LedgerError {
        self.io_std(verb, file, e.into())
    }

    fn io_std(&self, verb: &'static str, file: &str, source: io::Error) -> LedgerError {
        LedgerError::Io { verb, path: self.path.join(file), source }
    }
}

/// Uniform random pairs first; then every pair once, from a random one on. Bounded.
fn candidates(categories: &[Category]) -> impl Iterator<Item = CategoryPair> + '_ {
    let n = categories.len() as u32;
    let pair = |i: u32, j: u32| CategoryPair::new(categories[i as usize], categories[j as usize]).ok();
    let random = (0..RANDOM_TRIES).filter_map(move |_| pair(random_below(n), random_below(n)));
    let (a, b) = (random_below(n), random_below(n));
    let walk = (0..n).flat_map(move |i| (0..n).map(move |j| ((a + i) % n, (b + j) % n)));
    random.chain(walk.filter(|(i, j)| i < j).filter_map(move |(i, j)| pair(i, j)))
}

/// Uniform below `n`, by rejection.
fn random_below(n: u32) -> u32 {
    let limit = u32::MAX - u32::MAX % n;
    loop {
        let mut bytes = [0; 4];
        // getrandom gives up to 256 bytes whole once the pool is initialised
        if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) != Ok(4) {
            continue;
        }
        let value = u32::from_ne_bytes(bytes);
        if value < limit {
            return value % n;
        }
    }
}

fn open_dir(at: impl AsFd, name: &Path, shown: &Path) -> Result<OwnedFd, LedgerError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(at, name, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS)
        .map_err(|e| LedgerError::Io { verb: "open", path: shown.into(), source: e.into() })
}

/// A directory that only its owner, who is us, can enter.
fn make_dir(at: impl AsFd, name: &str, shown: &Path) -> Result<OwnedFd, LedgerError> {
    match rustix::fs::mkdirat(&at, name, Mode::from(0o700)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(e) => return Err(LedgerError::Io { verb: "make", path: shown.into(), source: e.into() }),
    }
    let fd = open_dir(at, Path::new(name), shown)?;
    let stat = rustix::fs::fstat(&fd).map_err(|e| LedgerError::Io {
        verb: "look at",
        path: shown.into(),
        source: e.into(),
    })?;
    let mine = stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_mode & 0o077 == 0;
    if mine { Ok(fd) } else { Err(LedgerError::Untrusted(shown.into())) }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
