//! One object of each class.

use super::{Handle, Object};
use casemate_sys::objects::{self, Ipc};
use casemate_sys::{process, rustix};
use rustix::event::EventfdFlags;
use rustix::fs::{CWD, FileType, MemfdFlags, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// An object that was made, and lives as long as this.
#[derive(Debug)]
pub struct Held {
    /// How others name it; `None` where only its descriptor leads to it.
    pub name: Option<Handle>,
    pub fd: Option<OwnedFd>,
    /// What must stay open beside it: the VM of a vCPU, the other end of a pair.
    _beside: Option<OwnedFd>,
    _gone: Removal,
}

#[derive(Debug)]
enum Removal {
    None,
    File(PathBuf),
    Directory(PathBuf),
    Ipc(Ipc, i32),
    Queue(CString),
}

impl Drop for Removal {
    fn drop(&mut self) {
        // Nobody is left to be told: a trial's place is removed as a whole, and names are unique to its process.
        let _ = match self {
            Removal::None => Ok(()),
            Removal::File(path) => std::fs::remove_file(path),
            Removal::Directory(path) => std::fs::remove_dir(path),
            Removal::Ipc(kind, id) => kind.remove(*id),
            Removal::Queue(name) => objects::remove_queue(name),
        };
    }
}

/// Makes an object. `place` is a directory for what has a path; `mark` makes its name this maker's own.
pub fn make(object: Object, place: &Path, mark: &str) -> io::Result<Held> {
    let path = place.join(format!("{mark}-{object:?}").to_lowercase());
    let name = format!("casemate-{mark}-{object:?}").to_lowercase();
    match object {
        Object::File => file(path, OFlags::RDWR),
        Object::SharedFile => file(Path::new("/dev/shm").join(name), OFlags::RDWR),
        Object::Directory => {
            std::fs::create_dir(&path)?;
            at_path(path, |path| open(path, OFlags::RDONLY | OFlags::DIRECTORY), Removal::Directory)
        }
        Object::Fifo => {
            rustix::fs::mknodat(CWD, &path, FileType::Fifo, owner_only(), 0)?;
            // Both ends, so that neither an open nor a read of others waits.
            at_path(path, |path| open(path, OFlags::RDWR), Removal::File)
        }
        Object::BlockDevice => block_device(&name),
        Object::Stream => at_path(path, |path| listen(&SocketAddrUnix::new(path)?), Removal::File),
        Object::Datagram => at_path(path, datagram, Removal::File),
        Object::Abstract => {
            let socket = listen(&SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
            Ok(named(Handle::Name(name), Some(socket)))
        }
        Object::Connection => connection(),
        Object::Memfd => {
            let fd = rustix::fs::memfd_create("casemate-trial", MemfdFlags::CLOEXEC)?;
            rustix::io::write(&fd, b"casemate")?;
            Ok(descriptor(fd))
        }
        Object::Shm => ipc(Ipc::Shm),
        Object::Sem => ipc(Ipc::Sem),
        Object::Msg => ipc(Ipc::Msg),
        Object::Queue => queue(name),
        Object::Key => Ok(named(Handle::Number(objects::make_key()?), None)),
        Object::Vsock => {
            let (socket, port) = objects::listen_vsock()?;
            let port = i32::from_ne_bytes(port.to_ne_bytes());
            Ok(named(Handle::Number(port), Some(socket)))
        }
        Object::Tap => {
            let name = tap_name(mark);
            let fd = objects::tap(&name)?;
            Ok(named(Handle::Name(name), Some(fd)))
        }
        Object::Uring => objects::make_uring().map(descriptor),
        Object::Userfault => objects::make_userfault().map(descriptor),
        Object::Event => Ok(descriptor(rustix::event::eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)),
        Object::Vm => objects::make_vm().map(|(vm, _vcpu)| descriptor(vm)),
        Object::Vcpu => {
            let (vm, vcpu) = objects::make_vm()?;
            Ok(Held { _beside: Some(vm), ..descriptor(vcpu) })
        }
        Object::Process => Ok(named(Handle::Number(process::own_pid()), None)),
    }
}

fn connection() -> io::Result<Held> {
    let (one, other) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Something to read.
    rustix::io::write(&other, b"casemate")?;
    Ok(Held { _beside: Some(other), ..descriptor(one) })
}

fn queue(name: String) -> io::Result<Held> {
    let short = CString::new(name.clone())?;
    let made = objects::queue(&short, true);
    // Landlock lets the queue be made and forbids to open it: it would stay without an owner.
    if made.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::AlreadyExists) {
        let _ = objects::remove_queue(&short);
    }
    let fd = made?;
    Ok(Held { _gone: Removal::Queue(short), ..named(Handle::Name(name), Some(fd)) })
}

fn descriptor(fd: OwnedFd) -> Held {
    Held { name: None, fd: Some(fd), _beside: None, _gone: Removal::None }
}

fn named(name: Handle, fd: Option<OwnedFd>) -> Held {
    Held { name: Some(name), fd, _beside: None, _gone: Removal::None }
}

/// Opens what was made at a path; a failure takes it away again.
fn at_path(
    path: PathBuf,
    open: impl FnOnce(&Path) -> io::Result<OwnedFd>,
    removal: impl FnOnce(PathBuf) -> Removal,
) -> io::Result<Held> {
    let name = Handle::Path(path.display().to_string());
    let mut held = Held { name: Some(name), fd: None, _beside: None, _gone: removal(path.clone()) };
    held.fd = Some(open(&path)?);
    Ok(held)
}

fn owner_only() -> Mode {
    Mode::RUSR | Mode::WUSR
}

fn open(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    Ok(rustix::fs::open(path, flags, owner_only())?)
}

fn file(path: PathBuf, flags: OFlags) -> io::Result<Held> {
    let fd = open(&path, flags | OFlags::CREATE | OFlags::EXCL)?;
    let held = at_path(path, |_| Ok(fd), Removal::File)?;
    if let Some(fd) = &held.fd {
        rustix::io::write(fd, b"casemate")?;
    }
    Ok(held)
}

/// A node that can be opened: many file systems are mounted with nodev, and not all take any label.
fn block_device(name: &str) -> io::Result<Held> {
    let device = some_disk()?;
    let node = |dir: &str| {
        let path = Path::new(dir).join(name);
        rustix::fs::mknodat(CWD, &path, FileType::BlockDevice, owner_only(), device)?;
        at_path(path, |path| open(path, OFlags::RDONLY), Removal::File)
    };
    node("/var/lib").or_else(|_| node("/dev"))
}

fn socket(kind: SocketType) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?)
}

