//! The caller's terminal: raw mode that is always taken back, and its size.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, Once, PoisonError};

use casemate_agent_protocol::WinSize;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use crate::error::{Attempt, Result};

/// The terminal that is raw now, and what it was before.
static SAVED: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

pub fn is_terminal(fd: impl AsFd) -> bool {
    isatty(fd)
}

/// Its size; `None` if it is no terminal or does not know.
pub fn size(fd: impl AsFd) -> Option<WinSize> {
    let size = tcgetwinsize(fd).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(WinSize { rows: size.ws_row, cols: size.ws_col })
}

/// Raw mode while it lives.
#[derive(Debug)]
#[must_use]
pub struct RawMode(());

impl RawMode {
    /// Also taken back when the program panics, whether or not the panic unwinds.
    pub fn enter(fd: impl AsFd) -> Result<RawMode> {
        let what = || "putting the terminal into raw mode".to_owned();
        let before = tcgetattr(&fd).attempt(what)?;
        let own = fd.as_fd().try_clone_to_owned().attempt(what)?;
        let mut raw = before.clone();
        raw.make_raw();
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some((own, before));
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let usual = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                usual(info);
            }));
        });
        let guard = RawMode(());
        tcsetattr(&fd, OptionalActions::Now, &raw).attempt(what)?;
        Ok(guard)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Takes raw mode back, if it is on. To be called before the process exits without unwinding.
pub fn restore() {
    let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((fd, before)) = saved {
        let _ = tcsetattr(fd, OptionalActions::Drain, &before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    use rustix::termios::LocalModes;

    #[test]
    fn raw_mode_is_taken_back_when_its_guard_goes() {
        let pty = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&pty).unwrap();
        unlockpt(&pty).unwrap();
        let tty = ioctl_tiocgptpeer(&pty, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        let canonical = || tcgetattr(&tty).unwrap().local_modes.contains(LocalModes::ICANON);
        assert!(is_terminal(&tty) && canonical());
        let guard = RawMode::enter(&tty).unwrap();
        assert!(!canonical());
        drop(guard);
        assert!(canonical());
        restore();
        assert!(canonical());
    }

    #[test]
    fn what_is_no_terminal_is_refused() {
        assert!(RawMode::enter(std::fs::File::open("/dev/null").unwrap()).is_err());
        assert_eq!(size(std::fs::File::open("/dev/null").unwrap()), None);
    }
}
