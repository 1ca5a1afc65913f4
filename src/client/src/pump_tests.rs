//! Sessions against an agent that keeps to the protocol, and against agents that do not.

use super::*;
use casemate_agent_protocol::{ExecRequest, FrameDecoder, PROTOCOL_VERSION, STDIN_WINDOW, encode};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

const HELLO: FromAgent = FromAgent::Hello { version: PROTOCOL_VERSION };
const STARTED: FromAgent = FromAgent::Started { pid: 7 };

fn say(stream: &mut UnixStream, messages: &[FromAgent]) -> bool {
    messages.iter().all(|m| stream.write_all(&encode(m).unwrap()).is_ok())
}

fn pipe() -> (std::fs::File, OwnedFd) {
    let (read, write) = std::io::pipe().unwrap();
    (std::fs::File::from(OwnedFd::from(read)), write.into())
}

/// Runs a session against `agent`; gives its end, stdout and stderr.
fn session(
    input: Option<&[u8]>,
    agent: impl FnOnce(UnixStream) + Send + 'static,
) -> (Result<Outcome>, Vec<u8>, Vec<u8>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let guest = std::thread::spawn(move || agent(theirs));
    let (stdin_read, stdin_write) = pipe();
    if let Some(input) = input.map(<[u8]>::to_vec) {
        std::thread::spawn(move || std::fs::File::from(stdin_write).write_all(&input));
    }
    let (mut out, stdout) = pipe();
    let (mut err, stderr) = pipe();
    let collect = |mut pipe: std::fs::File| {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    };
    let out = std::thread::spawn(move || collect(out.try_clone().map(|o| std::mem::replace(&mut out, o)).unwrap()));
    let err = std::thread::spawn(move || collect(err.try_clone().map(|o| std::mem::replace(&mut err, o)).unwrap()));
    let request = ExecRequest { stdin: input.is_some(), ..ExecRequest::new(vec!["x".into()]) };
    let outcome = AgentStream::open(ours, &ToAgent::Exec(request)).and_then(|agent| {
        let stdin = input.is_some().then(|| stdin_read.as_fd());
        Pump::new(agent, Stdio { stdin, stdout: stdout.as_fd(), stderr: stderr.as_fd() }, false).run()
    });
    drop((stdout, stderr));
    let _ = guest.join();
    (outcome, out.join().unwrap(), err.join().unwrap())
}

fn hear(stream: &mut UnixStream, decoder: &mut FrameDecoder) -> ToAgent {
    decoder.read(stream).unwrap().unwrap()
}

#[test]
fn output_and_status_come_through_byte_for_byte() {
    let (outcome, out, err) = session(None, |mut agent| {
        let big = FromAgent::Stdout(Bytes(vec![b'y'; MAX_CHUNK]));
        say(&mut agent, &[HELLO, STARTED]);
        for _ in 0..100 {
            say(&mut agent, std::slice::from_ref(&big));
        }
        say(&mut agent, &[FromAgent::Stderr(b"e\x1b".as_slice().into()), FromAgent::Exited(ExitStatus::Code(3))]);
    });
    assert_eq!(outcome.unwrap().end, End::Exited(ExitStatus::Code(3)));
    assert_eq!(out.len(), 100 * MAX_CHUNK);
    assert_eq!(err, b"e\x1b");
}

#[test]
fn input_keeps_to_the_window_and_ends() {
    let input = vec![b'i'; STDIN_WINDOW as usize * 3];
    let (outcome, out, _) = session(Some(&input), |mut agent| {
        let mut decoder = FrameDecoder::new();
        assert_eq!(hear(&mut agent, &mut decoder), ToAgent::Hello { version: PROTOCOL_VERSION });
        assert!(matches!(hear(&mut agent, &mut decoder), ToAgent::Exec(_)));
        say(&mut agent, &[HELLO, STARTED]);
        loop {
            match hear(&mut agent, &mut decoder) {
                ToAgent::Stdin(bytes) => {
                    let ack = FromAgent::StdinAck { bytes: bytes.0.len() as u32 };
                    say(&mut agent, &[FromAgent::Stdout(bytes), ack]);
                }
                ToAgent::StdinEof => break,
                other => panic!("{other:?}"),
            }
        }
        say(&mut agent, &[FromAgent::Exited(ExitStatus::Code(0))]);
    });
    assert_eq!(outcome.unwrap().end, End::Exited(ExitStatus::Code(0)));
    assert_eq!(out, input);
}

