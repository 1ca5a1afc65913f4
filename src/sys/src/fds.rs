//! The descriptor table: exact numbers, who is open, closing the rest. Works without /proc.

use crate::error::check;
use crate::{Attempt, Error, Result};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

/// Moves descriptors to the numbers `first`, `first + 1`, … without close-on-exec. Whatever holds
/// one of those numbers is closed, so only [`crate::exec`] calls this, in a process whose next act
/// is exec or exit.
pub(crate) fn place(fds: Vec<OwnedFd>, first: RawFd) -> Result<Vec<OwnedFd>> {
    let end = first + fds.len() as RawFd;
    // Out of the way first: a source may stand where an earlier target goes.
    let mut parked = Vec::with_capacity(fds.len());
    for fd in fds {
        if fd.as_raw_fd() >= end {
            parked.push(fd);
            continue;
        }
        let moved = rustix::io::fcntl_dupfd_cloexec(&fd, end).attempt("park a descriptor")?;
        parked.push(moved);
        // `fd` closes here; its number is free for the loop below.
    }
    let mut placed = Vec::with_capacity(parked.len());
    for (fd, target) in parked.into_iter().zip(first..) {
        // SAFETY: dup2(2) takes two numbers and no pointer. Its target belongs to nobody: sources
        // were parked above `end`, and the contract above forbids other owners.
        let result = unsafe { libc::dup2(fd.as_raw_fd(), target) };
        check(result.into()).attempt_with(|| format!("place a descriptor at {target}"))?;
        // SAFETY: dup2 just made this number ours.
        placed.push(unsafe { OwnedFd::from_raw_fd(target) });
    }
    Ok(placed)
}

/// Closes every descriptor from `first` on. For a process whose next act is exec or exit.
pub(crate) fn close_from(first: RawFd) -> Result<()> {
    // SAFETY: close_range(2) takes numbers only; the contract above forbids other owners.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    check(result).attempt_with(|| format!("close every descriptor from {first} on"))?;
    Ok(())
}

/// Marks every descriptor above stdio close-on-exec: a net under a later exec; closes nothing.
pub fn cloexec_all() -> Result<()> {
    // SAFETY: CLOSE_RANGE_CLOEXEC only sets a flag on each descriptor.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    check(result).attempt("mark all descriptors close-on-exec")?;
    Ok(())
}

/// Sets or clears close-on-exec.
pub fn set_cloexec(fd: impl AsFd, on: bool) -> Result<()> {
    let flags = if on { rustix::io::FdFlags::CLOEXEC } else { rustix::io::FdFlags::empty() };
    rustix::io::fcntl_setfd(fd, flags).attempt("set close-on-exec")
}

/// Is this number open? (fcntl F_GETFD: also true for O_PATH descriptors.)
pub fn is_open(number: RawFd) -> bool {
    // SAFETY: F_GETFD reads a flag of a number; EBADF for a closed one.
    unsafe { libc::fcntl(number, libc::F_GETFD) != -1 }
}

/// The open numbers below `end`, in order. One fcntl per number, no /proc: keep `end` near
/// RLIMIT_NOFILE of a confined process (some dozens); the warden looks above it from outside.
pub fn list_open(end: RawFd) -> Vec<RawFd> {
    (0..end).filter(|number| is_open(*number)).collect()
}

/// Replaces stdin, stdout and/or stderr (0..=2) by a copy of `fd`.
pub fn redirect_stdio(fd: impl AsFd, number: RawFd) -> Result<()> {
    let attempt = || format!("redirect standard descriptor {number}");
    if !(0..=2).contains(&number) {
        return Err(Error::because(attempt(), "not one of 0, 1, 2"));
    }
    // SAFETY: std treats 0..=2 as always open and owned by nobody; dup2 keeps them open.
    let result = unsafe { libc::dup2(fd.as_fd().as_raw_fd(), number) };
    check(result.into()).attempt_with(attempt)?;
    Ok(())
}

/// Gives a descriptor away for good (into an exec, or to a table that outlives us).
pub fn leak(fd: OwnedFd) -> RawFd {
    fd.into_raw_fd()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_numbers_are_listed() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let number = file.as_raw_fd();
        assert!(list_open(number + 1).contains(&number));
        assert!(is_open(number));
        assert!(!is_open(1_000_000));
    }

    #[test]
    fn only_stdio_can_be_redirected() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(redirect_stdio(&file, 7).is_err());
    }
}
