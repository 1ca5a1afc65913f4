//! Connections to the guest's agent: through `vsock.sock` (`CONNECT 1024\n`, answered by `OK <port>\n`), then frames.
//!
//! Trust: the runner that answers may be in the guest's hands as much as the agent behind it. The greeting is bounded in
//! length and time; every message passes [`ClientSession`], which refuses what was not asked for; error texts lose their
//! control characters here.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use casemate_agent_protocol::{AGENT_PORT, ClientSession, FromAgent, SessionError, ToAgent};
use rustix::event::PollFlags;
use std::os::fd::{AsFd, BorrowedFd};

use crate::error::{Attempt, Error, Result};
use crate::label;
use crate::outbox::Outbox;
use crate::sanitize;
use crate::store::SandboxDir;
use crate::wait;

/// `OK 4294967295\n` and some.
const MAX_GREETING: usize = 32;
const RETRY: Duration = Duration::from_millis(20);
/// One attempt; between two the caller is asked whether to go on.
const ATTEMPT: Duration = Duration::from_secs(2);

/// Connects to the agent, trying again until `limit` is over: a guest that boots does not listen yet. `stop` is asked between
/// two attempts and ends them.
pub fn connect(dir: &SandboxDir, limit: Duration, mut stop: impl FnMut() -> bool) -> Result<UnixStream> {
    let deadline = Instant::now() + limit;
    loop {
        let reason = match attempt(dir, deadline.min(Instant::now() + ATTEMPT)) {
            Ok(stream) => return Ok(stream),
            Err(reason) => reason,
        };
        if stop() {
            return Err(Error::Interrupted);
        }
        if Instant::now() + RETRY >= deadline {
            return Err(Error::AgentUnreachable(reason));
        }
        std::thread::sleep(RETRY);
    }
}

