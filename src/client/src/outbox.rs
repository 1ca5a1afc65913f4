//! Bytes that wait for a descriptor to take them. Never more than one message over its room.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

/// A pipe takes so many bytes without blocking once poll(2) says that it takes any (PIPE_BUF).
const PIECE: usize = 4096;

#[derive(Debug, Default)]
pub struct Outbox {
    waiting: Vec<u8>,
    sent: usize,
}

impl Outbox {
    pub fn is_empty(&self) -> bool {
        self.sent == self.waiting.len()
    }

    pub fn push(&mut self, bytes: &[u8]) {
        if self.is_empty() {
            self.waiting.clear();
            self.sent = 0;
        }
        self.waiting.extend_from_slice(bytes);
    }

    /// For writers that need the buffer itself.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        if self.is_empty() {
            self.waiting.clear();
            self.sent = 0;
        }
        &mut self.waiting
    }

    pub fn discard(&mut self) {
        self.waiting.clear();
        self.sent = 0;
    }

    /// Writes one piece. "Would block" is no error: the rest waits.
    pub fn write_piece(&mut self, out: &mut impl Write) -> io::Result<()> {
        let rest = &self.waiting[self.sent..];
        match out.write(&rest[..rest.len().min(PIECE)]) {
            Ok(0) if !rest.is_empty() => Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                self.sent += written;
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// A borrowed descriptor to write to.
#[derive(Debug)]
pub struct FdWriter<'a>(pub BorrowedFd<'a>);

impl Write for FdWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(self.0.as_fd(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
