//! The kernel's own interface to the loaded policy, verified to be it.
//!
//! Trust: whoever may mount can put anything over /sys/fs/selinux. So the handle is a selinuxfs by
//! `fstatfs`, and every file below it is opened beneath the handle without crossing a mount or a
//! link: what answers is the kernel or nothing. The handle stays good for the life of its holder.
//!
//! A question costs nothing and changes nothing (kernel `security/selinux/selinuxfs.c`,
//! `sel_write_access`): `access` answers for contexts that no process has.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::context::Context;
use crate::exec_label::VerifiedProc;

pub const SELINUXFS: &str = "/sys/fs/selinux";
const SELINUX_MAGIC: u64 = 0xf97c_ff8c;
const SYSFS_MAGIC: u64 = 0x6265_6572;

/// Why the policy cannot be asked although SELinux is on.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    #[error("SELinux is on, but its file system is not mounted at {}", .0.display())]
    NotMounted(PathBuf),
    #[error("what is mounted at {} is not selinuxfs (file system type {kind:#x}): it hides the kernel's answers", .path.display())]
    Covered { path: PathBuf, kind: u64 },
    #[error("cannot open {}: {source}", .path.display())]
    Open { path: PathBuf, source: io::Error },
}

impl FsError {
    pub fn remedy(&self) -> String {
        match self {
            FsError::NotMounted(path) => format!("mount -t selinuxfs selinuxfs {}", path.display()),
            FsError::Covered { path, .. } => {
                format!(
                    "umount {}, and find out who mounted it: nothing this host says of SELinux can be believed until then",
                    path.display()
                )
            }
            FsError::Open { path, .. } => {
                format!("start as root in a domain that may read {} (`casemate policy install`)", path.display())
            }
        }
    }
}

impl From<FsError> for io::Error {
    fn from(error: FsError) -> Self {
        io::Error::other(error)
    }
}

/// The kernel's answer for one (subject, object, class).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    pub allowed: u32,
    pub seqno: u32,
    pub flags: u32,
}

impl Decision {
    /// `SELINUX_AVD_FLAGS_PERMISSIVE`: the subject's domain is permissive.
    pub fn is_permissive(&self) -> bool {
        self.flags & 1 != 0
    }
}

/// A selinuxfs of the running kernel.
#[derive(Debug)]
pub struct SelinuxFs(OwnedFd);

impl SelinuxFs {
    /// The one at its usual place. `None` when SELinux is off.
    pub fn here() -> Result<Option<Self>, FsError> {
        Self::open(Path::new(SELINUXFS))
    }

