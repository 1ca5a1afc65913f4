//! What is tried on an object, and what the errors mean.

use super::{Act, Handle};
use crate::trial::Outcome;
use casemate_sys::objects::{self, Ipc};
use casemate_sys::process::errno::{EACCES, EBADF, EINVAL, EIO, ENODEV, ENOENT, ENOKEY, ENOSYS, EPERM, EROFS, ESRCH};
use casemate_sys::{provoke, rustix, seqpacket};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags};
use rustix::net::{SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use std::ffi::CString;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// What the process that tries has in its hands.
#[derive(Debug, Clone, Copy)]
pub struct Hands<'a> {
    /// The inherited table.
    pub table: &'a [OwnedFd],
    /// The socket on which objects are handed over.
    pub post: Option<BorrowedFd<'a>>,
}

impl Hands<'_> {
    /// Empty ones.
    pub const EMPTY: Hands<'static> = Hands { table: &[], post: None };
}

impl Act {
    /// Tries it.
    pub fn perform(self, at: &Handle, hands: Hands<'_>) -> Outcome {
        match at {
            Handle::Path(path) => self.on_path(path),
            Handle::Name(name) => self.on_name(name),
            Handle::Number(number) => self.on_number(*number),
            Handle::Passed(tag) => match hands.post.map(|post| ask(post, *tag)) {
                Some(Ok(Arrival::Here(fd))) => self.on_descriptor(&fd),
                // The kernel left the descriptor out of the message (selinux_file_receive).
                Some(Ok(Arrival::Kept)) => Outcome::Denied { errno: EACCES },
                Some(Ok(Arrival::Nothing)) => unclear("nobody holds that object"),
                Some(Err(error)) => judge(Err(error), &[]),
                None => unclear("no socket to be handed anything"),
            },
            Handle::Inherited(number) => match hands.table.iter().find(|fd| fd.as_raw_fd() == *number) {
                Some(fd) => self.on_descriptor(fd),
                // Taken away at the exec.
                None => Outcome::Denied { errno: EBADF },
            },
        }
    }

    fn on_path(self, path: &str) -> Outcome {
        let open = |flags| rustix::fs::open(path, flags | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
        let result = match self {
            Self::OpenRead => open(OFlags::RDONLY).map(drop).map_err(Into::into),
            Self::OpenWrite => open(OFlags::WRONLY).map(drop).map_err(Into::into),
            Self::List => open(OFlags::RDONLY | OFlags::DIRECTORY).map_err(Into::into).and_then(|fd| list(fd.as_fd())),
            Self::AddName => {
                let inside = Path::new(path).join("added");
                std::fs::create_dir(&inside).and_then(|()| std::fs::remove_dir(&inside))
            }
            Self::ConnectStream => connect(SocketType::STREAM, SocketAddrUnix::new(path)),
            Self::ConnectPacket => seqpacket::connect(Path::new(path)).map(drop).map_err(|error| plain(&error)),
            Self::Send => send(path),
            _ => return unclear("that is not tried on a path"),
        };
        judge(result, &[ENOENT, EROFS])
    }

    fn on_name(self, name: &str) -> Outcome {
        match self {
            Self::ConnectAbstract => {
                let refused = casemate_sys::process::errno::ECONNREFUSED;
                judge(connect(SocketType::STREAM, SocketAddrUnix::new_abstract_name(name.as_bytes())), &[refused])
            }
            Self::Queue => match CString::new(name) {
                Ok(name) => judge(objects::queue(&name, false).map(drop), &[ENOENT]),
                Err(error) => unclear(&error.to_string()),
            },
            // Where no tap has the name, one is made: that is not B's.
            Self::Tap if !Path::new("/sys/class/net").join(name).exists() && Path::new("/sys/class/net").exists() => {
                Outcome::Denied { errno: ENODEV }
            }
            Self::Tap => judge(objects::tap(name).map(drop), &[ENOENT]),
            _ => unclear("that is not tried on a name"),
        }
    }

    fn on_number(self, number: i32) -> Outcome {
        match self {
            // In another IPC namespace the id means nothing.
            Self::Shm => judge(Ipc::Shm.touch(number), &[EINVAL]),
            Self::Sem => judge(Ipc::Sem.touch(number), &[EINVAL]),
            Self::Msg => judge(Ipc::Msg.touch(number), &[EINVAL]),
            Self::Key => judge(objects::read_key(number), &[ENOKEY]),
            Self::Vsock => judge(objects::connect_vsock(u32::from_ne_bytes(number.to_ne_bytes())), &[]),
            Self::Signal => judge(objects::signal_urgent(number), &[ESRCH]),
            Self::Trace => judge(provoke::trace(number), &[ESRCH]),
            Self::ReadMemory => judge(provoke::read_memory(number), &[ESRCH]),
            Self::TakeDescriptor => judge(provoke::steal_descriptor(number), &[ESRCH]),
            Self::Limit => judge(objects::read_limit(number), &[ESRCH]),
            Self::Priority => judge(objects::set_priority(number), &[ESRCH]),
            _ => unclear("that is not tried on a number"),
        }
    }

    fn on_descriptor(self, fd: &OwnedFd) -> Outcome {
        const KVM_CHECK_EXTENSION: u32 = 0xae03;
        let fd = fd.as_fd();
        match self {
            Self::Have => Outcome::Allowed,
            Self::Read => judge(read_nothing(fd), &[]),
            Self::Write => judge(write_nothing(fd), &[]),
            Self::ListFd => judge(list(fd), &[]),
            Self::AskTap => judge(objects::ask_tap(fd), &[]),
            Self::EnterUring => judge(objects::enter_uring(fd), &[]),
            Self::AskUserfault => judge(objects::ask_userfault(fd), &[]),
            // KVM itself answers EIO to a process with another address space than the VM's maker (kvm_main.c).
            Self::AskVm => judge(provoke::ioctl(fd, KVM_CHECK_EXTENSION).map(drop), &[EIO]),
            _ => unclear("that is not tried on a descriptor"),
        }
    }
}

fn unclear(why: &str) -> Outcome {
    Outcome::Unclear { why: why.into() }
}

/// EPERM, EACCES and ENOSYS are a layer's no; so is `absent` where the layer's way is to leave nothing there to be
/// found. Any other error came after the permission was given.
fn judge(result: io::Result<()>, absent: &[i32]) -> Outcome {
    let Err(error) = result else { return Outcome::Allowed };
    match error.raw_os_error() {
        Some(errno) if [EPERM, EACCES, ENOSYS].contains(&errno) || absent.contains(&errno) => Outcome::Denied { errno },
        Some(errno) => Outcome::Reached { errno },
        None => Outcome::Unclear { why: error.to_string() },
    }
}

fn plain(error: &casemate_sys::Error) -> io::Error {
    error.errno().map_or_else(|| io::Error::other(error.report()), io::Error::from_raw_os_error)
}

/// The null device, which SELinux puts where the new domain may not have a descriptor (flush_unauthorized_files). Asked for
/// before any filter is on.
pub fn is_null(fd: &OwnedFd) -> bool {
    casemate_sys::path::identity(fd)
        .is_ok_and(|is| is.kind == rustix::fs::FileType::CharacterDevice && is.rdev == rustix::fs::makedev(1, 3))
}

fn list(dir: BorrowedFd<'_>) -> io::Result<()> {
    rustix::fs::Dir::read_from(dir)?.next().transpose().map(drop).map_err(Into::into)
}

fn connect(kind: SocketType, address: rustix::io::Result<SocketAddrUnix>) -> io::Result<()> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    Ok(rustix::net::connect(&socket, &address?)?)
}

