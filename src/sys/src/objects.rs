//! Kernel objects of the classes that no file path names: System V and POSIX IPC, keys, vsock, taps, io_uring,
//! userfaultfd, KVM. Made and used with the least that shows whether one may. For trials; no other caller.
//!
//! An error past the permission checks shows that no layer said no: the caller judges the errno.

use crate::error::check;
use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// System V IPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipc {
    Shm,
    Sem,
    Msg,
}

const PAGE: usize = 4096;
const OWNER_ONLY: i32 = 0o600;

fn raw(number: libc::c_long, args: [usize; 5]) -> io::Result<i64> {
    let [a, b, c, d, e] = args;
    // SAFETY: callers in this module pass numbers, or addresses of live buffers of the size that the call uses.
    check(unsafe { libc::syscall(number, a, b, c, d, e) })
}

fn owned(number: i64) -> io::Result<OwnedFd> {
    let number = i32::try_from(number).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the call that returned the number just made this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

impl Ipc {
    /// A new one with a private key, for the owner alone. Returns its id; it lives until [`Ipc::remove`].
    pub fn make(self) -> io::Result<i32> {
        let flags = (libc::IPC_CREAT | OWNER_ONLY) as usize;
        let key = libc::IPC_PRIVATE as usize;
        let id = match self {
            Self::Shm => raw(libc::SYS_shmget, [key, PAGE, flags, 0, 0]),
            Self::Sem => raw(libc::SYS_semget, [key, 1, flags, 0, 0]),
            Self::Msg => raw(libc::SYS_msgget, [key, flags, 0, 0, 0]),
        }?;
        i32::try_from(id).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Attaches the segment for writing, raises the semaphore, or receives a message, of which there are none (ENOMSG).
    /// EINVAL: no such id here. (A message to be sent has a label of its own, which is judged too.)
    pub fn touch(self, id: i32) -> io::Result<()> {
        match self {
            Self::Shm => {
                let address = raw(libc::SYS_shmat, [id as usize, 0, 0, 0, 0])?;
                raw(libc::SYS_shmdt, [address as usize, 0, 0, 0, 0]).map(drop)
            }
            Self::Sem => {
                let raise = libc::sembuf { sem_num: 0, sem_op: 1, sem_flg: libc::IPC_NOWAIT as i16 };
                raw(libc::SYS_semop, [id as usize, (&raw const raise) as usize, 1, 0, 0]).map(drop)
            }
            Self::Msg => {
                let mut message = [0u64; 2];
                let flags = libc::IPC_NOWAIT as usize;
                match raw(libc::SYS_msgrcv, [id as usize, message.as_mut_ptr() as usize, 8, 0, flags]) {
                    Err(error) if error.raw_os_error() == Some(libc::ENOMSG) => Ok(()),
                    other => other.map(drop),
                }
            }
        }
    }

    pub fn remove(self, id: i32) -> io::Result<()> {
        let (id, remove) = (id as usize, libc::IPC_RMID as usize);
        let args = if self == Self::Sem { [id, 0, remove, 0, 0] } else { [id, remove, 0, 0, 0] };
        let number = match self {
            Self::Shm => libc::SYS_shmctl,
            Self::Sem => libc::SYS_semctl,
            Self::Msg => libc::SYS_msgctl,
        };
        raw(number, args).map(drop)
    }
}

/// Opens the POSIX message queue `name` (no slash) for reading and writing; makes it, and nothing else, if `create`.
pub fn queue(name: &CStr, create: bool) -> io::Result<OwnedFd> {
    let flags =
        libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK | if create { libc::O_CREAT | libc::O_EXCL } else { 0 };
    owned(raw(libc::SYS_mq_open, [name.as_ptr() as usize, flags as usize, OWNER_ONLY as usize, 0, 0])?)
}

pub fn remove_queue(name: &CStr) -> io::Result<()> {
    raw(libc::SYS_mq_unlink, [name.as_ptr() as usize, 0, 0, 0, 0]).map(drop)
}

/// A key in the process's own keyring that everybody's DAC may read. Returns its serial; it goes with the process.
pub fn make_key() -> io::Result<i32> {
    const KEY_SPEC_PROCESS_KEYRING: isize = -2;
    const KEYCTL_SETPERM: usize = 5;
    // All rights for possessor, user, group and others: of the layers only LSMs are left to refuse (keyctl_setperm(3)).
    const EVERYBODY: usize = 0x3f3f_3f3f;
    let payload = b"casemate";
    let args = [
        c"user".as_ptr() as usize,
        c"casemate-trial".as_ptr() as usize,
        payload.as_ptr() as usize,
        payload.len(),
        KEY_SPEC_PROCESS_KEYRING as usize,
    ];
    let serial = raw(libc::SYS_add_key, args)?;
    raw(libc::SYS_keyctl, [KEYCTL_SETPERM, serial as usize, EVERYBODY, 0, 0])?;
    i32::try_from(serial).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// KEYCTL_READ of a key by its serial.
pub fn read_key(serial: i32) -> io::Result<()> {
    const KEYCTL_READ: usize = 11;
    let mut buffer = [0u8; 64];
    raw(libc::SYS_keyctl, [KEYCTL_READ, serial as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0]).map(drop)
}

fn vsock() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    owned(raw(libc::SYS_socket, [libc::AF_VSOCK as usize, kind as usize, 0, 0, 0])?)
}

fn vsock_address(cid: u32, port: u32) -> libc::sockaddr_vm {
    libc::sockaddr_vm {
        svm_family: libc::AF_VSOCK as u16,
        svm_reserved1: 0,
        svm_port: port,
        svm_cid: cid,
        svm_zero: [0; 4],
    }
}

/// Listens on a free vsock port of this host. Returns the listener and the port.
pub fn listen_vsock() -> io::Result<(OwnedFd, u32)> {
    let socket = vsock()?;
    let number = socket.as_raw_fd() as usize;
    let mut address = vsock_address(libc::VMADDR_CID_ANY, libc::VMADDR_PORT_ANY);
    let mut length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    raw(libc::SYS_bind, [number, (&raw const address) as usize, length as usize, 0, 0])?;
    raw(libc::SYS_listen, [number, 4, 0, 0, 0])?;
    raw(libc::SYS_getsockname, [number, (&raw mut address) as usize, (&raw mut length) as usize, 0, 0])?;
    Ok((socket, address.svm_port))
}

/// Connects to a vsock port of this host, through the loopback transport.
pub fn connect_vsock(port: u32) -> io::Result<()> {
    let socket = vsock()?;
    let address = vsock_address(libc::VMADDR_CID_LOCAL, port);
    let length = size_of::<libc::sockaddr_vm>();
    raw(libc::SYS_connect, [socket.as_raw_fd() as usize, (&raw const address) as usize, length, 0, 0]).map(drop)
}

/// Makes the tap `name`, or attaches a queue to it where it exists. It goes with its last descriptor.
pub fn tap(name: &str) -> io::Result<OwnedFd> {
    const TUNSETIFF: usize = 0x4004_54ca;
    let bytes = name.as_bytes();
    let device: OwnedFd = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun")?.into();
    let mut request = [0u8; 40];
    // struct ifreq: 16 bytes of name, then the flags.
    request
        .get_mut(..bytes.len())
        .filter(|_| bytes.len() < 16)
        .ok_or(io::ErrorKind::InvalidInput)?
        .copy_from_slice(bytes);
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE) as u16;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    raw(libc::SYS_ioctl, [device.as_raw_fd() as usize, TUNSETIFF, request.as_mut_ptr() as usize, 0, 0])?;
    Ok(device)
}

/// TUNGETIFF: whose tap is behind this descriptor?
pub fn ask_tap(fd: BorrowedFd<'_>) -> io::Result<()> {
    const TUNGETIFF: usize = 0x8004_54d2;
    let mut request = [0u8; 40];
    raw(libc::SYS_ioctl, [fd.as_raw_fd() as usize, TUNGETIFF, request.as_mut_ptr() as usize, 0, 0]).map(drop)
}

pub fn make_uring() -> io::Result<OwnedFd> {
    let mut params = [0u8; 120];
    owned(raw(libc::SYS_io_uring_setup, [1, params.as_mut_ptr() as usize, 0, 0, 0])?)
}

/// io_uring_enter that submits and awaits nothing.
pub fn enter_uring(fd: BorrowedFd<'_>) -> io::Result<()> {
    raw(libc::SYS_io_uring_enter, [fd.as_raw_fd() as usize, 0, 0, 0, 0]).map(drop)
}

/// A userfaultfd for faults of user mode.
pub fn make_userfault() -> io::Result<OwnedFd> {
    const UFFD_USER_MODE_ONLY: usize = 1;
    owned(raw(libc::SYS_userfaultfd, [UFFD_USER_MODE_ONLY | libc::O_CLOEXEC as usize, 0, 0, 0, 0])?)
}

/// UFFDIO_API, the first question to a userfaultfd (EINVAL when it was asked before).
pub fn ask_userfault(fd: BorrowedFd<'_>) -> io::Result<()> {
    const UFFDIO_API: usize = 0xc018_aa3f;
    let mut api = [0xaa_u64, 0, 0];
    raw(libc::SYS_ioctl, [fd.as_raw_fd() as usize, UFFDIO_API, api.as_mut_ptr() as usize, 0, 0]).map(drop)
}

/// A virtual machine without memory, and its first vCPU.
pub fn make_vm() -> io::Result<(OwnedFd, OwnedFd)> {
    const KVM_CREATE_VM: usize = 0xae01;
    const KVM_CREATE_VCPU: usize = 0xae41;
    let kvm: OwnedFd = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm")?.into();
    let vm = owned(raw(libc::SYS_ioctl, [kvm.as_fd().as_raw_fd() as usize, KVM_CREATE_VM, 0, 0, 0])?)?;
    let vcpu = owned(raw(libc::SYS_ioctl, [vm.as_raw_fd() as usize, KVM_CREATE_VCPU, 0, 0, 0])?)?;
    Ok((vm, vcpu))
}

/// A signal that does nothing where it is not asked for, but is a signal to every check (kill(2) with 0 is not).
pub fn signal_urgent(pid: i32) -> io::Result<()> {
    // SAFETY: SIGURG is ignored by default; no memory is touched.
    check(unsafe { libc::kill(pid, libc::SIGURG) }.into()).map(drop)
}

/// Reads another process's limit.
pub fn read_limit(pid: i32) -> io::Result<()> {
    let mut old = [0u64; 2];
    let which = libc::RLIMIT_NOFILE as usize;
    raw(libc::SYS_prlimit64, [pid as usize, which, 0, old.as_mut_ptr() as usize, 0]).map(drop)
}

/// Sets another process's nice value to what it is.
pub fn set_priority(pid: i32) -> io::Result<()> {
    // getpriority(2) as a system call gives 20 - nice.
    let twenty_less = raw(libc::SYS_getpriority, [libc::PRIO_PROCESS as usize, pid as usize, 0, 0, 0])?;
    let nice = (20 - twenty_less) as usize;
    raw(libc::SYS_setpriority, [libc::PRIO_PROCESS as usize, pid as usize, nice, 0, 0]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_can_be_changed_and_is_gone_when_removed() {
        for kind in [Ipc::Shm, Ipc::Sem, Ipc::Msg] {
            let id = kind.make().unwrap();
            kind.touch(id).unwrap();
            kind.remove(id).unwrap();
            assert!(kind.touch(id).is_err(), "{kind:?}");
        }
    }

    #[test]
    fn a_tap_name_that_is_too_long_is_refused() {
        assert!(tap("a-name-of-16-byt").is_err());
    }

    #[test]
    fn our_own_limit_and_priority_are_ours() {
        let pid = crate::process::own_pid();
        read_limit(pid).unwrap();
        set_priority(pid).unwrap();
    }
}
