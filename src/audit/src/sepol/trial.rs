//! A policy that nobody vouches for is first taken in by a child process: libsepol is C, and bytes made for it, or one
//! flipped bit, can crash it or keep it busy without end (seen with libsepol 3.4: 1 of 2,000 to 6,000 flips and cuts).
//! The child reads it, prints its text, loads it and asks it; only then the caller's process loads the same bytes.
//!
//! This turns a crash into an error. It is no jail: the child has the caller's rights, and so has libsepol afterwards.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use casemate_sys::process::exit_now;
use casemate_sys::rlimit::{self, Resource};
use casemate_sys::{fds, memfd, rustix};

/// Fedora's policy takes half a second, on an emulated host ten.
const CPU_SECONDS: u64 = if cfg!(test) { 2 } else { 30 };
/// Address space; Fedora's policy takes 130 MiB.
const MEMORY: u64 = 4 << 30;
/// Of the text; Fedora's is 15 MB.
const TEXT: u64 = 512 << 20;

/// How the trial of a policy ended, when not well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    /// libsepol said no, with what it printed.
    Refused(String),
    /// It did not come back: killed by this signal, or by a limit of time or memory.
    Ended(String),
    /// There could be no trial.
    NotTried(String),
}

/// Runs `body` in a child process. It writes its result to the file and gives an exit status; whatever else happens to
/// the child is told, with what it printed on standard error.
///
/// The caller may have threads (the tests have): the child is a copy of the calling one alone. It takes no lock that another could hold
/// (malloc's are glibc's care, fork(3)), and never returns from here.
pub fn in_child(body: impl FnOnce(&mut File) -> i32) -> Result<Vec<u8>, Failed> {
    let not_tried = |e: casemate_sys::Error| Failed::NotTried(e.to_string());
    let mut result = File::from(memfd::create("policy-text").map_err(not_tried)?);
    let mut said = File::from(memfd::create("policy-errors").map_err(not_tried)?);
    // SAFETY: fork(2) takes nothing; the child runs on a copy of this thread's stack and leaves by _exit.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // A limit that is lower already cannot be raised, and need not be.
        for (resource, limit) in
            [(Resource::Core, 0), (Resource::Cpu, CPU_SECONDS), (Resource::As, MEMORY), (Resource::Fsize, TEXT)]
        {
            let _ = rlimit::set(resource, limit);
        }
        let _ = fds::redirect_stdio(said.as_fd(), 2);
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&mut result)));
        exit_now(code.unwrap_or(101));
    }
    let Some(pid) = rustix::process::Pid::from_raw(pid).filter(|_| pid > 0) else {
        return Err(Failed::NotTried(std::io::Error::last_os_error().to_string()));
    };
    let status = loop {
        match rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(Some((_, status))) => break status,
            Ok(None) => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => return Err(Failed::NotTried(error.to_string())),
        }
    };
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => whole(&mut result).map_err(|e| Failed::NotTried(e.to_string())),
        (Some(_), _) => Err(Failed::Refused(cause(&whole(&mut said).unwrap_or_default()))),
        (None, signal) => Err(Failed::Ended(match signal {
            Some(libc::SIGXCPU | libc::SIGKILL) => format!("no end after {CPU_SECONDS} s"),
            Some(libc::SIGXFSZ) => "its text has no end".to_owned(),
            signal => format!("killed by signal {}", signal.unwrap_or_default()),
        })),
    }
}

fn whole(file: &mut File) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    std::io::Read::read_to_end(file, &mut bytes)?;
    Ok(bytes)
}

/// The first line that libsepol printed, which names the cause; the later ones are those of its callers.
fn cause(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    line.trim_start_matches("libsepol.").chars().filter(|c| !c.is_control()).take(120).collect()
}

/// Everything that is done with a policy later, once, in a child: gives its text.
pub fn text(image: &[u8]) -> Result<String, Failed> {
    let bytes = in_child(|result| {
        super::speak();
        let Some(text) = super::Database::read(image, true).and_then(|db| db.text()) else { return 1 };
        if !super::load(image) {
            return 2;
        }
        // The initial SIDs are there without a context; each decision walks rules, attributes and constraints.
        for target in 1..=INITIAL_SIDS {
            for class in 1..=CLASSES {
                let _ = super::Server::default().decide(1, target, class, 0, false);
            }
        }
        result.write_all(text.as_bytes()).map_or(3, |()| 0)
    })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `SECINITSID_NUM` of the kernel (flask.h), and more classes than any policy has; libsepol refuses those that are not there.
const INITIAL_SIDS: u32 = 27;
const CLASSES: u16 = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_becomes_of_the_child_is_told_and_the_caller_lives() {
        assert_eq!(in_child(|out| out.write_all(b"yes").map_or(1, |()| 0)), Ok(b"yes".to_vec()));
        let refused = in_child(|_| {
            // Not eprintln!, which the test harness catches.
            let _ = std::io::stderr().write_all(b"\nlibsepol.read: bad \x1b[31mthing\nand more");
            4
        });
        assert_eq!(refused, Err(Failed::Refused("read: bad [31mthing".into())));
        assert_eq!(in_child(|_| std::process::abort()), Err(Failed::Ended("killed by signal 6".into())));
        let endless = in_child(|_| {
            loop {
                std::hint::black_box(1);
            }
        });
        assert_eq!(endless, Err(Failed::Ended("no end after 2 s".into())));
        let written = in_child(|out| {
            let _ = rlimit::set(Resource::Fsize, 1 << 16);
            out.write_all(&vec![0; 1 << 20]).map_or(9, |()| 0)
        });
        assert!(matches!(written, Err(Failed::Ended(_) | Failed::Refused(_))), "{written:?}");
        assert!(matches!(in_child(|_| panic!("in the child")), Err(Failed::Refused(_))));
    }
}
