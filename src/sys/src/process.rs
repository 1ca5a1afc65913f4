//! Processes: a fork-like clone3 into namespaces and a cgroup, pidfds, and how a child ended.
//! Called by the jailer (the runner's birth), the warden (its death) and the tests.

use crate::error::check;
use crate::{Attempt, Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// clone3-only flag, wider than libc's int constant (linux/sched.h).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The namespaces that a clone can put its child into (`CLONE_NEW*`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Namespaces(u64);

impl Namespaces {
    pub const NONE: Self = Self(0);
    pub const MOUNT: Self = Self(libc::CLONE_NEWNS as u64);
    pub const PID: Self = Self(libc::CLONE_NEWPID as u64);
    pub const NET: Self = Self(libc::CLONE_NEWNET as u64);
    pub const IPC: Self = Self(libc::CLONE_NEWIPC as u64);
    pub const UTS: Self = Self(libc::CLONE_NEWUTS as u64);
    pub const CGROUP: Self = Self(libc::CLONE_NEWCGROUP as u64);
    pub const USER: Self = Self(libc::CLONE_NEWUSER as u64);

    /// These and those.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Is every one of `other` among these?
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What the child of [`clone3`] is born into.
#[derive(Debug, Default)]
pub struct CloneOptions<'a> {
    pub namespaces: Namespaces,
    /// A cgroup v2 directory: the child starts in it (0.2 ms, where moving it costs 4 to 24).
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// On which side of [`clone3`] we are.
#[derive(Debug)]
pub enum Cloned {
    Parent(Child),
    Child,
}

/// A child process, held by its pidfd: no signal or wait can reach a stranger with a reused pid.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    pidfd: OwnedFd,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Exited(i32),
    Signaled(i32),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit status {code}"),
            Self::Signaled(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// Whether the calling process has one thread. Asks the kernel without changing anything:
/// unshare(CLONE_VM) is "pretend" for a single thread and EINVAL otherwise (kernel/fork.c,
/// check_unshare_flags).
pub fn is_single_threaded() -> bool {
    // SAFETY: unshare(2) takes a flag word and no pointer; CLONE_VM changes nothing (above).
    unsafe { libc::unshare(libc::CLONE_VM) == 0 }
}

/// Forks into new namespaces and a cgroup. The child continues here with a copy of everything, so
/// the caller must be single-threaded (checked: a lock held by another thread would stay locked).
///
/// # Errors
/// EINVAL for a caller with threads; otherwise as clone3(2).
pub fn clone3(options: &CloneOptions<'_>) -> Result<Cloned> {
    const ATTEMPT: &str = "clone a child into its namespaces";
    if !is_single_threaded() {
        return Err(Error::because(ATTEMPT, "the caller has more than one thread"));
    }
    let mut pidfd: libc::c_int = -1;
    let mut flags = options.namespaces.0 | libc::CLONE_PIDFD as u64;
    let mut cgroup = 0;
    if let Some(dir) = options.cgroup {
        flags |= CLONE_INTO_CGROUP;
        cgroup = dir.as_raw_fd() as u64;
    }
    let mut args = libc::clone_args {
        flags,
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup,
    };
    // SAFETY: without CLONE_VM the child runs on a copy of our only thread's stack; `args` and
    // `pidfd` outlive the call, and the size given is that of `args`.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match check(result).attempt(ATTEMPT)? {
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: CLONE_PIDFD succeeded, so the kernel stored a new descriptor only we know.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent(Child { pid: pid as i32, pidfd }))
        }
    }
}

impl Child {
    /// The pid in our namespace. Valid as a name until [`Child::wait`] returned.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal through the pidfd.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        pidfd_signal(self.pidfd.as_fd(), signal)
    }

    /// SIGKILL; a child that is gone already is success.
    pub fn kill(&self) -> Result<()> {
        pidfd_kill(self.pidfd.as_fd())
    }

    /// Waits for the end and reaps.
    pub fn wait(&self) -> Result<Exit> {
        wait(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED)?
            .ok_or_else(|| Error::because("wait for a child", "nothing was reported"))
    }

    /// Reaps the child if it ended, without waiting.
    pub fn try_wait(&self) -> Result<Option<Exit>> {
        wait(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

fn wait(id: WaitId<'_>, options: WaitIdOptions) -> Result<Option<Exit>> {
    let status = rustix::io::retry_on_intr(|| waitid(id.clone(), options)).attempt("wait for a child")?;
    Ok(status.and_then(|status| {
        let exited = status.exit_status().map(Exit::Exited);
        exited.or_else(|| status.terminating_signal().map(Exit::Signaled))
    }))
}

/// Opens a pidfd for a process that is not our child.
pub fn pidfd_open(pid: i32) -> Result<OwnedFd> {
    let name = || format!("open a pidfd for process {pid}");
    let pid = Pid::from_raw(pid).ok_or(rustix::io::Errno::INVAL).attempt_with(name)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).attempt_with(name)
}

/// Sends a signal to exactly the process that the pidfd names.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: Signal) -> Result<()> {
    rustix::process::pidfd_send_signal(pidfd, signal)
        .attempt_with(|| format!("send signal {} through a pidfd", signal.as_raw()))
}