#[test]
fn an_agent_out_of_turn_ends_the_session() {
    let hostile: Vec<Vec<u8>> = vec![
        encode(&STARTED).unwrap(),
        [encode(&HELLO).unwrap(), encode(&FromAgent::Stdout(b"x".as_slice().into())).unwrap()].concat(),
        [encode(&HELLO).unwrap(), encode(&STARTED).unwrap(), encode(&FromAgent::StdinAck { bytes: 1 }).unwrap()]
            .concat(),
        [encode(&HELLO).unwrap(), encode(&STARTED).unwrap(), encode(&FromAgent::Done).unwrap()].concat(),
        [encode(&HELLO).unwrap(), encode(&HELLO).unwrap()].concat(),
        u32::MAX.to_le_bytes().to_vec(),
        vec![0; 64],
        vec![0xff; 70_000],
    ];
    for bytes in hostile {
        let (outcome, out, _) = session(None, move |mut agent| {
            let _ = agent.write_all(&bytes);
        });
        assert!(matches!(outcome, Err(Error::Session(_))), "{outcome:?}");
        assert!(out.is_empty());
    }
}

#[test]
fn a_flood_after_the_end_and_an_agent_that_hangs_up_do_no_harm() {
    let (outcome, out, _) = session(None, |mut agent| {
        say(&mut agent, &[HELLO, STARTED, FromAgent::Stdout(b"a".as_slice().into())]);
        say(&mut agent, &[FromAgent::Exited(ExitStatus::Signal(9))]);
        let flood = FromAgent::Stdout(Bytes(vec![b'x'; MAX_CHUNK]));
        while say(&mut agent, std::slice::from_ref(&flood)) {}
    });
    assert_eq!(outcome.unwrap().end, End::Exited(ExitStatus::Signal(9)));
    assert_eq!(out, b"a");
    let (outcome, ..) = session(None, |mut agent| {
        say(&mut agent, &[HELLO, STARTED]);
    });
    assert_eq!(outcome.unwrap().end, End::Closed);
}

#[test]
fn an_error_text_is_harmless() {
    let (outcome, ..) = session(None, |mut agent| {
        let message = "no program '\x1b]0;x\x07'".into();
        say(&mut agent, &[HELLO, FromAgent::Error { kind: casemate_agent_protocol::ErrorKind::NotFound, message }]);
    });
    let error = outcome.unwrap_err();
    assert_eq!(error.exit_code(), 127);
    assert_eq!(error.to_string(), "the guest's agent: no program '^[]0;x^G'");
}

#[test]
fn a_reader_that_goes_away_is_told_to_the_guest_as_sigpipe() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let guest = std::thread::spawn(move || {
        let mut decoder = FrameDecoder::new();
        say(&mut theirs, &[HELLO, STARTED, FromAgent::Stdout(b"y\n".as_slice().into())]);
        loop {
            if let ToAgent::Signal { signal } = hear(&mut theirs, &mut decoder) {
                say(&mut theirs, &[FromAgent::Stdout(b"z".as_slice().into())]);
                say(&mut theirs, &[FromAgent::Exited(ExitStatus::Signal(13))]);
                return signal;
            }
        }
    });
    let (reader, stdout) = pipe();
    drop(reader);
    let agent = AgentStream::open(ours, &ToAgent::Exec(ExecRequest::new(vec!["yes".into()]))).unwrap();
    let stdio = Stdio { stdin: None, stdout: stdout.as_fd(), stderr: stdout.as_fd() };
    let outcome = Pump::new(agent, stdio, false).run().unwrap();
    assert_eq!(outcome.end, End::Exited(ExitStatus::Signal(13)));
    assert_eq!(guest.join().unwrap(), 13);
}
