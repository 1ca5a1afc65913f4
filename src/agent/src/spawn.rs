//! Starting a process: stdio and the helper on this side, everything else in [`crate::helper`].
//!
//! ```text
//! agent                                    helper (fresh, one thread)
//! spawn with a socket as stdin ----------> recv: stdio fds, Launch
//! send fds + Launch                        setsid, tty, rlimits, groups, gid, uid, cwd
//! read verdict: bytes = error  <---------- error | socket closed by exec
//!               end   = started
//! ```
use casemate_agent_protocol::{ErrorKind, ExecRequest, Rlimit, WinSize};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg, socketpair,
};
use rustix::process::Pid;
use rustix::pty::OpenptFlags;
use serde::{Deserialize, Serialize};
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What the helper is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Launch {
    pub exec: ExecRequest,
    pub rlimits: Vec<Rlimit>,
    pub hostname: Option<String>,
}

/// The helper's verdict, when it is not "started".
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct SpawnError {
    pub kind: ErrorKind,
    pub message: String,
}

impl SpawnError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        SpawnError { kind, message: message.into() }
    }

    pub fn system(error: impl Into<std::io::Error>) -> Self {
        SpawnError::new(ErrorKind::Io, format!("starting a process failed: {}", error.into()))
    }
}

/// Our ends of a child's stdio, all non-blocking.
#[derive(Debug)]
pub enum Child {
    Tty { master: OwnedFd },
    Pipes { stdin: Option<OwnedFd>, stdout: OwnedFd, stderr: OwnedFd },
}

/// A process to start, with the program that is to start it.
#[derive(Debug)]
pub struct Spawner {
    pub helper: PathBuf,
    pub launch: Launch,
}

/// Started, its verdict still out.
#[derive(Debug)]
pub struct Pending {
    socket: std::fs::File,
    child: Child,
}

impl Spawner {
    /// Starts the helper. Called under the reaper's lock; never blocks on the helper.
    pub fn start(&self) -> Result<(Pid, Pending), SpawnError> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(SpawnError::system)?;
        let (child, stdio) = self.open_stdio().map_err(SpawnError::system)?;
        let launch = postcard::to_stdvec(&self.launch)
            .map_err(|e| SpawnError::new(ErrorKind::Io, format!("encoding the launch failed: {e}")))?;
        // Stdout and stderr stay this program's own until the helper replaces them: a helper that panics is seen.
        let mut command = Command::new(&self.helper);
        command.arg0("casemate-agent").arg(crate::helper::ARGUMENT).env_clear().stdin(Stdio::from(theirs));
        let process = command.spawn().map_err(SpawnError::system)?;
        let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| SpawnError::new(ErrorKind::Io, "a child without a pid"))?;
        let mut socket = std::fs::File::from(ours);
        // Failures of sending show as a helper that ended without starting anything.
        if send_fds(socket.as_fd(), &stdio, launch.len()).is_ok() {
            let _ = socket.write_all(&launch);
        }
        Ok((pid, Pending { socket, child }))
    }

    /// Our ends, and the three fds for the child.
    fn open_stdio(&self) -> rustix::io::Result<(Child, [OwnedFd; 3])> {
        let exec = &self.launch.exec;
        if let Some(size) = exec.tty {
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let master = rustix::pty::openpt(flags)?;
            rustix::pty::unlockpt(&master)?;
            set_size(master.as_fd(), size);
            let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
            rustix::io::ioctl_fionbio(&master, true)?;
            let stdio = [slave.try_clone(), slave.try_clone(), Ok(slave)];
            let [a, b, c] = stdio.map(|fd| fd.map_err(|_| rustix::io::Errno::MFILE));
            return Ok((Child::Tty { master }, [a?, b?, c?]));
        }
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let (stdin, child_stdin) = if exec.stdin {
            let (read, write) = pipe()?;
            rustix::io::ioctl_fionbio(&write, true)?;
            (Some(write), read)
        } else {
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
            (None, rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty())?)
        };
        let (stdout, child_stdout) = pipe()?;
        let (stderr, child_stderr) = pipe()?;
        rustix::io::ioctl_fionbio(&stdout, true)?;
        rustix::io::ioctl_fionbio(&stderr, true)?;
        Ok((Child::Pipes { stdin, stdout, stderr }, [child_stdin, child_stdout, child_stderr]))
    }
}

impl Pending {
    /// Waits until the program runs, or for the reason why not.
    pub fn finish(mut self) -> Result<Child, SpawnError> {
        let mut verdict = Vec::new();
        (&mut self.socket).take(8192).read_to_end(&mut verdict).map_err(SpawnError::system)?;
        match verdict.split_first() {
            // The first byte says that the helper lived; after it, only an error is written.
            Some((_, [])) => Ok(self.child),
            Some((_, error)) => Err(postcard::from_bytes(error)
                .unwrap_or_else(|_| SpawnError::new(ErrorKind::Io, "the helper's answer is not understood"))),
            None => Err(SpawnError::new(ErrorKind::Io, "the helper ended before it could start the program")),
        }
    }
}

/// The three fds and the length of what follows, in one message.
fn send_fds(socket: BorrowedFd<'_>, stdio: &[OwnedFd; 3], length: usize) -> rustix::io::Result<()> {
    let fds = [stdio[0].as_fd(), stdio[1].as_fd(), stdio[2].as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let length = u32::try_from(length).map_err(|_| rustix::io::Errno::TOOBIG)?.to_le_bytes();
    sendmsg(socket, &[IoSlice::new(&length)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// A size of zero leaves the terminal as it is.
pub fn set_size(master: BorrowedFd<'_>, size: WinSize) {
    if size.rows > 0 && size.cols > 0 {
        let size = rustix::termios::Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
        let _ = rustix::termios::tcsetwinsize(master, size);
    }
}