/// SIGKILL through a pidfd; a process that is gone already is success.
pub fn pidfd_kill(pidfd: BorrowedFd<'_>) -> Result<()> {
    match pidfd_signal(pidfd, Signal::KILL) {
        Err(error) if error.errno() == Some(libc::ESRCH) => Ok(()),
        other => other,
    }
}

/// Has the process behind the pidfd ended (reaped or not)?
pub fn pidfd_ended(pidfd: BorrowedFd<'_>) -> Result<bool> {
    wait_readable(pidfd, Some(Duration::ZERO))
}

/// Waits until a descriptor is readable or hung up; false when the time ran out.
/// A signal that interrupts restarts the wait with the full time.
pub fn wait_readable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> Result<bool> {
    let timeout = timeout.map(|time| Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    });
    let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let ready = rustix::io::retry_on_intr(|| poll(&mut polled, timeout.as_ref())).attempt("poll a descriptor")?;
    Ok(ready > 0)
}

/// Reaps every child that has ended: for the jailer's parent half and for PID 1.
pub fn reap_all() {
    while let Ok(Some(_)) = waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {}
}

/// Leaves at once: no destructors, no atexit handlers, no flush. For a cloned child.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) does not return and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// Our pid as the calling process's own namespace sees it.
pub fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// The errno constants that callers compare with, so that they need no libc.
pub mod errno {
    pub use libc::{
        EACCES, EAFNOSUPPORT, EAGAIN, EBADF, EBUSY, ECONNREFUSED, EINVAL, EIO, EMFILE, ENETUNREACH, ENODATA, ENODEV,
        ENOENT, ENOKEY, ENOSYS, ENXIO, EOPNOTSUPP, EPERM, EROFS, ESRCH,
    };
}

/// Runs `body` in a forked child and returns how it ended. `body` gives the exit status.
/// For tests, probes and negative controls; the caller must be single-threaded.
pub fn in_child(body: impl FnOnce() -> i32) -> Result<Exit> {
    match clone3(&CloneOptions::default())? {
        Cloned::Child => {
            // A panic must not unwind into the parent's code with the parent's fds.
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            exit_now(code.unwrap_or(101))
        }
        Cloned::Parent(child) => child.wait(),
    }
}

/// A human name for an errno, as in "EPERM", for reports that need one word.
pub fn errno_name(errno: i32) -> String {
    match errno {
        libc::EPERM => "EPERM".into(),
        libc::ENOENT => "ENOENT".into(),
        libc::ESRCH => "ESRCH".into(),
        libc::EBADF => "EBADF".into(),
        libc::EIO => "EIO".into(),
        libc::ENOKEY => "ENOKEY".into(),
        libc::EACCES => "EACCES".into(),
        libc::EBUSY => "EBUSY".into(),
        libc::EINVAL => "EINVAL".into(),
        libc::ENOSYS => "ENOSYS".into(),
        libc::EROFS => "EROFS".into(),
        libc::ENXIO => "ENXIO".into(),
        libc::EXDEV => "EXDEV".into(),
        libc::ENODEV => "ENODEV".into(),
        libc::ENOTTY => "ENOTTY".into(),
        libc::EMFILE => "EMFILE".into(),
        libc::EAGAIN => "EAGAIN".into(),
        libc::ECONNREFUSED => "ECONNREFUSED".into(),
        libc::ENETUNREACH => "ENETUNREACH".into(),
        libc::EAFNOSUPPORT => "EAFNOSUPPORT".into(),
        libc::EPROTONOSUPPORT => "EPROTONOSUPPORT".into(),
        libc::EOPNOTSUPP => "EOPNOTSUPP".into(),
        other => io::Error::from_raw_os_error(other).to_string(),
    }
}
