//! A maker: objects of this process's domain, held until the jailer hangs up.

use casemate_confine::objects::{self, Held};
use casemate_confine::trial::{self, Hold, Made};
use casemate_sys::seqpacket;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

/// Makes what is wanted, tells of each, and waits for the end of the socket.
pub fn hold(wanted: &Hold, socket: &OwnedFd) -> ExitCode {
    let mut held: Vec<Held> = Vec::new();
    for (index, object) in (0..).zip(&wanted.objects) {
        let made = objects::make(*object, Path::new(&wanted.place), &wanted.mark);
        let word = match &made {
            Ok(made) => {
                let fd = made.fd.as_ref().map(AsRawFd::as_raw_fd);
                Made { index, name: made.name.clone(), fd, failed: None }
            }
            Err(error) => Made { index, name: None, fd: None, failed: Some(error.to_string()) },
        };
        if seqpacket::send(socket, &trial::encode(&word), &[]).is_err() {
            return ExitCode::FAILURE;
        }
        held.extend(made);
    }
    // Nothing is ever sent here: what ends the wait is the other end's close.
    let ended = seqpacket::receive(socket, &mut [0; 8]);
    if ended.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