fn send(path: &str) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    Ok(rustix::net::sendto(&socket, b"x", SendFlags::empty(), &SocketAddrUnix::new(path)?).map(drop)?)
}

/// At a position where the object has positions, which is what the runner's own filters allow.
fn read_nothing(fd: BorrowedFd<'_>) -> io::Result<()> {
    match rustix::io::pread(fd, &mut [] as &mut [u8], 0) {
        Err(rustix::io::Errno::SPIPE) => {}
        other => return Ok(other.map(drop)?),
    }
    match rustix::net::recv(fd, &mut [0u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Err(rustix::io::Errno::NOTSOCK) => Ok(rustix::io::read(fd, &mut [] as &mut [u8]).map(drop)?),
        other => Ok(other.map(drop)?),
    }
}

fn write_nothing(fd: BorrowedFd<'_>) -> io::Result<()> {
    match rustix::io::pwrite(fd, &[], 0) {
        Err(rustix::io::Errno::SPIPE) => Ok(rustix::io::write(fd, &[]).map(drop)?),
        other => Ok(other.map(drop)?),
    }
}

/// What came of an object that was asked for.
#[derive(Debug)]
pub enum Arrival {
    Here(OwnedFd),
    /// It was sent, and the kernel did not let us have it.
    Kept,
    /// Nobody holds it.
    Nothing,
}

/// Asks for an object by its tag. Answers to earlier questions, of attempts that were killed, are skipped.
fn ask(post: BorrowedFd<'_>, tag: u8) -> io::Result<Arrival> {
    // write(2) is allowed by every filter; the answer needs recvmsg(2), which is the matter of the attempt.
    rustix::io::write(post, &[tag])?;
    loop {
        let (from, arrival) = received(post)?;
        if from == tag {
            return Ok(arrival);
        }
    }
}

/// One message of the post: its tag, and the descriptor that came with it.
pub fn received(post: BorrowedFd<'_>) -> io::Result<(u8, Arrival)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    // Tag, and whether a descriptor was sent along.
    let mut bytes = [0; 2];
    let message = {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        rustix::net::recvmsg(post, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?
    };
    if message.bytes != bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let fd = control.drain().find_map(|received| match received {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    let [tag, sent] = bytes;
    let kept = sent != 0 || message.flags.contains(ReturnFlags::CTRUNC);
    Ok((tag, fd.map_or(if kept { Arrival::Kept } else { Arrival::Nothing }, Arrival::Here)))
}
