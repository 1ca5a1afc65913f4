//! The rows: which object, by which way, what is tried. Pure data.

use casemate_confine::objects::{Act, Object};

/// An object of a sandbox. [`Thing::Of`] is the sandbox's own where it has one (its disk, its process, its KVM
/// descriptors), and one made for the trial with its label where it has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thing {
    Of(Object),
    Log,
    Plan,
    Control,
    VsockSocket,
    /// /proc/PID/mem of the runner, and its plan through /proc/PID/fd.
    Memory,
    PlanInProc,
    /// The file that kills a cgroup, or moves a process into it.
    Cgroup,
}

/// How the attacker comes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Name,
    /// Over a Unix socket.
    Passed,
    /// Open at exec.
    Inherited,
}

#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// The group that the row stands in.
    pub class: &'static str,
    pub thing: Thing,
    pub way: Way,
    pub act: Act,
    pub what: &'static str,
}

const fn by_name(class: &'static str, thing: Thing, act: Act, what: &'static str) -> Spec {
    Spec { class, thing, way: Way::Name, act, what }
}

const fn passed(class: &'static str, thing: Thing, act: Act, what: &'static str) -> Spec {
    Spec { class, thing, way: Way::Passed, act, what }
}

const fn inherited(class: &'static str, thing: Thing, act: Act, what: &'static str) -> Spec {
    Spec { class, thing, way: Way::Inherited, act, what }
}

const FILE: &str = "regular file";
const LOG: &str = "log";
const BLOCK: &str = "block device";
const DIR: &str = "directory";
const FIFO: &str = "FIFO";
const SOCKET: &str = "Unix socket";
const CONTROL: &str = "control channel";
const MEMFD: &str = "memfd";
const POSIX: &str = "POSIX IPC";
const SYSV: &str = "System V IPC";
const PROCESS: &str = "process";
const KEYRING: &str = "keyring";
const VSOCK: &str = "vsock";
const TUN: &str = "tun";
const ANON: &str = "io_uring, userfaultfd";
const KVM: &str = "KVM, eventfd";

