//! What io and vCPU threads have to tell the main thread: a short queue and an event that wakes it.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use casemate_sys::rustix::event::{EventfdFlags, eventfd};
use casemate_sys::rustix::io::{read, write};
use casemate_vm::Ending;
use casemate_wire::runner::GuestNews;

use crate::error::{Error, Step};

/// The agent sends three messages in a VM's life; a guest that sends more is not heard.
const MAX_NEWS: usize = 16;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mail {
    /// A vCPU left its loop; the VM is over.
    Ended(Ending),
    /// A vCPU could not be started again.
    Broken(String),
    /// The agent reported.
    News(GuestNews),
}

/// Shared by all threads.
#[derive(Debug)]
pub struct Mailbox {
    queue: Mutex<Vec<Mail>>,
    event: std::os::fd::OwnedFd,
}

impl Mailbox {
    pub fn new() -> Result<Self, Error> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).step("make the mailbox")?;
        Ok(Self { queue: Mutex::default(), event })
    }

    /// `false` when the box is full: news beyond what an agent may send.
    pub fn post(&self, mail: Mail) -> bool {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // Endings are bounded by the number of vCPUs.
        if queue.len() >= MAX_NEWS && matches!(mail, Mail::News(_)) {
            return false;
        }
        queue.push(mail);
        // A full counter means the main thread is awake already.
        let _ = write(&self.event, &1u64.to_ne_bytes());
        true
    }

    /// Everything that waits.
    pub fn take(&self) -> Vec<Mail> {
        let mut counter = [0u8; 8];
        let _ = read(&self.event, &mut counter);
        std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_are_bounded_endings_are_not_lost() {
        let mailbox = Mailbox::new().unwrap();
        assert!((0..MAX_NEWS).all(|_| mailbox.post(Mail::News(GuestNews::Ready))));
        assert!(!mailbox.post(Mail::News(GuestNews::Ready)));
        assert!(mailbox.post(Mail::Ended(Ending::PowerOff)));
        assert_eq!(mailbox.take().len(), MAX_NEWS + 1);
        assert!(mailbox.take().is_empty());
    }
}
