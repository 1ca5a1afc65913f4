//! The serial log's sink, with an ear on it: the last lines, and whether the kernel said that it panicked.
//!
//! A Linux guest with `panic=-1` resets after a panic, which looks like a reboot; its console tells the two apart.
//! What the console says is the guest's claim and is shown as such.

use std::sync::{Arc, Mutex, PoisonError};

use casemate_devices::ByteSink;

const PANIC: &[u8] = b"Kernel panic - not syncing";
const MAX_LINE: usize = 160;

/// What was heard.
#[derive(Debug, Default)]
struct Heard {
    line: Vec<u8>,
    panic: Option<String>,
}

/// Shared between the sink and the one who reports the end.
#[derive(Debug, Clone, Default)]
pub struct Ear(Arc<Mutex<Heard>>);

impl Ear {
    /// The kernel's panic message, printable and bounded.
    pub fn panic(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).panic.clone()
    }

    /// A new life of the guest.
    pub fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Heard::default();
    }

    fn hear(&self, bytes: &[u8]) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in bytes {
            match byte {
                b'\n' => heard.end_line(),
                b' '..=b'~' if heard.line.len() < MAX_LINE => heard.line.push(*byte),
                _ => {}
            }
        }
    }
}

impl Heard {
    fn end_line(&mut self) {
        // The first panic counts; later lines could only repeat it.
        if self.panic.is_none()
            && let Some(at) = self.line.windows(PANIC.len()).position(|window| window == PANIC)
        {
            self.panic = Some(String::from_utf8_lossy(&self.line[at..]).into_owned());
        }
        self.line.clear();
    }
}

/// Passes everything on and listens.
pub struct SerialTap {
    sink: Box<dyn ByteSink>,
    ear: Ear,
}

impl SerialTap {
    pub fn new(sink: Box<dyn ByteSink>, ear: Ear) -> Self {
        Self { sink, ear }
    }
}

impl ByteSink for SerialTap {
    fn write(&mut self, bytes: &[u8]) {
        self.ear.hear(bytes);
        self.sink.write(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_heard_across_writes() {
        let ear = Ear::default();
        ear.hear(b"[    1.0] fine\n[    2.0] Kernel panic - not sy");
        assert_eq!(ear.panic(), None);
        ear.hear(b"ncing: VFS: Unable to mount root\r\n[ 3.0] Kernel panic - not syncing: later\n");
        assert_eq!(ear.panic().unwrap(), "Kernel panic - not syncing: VFS: Unable to mount root");
    }

    #[test]
    fn lines_are_bounded_and_printable() {
        let ear = Ear::default();
        ear.hear(b"Kernel panic - not syncing: \x1b]0;\xff");
        ear.hear(&[b'x'; 100_000]);
        ear.hear(b"\n");
        let text = ear.panic().unwrap();
        assert!(text.len() <= MAX_LINE && text.bytes().all(|b| (b' '..=b'~').contains(&b)));
    }
}
