//! A process in a domain of its own that makes one object of each class and holds them: a probe that is asked to.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use casemate_confine::objects::Object;
use casemate_confine::trial::{self, Hold, MAX_REPORT, Made, Trial};
use casemate_plan::Layer;
use casemate_sys::process::{Child, wait_readable};
use casemate_sys::{rustix, seqpacket};
use std::os::fd::AsFd;

use super::super::jail::Jail;
use super::stage::Side;
use super::table::Thing;
use crate::error::StepFailed;

const STEP: &str = "make objects in a domain";
const PATIENCE: Duration = Duration::from_secs(20);

/// A running maker. Hanging up ends it, and its objects with it.
pub struct Maker {
    child: Child,
    socket: Option<OwnedFd>,
}

impl Maker {
    /// Starts one with the jail's label, under SELinux alone, and takes what it made.
    pub fn start(jail: &Jail<'_>, place: &Path, mark: &str) -> Result<(Maker, Side), StepFailed> {
        let hold = Hold { objects: Object::ALL.to_vec(), place: place.display().to_string(), mark: mark.into() };
        let trial = Trial { hold: Some(hold), ..Trial::default() };
        let (child, socket) = jail.spawn(&[Layer::Selinux], &trial, &[])?;
        let maker = Maker { child, socket: Some(socket) };
        let mut side = Side::default();
        for object in Object::ALL {
            let made = maker.next()?;
            let fd = made.fd.map(|number| take(&maker.child, number)).transpose();
            match (&made.failed, fd) {
                (None, Ok(fd)) => side.add(object, named(made, maker.child.pid()), fd, jail.label.as_ref()),
                (None, Err(error)) => {
                    side.missing.insert(Thing::Of(object), error.error);
                }
                (Some(why), _) => {
                    side.missing.insert(Thing::Of(object), format!("the maker cannot make one: {why}"));
                }
            }
        }
        Ok((maker, side))
    }

    /// One word of the maker.
    fn next(&self) -> Result<Made, StepFailed> {
        let silent = || StepFailed::because(STEP, "the maker ended or said nothing; see the audit log");
        let socket = self.socket.as_ref().ok_or_else(silent)?;
        if !wait_readable(socket.as_fd(), Some(PATIENCE)).map_err(|e| StepFailed::stage(STEP, e))? {
            return Err(silent());
        }
        let mut buffer = [0; MAX_REPORT];
        let received = seqpacket::receive(socket, &mut buffer).map_err(|e| StepFailed::stage(STEP, e))?;
        let made = trial::decode::<Made>(&buffer[..received.len]).filter(|_| received.len > 0);
        made.ok_or_else(silent)
    }
}

fn take(child: &Child, number: i32) -> Result<OwnedFd, StepFailed> {
    let flags = rustix::process::PidfdGetfdFlags::empty();
    let taken = rustix::process::pidfd_getfd(child, number, flags);
    taken.map_err(|e| StepFailed::stage(STEP, std::io::Error::from(e)))
}

/// A maker knows its own pid as its namespace numbers it; it has ours, but we take nobody's word for a pid.
fn named(made: Made, pid: i32) -> Option<casemate_confine::objects::Handle> {
    use casemate_confine::objects::Handle;
    let is_process = made.index as usize + 1 == Object::ALL.len();
    if is_process { Some(Handle::Number(pid)) } else { made.name }
}

impl Drop for Maker {
    fn drop(&mut self) {
        self.socket = None;
        // It removes what it made when it sees the end; a maker that does not end is killed.
        let ended = wait_readable(self.child.as_fd(), Some(Duration::from_secs(2))).unwrap_or(false);
        if !ended {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}