    /// `None` when SELinux is off: nothing is mounted there, and the kernel offers no such file system.
    pub fn open(path: &Path) -> Result<Option<Self>, FsError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let failed = |source: io::Error| FsError::Open { path: path.to_owned(), source };
        let root = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(root) => root,
            Err(rustix::io::Errno::NOENT) if kernel_offers_it() => return Err(FsError::NotMounted(path.to_owned())),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(e) => return Err(failed(e.into())),
        };
        let kind = |fd: &OwnedFd| rustix::fs::fstatfs(fd).map(|fs| fs.f_type as u64 & 0xffff_ffff);
        match kind(&root).map_err(|e| failed(e.into()))? {
            SELINUX_MAGIC => Ok(Some(Self(root))),
            _ if !kernel_offers_it() => Ok(None),
            // an empty directory of sysfs, made for the mount
            SYSFS_MAGIC => Err(FsError::NotMounted(path.to_owned())),
            kind => Err(FsError::Covered { path: path.to_owned(), kind }),
        }
    }

    fn file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
        let fd = rustix::fs::openat2(&self.0, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
        fd.map(File::from).map_err(|e| {
            let e = io::Error::from(e);
            io::Error::new(e.kind(), format!("{SELINUXFS}/{name}: {e}"))
        })
    }

    /// One of its files, open for reading; for `status`, which is read again and again.
    pub fn reader(&self, name: &str) -> io::Result<File> {
        self.file(name, OFlags::RDONLY)
    }

    fn read(&self, name: &str) -> io::Result<String> {
        let mut text = String::new();
        self.reader(name)?.read_to_string(&mut text)?;
        Ok(text)
    }

    pub fn enforcing(&self) -> io::Result<bool> {
        Ok(self.read("enforce")?.trim_end() == "1")
    }

    /// Classes and permissions that the policy does not know are denied, not allowed.
    pub fn deny_unknown(&self) -> io::Result<bool> {
        Ok(self.read("deny_unknown")?.trim_end() == "1")
    }

    /// The policy has levels.
    pub fn mls(&self) -> io::Result<bool> {
        Ok(self.read("mls")?.trim_end() == "1")
    }

    /// The boolean in force (`current pending`); `None` where the policy has none of the name.
    pub fn boolean(&self, name: &str) -> io::Result<Option<bool>> {
        match self.read(&format!("booleans/{name}")) {
            Ok(text) => Ok(Some(text.starts_with('1'))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// A policy capability, as `nnp_nosuid_transition`; false where the kernel or the policy has none of the name.
    pub fn capability(&self, name: &str) -> bool {
        self.read(&format!("policy_capabilities/{name}")).is_ok_and(|text| text.starts_with('1'))
    }

    /// True when the loaded policy accepts the context. Needs `security check_context`.
    pub fn is_valid(&self, context: &Context) -> bool {
        let mut raw = context.to_string().into_bytes();
        raw.push(0);
        self.file("context", OFlags::WRONLY).and_then(|mut f| f.write_all(&raw)).is_ok()
    }

    /// Needs `security compute_av`.
    pub fn access(&self, subject: &Context, object: &Context, class: &str) -> io::Result<Decision> {
        let index = self.number(&format!("class/{class}/index"))?;
        let mut file = self.file("access", OFlags::RDWR)?;
        file.write_all(format!("{subject} {object} {index}\0").as_bytes())?;
        // the answer stands on the same open file, from offset 0
        file.seek(SeekFrom::Start(0))?;
        let mut answer = [0; 256];
        let n = file.read(&mut answer)?;
        parse_decision(&answer[..n]).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The bit of a permission in its class. Numbers differ between policies.
    pub fn permission(&self, class: &str, perm: &str) -> io::Result<u32> {
        let bit = self.number(&format!("class/{class}/perms/{perm}"))?;
        if (1..=32).contains(&bit) { Ok(1 << (bit - 1)) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// May the subject do this? A class or permission that the policy does not know is answered as the kernel does:
    /// by `deny_unknown`.
    pub fn allows(&self, subject: &Context, object: &Context, class: &str, perm: &str) -> io::Result<bool> {
        let unknown = |e: io::Error| {
            if e.kind() == io::ErrorKind::NotFound { self.deny_unknown().map(|deny| !deny) } else { Err(e) }
        };
        let bit = match self.permission(class, perm) {
            Ok(bit) => bit,
            Err(e) => return unknown(e),
        };
        match self.access(subject, object, class) {
            Ok(decision) => Ok(decision.allowed & bit != 0),
            Err(e) => unknown(e),
        }
    }

    fn number(&self, name: &str) -> io::Result<u32> {
        self.read(name)?.trim_end().parse().map_err(|_| io::ErrorKind::InvalidData.into())
    }
}

/// SELinux is part of the running kernel and not switched off: only then is its file system registered
/// (`init_sel_fs`). A /proc that is not procfs says nothing, and nothing is taken for "on".
fn kernel_offers_it() -> bool {
    let Ok(proc) = VerifiedProc::open_host() else { return true };
    let Ok(list) = proc.read("filesystems") else { return true };
    String::from_utf8_lossy(&list).lines().any(|line| line.split_whitespace().last() == Some("selinuxfs"))
}

/// `allowed decided auditallow auditdeny seqno flags`: four in hex, one decimal, one hex.
fn parse_decision(raw: &[u8]) -> Option<Decision> {
    let text = std::str::from_utf8(raw).ok()?;
    let mut fields = text.trim_end_matches(['\0', '\n']).split(' ');
    let allowed = u32::from_str_radix(fields.next()?, 16).ok()?;
    let seqno = fields.nth(3)?.parse().ok()?;
    let flags = fields.next().map_or(Some(0), |f| u32::from_str_radix(f, 16).ok())?;
    Some(Decision { allowed, seqno, flags })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_parsed_as_the_kernel_prints_them() {
        let d = parse_decision(b"2fff ffffffff 0 fffffffa 7 1").unwrap();
        assert_eq!(d, Decision { allowed: 0x2fff, seqno: 7, flags: 1 });
        assert!(d.is_permissive() && !Decision { flags: 2, ..d }.is_permissive());
        assert!(parse_decision(b"").is_none());
        assert!(parse_decision(b"zz ffffffff 0 0 1 0").is_none());
        assert!(parse_decision(b"1 2 3").is_none());
    }

    /// On a kernel with SELinux the same directory is a cover: never "off", never asked.
    #[test]
    fn svirt_51_a_directory_that_is_not_selinuxfs_is_never_asked() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("enforce"), "1").unwrap();
        match SelinuxFs::open(dir.path()) {
            Ok(None) => assert!(!kernel_offers_it()),
            Err(FsError::Covered { .. }) => assert!(kernel_offers_it()),
            other => panic!("{other:?}"),
        }
        match SelinuxFs::open(Path::new("/nonexistent/selinux")) {
            Ok(None) => assert!(!kernel_offers_it()),
            Err(FsError::NotMounted(_)) => assert!(kernel_offers_it()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_failure_has_its_own_remedy() {
        let path = PathBuf::from(SELINUXFS);
        let all = [
            FsError::NotMounted(path.clone()),
            FsError::Covered { path: path.clone(), kind: 0x0102_1994 },
            FsError::Open { path, source: io::ErrorKind::PermissionDenied.into() },
        ];
        let remedies: std::collections::BTreeSet<String> = all.iter().map(FsError::remedy).collect();
        assert_eq!(remedies.len(), all.len());
    }
}