/// Every attempt on another's object, grouped.
pub const TABLE: &[Spec] = &[
    by_name(FILE, Thing::Of(Object::File), Act::OpenRead, "open to read"),
    by_name(FILE, Thing::Of(Object::File), Act::OpenWrite, "open to write"),
    passed(FILE, Thing::Of(Object::File), Act::Read, "read, passed"),
    passed(FILE, Thing::Of(Object::File), Act::Write, "write, passed"),
    inherited(FILE, Thing::Of(Object::File), Act::Read, "read, inherited"),
    by_name(LOG, Thing::Log, Act::OpenWrite, "open to write"),
    passed(LOG, Thing::Log, Act::Write, "write, passed"),
    inherited(LOG, Thing::Log, Act::Write, "write, inherited"),
    by_name(BLOCK, Thing::Of(Object::BlockDevice), Act::OpenRead, "open to read"),
    passed(BLOCK, Thing::Of(Object::BlockDevice), Act::Read, "read, passed"),
    inherited(BLOCK, Thing::Of(Object::BlockDevice), Act::Read, "read, inherited"),
    by_name(DIR, Thing::Of(Object::Directory), Act::List, "list"),
    by_name(DIR, Thing::Of(Object::Directory), Act::AddName, "make a file in it"),
    passed(DIR, Thing::Of(Object::Directory), Act::ListFd, "list, passed"),
    inherited(DIR, Thing::Of(Object::Directory), Act::ListFd, "list, inherited"),
    by_name(DIR, Thing::Cgroup, Act::OpenWrite, "open its cgroup's kill switch"),
    by_name(FIFO, Thing::Of(Object::Fifo), Act::OpenRead, "open to read"),
    by_name(FIFO, Thing::Of(Object::Fifo), Act::OpenWrite, "open to write"),
    passed(FIFO, Thing::Of(Object::Fifo), Act::Write, "write, passed"),
    inherited(FIFO, Thing::Of(Object::Fifo), Act::Write, "write, inherited"),
    by_name(SOCKET, Thing::Of(Object::Stream), Act::ConnectStream, "connect by path"),
    by_name(SOCKET, Thing::VsockSocket, Act::ConnectStream, "connect to its vsock.sock"),
    by_name(SOCKET, Thing::Of(Object::Datagram), Act::Send, "send by path"),
    by_name(SOCKET, Thing::Of(Object::Abstract), Act::ConnectAbstract, "connect by abstract name"),
    by_name(CONTROL, Thing::Control, Act::ConnectPacket, "connect to its control.sock"),
    passed(CONTROL, Thing::Of(Object::Connection), Act::Read, "its socket to the warden, passed"),
    inherited(CONTROL, Thing::Of(Object::Connection), Act::Read, "the same, inherited"),
    passed(MEMFD, Thing::Plan, Act::Read, "read its plan, passed"),
    inherited(MEMFD, Thing::Plan, Act::Read, "read its plan, inherited"),
    by_name(MEMFD, Thing::PlanInProc, Act::OpenRead, "open its plan through /proc"),
    passed(MEMFD, Thing::Of(Object::Memfd), Act::Write, "write a memfd, passed"),
    inherited(MEMFD, Thing::Of(Object::Memfd), Act::Write, "write a memfd, inherited"),
    by_name(POSIX, Thing::Of(Object::SharedFile), Act::OpenWrite, "open shared memory"),
    passed(POSIX, Thing::Of(Object::SharedFile), Act::Write, "write it, passed"),
    by_name(POSIX, Thing::Of(Object::Queue), Act::Queue, "open a message queue"),
    passed(POSIX, Thing::Of(Object::Queue), Act::Have, "have it, passed"),
    by_name(SYSV, Thing::Of(Object::Shm), Act::Shm, "attach shared memory"),
    by_name(SYSV, Thing::Of(Object::Sem), Act::Sem, "raise a semaphore"),
    by_name(SYSV, Thing::Of(Object::Msg), Act::Msg, "receive a message"),
    by_name(PROCESS, Thing::Of(Object::Process), Act::Signal, "signal"),
    by_name(PROCESS, Thing::Of(Object::Process), Act::Trace, "ptrace"),
    by_name(PROCESS, Thing::Of(Object::Process), Act::ReadMemory, "process_vm_readv"),
    by_name(PROCESS, Thing::Of(Object::Process), Act::TakeDescriptor, "pidfd_getfd"),
    by_name(PROCESS, Thing::Of(Object::Process), Act::Limit, "read a limit"),
    by_name(PROCESS, Thing::Of(Object::Process), Act::Priority, "set its priority"),
    by_name(PROCESS, Thing::Memory, Act::OpenRead, "open /proc/PID/mem"),
    by_name(KEYRING, Thing::Of(Object::Key), Act::Key, "read a key"),
    by_name(VSOCK, Thing::Of(Object::Vsock), Act::Vsock, "connect to a port"),
    by_name(TUN, Thing::Of(Object::Tap), Act::Tap, "attach to a tap"),
    passed(TUN, Thing::Of(Object::Tap), Act::AskTap, "use a tap, passed"),
    inherited(TUN, Thing::Of(Object::Tap), Act::AskTap, "use a tap, inherited"),
    passed(ANON, Thing::Of(Object::Uring), Act::EnterUring, "enter an io_uring, passed"),
    inherited(ANON, Thing::Of(Object::Uring), Act::EnterUring, "the same, inherited"),
    passed(ANON, Thing::Of(Object::Userfault), Act::AskUserfault, "use a userfaultfd, passed"),
    passed(KVM, Thing::Of(Object::Vm), Act::Have, "have its VM, passed"),
    passed(KVM, Thing::Of(Object::Vm), Act::AskVm, "use its VM, passed"),
    inherited(KVM, Thing::Of(Object::Vm), Act::Have, "have its VM, inherited"),
    passed(KVM, Thing::Of(Object::Vcpu), Act::Have, "have its vCPU, passed"),
    inherited(KVM, Thing::Of(Object::Vcpu), Act::Have, "have its vCPU, inherited"),
    passed(KVM, Thing::Of(Object::Event), Act::Write, "write its eventfd, passed"),
    inherited(KVM, Thing::Of(Object::Event), Act::Write, "write its eventfd, inherited"),
];

/// Where the kernel says no with every layer or none: KVM, to another address space than its VM's maker's; Unix sockets, to
/// an io_uring in a message.
pub fn kernel_denies(spec: &Spec) -> bool {
    matches!(spec.act, Act::AskVm) || (spec.act == Act::EnterUring && spec.way == Way::Passed)
}
