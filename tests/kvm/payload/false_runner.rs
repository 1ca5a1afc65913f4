//! A runner that lies: it says what it was built with on the warden's socket, narrows nothing, and waits to be let go.
//!
//! Plain std, compiled static by `rustc` alone: in the jail there is no C library to open.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;

/// One message; none when it is empty.
static LIE: &[u8] = include_bytes!(env!("LIE"));

fn main() {
    // SAFETY: the plan puts the warden's socket at 4, and nothing else here uses that number.
    let mut warden = unsafe { File::from_raw_fd(4) };
    if LIE.is_empty() || warden.write_all(LIE).is_err() {
        return;
    }
    let mut word = [0; 64];
    // Go, or the end of the warden's patience.
    let _ = warden.read(&mut word);
}
