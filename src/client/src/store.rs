//! The records in the run directory: who is there, and is it alive.
//!
//! They are root's files, but a record is believed only as far as it checks out: bounded reads without symlinks,
//! the strict wire form, the name of its directory, a warden that is the process it was.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, SystemTime};

use casemate_spec::SandboxId;
use casemate_wire::record::{self, Past, Phase, ProcessName, SandboxRecord};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat2, statat};
use rustix::io::Errno;

use crate::dirs::Dirs;
use crate::error::{Attempt, Error, Result};

const MAX_RECORD: u64 = 1 << 20;
const MAX_LIST: usize = 4096;
const MAX_SANDBOXES: usize = 65536;

/// How a sandbox stands, as seen now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Starting,
    Running,
    Paused,
    Exited,
    /// Its warden died without cleaning up; `casemate repair` does.
    Lost,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Status::Starting => "starting",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Exited => "exited",
            Status::Lost => "lost",
        })
    }
}

impl Status {
    pub fn is_alive(self) -> bool {
        matches!(self, Status::Starting | Status::Running | Status::Paused)
    }
}

#[derive(Debug, Clone)]
pub struct Entry {
    pub record: SandboxRecord,
    pub status: Status,
}

/// A directory that holds no usable record.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Damaged {
    /// For people.
    pub name: String,
    pub problem: String,
    /// When something in it was last made or removed; `None` where that cannot be told.
    #[serde(skip)]
    pub modified: Option<SystemTime>,
}

#[derive(Debug, Default)]
pub struct Listing {
    pub entries: Vec<Entry>,
    pub damaged: Vec<Damaged>,
}

/// A sandbox's directory.
#[derive(Debug)]
pub struct SandboxDir {
    pub name: SandboxId,
    pub fd: OwnedFd,
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

fn open_vms(dirs: &Dirs) -> Result<Option<OwnedFd>> {
    let vms = dirs.run.join("vms");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat2(CWD, &vms, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error).attempt(|| format!("opening {}", vms.display())),
    }
}

/// Opens the directory of a sandbox.
pub fn open(dirs: &Dirs, name: &str) -> Result<SandboxDir> {
    let id = SandboxId::parse(name).map_err(|_| Error::BadName(crate::sanitize::line(name, 80)))?;
    let vms = open_vms(dirs)?.ok_or_else(|| Error::NoSandbox(name.into()))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat2(&vms, id.as_str(), flags, Mode::empty(), BENEATH) {
        Ok(fd) => Ok(SandboxDir { name: id, fd }),
        Err(Errno::NOENT) => Err(Error::NoSandbox(name.into())),
        Err(error) => Err(error).attempt(|| format!("opening the directory of sandbox '{name}'")),
    }
}

/// The record of one sandbox.
pub fn load(dirs: &Dirs, name: &str) -> Result<Entry> {
    open(dirs, name)?.entry()
}

