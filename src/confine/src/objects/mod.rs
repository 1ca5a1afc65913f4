//! Objects of every class that a sandbox can own, as data: how one is made, how it is named, what is tried on it.
//! The jailer and the probe make them ([`make`]), the probe tries them ([`Act::perform`]); `casemate attack --matrix`.
//!
//! An object lives as long as what [`make`] returned. What is tried changes nothing that anybody needs.

mod act;
mod make;

pub use act::{Arrival, Hands, is_null, received};
pub use make::{Held, make};

use serde::{Deserialize, Serialize};

/// A class of objects. One of each is made for the trial; the process is the maker itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Object {
    File,
    BlockDevice,
    Directory,
    Fifo,
    /// A Unix stream socket that listens at a path.
    Stream,
    /// A Unix datagram socket at a path.
    Datagram,
    /// A Unix stream socket that listens at an abstract name.
    Abstract,
    /// One end of a connected pair.
    Connection,
    Memfd,
    /// A file in /dev/shm (POSIX shared memory).
    SharedFile,
    Shm,
    Sem,
    Msg,
    /// A POSIX message queue.
    Queue,
    Key,
    Vsock,
    Tap,
    Uring,
    Userfault,
    Event,
    /// A KVM virtual machine.
    Vm,
    Vcpu,
    Process,
}

impl Object {
    pub const ALL: [Self; 23] = [
        Self::File,
        Self::BlockDevice,
        Self::Directory,
        Self::Fifo,
        Self::Stream,
        Self::Datagram,
        Self::Abstract,
        Self::Connection,
        Self::Memfd,
        Self::SharedFile,
        Self::Shm,
        Self::Sem,
        Self::Msg,
        Self::Queue,
        Self::Key,
        Self::Vsock,
        Self::Tap,
        Self::Uring,
        Self::Userfault,
        Self::Event,
        Self::Vm,
        Self::Vcpu,
        Self::Process,
    ];
}

/// How an attempt gets at an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Handle {
    Path(String),
    /// An abstract socket, a message queue, a tap.
    Name(String),
    /// An id of System V IPC, a key's serial, a vsock port, a pid.
    Number(i32),
    /// Handed over a Unix socket by whoever holds it, under this tag.
    Passed(u8),
    /// Inherited at exec under this number.
    Inherited(i32),
}

/// What is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Act {
    OpenRead,
    OpenWrite,
    List,
    /// Make a directory in it, and remove it.
    AddName,
    ConnectStream,
    ConnectPacket,
    ConnectAbstract,
    Send,
    Shm,
    Sem,
    Msg,
    Queue,
    Key,
    Vsock,
    Tap,
    Signal,
    Trace,
    ReadMemory,
    TakeDescriptor,
    Limit,
    Priority,
    /// Have the descriptor at all.
    Have,
    /// Read or write no byte at all: the check of a permission is made, the object stays as it is, and nobody loses a
    /// message to a trial.
    Read,
    Write,
    ListFd,
    AskTap,
    EnterUring,
    AskUserfault,
    AskVm,
}
