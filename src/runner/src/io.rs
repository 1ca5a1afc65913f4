//! The io thread: one event loop for all devices.
//!
//! Trust: what devices do here is driven by the guest; each turn of a device is bounded by the device itself, and a
//! device that wants more waits until the others had their turn.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use casemate_devices::host::{readiness, split_event_data};
use casemate_devices::legacy::SerialPort;
use casemate_devices::{Progress, VirtioMmio};
use casemate_sys::rustix::event::{Timespec, epoll};
use casemate_sys::rustix::io::Errno;

use crate::error::{Error, Step};
use crate::exits::Bell;

/// Event data of the bell; no device has this index.
const BELL: u64 = u64::MAX;
/// Turns that a device gets when the VM is over: enough for what a console still holds.
const LAST_TURNS: usize = 16;

/// A device as the io thread sees it.
#[derive(Clone)]
pub enum Device {
    Virtio(Arc<VirtioMmio>),
    Serial(Arc<SerialPort>),
}

impl Device {
    fn process(&self) -> Progress {
        match self {
            Device::Virtio(device) => device.process(),
            Device::Serial(serial) => serial.process(),
        }
    }

    fn finish(&self) {
        match self {
            Device::Virtio(device) => device.finish(),
            Device::Serial(_) => {}
        }
    }

    fn host_event(&self, token: u32, flags: epoll::EventFlags) -> Progress {
        match self {
            Device::Virtio(device) => device.host_event(token, readiness(flags)),
            Device::Serial(_) => Progress::Idle,
        }
    }

    /// Why it stopped, once per stop.
    fn fault(&self) -> Option<String> {
        match self {
            Device::Virtio(device) => {
                device.take_fault().map(|fault| format!("{:?} device stopped: {fault}", device.kind()))
            }
            Device::Serial(_) => None,
        }
    }
}

/// What the loop works on.
pub struct IoThread {
    pub devices: Vec<Device>,
    pub epoll: Arc<OwnedFd>,
    pub bell: Arc<Bell>,
    /// Set by the main thread, then rung: the last turn.
    pub done: Arc<AtomicBool>,
}

/// Which devices want another turn, and when.
#[derive(Default)]
struct Agenda {
    now: u32,
    later: Vec<(Instant, u32)>,
}

impl Agenda {
    fn note(&mut self, index: u32, progress: Progress) {
        match progress {
            Progress::Idle => {}
            Progress::More => self.now |= 1 << index,
            Progress::After(wait) => {
                // One entry per device: the newest word counts.
                self.later.retain(|(_, other)| *other != index);
                self.later.push((Instant::now() + wait, index));
            }
        }
    }

    fn due(&mut self) -> u32 {
        let mut due = std::mem::take(&mut self.now);
        if !self.later.is_empty() {
            let now = Instant::now();
            self.later.retain(|(at, index)| {
                let wait = *at > now;
                due |= if wait { 0 } else { 1 << index };
                wait
            });
        }
        due
    }

    fn timeout(&self) -> Option<Timespec> {
        if self.now != 0 {
            return Some(Timespec { tv_sec: 0, tv_nsec: 0 });
        }
        let next = self.later.iter().map(|(at, _)| *at).min()?;
        // Never early: a millisecond is the grain of epoll.
        let wait = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        Timespec::try_from(wait).ok()
    }
}

impl IoThread {
    /// Connects the bell. Before the thread is confined.
    pub fn prepare(&self) -> Result<(), Error> {
        let data = epoll::EventData::new_u64(BELL);
        epoll::add(&*self.epoll, &*self.bell, data, epoll::EventFlags::IN).step("start the io thread")
    }

    /// Runs until the last turn. Returns the first fault of a device, if any.
    pub fn run(self) -> Option<String> {
        let mut agenda = Agenda::default();
        let mut first_fault = None;
        let mut space = [MaybeUninit::<epoll::Event>::uninit(); 32];
        loop {
            let mut ready = match epoll::wait(&*self.epoll, &mut space, agenda.timeout().as_ref()) {
                Ok((events, _)) => self.hear(events, &mut agenda),
                Err(Errno::INTR) => 0,
                // Only a broken descriptor table does this: end with what is known instead of spinning.
                Err(_) => return first_fault,
            };
            ready |= agenda.due();
            for (index, device) in self.devices.iter().enumerate().filter(|(index, _)| ready & (1 << index) != 0) {
                agenda.note(index as u32, device.process());
                if let Some(fault) = device.fault() {
                    first_fault.get_or_insert(fault);
                }
            }
            if self.done.load(Ordering::SeqCst) {
                self.last_turn();
                return first_fault;
            }
        }
    }

    /// Hands events to their devices; returns who rang.
    fn hear(&self, events: &[epoll::Event], agenda: &mut Agenda) -> u32 {
        let mut ready = 0;
        for event in events {
            let (data, flags) = ({ event.data }.u64(), event.flags);
            if data == BELL {
                ready |= self.bell.answer();
                continue;
            }
            let (index, token) = split_event_data(data);
            if let Some(device) = self.devices.get(index as usize) {
                agenda.note(index, device.host_event(token, flags));
            }
        }
        ready
    }

    fn last_turn(&self) {
        for device in &self.devices {
            let _more = (0..LAST_TURNS).find(|_| device.process() != Progress::More);
            device.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_now_and_after_is_later() {
        let mut agenda = Agenda::default();
        assert!(agenda.timeout().is_none());
        agenda.note(2, Progress::More);
        agenda.note(5, Progress::After(Duration::from_secs(60)));
        agenda.note(6, Progress::After(Duration::ZERO));
        assert_eq!(agenda.timeout().map(|t| (t.tv_sec, t.tv_nsec)), Some((0, 0)));
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(agenda.due(), 0b100_0100);
        assert_eq!(agenda.due(), 0);
        assert!(agenda.timeout().is_some_and(|t| t.tv_sec >= 59));
        agenda.note(5, Progress::After(Duration::from_secs(1)));
        assert_eq!(agenda.later.len(), 1);
    }
}
