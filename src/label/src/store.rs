//! The xattrs this room reads and writes, and nothing else about files.
//!
//! Called by `relabel`. The trait exists because unit tests run without root and on hosts
//! without SELinux; what the kernel really does is shown in the kvm and testbed tiers.

use std::io;
use std::os::fd::BorrowedFd;

/// The label of an object.
pub const LABEL: &str = "security.selinux";
/// Our memory of the original label and of the owners.
pub const OWNERS: &str = "trusted.casemate.owners";
/// Any of these means that libvirt is labelling this file.
pub const LIBVIRT: [&str; 3] = [
    "trusted.libvirt.security.selinux",
    "trusted.libvirt.security.ref_selinux",
    "trusted.libvirt.security.timestamp_selinux",
];

pub trait LabelStore {
    /// `None`: no such attribute, or the file system keeps none.
    fn get(&self, fd: BorrowedFd<'_>, name: &str) -> io::Result<Option<Vec<u8>>>;
    fn set(&self, fd: BorrowedFd<'_>, name: &str, value: &[u8]) -> io::Result<()>;
    /// Absent is success.
    fn remove(&self, fd: BorrowedFd<'_>, name: &str) -> io::Result<()>;
}

/// The kernel's xattrs.
#[derive(Debug, Clone, Copy, Default)]
pub struct XattrStore;

impl LabelStore for XattrStore {
    fn get(&self, fd: BorrowedFd<'_>, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; 65536];
        match rustix::fs::fgetxattr(fd, name, &mut value[..]) {
            Ok(n) => {
                value.truncate(n);
                Ok(Some(value))
            }
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn set(&self, fd: BorrowedFd<'_>, name: &str, value: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::fsetxattr(fd, name, value, rustix::fs::XattrFlags::empty())?)
    }

    fn remove(&self, fd: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        match rustix::fs::fremovexattr(fd, name) {
            Ok(()) | Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}
