//! Requests to a warden over `control.sock`: one connection, one request, one response, within a time.

use std::os::fd::AsFd;
use std::time::Duration;

use casemate_wire::control::{Request, Response};
use casemate_wire::record::{ExitReport, Finding, SandboxRecord};
use casemate_wire::{Channel, ChannelError};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::error::{Attempt, Error, Result};
use crate::store::SandboxDir;

/// A warden that does its work answers in milliseconds.
const ANSWER: Duration = Duration::from_secs(15);

/// A connection to the warden of one sandbox.
#[derive(Debug)]
pub struct Control {
    name: String,
    channel: Channel,
}

impl Control {
    pub fn connect(dir: &SandboxDir) -> Result<Control> {
        let name = dir.name.to_string();
        let what = || format!("connecting to the warden of '{name}'");
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).attempt(what)?;
        let address = SocketAddrUnix::new(dir.socket("control.sock")).attempt(what)?;
        match connect(&socket, &address) {
            Ok(()) => Ok(Control { channel: Channel::new(socket), name }),
            Err(Errno::NOENT | Errno::CONNREFUSED) => Err(Error::NotRunning(name)),
            Err(error) => Err(error).attempt(what),
        }
    }

    /// Asks, and waits for the answer.
    pub fn ask(&self, request: &Request, limit: Option<Duration>) -> Result<Response> {
        let silent = |reason: String| Error::Warden { name: self.name.clone(), reason };
        for side in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(self.channel.as_fd(), side, limit).map_err(|e| silent(e.to_string()))?;
        }
        let told = |error: ChannelError| match error {
            ChannelError::WouldBlock => {
                silent(format!("nothing came within {} s", limit.unwrap_or_default().as_secs()))
            }
            other => silent(other.to_string()),
        };
        self.channel.send(request).map_err(told)?;
        match self.channel.receive().map_err(told)? {
            Response::Refused(reason) => Err(Error::Refused {
                name: self.name.clone(),
                request: verb(request),
                reason: crate::sanitize::line(&reason, 300),
            }),
            response => Ok(response),
        }
    }

    fn unexpected<T>(&self) -> Result<T> {
        Err(Error::Warden { name: self.name.clone(), reason: "the answer does not fit the request".into() })
    }

    fn done(&self, request: &Request) -> Result<()> {
        match self.ask(request, Some(ANSWER))? {
            Response::Done => Ok(()),
            _ => self.unexpected(),
        }
    }

    pub fn pause(&self) -> Result<()> {
        self.done(&Request::Pause)
    }

    pub fn resume(&self) -> Result<()> {
        self.done(&Request::Resume)
    }

    /// Resumes although SELinux does not separate it any more; the reason stands in the record.
    pub fn resume_reduced(&self, reason: &str) -> Result<()> {
        self.done(&Request::ResumeReduced(reason.into()))
    }

    /// Ends the VM; answered when it is gone.
    pub fn kill(&self) -> Result<ExitReport> {
        match self.ask(&Request::Kill, Some(ANSWER))? {
            Response::Exited(report) => Ok(report),
            _ => self.unexpected(),
        }
    }

    pub fn inspect(&self) -> Result<SandboxRecord> {
        match self.ask(&Request::Inspect, Some(ANSWER))? {
            Response::Record(record) => Ok(*record),
            _ => self.unexpected(),
        }
    }

    /// Both attestations again, now.
    pub fn attest(&self) -> Result<Vec<Finding>> {
        match self.ask(&Request::Attest, Some(ANSWER))? {
            Response::Findings(findings) => Ok(findings),
            _ => self.unexpected(),
        }
    }

    /// Waits for the end of the sandbox; `None`: not within the limit.
    pub fn wait(&self, limit: Option<Duration>) -> Result<Option<ExitReport>> {
        set_socket_timeout(self.channel.as_fd(), Timeout::Recv, limit)
            .attempt(|| format!("waiting for '{}'", self.name))?;
        let told = |e: ChannelError| Error::Warden { name: self.name.clone(), reason: e.to_string() };
        self.channel.send(&Request::Wait).map_err(told)?;
        match self.channel.receive() {
            Ok(Response::Exited(report)) => Ok(Some(report)),
            Ok(Response::Refused(reason)) => Err(Error::Refused { name: self.name.clone(), request: "wait", reason }),
            Ok(_) => self.unexpected(),
            Err(ChannelError::WouldBlock) => Ok(None),
            Err(error) => Err(told(error)),
        }
    }
}

