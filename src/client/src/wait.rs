//! poll(2) over a few descriptors, and waiting for a child with a limit.

use std::io;
use std::os::fd::BorrowedFd;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What is ready of `fds`, in their order; all empty when the time is over.
pub fn ready(fds: &[(BorrowedFd<'_>, PollFlags)], limit: Option<Duration>) -> io::Result<Vec<PollFlags>> {
    let mut set: Vec<PollFd<'_>> = fds.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
    let timeout = limit.map(|limit| Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    loop {
        match poll(&mut set, timeout.as_ref()) {
            Ok(_) => return Ok(set.iter().map(PollFd::revents).collect()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// True if one of these says: read now, there is something or it is the end.
pub fn readable(flags: PollFlags) -> bool {
    flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR)
}

/// Waits for a child for at most `limit`.
pub fn child(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