/// All sandboxes, oldest first.
pub fn list(dirs: &Dirs) -> Result<Listing> {
    let mut listing = Listing::default();
    let Some(vms) = open_vms(dirs)? else { return Ok(listing) };
    let what = || format!("listing {}", dirs.run.join("vms").display());
    for found in Dir::read_from(&vms).attempt(what)?.take(MAX_SANDBOXES) {
        let found = found.attempt(what)?;
        let name = found.file_name().to_string_lossy().into_owned();
        if name == "." || name == ".." {
            continue;
        }
        // By the name as it is: what is shown of it may be another.
        let modified = || {
            let is = statat(&vms, found.file_name(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(is.st_mtime.try_into().ok()?))
        };
        match load(dirs, &name) {
            Ok(entry) => listing.entries.push(entry),
            // It ended and was removed since.
            Err(Error::NoSandbox(_)) => {}
            Err(error) => {
                let problem = match error {
                    Error::Record { problem, .. } => problem,
                    other => crate::sanitize::line(&other.to_string(), 300),
                };
                let name = crate::sanitize::line(&name, 80);
                listing.damaged.push(Damaged { name, problem, modified: modified() });
            }
        }
    }
    listing.entries.sort_by(|a, b| (a.record.created, &a.record.name).cmp(&(b.record.created, &b.record.name)));
    listing.damaged.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(listing)
}

/// What is kept of failed starts and of removed sandboxes, oldest first. A file that is none of ours is left out.
pub fn past(dirs: &Dirs) -> Result<Vec<Past>> {
    let path = dirs.run.join("past");
    let what = || format!("reading {}", path.display());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = match openat2(CWD, &path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(error) => return Err(error).attempt(what),
    };
    let dir = SandboxDir { name: SandboxId::parse("past").map_err(|_| Error::BadName("past".into()))?, fd };
    let mut names = Vec::new();
    for found in Dir::read_from(&dir.fd).attempt(what)?.take(MAX_LIST) {
        let name = found.attempt(what)?.file_name().to_string_lossy().into_owned();
        names.extend((name.ends_with(".json") && !name.starts_with('.')).then_some(name));
    }
    names.sort();
    let read = |name: &String| serde_json::from_slice(&dir.read(name).ok()??).ok();
    Ok(names.iter().filter_map(read).collect())
}

impl SandboxDir {
    /// When it ended, in seconds since the epoch; `None` while it lives.
    pub fn ended(&self) -> Option<u64> {
        u64::try_from(fstat(self.open_file("exit.json").ok()?).ok()?.st_mtime).ok()
    }

    /// Its record, checked: `exit.json` if there is one, else `state.json`.
    pub fn entry(&self) -> Result<Entry> {
        let damaged = |problem: String| Error::Record { name: self.name.to_string(), problem };
        let bytes = match self.read("exit.json").map_err(damaged)? {
            Some(bytes) => bytes,
            None => self
                .read("state.json")
                .map_err(damaged)?
                .ok_or_else(|| damaged("there is none yet: it is being started, or its start was killed".to_owned()))?,
        };
        let record: SandboxRecord = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        check(&record, &self.name).map_err(|problem| damaged(problem.into()))?;
        let status = status(&record);
        Ok(Entry { record, status })
    }

    fn read(&self, file: &str) -> std::result::Result<Option<Vec<u8>>, String> {
        let fd = match self.open_file(file) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::INVAL) => return Err(format!("{file} is no regular file")),
            Err(error) => return Err(format!("{file}: {}", std::io::Error::from(error))),
        };
        let mut bytes = Vec::new();
        let read = File::from(fd).take(MAX_RECORD + 1).read_to_end(&mut bytes);
        read.map_err(|e| format!("{file}: {e}"))?;
        if bytes.len() as u64 > MAX_RECORD {
            return Err(format!("{file} is larger than {MAX_RECORD} bytes"));
        }
        Ok(Some(bytes))
    }

    /// Opens a regular file of the sandbox for reading; EINVAL for anything else.
    pub fn open_file(&self, file: &str) -> std::result::Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = openat2(&self.fd, file, flags, Mode::empty(), BENEATH)?;
        match FileType::from_raw_mode(fstat(&fd)?.st_mode) {
            FileType::RegularFile => Ok(fd),
            _ => Err(Errno::INVAL),
        }
    }

    /// A path to a socket in it that fits into a socket address, however long the run directory's name is.
    pub fn socket(&self, file: &str) -> std::path::PathBuf {
        use std::os::fd::AsRawFd;
        Path::new("/proc/self/fd").join(self.fd.as_raw_fd().to_string()).join(file)
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What the strict form does not say yet.
fn check(record: &SandboxRecord, name: &SandboxId) -> std::result::Result<(), &'static str> {
    if record.version != record::VERSION {
        return Err("its version is not known to this program");
    }
    if record.name != name.as_str() {
        return Err("it names another sandbox than its directory");
    }
    let lists = [record.warnings.len(), record.command.len(), record.labels.len(), record.findings.len()];
    if lists.into_iter().any(|length| length > MAX_LIST) || record.cgroups.len() > 64 {
        return Err("it holds an overlong list");
    }
    if record.warden.pid == 0 || record.runner.is_some_and(|runner| runner.pid == 0) {
        return Err("it names a process that cannot be");
    }
    Ok(())
}

fn status(record: &SandboxRecord) -> Status {
    match record.phase {
        Phase::Stopped => Status::Exited,
        _ if !is_alive(&record.warden, &record.boot_id) => Status::Lost,
        Phase::Starting => Status::Starting,
        Phase::Running => Status::Running,
        Phase::Paused => Status::Paused,
    }
}

/// Whether a process is still the one that was named.
pub fn is_alive(process: &ProcessName, boot_id: &str) -> bool {
    let this_boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    this_boot.trim() == boot_id.trim() && start_time(process.pid) == Some(process.start_time)
}

/// Field 22 of /proc/PID/stat; `None` also for a zombie.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // The name (field 2) may hold anything, a parenthesis too: the last one ends it.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
