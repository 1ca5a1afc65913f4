//! Signal dispositions and masks before an exec, and signals as a readable descriptor.

use crate::error::check;
use crate::{Attempt, Result};
use std::os::fd::{FromRawFd, OwnedFd};

pub use rustix::process::Signal;

/// Every signal to its default action and none blocked, so that the next program does not inherit
/// std's ignored SIGPIPE or a caller's mask.
pub fn reset_for_exec() -> Result<()> {
    for signal in 1..=64 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        // SAFETY: SIG_DFL installs no function; numbers that libc reserves answer EINVAL.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    set_mask(&[], libc::SIG_SETMASK).attempt("unblock all signals")
}

/// Blocks signals in the calling thread (and the threads it starts later).
pub fn block(signals: &[Signal]) -> Result<()> {
    set_mask(signals, libc::SIG_BLOCK).attempt("block signals")
}

/// Blocks signals and gives a descriptor that becomes readable when one is pending.
pub fn as_fd(signals: &[Signal]) -> Result<OwnedFd> {
    block(signals)?;
    let set = set_of(signals);
    // SAFETY: `set` is an initialised sigset_t; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    let fd = check(fd.into()).attempt("take signals as a descriptor")?;
    // SAFETY: signalfd just made this number, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Takes one pending signal from the descriptor of [`as_fd`]; None when there is none.
pub fn take(fd: &OwnedFd) -> Result<Option<i32>> {
    let mut buffer = [0u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(fd, &mut buffer) {
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error).attempt("read a pending signal"),
        Ok(_) => {
            let [a, b, c, d, ..] = buffer;
            Ok(Some(u32::from_ne_bytes([a, b, c, d]) as i32))
        }
    }
}

fn set_mask(signals: &[Signal], how: libc::c_int) -> std::io::Result<()> {
    let set = set_of(signals);
    // SAFETY: `set` is initialised and lives; a null old set is allowed.
    let result = unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(result)) }
}

fn set_of(signals: &[Signal]) -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set that it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in signals {
        // SAFETY: the set was initialised above; a bad number answers EINVAL and changes nothing.
        unsafe { libc::sigaddset(set.as_mut_ptr(), signal.as_raw()) };
    }
    // SAFETY: initialised by sigemptyset.
    unsafe { set.assume_init() }
}
