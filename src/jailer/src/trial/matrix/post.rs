//! The hostile helper: a process that hands any object of the trial to whoever asks on its socket, by tag.

use std::os::fd::{AsFd, OwnedFd};

use casemate_sys::process::{Child, CloneOptions, Cloned, clone3, exit_now};
use casemate_sys::seqpacket;

use crate::error::StepFailed;

const STEP: &str = "hand objects over";

/// A running post. It ends with this, or when nobody holds the other end of its socket any more.
pub struct Post {
    child: Child,
    /// What a probe inherits.
    pub socket: Option<OwnedFd>,
}

impl Post {
    /// Starts one on `ours`. Tag N is the Nth of `objects`; whoever asks inherits `theirs`, if it is ours to give.
    pub fn start(objects: &[OwnedFd], (ours, theirs): (OwnedFd, Option<OwnedFd>)) -> Result<Post, StepFailed> {
        match clone3(&CloneOptions::default()).map_err(|e| StepFailed::stage(STEP, e))? {
            Cloned::Child => {
                // Held here it would hide that all askers are gone.
                drop(theirs);
                serve(&ours, objects);
                exit_now(0)
            }
            Cloned::Parent(child) => Ok(Post { child, socket: theirs }),
        }
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        // It has nothing to lose, and a failure to reap it harms nobody: this program ends soon.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(socket: &OwnedFd, objects: &[OwnedFd]) {
    let mut tag = [0];
    while let Ok(received) = seqpacket::receive(socket, &mut tag) {
        if received.len != 1 {
            return;
        }
        let fd = objects.get(usize::from(tag[0])).map(AsFd::as_fd);
        let answer = [tag[0], u8::from(fd.is_some())];
        // The kernel sends no io_uring (unix_attach_fds, EINVAL): then that is the answer.
        let sent = seqpacket::send(socket, &answer, fd.as_slice());
        if sent.or_else(|_| seqpacket::send(socket, &answer, &[])).is_err() {
            return;
        }
    }
}
