//! The run directory: `RUN/vms/<name>/` with the journal, the records, the logs and the sockets of one sandbox.
//! Root's alone. Everything is reached from a directory descriptor; no path is walked twice.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use casemate_spec::SandboxId;
use casemate_sys::path::{self, Mode, OFlags};
use casemate_wire::record::SandboxRecord;
use rustix::fs::FileType;
use serde::Serialize;

use crate::error::StepFailed;

const STAGE: &str = "prepare the run directory";
pub const STATE: &str = "state.json";
pub const EXIT: &str = "exit.json";
pub const CONTROL: &str = "control.sock";
pub const VSOCK: &str = "vsock.sock";
/// A record is never larger, in bytes.
const MAX_RECORD: usize = 1 << 20;

/// `RUN`, `RUN/vms`: made if absent, refused if somebody else could change them.
pub struct RunDir {
    path: PathBuf,
    root: OwnedFd,
    vms: OwnedFd,
}

/// `RUN/vms/<name>`.
pub struct SandboxDir {
    path: PathBuf,
    fd: OwnedFd,
}

fn failed(error: impl std::error::Error) -> StepFailed {
    StepFailed::stage(STAGE, error)
}

impl RunDir {
    /// Opens the run directory, and makes it if `create`.
    pub fn open(run_dir: &Path, create: bool) -> Result<Self, StepFailed> {
        let root = open_private(run_dir, create)?;
        if create
            && let Err(error) = rustix::fs::mkdirat(&root, "vms", Mode::from_raw_mode(0o700))
            && error != rustix::io::Errno::EXIST
        {
            return Err(failed(std::io::Error::from(error)));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let vms = path::open_beneath(root.as_fd(), Path::new("vms"), flags, Mode::empty()).map_err(failed)?;
        Ok(RunDir { path: run_dir.to_path_buf(), root, vms })
    }

    /// The run directory as it is; `None` where there is none, and so no sandbox. Makes and changes nothing.
    pub fn find(run_dir: &Path) -> Result<Option<Self>, StepFailed> {
        match run_dir.join("vms").exists() {
            true => Self::open(run_dir, false).map(Some),
            false => Ok(None),
        }
    }

    /// `RUN` itself.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Makes the directory of a new sandbox. One that exists is somebody's: refused, with what to do.
    pub fn reserve(&self, name: &SandboxId) -> Result<SandboxDir, StepFailed> {
        match path::create_dir(self.vms.as_fd(), name.as_str(), 0o700) {
            Ok(fd) => Ok(SandboxDir { path: self.path.join("vms").join(name.as_str()), fd }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(StepFailed::because(
                STAGE,
                format!("the name {name} is in use; choose another, or `casemate rm {name}` once it has ended"),
            )),
            Err(error) => Err(failed(error)),
        }
    }

    /// The directory of an existing sandbox.
    pub fn existing(&self, name: &SandboxId) -> Result<SandboxDir, StepFailed> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        match path::open_beneath(self.vms.as_fd(), Path::new(name.as_str()), flags, Mode::empty()) {
            Ok(fd) => Ok(SandboxDir { path: self.path.join("vms").join(name.as_str()), fd }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(StepFailed::because(
                "find the sandbox",
                format!("there is no sandbox {name}; `casemate ps -a` lists them"),
            )),
            Err(error) => Err(failed(error)),
        }
    }

    /// Names of all sandboxes that have a directory.
    pub fn names(&self) -> Result<Vec<SandboxId>, StepFailed> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.vms).map_err(|e| failed(std::io::Error::from(e)))? {
            let entry = entry.map_err(|e| failed(std::io::Error::from(e)))?;
            if let Ok(name) = SandboxId::parse(&entry.file_name().to_string_lossy()) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Held between making a sandbox's directory and its journal, and while repairing.
    pub fn lock(&self) -> Result<OwnedFd, StepFailed> {
        let fd =
            path::open_beneath(self.vms.as_fd(), Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
                .map_err(failed)?;
        rustix::fs::flock(&fd, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|e| failed(std::io::Error::from(e)))?;
        Ok(fd)
    }

    /// Does a sandbox of that name still have a journal?
    pub fn has_journal(&self, name: &SandboxId) -> bool {
        let journal = Path::new(name.as_str()).join(casemate_label::journal::JOURNAL);
        path::open_beneath(self.vms.as_fd(), &journal, OFlags::PATH, Mode::empty()).is_ok()
    }

    /// Removes a sandbox's directory with the files in it.
    pub fn remove(&self, dir: SandboxDir, name: &SandboxId) -> Result<(), StepFailed> {
        dir.empty(&[])?;
        rustix::fs::unlinkat(&self.vms, name.as_str(), rustix::fs::AtFlags::REMOVEDIR)
            .map_err(|e| failed(std::io::Error::from(e)))
    }
}

/// A directory of root's that nobody else can write, reached without symlinks.
fn open_private(run_dir: &Path, create: bool) -> Result<OwnedFd, StepFailed> {
    if create
        && let Err(error) = rustix::fs::mkdir(run_dir, Mode::from_raw_mode(0o700))
        && error != rustix::io::Errno::EXIST
    {
        let error = std::io::Error::from(error);
        return Err(StepFailed::because(STAGE, format!("cannot create {}: {error}", run_dir.display())));
    }
    let fd = path::open_no_symlinks(run_dir, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
    let is = path::identity(&fd).map_err(failed)?;
    if is.kind != FileType::Directory || is.uid != rustix::process::geteuid().as_raw() || is.mode & 0o022 != 0 {
        let shown = run_dir.display();
        let problem =
            format!("{shown} must be a directory of root's that only root can write; remove it, or chmod 0700");
        return Err(StepFailed::because(STAGE, problem));
    }
    // Made by a package or tmpfiles.d with the usual mode: nobody else could write, now nobody else can look either.
    if create && is.mode & 0o077 != 0 {
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o700)).map_err(|e| failed(std::io::Error::from(e)))?;
    }
    Ok(fd)
}

impl SandboxDir {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A second handle of the same directory.
    pub fn try_clone(&self) -> Result<Self, StepFailed> {
        Ok(SandboxDir { path: self.path.clone(), fd: self.fd.try_clone().map_err(failed)? })
    }

    /// Makes a file that did not exist, readable and writable by root.
    pub fn create(&self, name: &str) -> Result<OwnedFd, StepFailed> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        path::open_beneath(self.fd.as_fd(), Path::new(name), flags, Mode::from_raw_mode(0o600)).map_err(failed)
    }

    /// Replaces a record in one step.
    pub fn write_record(&self, name: &str, record: &impl Serialize) -> Result<(), StepFailed> {
        let json = serde_json::to_vec(record).map_err(failed)?;
        let new = format!("{name}.new");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let fd =
            path::open_beneath(self.fd.as_fd(), Path::new(&new), flags, Mode::from_raw_mode(0o600)).map_err(failed)?;
        std::fs::File::from(fd).write_all(&json).map_err(failed)?;
        rustix::fs::renameat(&self.fd, new.as_str(), &self.fd, name).map_err(|e| failed(std::io::Error::from(e)))
    }

    /// The record, if there is one.
    pub fn read_record(&self, name: &str) -> Result<Option<SandboxRecord>, StepFailed> {
        match path::read_beneath(self.fd.as_fd(), name, MAX_RECORD) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(failed),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// When the record was written, in seconds since the epoch; `None` if there is none.
    pub fn written_at(&self, name: &str) -> Option<u64> {
        let fd = path::open_beneath(self.fd.as_fd(), Path::new(name), OFlags::PATH, Mode::empty()).ok()?;
        u64::try_from(rustix::fs::fstat(&fd).ok()?.st_mtime).ok()
    }

    /// The last bytes of the console's two log files, as text without control characters.
    pub fn console_tail(&self, max: usize) -> Option<String> {
        let mut files: Vec<(std::time::SystemTime, Vec<u8>)> = Vec::new();
        for name in casemate_plan::names::CONSOLE_LOG {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK;
            let fd = path::open_beneath(self.fd.as_fd(), Path::new(name), flags, Mode::empty()).ok()?;
            let mut file = std::fs::File::from(fd);
            let length = file.metadata().ok()?.len();
            let mut bytes = Vec::new();
            std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(length.saturating_sub(max as u64))).ok()?;
            std::io::Read::read_to_end(&mut std::io::Read::take(&mut file, max as u64), &mut bytes).ok()?;
            files.push((file.metadata().ok()?.modified().ok()?, bytes));
        }
        files.sort_by_key(|(modified, _)| *modified);
        let all: Vec<u8> = files.into_iter().flat_map(|(_, bytes)| bytes).collect();
        let tail = &all[all.len().saturating_sub(max)..];
        let text: String = String::from_utf8_lossy(tail).chars().filter(|c| *c == '\n' || !c.is_control()).collect();
        (!text.trim().is_empty()).then(|| text.trim().to_owned())
    }

    /// Is there a file that is not in `keep`?
    pub fn has_more_than(&self, keep: &[&str]) -> Result<bool, StepFailed> {
        for entry in rustix::fs::Dir::read_from(&self.fd).map_err(|e| failed(std::io::Error::from(e)))? {
            let entry = entry.map_err(|e| failed(std::io::Error::from(e)))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." && !keep.contains(&name.as_str()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes every file but those in `keep`.
    pub fn empty(&self, keep: &[&str]) -> Result<(), StepFailed> {
        for entry in rustix::fs::Dir::read_from(&self.fd).map_err(|e| failed(std::io::Error::from(e)))? {
            let entry = entry.map_err(|e| failed(std::io::Error::from(e)))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == "." || name == ".." || keep.contains(&name.as_str()) {
                continue;
            }
            rustix::fs::unlinkat(&self.fd, name.as_str(), rustix::fs::AtFlags::empty())
                .map_err(|e| failed(std::io::Error::from(e)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn id(name: &str) -> SandboxId {
        SandboxId::parse(name).unwrap()
    }

    #[test]
    fn a_name_has_one_owner_and_can_be_reused_after_removal() {
        let temp = tempfile::tempdir().unwrap();
        let run = RunDir::open(&temp.path().join("run"), true).unwrap();
        let dir = run.reserve(&id("a")).unwrap();
        assert!(run.reserve(&id("a")).err().unwrap().to_string().contains("in use"));
        dir.create("x").unwrap();
        assert!(dir.create("x").is_err(), "a file is made once");
        assert_eq!(run.names().unwrap(), [id("a")]);
        run.remove(dir, &id("a")).unwrap();
        assert!(run.existing(&id("a")).is_err());
        run.reserve(&id("a")).unwrap();
    }

    #[test]
    fn a_run_directory_that_others_can_write_or_behind_a_symlink_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let open = temp.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(RunDir::open(&open, true).is_err());
        let link = temp.path().join("link");
        symlink(temp.path().join("elsewhere"), &link).unwrap();
        assert!(RunDir::open(&link, true).is_err());
    }

    #[test]
    fn a_planted_symlink_is_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let run = RunDir::open(&temp.path().join("run"), true).unwrap();
        let dir = run.reserve(&id("a")).unwrap();
        symlink("/etc/passwd", dir.path().join("state.json.new")).unwrap();
        assert!(dir.write_record("state.json", &1).is_err());
        symlink("/etc/passwd", dir.path().join("log")).unwrap();
        assert!(dir.create("log").is_err());
    }
}