fn listen(address: &SocketAddrUnix) -> io::Result<OwnedFd> {
    let socket = socket(SocketType::STREAM)?;
    rustix::net::bind(&socket, address)?;
    rustix::net::listen(&socket, 64)?;
    Ok(socket)
}

fn datagram(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket(SocketType::DGRAM)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn ipc(kind: Ipc) -> io::Result<Held> {
    let id = kind.make()?;
    Ok(Held { _gone: Removal::Ipc(kind, id), ..named(Handle::Number(id), None) })
}

/// At most 15 bytes: the end of the mark is what tells makers apart.
fn tap_name(mark: &str) -> String {
    let start = mark.len().saturating_sub(11);
    format!("cmt{}", mark.get(start..).unwrap_or_default())
}

/// The number of a block device that this host has, the smallest first; it is read, never written.
fn some_disk() -> io::Result<u64> {
    let mut disks = Vec::new();
    for entry in std::fs::read_dir("/sys/block")? {
        let dir = entry?.path();
        let number = |file: &str| std::fs::read_to_string(dir.join(file)).ok();
        let size = number("size").and_then(|size| size.trim().parse::<u64>().ok());
        if let (Some(size @ 1..), Some(device)) = (size, number("dev")) {
            disks.push((size, device));
        }
    }
    disks.sort();
    let missing = || io::Error::new(io::ErrorKind::NotFound, "this host has no block device");
    let (_, device) = disks.first().ok_or_else(missing)?;
    let (major, minor) = device.trim().split_once(':').ok_or_else(missing)?;
    let parse = |text: &str| text.parse::<u32>().map_err(|_| missing());
    Ok(rustix::fs::makedev(parse(major)?, parse(minor)?))
}
