//! casemate-probe: executed by the jailer in the runner's place, with the runner's exact confinement,
//! to try what an attacker would (selftest, the attack table, the layers' controls).
//!
//! Trust: none; it is the attacker. It reads a [`Trial`] from the sealed memfd at descriptor 3 and
//! reports over the socket at descriptor 4. Each attempt is made in a forked child of its own, which
//! first takes the runner's second narrowing, so that a filter that kills does not end the trial
//! (`casemate_confine::trial` says why this is honest).
#![forbid(unsafe_code)]

mod attempts;
mod hold;
mod rights;

pub use attempts::perform;

use casemate_confine::objects::{self, Hands};
use casemate_confine::trial::{self, MAX_TRIAL, Outcome, Report, Trial};
use casemate_sys::process::{Exit, in_child};
use casemate_sys::{exec, memfd, rustix};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::ExitCode;

/// The exit status of a child that has reported; anything else means that it could not.
const REPORTED: i32 = 77;

/// The whole program. Exit status 0: every attempt has its report; 2: it was not started by a jailer.
pub fn main() -> ExitCode {
    let Some((trial, fds)) = start() else { return ExitCode::from(2) };
    let Some(socket) = fds.get(1) else { return ExitCode::from(2) };
    if let Some(wanted) = &trial.hold {
        return hold::hold(wanted, socket);
    }
    let mut code = ExitCode::SUCCESS;
    for index in 0..trial.attempts.len() {
        if let Some(report) = attempt(&trial, index, &fds, socket)
            && !send(socket, &report)
        {
            code = ExitCode::FAILURE;
        }
    }
    code
}

fn start() -> Option<(Trial, Vec<OwnedFd>)> {
    let mut fds = exec::inherit_open().ok()?;
    let bytes = memfd::read_sealed(fds.first()?, MAX_TRIAL).ok()?;
    // What the exec took away is not there, whichever way it did so.
    let mut number = 0;
    fds.retain(|fd| {
        number += 1;
        number <= 2 || !objects::is_null(fd)
    });
    Some((trial::decode(&bytes)?, fds))
}

/// Tries one in a child. None: the child has reported for itself.
fn attempt(trial: &Trial, index: usize, fds: &[OwnedFd], socket: &OwnedFd) -> Option<Report> {
    let report = |outcome| Report { index: u32::try_from(index).unwrap_or(u32::MAX), outcome };
    let post = fds.iter().find(|fd| fd.as_raw_fd() == trial.post).map(AsFd::as_fd);
    let hands = Hands { table: fds, post };
    let ended = in_child(|| {
        let outcome = match trial.narrowing.apply() {
            Ok(()) => match trial.attempts.get(index) {
                Some(attempt) => perform(attempt, hands),
                None => Outcome::Unclear { why: "no such attempt".into() },
            },
            Err(error) => Outcome::Unclear { why: describe(&error) },
        };
        if send(socket, &report(outcome)) { REPORTED } else { 1 }
    });
    let outcome = match ended {
        Ok(Exit::Exited(REPORTED)) => return None,
        Ok(Exit::Signaled(signal)) => Outcome::Killed { signal },
        // Only a program that was executed in the child's place ends it without a report.
        Ok(Exit::Exited(0)) => Outcome::Allowed,
        Ok(Exit::Exited(code)) => Outcome::Unclear { why: format!("the child ended with {code}") },
        Err(error) => Outcome::Unclear { why: error.report() },
    };
    Some(report(outcome))
}

/// write(2), which every filter allows, keeps the edges of messages on a seqpacket socket.
fn send(socket: &OwnedFd, report: &Report) -> bool {
    rustix::io::write(socket, &trial::encode(report)).is_ok()
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
