//! The host's end of a session: what the agent may answer, and when.
//!
//! ```text
//! Greeting --Hello--> Opening --Started--> Running --Exited--> Over
//!                        |-- CopyIn --Done--> Over
//!                        |-- CopyOut --Data*, DataEof--> Over
//!                        |-- Stop --Done--> Over
//!                        '-- Query: one Stats/Pong for each request
//! any --Error--> Over
//! ```
//! Trust: the agent is part of the attacker. Anything else than the above is a [`SessionError`], after which the
//! connection is to be closed. Flow control of stdin is kept here too: [`ClientSession::send`] refuses more than the window.
use crate::frame::{FrameDecoder, FrameError, encode};
use crate::message::{FromAgent, MAX_CHUNK, MAX_MESSAGE, STDIN_WINDOW, ToAgent};
use crate::{ConfigError, PROTOCOL_VERSION};
use std::io::Read;

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("the guest agent sent {0} when nothing of the kind was asked for")]
    Unsolicited(&'static str),
    #[error("the guest agent speaks version {0} of the protocol, this program {PROTOCOL_VERSION}")]
    Version(u32),
    #[error("the guest agent sent something that is no message")]
    Frame(#[from] FrameError),
    #[error("the guest agent acknowledged more input than it was sent")]
    Window,
    #[error("{0} does not belong into this session")]
    Misuse(&'static str),
    #[error("the request is not valid")]
    Request(#[from] ConfigError),
    #[error("the guest agent closed the session before its end")]
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Process,
    CopyIn,
    CopyOut,
    Stop,
    Query,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    Opening,
    Running,
    Over,
}

/// Client side of one session. Feed it from the stream with [`ClientSession::fill`] and [`ClientSession::next`] (or
/// [`ClientSession::recv`] on a blocking stream), encode what goes out with [`ClientSession::send`].
#[derive(Debug)]
pub struct ClientSession {
    kind: Kind,
    state: State,
    decoder: FrameDecoder,
    stdin: bool,
    input_open: bool,
    in_flight: u64,
    stats_due: u32,
    /// Oldest first, at most 16.
    pings: Vec<u64>,
}

impl ClientSession {
    /// Opens a session with its first request: Attach, Exec, CopyIn, CopyOut, Stop, Stats or Ping. Returns the bytes to
    /// send first.
    pub fn open(request: &ToAgent) -> Result<(Self, Vec<u8>), SessionError> {
        let (kind, stdin) = match request {
            ToAgent::Attach { .. } => (Kind::Process, true),
            ToAgent::Exec(exec) => {
                exec.validate()?;
                (Kind::Process, exec.stdin)
            }
            ToAgent::CopyIn { .. } => (Kind::CopyIn, false),
            ToAgent::CopyOut { .. } => (Kind::CopyOut, false),
            ToAgent::Stop { .. } => (Kind::Stop, false),
            ToAgent::Stats | ToAgent::Ping { .. } => (Kind::Query, false),
            other => return Err(SessionError::Misuse(other.name())),
        };
        let mut session = ClientSession {
            kind,
            state: State::Greeting,
            decoder: FrameDecoder::new(),
            stdin,
            input_open: true,
            in_flight: 0,
            stats_due: 0,
            pings: Vec::new(),
        };
        let mut wire = encode(&ToAgent::Hello { version: PROTOCOL_VERSION })?;
        if kind == Kind::Query {
            session.note_query(request)?;
        }
        wire.extend(encode(request)?);
        Ok((session, wire))
    }

    /// Bytes of stdin that may be sent now; 0: wait for the agent.
    #[must_use]
    pub fn stdin_room(&self) -> usize {
        let open = self.stdin && self.input_open && self.state == State::Running;
        if open { (STDIN_WINDOW - self.in_flight).min(MAX_CHUNK as u64) as usize } else { 0 }
    }

    /// True when the last message has come.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Encodes a further message of this session, if it belongs there.
    pub fn send(&mut self, message: &ToAgent) -> Result<Vec<u8>, SessionError> {
        let misuse = Err(SessionError::Misuse(message.name()));
        match (message, self.kind) {
            (ToAgent::Stdin(bytes), Kind::Process) => {
                if bytes.0.is_empty() || bytes.0.len() > self.stdin_room() {
                    return misuse;
                }
                self.in_flight += bytes.0.len() as u64;
            }
            (ToAgent::StdinEof, Kind::Process) if self.stdin && self.input_open => self.input_open = false,
            (ToAgent::Resize(_) | ToAgent::Signal { .. }, Kind::Process) => {}
            (ToAgent::Data(bytes), Kind::CopyIn) if self.input_open && !bytes.0.is_empty() => {
                if bytes.0.len() > MAX_CHUNK {
                    return misuse;
                }
            }
            (ToAgent::DataEof, Kind::CopyIn) if self.input_open => self.input_open = false,
            (ToAgent::Stats | ToAgent::Ping { .. }, Kind::Query) => self.note_query(message)?,
            _ => return misuse,
        }
        Ok(encode(message)?)
    }

    fn note_query(&mut self, request: &ToAgent) -> Result<(), SessionError> {
        match request {
            ToAgent::Ping { token } if self.pings.len() < 16 => self.pings.push(*token),
            ToAgent::Stats if self.stats_due < 16 => self.stats_due += 1,
            other => return Err(SessionError::Misuse(other.name())),
        }
        Ok(())
    }

    /// One read from the stream; `Ok(0)` is its end. Take all messages with [`ClientSession::next`] before each call.
    pub fn fill(&mut self, stream: &mut impl Read) -> std::io::Result<usize> {
        self.decoder.fill(stream)
    }

    /// The next message that has arrived, if it is one the agent may send now.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<FromAgent>, SessionError> {
        match self.decoder.next()? {
            Some(message) => self.accept(message).map(Some),
            None => Ok(None),
        }
    }

    /// Blocks for the next message.
    pub fn recv(&mut self, stream: &mut impl Read) -> Result<FromAgent, SessionError> {
        match self.decoder.read(stream)? {
            Some(message) => self.accept(message),
            None => Err(SessionError::Closed),
        }
    }

    fn accept(&mut self, message: FromAgent) -> Result<FromAgent, SessionError> {
        let unsolicited = Err(SessionError::Unsolicited(message.name()));
        match (self.state, self.kind, &message) {
            (State::Over, ..) => return unsolicited,
            (_, _, FromAgent::Error { message, .. }) => {
                if message.len() > MAX_MESSAGE {
                    return Err(SessionError::Unsolicited("an overlong error"));
                }
                self.state = State::Over;
            }
            (State::Greeting, _, FromAgent::Hello { version }) => {
                if *version != PROTOCOL_VERSION {
                    return Err(SessionError::Version(*version));
                }
                self.state = State::Opening;
            }
            (State::Opening, Kind::Process, FromAgent::Started { .. }) => self.state = State::Running,
            (State::Running, Kind::Process, FromAgent::Stdout(_) | FromAgent::Stderr(_)) => {}
            (State::Running, Kind::Process, FromAgent::StdinAck { bytes }) => {
                self.in_flight = self.in_flight.checked_sub(u64::from(*bytes)).ok_or(SessionError::Window)?;
            }
            (State::Running, Kind::Process, FromAgent::StdinClosed) => self.input_open = false,
            (State::Running, Kind::Process, FromAgent::Exited(_)) => self.state = State::Over,
            (State::Opening, Kind::CopyOut, FromAgent::Data(_)) => {}
            (State::Opening, Kind::CopyOut, FromAgent::DataEof) => self.state = State::Over,
            (State::Opening, Kind::CopyIn, FromAgent::Done) if !self.input_open => self.state = State::Over,
            (State::Opening, Kind::Stop, FromAgent::Done) => self.state = State::Over,
            (State::Opening, Kind::Query, FromAgent::Stats(_)) if self.stats_due > 0 => self.stats_due -= 1,
            (State::Opening, Kind::Query, FromAgent::Pong { token }) if self.pings.first() == Some(token) => {
                self.pings.remove(0);
            }
            _ => return unsolicited,
        }
        Ok(message)
    }
}

impl ToAgent {
    /// For messages about messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            ToAgent::Hello { .. } => "Hello",
            ToAgent::Attach { .. } => "Attach",
            ToAgent::Exec(_) => "Exec",
            ToAgent::Stdin(_) => "Stdin",
            ToAgent::StdinEof => "StdinEof",
            ToAgent::Resize(_) => "Resize",
            ToAgent::Signal { .. } => "Signal",
            ToAgent::CopyIn { .. } => "CopyIn",
            ToAgent::CopyOut { .. } => "CopyOut",
            ToAgent::Data(_) => "Data",
            ToAgent::DataEof => "DataEof",
            ToAgent::Stop { .. } => "Stop",
            ToAgent::Stats => "Stats",
            ToAgent::Ping { .. } => "Ping",
        }
    }
}

