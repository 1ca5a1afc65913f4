//! A byte stream over an owned fd (vsock or Unix socket), and the small waits that go with it.
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// One end of a connected stream socket.
#[derive(Debug)]
pub struct Stream(OwnedFd);

impl Stream {
    pub fn new(fd: OwnedFd) -> Self {
        Stream(fd)
    }

    pub fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        Ok(rustix::io::ioctl_fionbio(&self.0, on)?)
    }

    /// Tells the peer that no more comes and waits (bounded) until it has closed too, so that the last bytes arrive
    /// before a power-off can overtake them.
    pub fn finish(self, wait: Duration) {
        if rustix::net::shutdown(&self.0, rustix::net::Shutdown::Write).is_err() {
            return;
        }
        let deadline = Instant::now() + wait;
        let mut sink = [0u8; 4096];
        while wait_for(self.0.as_fd(), PollFlags::IN, deadline.saturating_duration_since(Instant::now())) {
            match rustix::io::read(&self.0, &mut sink) {
                Ok(0) => return,
                Ok(_) | Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(_) => return,
            }
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.0, buffer)?)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(&self.0, bytes, rustix::net::SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Polls one fd; false when the time is over (a zero time only looks).
pub fn wait_for(fd: BorrowedFd<'_>, events: PollFlags, time: Duration) -> bool {
    let deadline = Instant::now() + time;
    loop {
        let left = timespec(deadline.saturating_duration_since(Instant::now()));
        match poll(&mut [PollFd::from_borrowed_fd(fd, events)], Some(&left)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// As poll(2) takes it.
pub fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs().min(1 << 30) as i64, tv_nsec: i64::from(time.subsec_nanos()) }
}