fn verb(request: &Request) -> &'static str {
    match request {
        Request::Inspect => "inspect",
        Request::Attest => "attest",
        Request::Pause => "pause",
        Request::Resume | Request::ResumeReduced(_) => "resume",
        Request::Kill => "kill",
        Request::Wait => "wait",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use casemate_wire::record::ExitCause;
    use rustix::net::{accept, bind, listen};
    use std::path::Path;

    /// A warden that answers each connection's first request with what `answer` says; `None` hangs up.
    fn warden(at: &Path, answer: impl Fn(Request) -> Option<Response> + Send + 'static) {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&socket, &SocketAddrUnix::new(at).unwrap()).unwrap();
        listen(&socket, 8).unwrap();
        std::thread::spawn(move || {
            while let Ok(peer) = accept(&socket) {
                let channel = Channel::new(peer);
                if let Ok(request) = channel.receive()
                    && let Some(response) = answer(request)
                {
                    let _ = channel.send(&response);
                }
            }
        });
    }

    fn sandbox(root: &Path) -> SandboxDir {
        let dirs = crate::Dirs { run: root.into(), state: root.into() };
        std::fs::create_dir_all(root.join("vms/a")).unwrap();
        crate::store::open(&dirs, "a").unwrap()
    }

    #[test]
    fn requests_are_answered_refused_or_not_fitting() {
        let temp = tempfile::tempdir().unwrap();
        let dir = sandbox(temp.path());
        assert!(matches!(Control::connect(&dir), Err(Error::NotRunning(_))));
        warden(&temp.path().join("vms/a/control.sock"), |request| match request {
            Request::Pause => Some(Response::Done),
            Request::Resume => Some(Response::Refused("it is \x1b[31mnot paused".into())),
            Request::Kill => Some(Response::Findings(vec![])),
            Request::Wait => {
                Some(Response::Exited(ExitReport { cause: ExitCause::PowerOff, status: Some(0), detail: None }))
            }
            _ => None,
        });
        Control::connect(&dir).unwrap().pause().unwrap();
        let refused = Control::connect(&dir).unwrap().resume().unwrap_err().to_string();
        assert_eq!(refused, "the warden of 'a' refused to resume: it is ^[[31mnot paused");
        assert!(Control::connect(&dir).unwrap().kill().unwrap_err().to_string().contains("does not fit"));
        let gone = Control::connect(&dir).unwrap().inspect().unwrap_err().to_string();
        assert!(gone.contains("did not answer"), "{gone}");
        let report = Control::connect(&dir).unwrap().wait(Some(ANSWER)).unwrap();
        assert_eq!(report.unwrap().status, Some(0));
    }

    #[test]
    fn a_silent_warden_does_not_hang_its_client() {
        let temp = tempfile::tempdir().unwrap();
        let dir = sandbox(temp.path());
        warden(&temp.path().join("vms/a/control.sock"), |_| {
            std::thread::sleep(Duration::from_secs(2));
            None
        });
        let control = Control::connect(&dir).unwrap();
        let error = control.ask(&Request::Inspect, Some(Duration::from_millis(50))).unwrap_err().to_string();
        assert!(error.contains("nothing came"), "{error}");
        assert_eq!(Control::connect(&dir).unwrap().wait(Some(Duration::from_millis(50))).unwrap(), None);
    }

    #[test]
    fn a_long_run_directory_is_no_problem() {
        let temp = tempfile::tempdir().unwrap();
        let long = temp.path().join("x".repeat(150));
        let dir = sandbox(&long);
        // Bound through the same short path that clients use.
        warden(&dir.socket("control.sock"), |_| Some(Response::Done));
        Control::connect(&dir).unwrap().pause().unwrap();
    }
}
