//! The owner record: one xattr, `trusted.casemate.owners`, with the original label, who holds the file, and which file
//! and host it was written for.
//!
//! Trust: parsed as hostile text. Only CAP_SYS_ADMIN writes `trusted.*`, but root's `cp -a`, `rsync -X`, tar and
//! backups carry it along: a record counts only on the file it names, and its owners only on their host.
//! Called by `relabel` and `restore`.
//!
//! ```text
//! {"v":2,"orig":"u:r:t:s0","label":"u:r:t:s0:c1,c2","file":{…},"host":"…","boot":"…","owners":[["name",pid,start]],"gen":1}
//! ```
//! Version 1 had neither file nor host, and spelt each owner out. It is still read.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use casemate_sys::handle::FileHandle;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::owner::{self, Owner};

/// A record longer than this is refused unread, in bytes.
pub(crate) const MAX_RECORD: usize = 16 * 1024;
/// Most sandboxes that may hold one file. ext4 keeps some 4000 bytes of xattrs for a file: names of the usual length fit.
pub const MAX_OWNERS: usize = 64;
const VERSION: u32 = 2;

/// Which file, across renames and reboots: not by its name, and not by a device number that the next boot gives anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileId {
    /// statvfs' `f_fsid`: made from the file system's UUID by ext4 and btrfs, from the device number by XFS.
    pub fs: u64,
    pub ino: u64,
    /// `None` where the file system has no handles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<String>,
}

impl FileId {
    pub fn of(fd: impl AsFd) -> io::Result<Self> {
        let fs = rustix::fs::fstatvfs(&fd)?.f_fsid;
        let ino = rustix::fs::fstat(&fd)?.st_ino;
        let handle = FileHandle::of(&fd)?.map(|h| h.to_string());
        Ok(Self { fs, ino, handle })
    }

    /// The same file? A handle decides where both have one: its generation tells an inode number that was used again.
    pub fn is(&self, other: &Self) -> bool {
        match (&self.handle, &other.handle) {
            (Some(a), Some(b)) => a == b && self.ino == other.ino,
            _ => self.ino == other.ino && self.fs == other.fs,
        }
    }
}

/// What a record is worth on the file that carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    Good,
    /// It came here with a copy of the file's attributes: it says nothing about this file.
    Copied,
    /// Another host wrote it, and only that host knows whether its owners live.
    OtherHost(String),
}

/// The value of `trusted.casemate.owners`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnersRecord {
    /// The label before Casemate; none when it was lost (a leaked private label).
    pub orig: Option<Context>,
    /// The label that Casemate set.
    pub label: Context,
    /// The file it was written for; none in version 1.
    pub file: Option<FileId>,
    /// The host that wrote it ([`host_id`]); none in version 1.
    pub host: Option<String>,
    pub owners: Vec<Owner>,
    /// Counts replacements of this record, so that a reader sees that it changed.
    pub gen_: u64,
}

#[derive(Deserialize)]
struct Version {
    v: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct First {
    #[serde(rename = "v")]
    _v: u32,
    orig: Option<Context>,
    label: Context,
    owners: Vec<Owner>,
    #[serde(rename = "gen")]
    gen_: u64,
}

/// The form on disk: the boot id stands once, since all owners that are kept are alive.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Second {
    v: u32,
    orig: Option<Context>,
    label: Context,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<FileId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    boot: String,
    owners: Vec<(String, u32, u64)>,
    #[serde(rename = "gen")]
    gen_: u64,
}

impl OwnersRecord {
    pub(crate) fn new(orig: Option<Context>, label: Context, owners: Vec<Owner>, gen_: u64) -> Self {
        Self { orig, label, file: None, host: None, owners, gen_ }
    }

