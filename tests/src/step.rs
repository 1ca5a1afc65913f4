//! A program that is followed system call by system call, so that it can be killed after each of them.
//!
//! ```ignore
//! let mut command = step::held(&program);          // starts only when it is traced
//! let mut child = command.args(…).spawn()?;
//! let mut steps = Steps::follow(child.id(), child.stdin.take())?;
//! while steps.advance()? { … }                        // after one more system call; false when the program is about to exit
//! ```
//! ptrace belongs to a thread: one thread does all of this. The program's children are not followed.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use libtest_mimic::Failed;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// The program behind a shell that waits for a line on its stdin.
pub fn held(program: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "read go; exec \"$0\" \"$@\" </dev/null"]).arg(program).stdin(Stdio::piped());
    command
}

pub struct Steps {
    pid: Pid,
    exiting: bool,
}

impl Steps {
    /// Follows a held program from its first instruction on.
    pub fn follow(pid: u32, stdin: Option<impl Write>) -> Result<Self, Failed> {
        let pid = Pid::from_raw(pid.try_into()?);
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_TRACEEXIT
            | Options::PTRACE_O_EXITKILL;
        ptrace::seize(pid, options)?;
        stdin.ok_or("the program is not held")?.write_all(b"\n")?;
        match waitpid(pid, None)? {
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXEC) => Ok(Self { pid, exiting: false }),
            other => Err(format!("instead of an exec: {other:?}").into()),
        }
    }

    /// Lets it make one system call; it is stopped when that has returned. False when it is about to exit.
    pub fn advance(&mut self) -> Result<bool, Failed> {
        for _entry_and_return in 0..2 {
            let mut signal = None;
            loop {
                ptrace::syscall(self.pid, signal)?;
                match waitpid(self.pid, None)? {
                    WaitStatus::PtraceSyscall(_) => break,
                    WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXIT) => {
                        self.exiting = true;
                        return Ok(false);
                    }
                    WaitStatus::Stopped(_, given) => signal = Some(given),
                    WaitStatus::PtraceEvent(..) => signal = None,
                    other => return Err(format!("it ended: {other:?}").into()),
                }
            }
        }
        Ok(true)
    }

    /// From here on SIGKILL ends it at once, without a stop at its exit.
    pub fn let_die(self) -> Result<(), Failed> {
        match self.exiting {
            // SIGKILL does not wake what is stopped in its exit.
            true => Ok(ptrace::detach(self.pid, None)?),
            false => Ok(ptrace::setoptions(self.pid, Options::PTRACE_O_EXITKILL)?),
        }
    }
}

/// The children of a process, as the kernel tells them.
pub fn children(pid: u32) -> Result<Vec<u32>, Failed> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
}