impl FromAgent {
    /// For messages about messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            FromAgent::Hello { .. } => "Hello",
            FromAgent::Started { .. } => "Started",
            FromAgent::Stdout(_) => "Stdout",
            FromAgent::Stderr(_) => "Stderr",
            FromAgent::StdinAck { .. } => "StdinAck",
            FromAgent::StdinClosed => "StdinClosed",
            FromAgent::Exited(_) => "Exited",
            FromAgent::Data(_) => "Data",
            FromAgent::DataEof => "DataEof",
            FromAgent::Done => "Done",
            FromAgent::Stats(_) => "Stats",
            FromAgent::Pong { .. } => "Pong",
            FromAgent::Error { .. } => "Error",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Bytes, CopyFormat, ErrorKind, ExecRequest, ExitStatus, Stats};
    use proptest::prelude::*;

    const HELLO: FromAgent = FromAgent::Hello { version: PROTOCOL_VERSION };

    fn exec(stdin: bool) -> ClientSession {
        let request = ExecRequest { stdin, ..ExecRequest::new(vec!["cat".into()]) };
        ClientSession::open(&ToAgent::Exec(request)).unwrap().0
    }

    fn feed(session: &mut ClientSession, messages: &[FromAgent]) -> Result<(), SessionError> {
        messages.iter().try_for_each(|m| session.accept(m.clone()).map(drop))
    }

    #[test]
    fn a_whole_exec_session() {
        let mut session = exec(true);
        assert_eq!(session.stdin_room(), 0);
        feed(&mut session, &[HELLO, FromAgent::Started { pid: 7 }]).unwrap();
        let chunk = ToAgent::Stdin(Bytes(vec![0; MAX_CHUNK]));
        for _ in 0..STDIN_WINDOW / MAX_CHUNK as u64 {
            session.send(&chunk).unwrap();
        }
        assert_eq!(session.stdin_room(), 0);
        assert!(session.send(&chunk).is_err());
        feed(&mut session, &[FromAgent::StdinAck { bytes: 5 }]).unwrap();
        assert_eq!(session.stdin_room(), 5);
        session.send(&ToAgent::StdinEof).unwrap();
        assert!(session.send(&ToAgent::StdinEof).is_err());
        feed(&mut session, &[FromAgent::Stdout(Bytes(vec![1])), FromAgent::Exited(ExitStatus::Code(3))]).unwrap();
        assert!(session.is_over());
        assert!(feed(&mut session, &[FromAgent::Stdout(Bytes(vec![1]))]).is_err());
    }

    #[test]
    fn unsolicited_replies_are_refused() {
        let started = FromAgent::Started { pid: 1 };
        let error = FromAgent::Error { kind: ErrorKind::Io, message: "x".repeat(MAX_MESSAGE + 1) };
        let bad: Vec<Vec<FromAgent>> = vec![
            vec![started.clone()],
            vec![FromAgent::Hello { version: 9 }],
            vec![HELLO, HELLO],
            vec![HELLO, FromAgent::Stdout(Bytes::default())],
            vec![HELLO, started.clone(), started.clone()],
            vec![HELLO, started.clone(), FromAgent::StdinAck { bytes: 1 }],
            vec![HELLO, started.clone(), FromAgent::Done],
            vec![HELLO, FromAgent::Exited(ExitStatus::Code(0))],
            vec![HELLO, FromAgent::Pong { token: 0 }],
            vec![HELLO, FromAgent::Data(Bytes::default())],
            vec![HELLO, error],
        ];
        for messages in bad {
            let (last, before) = messages.split_last().unwrap();
            let mut session = exec(false);
            feed(&mut session, before).unwrap();
            assert!(session.accept(last.clone()).is_err(), "{messages:?}");
        }
    }

    #[test]
    fn copies_and_queries_keep_to_their_kind() {
        let (mut copy, _) =
            ClientSession::open(&ToAgent::CopyIn { path: "/x".into(), format: CopyFormat::Tar }).unwrap();
        feed(&mut copy, &[HELLO]).unwrap();
        assert!(feed(&mut copy, &[FromAgent::Done]).is_err());
        assert!(copy.send(&ToAgent::Stdin(Bytes(vec![1]))).is_err());
        copy.send(&ToAgent::DataEof).unwrap();
        feed(&mut copy, &[FromAgent::Done]).unwrap();
        assert!(copy.is_over());

        let (mut query, _) = ClientSession::open(&ToAgent::Ping { token: 5 }).unwrap();
        assert!(feed(&mut query, &[HELLO, FromAgent::Pong { token: 6 }]).is_err());
        feed(&mut query, &[FromAgent::Pong { token: 5 }]).unwrap();
        assert!(feed(&mut query, &[FromAgent::Stats(Stats::default())]).is_err());
        query.send(&ToAgent::Stats).unwrap();
        feed(&mut query, &[FromAgent::Stats(Stats::default())]).unwrap();
        assert!(ClientSession::open(&ToAgent::StdinEof).is_err());
    }

    fn any_message() -> impl Strategy<Value = FromAgent> {
        prop_oneof![
            Just(HELLO),
            Just(FromAgent::Started { pid: 1 }),
            Just(FromAgent::Stdout(Bytes(vec![1]))),
            any::<u32>().prop_map(|bytes| FromAgent::StdinAck { bytes }),
            Just(FromAgent::StdinClosed),
            Just(FromAgent::Exited(ExitStatus::Code(0))),
            Just(FromAgent::Data(Bytes(vec![1]))),
            Just(FromAgent::DataEof),
            Just(FromAgent::Done),
            any::<u64>().prop_map(|token| FromAgent::Pong { token }),
        ]
    }

    proptest! {
        /// Whatever the agent says: no panic, a window that never grows past its size, nothing after the end.
        #[test]
        fn any_order_is_survived(messages in proptest::collection::vec(any_message(), 0..40)) {
            let mut session = exec(true);
            for message in messages {
                let over = session.is_over();
                let accepted = session.accept(message).is_ok();
                prop_assert!(!(over && accepted));
                prop_assert!(session.stdin_room() <= MAX_CHUNK);
                if session.stdin_room() > 0 {
                    prop_assert!(session.send(&ToAgent::Stdin(Bytes(vec![0]))).is_ok());
                }
            }
        }
    }
}