    pub(crate) fn parse(raw: &[u8]) -> Result<Self, String> {
        if raw.len() > MAX_RECORD {
            return Err(format!("{} bytes", raw.len()));
        }
        let Version { v } = serde_json::from_slice(raw).map_err(|e| e.to_string())?;
        let record = match v {
            1 => {
                let First { orig, label, owners, gen_, .. } = serde_json::from_slice(raw).map_err(|e| e.to_string())?;
                Self { orig, label, file: None, host: None, owners, gen_ }
            }
            VERSION => {
                let second: Second = serde_json::from_slice(raw).map_err(|e| e.to_string())?;
                let boot = second.boot;
                let owner = |(sandbox, pid, start)| Owner { sandbox, boot: boot.clone(), pid, start };
                let owners = second.owners.into_iter().map(owner).collect();
                let Second { orig, label, file, host, gen_, .. } =
                    Second { boot: String::new(), owners: Vec::new(), ..second };
                Self { orig, label, file, host, owners, gen_ }
            }
            other => return Err(format!("version {other}; this program knows 1 and 2")),
        };
        match record.owners.len() {
            n if n > MAX_OWNERS => Err(format!("{n} owners, {MAX_OWNERS} may be")),
            _ => Ok(record),
        }
    }

    /// The bytes of the xattr. Owners of another boot than the first one's are dead, and left out.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let boot = self.owners.first().map(|o| o.boot.clone()).unwrap_or_default();
        let owners = self.owners.iter().filter(|o| o.boot == boot);
        let owners = owners.map(|o| (o.sandbox.clone(), o.pid, o.start)).collect();
        let Self { orig, label, file, host, gen_, .. } = self.clone();
        let second = Second { v: VERSION, orig, label, file, host, boot, owners, gen_ };
        serde_json::to_vec(&second).expect("a record of strings and numbers is JSON")
    }

    /// Is this the file that it was written for, and this the host? A boot that is ours proves the host; a boot that
    /// cannot be read proves nothing, and is an error where it would decide.
    pub fn standing(&self, file: &FileId, host: Option<&str>) -> io::Result<Standing> {
        self.standing_in(file, host, owner::boot_id)
    }

    fn standing_in(
        &self,
        file: &FileId,
        host: Option<&str>,
        boot: impl FnOnce() -> io::Result<String>,
    ) -> io::Result<Standing> {
        if self.file.as_ref().is_some_and(|named| !named.is(file)) {
            return Ok(Standing::Copied);
        }
        let (Some(theirs), Some(ours)) = (&self.host, host) else { return Ok(Standing::Good) };
        if theirs == ours {
            return Ok(Standing::Good);
        }
        let our_boot = boot()?;
        let proven = !our_boot.is_empty() && self.owners.iter().any(|o| o.boot == our_boot);
        Ok(if proven { Standing::Good } else { Standing::OtherHost(theirs.clone()) })
    }

    /// Those who still hold the file, but for `owner`.
    pub(crate) fn living_but(&self, owner: &Owner) -> Vec<Owner> {
        self.owners.iter().filter(|o| *o != owner && o.is_alive()).cloned().collect()
    }
}

/// This host's name in owner records: random, made at first use, kept in the state directory. Not /etc/machine-id, which
/// is absent on a host without systemd and is not to be spread.
pub fn host_id(state: &Path) -> io::Result<String> {
    if let Some(id) = known_host_id(state) {
        return Ok(id);
    }
    let path = state.join("host-id");
    let damaged = match fs::symlink_metadata(&path) {
        Ok(_) => true,
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        Err(e) => return Err(e),
    };
    fs::create_dir_all(state)?;
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().replace('-', "");
    let new = state.join(format!(".host-id.{id}"));
    let mut file = fs::File::options().write(true).create(true).truncate(true).open(&new)?;
    file.write_all(id.as_bytes())?;
    file.sync_all()?;
    drop(file);
    // Two jailers at once: the first link wins, and both read it. A damaged file is replaced.
    let made = if damaged { fs::rename(&new, &path) } else { fs::hard_link(&new, &path) };
    let _ = fs::remove_file(&new);
    match made {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => known_host_id(state).ok_or_else(|| io::Error::other("it cannot be read back")),
    }
}

/// The same, if it was made already. Changes nothing.
pub fn known_host_id(state: &Path) -> Option<String> {
    let id = fs::read_to_string(state.join("host-id")).ok()?.trim().to_owned();
    (id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())).then_some(id)
}

pub(crate) fn id_of(fd: BorrowedFd<'_>, path: &Path) -> Result<FileId, crate::RelabelError> {
    FileId::of(fd).map_err(|e| crate::relabel::io_error(path, "read", "identity", e))
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