fn attempt(dir: &SandboxDir, deadline: Instant) -> std::result::Result<UnixStream, String> {
    let mut stream = label::at_low_level(|| UnixStream::connect(dir.socket("vsock.sock")))
        .map_err(|e| format!("its socket: {e}"))?;
    let text = |e: std::io::Error| e.to_string();
    // Byte by byte: what follows the line belongs to the session. Non-blocking, so that the time holds.
    stream.set_nonblocking(true).map_err(text)?;
    writeln!(stream, "CONNECT {AGENT_PORT}").map_err(text)?;
    let mut greeting = Vec::new();
    while !greeting.ends_with(b"\n") {
        if greeting.len() >= MAX_GREETING {
            return Err("it answered with an overlong line".into());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let ready = wait::ready(&[(stream.as_fd(), PollFlags::IN)], Some(left)).map_err(text)?;
        if !wait::readable(ready[0]) {
            return Err("it did not answer in time".into());
        }
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => return Err("it does not listen".into()),
            Ok(_) => greeting.push(byte[0]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    let port = greeting.strip_prefix(b"OK ").and_then(|rest| rest.strip_suffix(b"\n"));
    match port {
        Some(port) if !port.is_empty() && port.iter().all(u8::is_ascii_digit) => Ok(stream),
        _ => Err("it answered something else than OK".into()),
    }
}

/// An agent's error as ours, harmless to print.
pub fn refusal(kind: casemate_agent_protocol::ErrorKind, message: &str) -> Error {
    Error::Agent { kind, message: sanitize::line(message, 1024) }
}

/// A session on a non-blocking stream, for a poll loop.
#[derive(Debug)]
pub struct AgentStream {
    stream: UnixStream,
    pub session: ClientSession,
    out: Outbox,
    /// The agent has closed its side, or the stream broke.
    ended: bool,
}

impl AgentStream {
    pub fn open(stream: UnixStream, request: &ToAgent) -> Result<AgentStream> {
        stream.set_nonblocking(true).attempt(|| "setting up the session with the agent".into())?;
        let (session, wire) = ClientSession::open(request)?;
        let mut out = Outbox::default();
        out.push(&wire);
        Ok(AgentStream { stream, session, out, ended: false })
    }

    /// Queues a message.
    pub fn send(&mut self, message: &ToAgent) -> Result<()> {
        let wire = self.session.send(message)?;
        self.out.push(&wire);
        Ok(())
    }

    /// Everything queued has left.
    pub fn is_flushed(&self) -> bool {
        self.out.is_empty() || self.ended
    }

    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// What to poll for; `take`: whether the caller can take more messages.
    pub fn interest(&self, take: bool) -> PollFlags {
        let mut flags = PollFlags::empty();
        if take && !self.ended {
            flags |= PollFlags::IN;
        }
        if !self.is_flushed() {
            flags |= PollFlags::OUT;
        }
        flags
    }

    /// Sends a piece of what is queued. A broken stream ends the session; what came before it can still be read.
    pub fn flush(&mut self) {
        while !self.is_flushed() {
            let before = self.out.is_empty();
            match self.out.write_piece(&mut self.stream) {
                Ok(()) if before == self.out.is_empty() => return,
                Ok(()) => {}
                Err(_) => {
                    self.out.discard();
                    return;
                }
            }
        }
    }

    /// One read from the stream.
    pub fn fill(&mut self) {
        match self.session.fill(&mut self.stream) {
            Ok(0) => self.ended = true,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => {}
            Err(_) => self.ended = true,
        }
    }

    /// The next message that has arrived.
    pub fn message(&mut self) -> std::result::Result<Option<FromAgent>, SessionError> {
        self.session.next()
    }
}

impl AsFd for AgentStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A session on a blocking stream, for requests with one answer and for copies.
#[derive(Debug)]
pub struct Conversation {
    stream: UnixStream,
    session: ClientSession,
    greeted: bool,
}

impl Conversation {
    /// Opens it. Without a `limit` a read may wait for ever, as a copy of a slow guest does.
    pub fn open(mut stream: UnixStream, request: &ToAgent, limit: Option<Duration>) -> Result<Conversation> {
        let what = || "asking the guest's agent".to_owned();
        stream.set_nonblocking(false).attempt(what)?;
        stream.set_read_timeout(limit).attempt(what)?;
        stream.set_write_timeout(limit).attempt(what)?;
        let (session, wire) = ClientSession::open(request)?;
        let sent = stream.write_all(&wire);
        // An agent that has hung up already may have answered before: that is found when its answer is read.
        let hung_up = sent.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe);
        if !hung_up {
            sent.attempt(what)?;
        }
        Ok(Conversation { stream, session, greeted: false })
    }

    pub fn send(&mut self, message: &ToAgent) -> Result<()> {
        let wire = self.session.send(message)?;
        match self.stream.write_all(&wire) {
            Ok(()) => Ok(()),
            // The agent has hung up; perhaps it said why.
            Err(error) => match self.receive() {
                Err(told @ Error::Agent { .. }) => Err(told),
                _ => Err(error).attempt(|| "sending to the guest's agent".into()),
            },
        }
    }

    /// The next message after the greeting. The agent's errors come as [`Error::Agent`].
    pub fn receive(&mut self) -> Result<FromAgent> {
        loop {
            match self.session.recv(&mut self.stream)? {
                FromAgent::Hello { .. } if !self.greeted => self.greeted = true,
                FromAgent::Error { kind, message } => return Err(refusal(kind, &message)),
                message => return Ok(message),
            }
        }
    }
}

/// Asks the agent to end the workload; it powers the guest off by itself then.
pub fn stop(stream: UnixStream, grace: Option<Duration>) -> Result<()> {
    let grace_ms = grace.map(|g| u64::try_from(g.as_millis()).unwrap_or(u64::MAX));
    let mut talk = Conversation::open(stream, &ToAgent::Stop { grace_ms }, Some(Duration::from_secs(10)))?;
    talk.receive().map(drop)
}

/// What the guest says of itself.
pub fn stats(stream: UnixStream) -> Result<casemate_agent_protocol::Stats> {
    let mut talk = Conversation::open(stream, &ToAgent::Stats, Some(Duration::from_secs(5)))?;
    match talk.receive()? {
        FromAgent::Stats(stats) => Ok(stats),
        other => Err(SessionError::Unsolicited(other.name()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn sandbox() -> (tempfile::TempDir, SandboxDir) {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(temp.path().join("vms/a")).unwrap();
        let dirs = crate::Dirs { run: temp.path().into(), state: temp.path().into() };
        let dir = crate::store::open(&dirs, "a").unwrap();
        (temp, dir)
    }

    fn answering(dir: &SandboxDir, answers: Vec<&'static [u8]>) {
        let listener = UnixListener::bind(dir.socket("vsock.sock")).unwrap();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut peer, _) = listener.accept().unwrap();
                let mut line = [0; 13];
                peer.read_exact(&mut line).unwrap();
                assert_eq!(&line, b"CONNECT 1024\n");
                let _ = peer.write_all(answer);
            }
        });
    }

    #[test]
    fn a_guest_that_boots_is_waited_for() {
        let (_temp, dir) = sandbox();
        answering(&dir, vec![b"", b"", b"OK 1073741824\nrest"]);
        let mut stream = connect(&dir, Duration::from_secs(5), || false).unwrap();
        stream.set_nonblocking(false).unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "rest");
    }

    #[test]
    fn a_wrong_greeting_is_not_taken() {
        for (answer, said) in [
            (b"NO 1024\n".as_slice(), "something else"),
            (b"OK \n", "something else"),
            (b"OK 12x\n", "something else"),
            (&[b'x'; 100], "overlong"),
            (b"OK 1024", "does not listen"),
        ] {
            let (_temp, dir) = sandbox();
            answering(&dir, vec![answer]);
            let error = connect(&dir, Duration::from_millis(15), || false).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn nobody_there_and_an_interruption_end_the_waiting() {
        let (_temp, dir) = sandbox();
        assert!(matches!(connect(&dir, Duration::from_millis(50), || false), Err(Error::AgentUnreachable(_))));
        assert!(matches!(connect(&dir, Duration::from_secs(50), || true), Err(Error::Interrupted)));
    }
}
