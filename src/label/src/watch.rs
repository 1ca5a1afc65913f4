//! News of the loaded policy, without asking all the time.
//!
//! ```text
//! kernel: setenforce, a policy load, a boolean --> NETLINK_SELINUX group AVC --> poll wakes --> verify again
//! ```
//! Trust: a message is a reason to ask, never an answer: its content is not looked at. What is true stands in
//! selinuxfs. The kernel sends to the first network namespace only (`security/selinux/netlink.c`), so elsewhere, and
//! where the socket is refused, selinuxfs' `status` page is read at intervals instead.
//! Called by the warden: opened before it narrows itself, then only polled and read.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use crate::exec_label::VerifiedProc;
use crate::selinuxfs::SelinuxFs;

/// `SELNLGRP_AVC` as a bit of the address (linux/selinux_netlink.h).
const GROUP_AVC: u32 = 1;
/// Between two looks at the status page where no message comes.
const INTERVAL: Duration = Duration::from_secs(2);
/// Messages taken at once. What is left wakes the next poll.
const MAX_DRAIN: usize = 256;

/// selinuxfs' `status` page (`struct selinux_kernel_status`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelStatus {
    /// Moves with every change of the others; odd while they are written.
    pub sequence: u32,
    pub enforcing: bool,
    /// Counts loads of a policy and changes of booleans.
    pub policyload: u32,
    pub deny_unknown: bool,
}

#[derive(Debug)]
pub struct PolicyWatch {
    /// `None`: nothing would come; [`PolicyWatch::interval`] says how often to look.
    socket: Option<OwnedFd>,
    status: File,
    /// Why there is no socket.
    blind: Option<String>,
}

impl PolicyWatch {
    pub fn open(fs: &SelinuxFs) -> io::Result<Self> {
        let status = fs.reader("status")?;
        let (socket, blind) = match subscribe() {
            Ok(socket) => (Some(socket), None),
            Err(e) => (None, Some(e.to_string())),
        };
        let watch = Self { socket, status, blind };
        watch.status()?;
        Ok(watch)
    }

    /// Readable when there may be news.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// How often to look where nothing wakes the poll.
    pub fn interval(&self) -> Option<Duration> {
        self.socket.is_none().then_some(INTERVAL)
    }

    /// Why it looks at intervals instead of being told.
    pub fn blind(&self) -> Option<&str> {
        self.blind.as_deref()
    }

    /// Takes what waits, a bounded number. An overrun (ENOBUFS: more came than the socket holds) is news like any other.
    pub fn drain(&self) {
        let Some(socket) = &self.socket else { return };
        let mut buffer = [0u8; 256];
        for _ in 0..MAX_DRAIN {
            match rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok(_) | Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// The page as it is, consistent in itself.
    pub fn status(&self) -> io::Result<KernelStatus> {
        for _ in 0..100 {
            let mut page = [0; 20];
            self.status.read_exact_at(&mut page, 0)?;
            if let Some(status) = parse_status(&page) {
                return Ok(status);
            }
            std::thread::yield_now();
        }
        Err(io::Error::other("selinuxfs' status page does not come to rest"))
    }
}

/// `version sequence enforcing policyload deny_unknown`, native u32. `None` while it is written, or of another version.
fn parse_status(page: &[u8; 20]) -> Option<KernelStatus> {
    let mut fields = page.chunks_exact(4).map(|c| u32::from_ne_bytes([c[0], c[1], c[2], c[3]]));
    let mut next = || fields.next().unwrap_or_default();
    let (version, sequence) = (next(), next());
    let status = KernelStatus { sequence, enforcing: next() != 0, policyload: next(), deny_unknown: next() != 0 };
    (version >= 1 && sequence % 2 == 0).then_some(status)
}

fn subscribe() -> io::Result<OwnedFd> {
    if !in_first_network_namespace() {
        return Err(io::Error::other("the kernel tells of its policy in the host's network namespace only"));
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::SELINUX))?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUP_AVC))?;
    Ok(socket)
}

/// Some settings of the network exist in the first namespace only (net/core/sysctl_net_core.c, `net_core_table`), and
/// /proc/sys shows its reader's namespace. Nothing is opened but a name.
fn in_first_network_namespace() -> bool {
    VerifiedProc::open_host().is_ok_and(|proc| proc.has("sys/net/core/netdev_budget"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(fields: [u32; 5]) -> [u8; 20] {
        let mut page = [0; 20];
        page.chunks_exact_mut(4).zip(fields).for_each(|(to, field)| to.copy_from_slice(&field.to_ne_bytes()));
        page
    }

    #[test]
    fn svirt_52_the_status_page_is_read_as_the_kernel_writes_it() {
        let status = parse_status(&page([1, 4, 1, 7, 0])).unwrap();
        assert_eq!(status, KernelStatus { sequence: 4, enforcing: true, policyload: 7, deny_unknown: false });
        assert!(parse_status(&page([1, 5, 1, 7, 0])).is_none(), "it is being written");
        assert!(parse_status(&page([0, 0, 0, 0, 0])).is_none(), "no version");
    }
}
