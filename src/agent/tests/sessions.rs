//! The session engine without a VM: real processes, through the helper, over a socket pair.
use casemate_agent::{Agent, Ended};
use casemate_agent_protocol::{
    Attach, Bytes, ClientSession, CopyFormat, EndCause, ErrorKind, ExecRequest, ExitStatus, FromAgent, GuestConfig,
    MAX_CHUNK, ToAgent, User, WinSize,
};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn helper() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_casemate-agent"))
}

fn config(script: &str) -> GuestConfig {
    let me = User::Ids { uid: rustix::process::geteuid().as_raw(), gid: Some(rustix::process::getegid().as_raw()) };
    GuestConfig { user: me, ..GuestConfig::new(vec!["/bin/sh".into(), "-c".into(), script.into()]) }
}

fn agent() -> Arc<Agent> {
    Agent::start(config("exit 0"), helper()).unwrap()
}

fn sh(script: &str) -> ExecRequest {
    ExecRequest { user: config("").user, ..ExecRequest::new(vec!["/bin/sh".into(), "-c".into(), script.into()]) }
}

struct Session {
    stream: UnixStream,
    client: ClientSession,
}

impl Session {
    fn open(agent: &Arc<Agent>, request: &ToAgent) -> Session {
        let (ours, theirs) = UnixStream::pair().unwrap();
        agent.serve(theirs.into());
        let (client, wire) = ClientSession::open(request).unwrap();
        let mut stream = ours;
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(&wire).unwrap();
        Session { stream, client }
    }

    fn exec(agent: &Arc<Agent>, request: ExecRequest) -> Session {
        Session::open(agent, &ToAgent::Exec(request))
    }

    fn send(&mut self, message: &ToAgent) {
        let wire = self.client.send(message).unwrap();
        self.stream.write_all(&wire).unwrap();
    }

    fn recv(&mut self) -> FromAgent {
        self.client.recv(&mut self.stream).unwrap()
    }

    fn until_started(&mut self) {
        while !matches!(self.recv(), FromAgent::Started { .. }) {}
    }

    /// Everything to the end: stdout, stderr, and the last message.
    fn finish(&mut self) -> (String, String, FromAgent) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            match self.recv() {
                FromAgent::Stdout(Bytes(bytes)) => out.extend(bytes),
                FromAgent::Stderr(Bytes(bytes)) => err.extend(bytes),
                last @ (FromAgent::Exited(_) | FromAgent::Error { .. }) => {
                    let text = |b| String::from_utf8(b).unwrap();
                    return (text(out), text(err), last);
                }
                _ => {}
            }
        }
    }

    /// Reads stdout until it contains `text`.
    fn expect(&mut self, text: &str) {
        let mut seen = String::new();
        while !seen.contains(text) {
            match self.recv() {
                FromAgent::Stdout(Bytes(bytes)) => seen.push_str(&String::from_utf8_lossy(&bytes)),
                FromAgent::Exited(status) => panic!("ended with {status:?} after {seen:?}"),
                _ => {}
            }
        }
    }
}

fn exited(code: u8) -> FromAgent {
    FromAgent::Exited(ExitStatus::Code(code))
}

#[test]
fn output_error_and_exit_code() {
    let (out, err, last) = Session::exec(&agent(), sh("echo out; echo err >&2; exit 42")).finish();
    assert_eq!((out.as_str(), err.as_str(), last), ("out\n", "err\n", exited(42)));
}

#[test]
fn environment_cwd_arguments_and_no_leaks() {
    let mut request = sh("pwd; env | sort; ls /proc/self/fd | tr '\\n' ' '; echo \"[$0]\"");
    request.cwd = "/tmp".into();
    request.env = vec![("A".into(), "1 2".into()), ("PATH".into(), "/usr/bin:/bin".into())];
    let (out, _, last) = Session::exec(&agent(), request).finish();
    assert_eq!(last, exited(0));
    assert!(out.starts_with("/tmp\nA=1 2\nHOME="), "{out}");
    assert!(!out.contains("CARGO"), "{out}");
    // 3 is the directory that ls reads.
    assert!(out.contains("0 1 2 3 [/bin/sh]"), "{out}");
}

#[test]
fn what_cannot_start_says_why() {
    let agent = agent();
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "x").unwrap();
    let with = |argv: &str| ExecRequest { argv: vec![argv.into()], ..sh("") };
    let plain = plain.display().to_string();
    let no_user = ExecRequest { user: "no-such-user".parse().unwrap(), ..sh("true") };
    let no_dir = ExecRequest { cwd: "/no/such/dir".into(), ..sh("true") };
    for (request, wanted) in [
        (with("/no/such/program"), ErrorKind::NotFound),
        (with("no-such-program"), ErrorKind::NotFound),
        (with(&plain), ErrorKind::NotExecutable),
        (no_user, ErrorKind::NoSuchUser),
        (no_dir, ErrorKind::WorkingDirectory),
    ] {
        let what = format!("{:?}", request.argv);
        match Session::exec(&agent, request).finish().2 {
            FromAgent::Error { kind, message } => assert_eq!(kind, wanted, "{what}: {message}"),
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn stdin_through_a_slow_process_and_eof() {
    let agent = agent();
    let request = ExecRequest { stdin: true, ..sh("sleep 0.3; wc -c") };
    let mut session = Session::exec(&agent, request);
    session.until_started();
    let total = 1_000_000;
    let mut sent = 0;
    while sent < total {
        let room = session.client.stdin_room().min(total - sent);
        if room == 0 {
            session.recv();
            continue;
        }
        session.send(&ToAgent::Stdin(Bytes(vec![b'x'; room])));
        sent += room;
    }
    session.send(&ToAgent::StdinEof);
    let (out, _, last) = session.finish();
    assert_eq!((out.trim(), last), ("1000000", exited(0)));
}

#[test]
fn a_signal_passes_input_that_nobody_reads() {
    let agent = agent();
    let mut session = Session::exec(&agent, ExecRequest { stdin: true, ..sh("exec sleep 30") });
    session.until_started();
    while session.client.stdin_room() > 0 {
        let room = session.client.stdin_room();
        session.send(&ToAgent::Stdin(Bytes(vec![0; room])));
        // The pipe takes 64 KiB; the rest stays in the agent.
        if room < MAX_CHUNK {
            break;
        }
    }
    session.send(&ToAgent::Signal { signal: 15 });
    assert_eq!(session.finish().2, FromAgent::Exited(ExitStatus::Signal(15)));
}

#[test]
fn a_process_that_closes_stdin_is_told_of() {
    let agent = agent();
    let mut session = Session::exec(&agent, ExecRequest { stdin: true, ..sh("exec 0<&-; echo closed; sleep 0.5") });
    session.until_started();
    session.expect("closed");
    session.send(&ToAgent::Stdin(Bytes(vec![1; 100])));
    let mut closed = false;
    loop {
        match session.recv() {
            FromAgent::StdinClosed => closed = true,
            FromAgent::Exited(status) => break assert_eq!(status, ExitStatus::Code(0)),
            _ => {}
        }
    }
    assert!(closed);
}

#[test]
fn big_output_to_a_slow_reader_is_complete_and_bounded() {
    let agent = agent();
    let mut session = Session::exec(&agent, sh("head -c 20000000 /dev/zero; echo end >&2"));
    session.until_started();
    std::thread::sleep(Duration::from_millis(300));
    let (out, err, last) = session.finish();
    assert_eq!((out.len(), err.as_str(), last), (20_000_000, "end\n", exited(0)));
}

#[test]
fn terminal_size_resize_interrupt_and_eof() {
    let agent = agent();
    let size = WinSize { rows: 33, cols: 101 };
    let script = "trap 'stty size; exit 7' INT; tty; stty size; while :; do sleep 0.05; done";
    let mut session = Session::exec(&agent, ExecRequest { tty: Some(size), stdin: true, ..sh(script) });
    session.expect("33 101");
    session.send(&ToAgent::Resize(WinSize { rows: 50, cols: 60 }));
    session.send(&ToAgent::Stdin(Bytes(vec![3])));
    let (out, _, last) = session.finish();
    assert!(out.contains("50 60"), "{out}");
    assert_eq!(last, exited(7));

    let mut session = Session::exec(&agent, ExecRequest { tty: Some(size), stdin: true, ..sh("cat; echo over") });
    session.until_started();
    session.send(&ToAgent::StdinEof);
    let (out, _, last) = session.finish();
    assert!(out.contains("over"), "{out}");
    assert_eq!(last, exited(0));
}

#[test]
fn a_lost_client_takes_its_exec_along() {
    let agent = agent();
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("mark");
    let script = format!("trap 'echo hup > {}; exit' HUP; echo on; while :; do sleep 0.05; done", mark.display());
    let mut session = Session::exec(&agent, sh(&script));
    session.expect("on");
    drop(session);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !mark.exists() || agent.sessions() > 0 {
        assert!(Instant::now() < deadline, "the exec is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn files_and_trees_in_and_out() {
    let agent = agent();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().display().to_string();
    let content: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();

    let format = CopyFormat::File { mode: 0o640, uid: 0, gid: 0 };
    let mut session = Session::open(&agent, &ToAgent::CopyIn { path: format!("{root}/file"), format });
    for chunk in content.chunks(MAX_CHUNK) {
        session.send(&ToAgent::Data(chunk.into()));
    }
    session.send(&ToAgent::DataEof);
    while session.recv() != FromAgent::Done {}
    assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), content);

    let mut session = Session::open(&agent, &ToAgent::CopyOut { path: root.clone() });
    let mut tar = Vec::new();
    loop {
        match session.recv() {
            FromAgent::Data(Bytes(bytes)) => tar.extend(bytes),
            FromAgent::DataEof => break,
            FromAgent::Hello { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    let mut session =
        Session::open(&agent, &ToAgent::CopyIn { path: format!("{root}/new/place"), format: CopyFormat::Tar });
    for chunk in tar.chunks(1000) {
        session.send(&ToAgent::Data(chunk.into()));
    }
    session.send(&ToAgent::DataEof);
    while session.recv() != FromAgent::Done {}
    let name = dir.path().file_name().unwrap();
    assert_eq!(std::fs::read(dir.path().join("new/place").join(name).join("file")).unwrap(), content);

    for path in ["/no/such/file", "relative"] {
        let mut session = Session::open(&agent, &ToAgent::CopyOut { path: path.into() });
        assert!(matches!(session.finish().2, FromAgent::Error { .. }));
    }
}

#[test]
fn queries_and_strangers() {
    let agent = agent();
    let mut session = Session::open(&agent, &ToAgent::Ping { token: 9 });
    session.recv();
    assert_eq!(session.recv(), FromAgent::Pong { token: 9 });
    session.send(&ToAgent::Stats);
    assert!(matches!(session.recv(), FromAgent::Stats(s) if s.mem_total_kib > 0 && s.sessions > 0));

    for garbage in [&b"GET / HTTP/1.0\r\n\r\n"[..], &[1, 0, 0, 0, 0xff], &[0; 64]] {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        agent.serve(theirs.into());
        ours.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        ours.write_all(garbage).unwrap();
        let mut answer = Vec::new();
        let _ = ours.read_to_end(&mut answer);
        assert!(answer.len() < 2048);
    }
}

/// Runs the workload in a thread, as PID 1's main thread does.
fn run(agent: &Arc<Agent>) -> std::thread::JoinHandle<Ended> {
    let agent = Arc::clone(agent);
    std::thread::spawn(move || agent.run_workload(None, |_| {}))
}

#[test]
fn a_workload_waits_for_its_client() {
    let config = GuestConfig { attach: Attach::Wait { timeout_ms: 10_000 }, tty: true, ..config("stty size; exit 3") };
    let agent = Agent::start(config, helper()).unwrap();
    let workload = run(&agent);
    let size = WinSize { rows: 10, cols: 20 };
    let (out, _, last) = Session::open(&agent, &ToAgent::Attach { size: Some(size) }).finish();
    assert_eq!((out.as_str(), last), ("10 20\r\n", exited(3)));
    let Ended::Exited { status, cause } = workload.join().unwrap() else { panic!() };
    assert_eq!((status, cause), (ExitStatus::Code(3), EndCause::Itself));
    let mut late = Session::open(&agent, &ToAgent::Attach { size: None });
    assert!(matches!(late.finish().2, FromAgent::Error { kind: ErrorKind::NotRunning, .. }));
}

#[test]
fn nobody_attaches() {
    let config = GuestConfig { attach: Attach::Wait { timeout_ms: 50 }, ..config("exit 0") };
    let ended = run(&Agent::start(config, helper()).unwrap()).join().unwrap();
    assert!(matches!(ended, Ended::NeverAttached));
}

#[test]
fn a_missing_program_reaches_client_and_report() {
    let mut config = config("");
    config.argv = vec!["/none".into()];
    config.attach = Attach::Wait { timeout_ms: 10_000 };
    let agent = Agent::start(config, helper()).unwrap();
    let workload = run(&agent);
    let mut session = Session::open(&agent, &ToAgent::Attach { size: None });
    assert!(matches!(session.finish().2, FromAgent::Error { kind: ErrorKind::NotFound, .. }));
    let Ended::NotStarted(error) = workload.join().unwrap() else { panic!() };
    assert_eq!(error.kind.exit_code(), 127);
}

#[test]
fn stop_asks_then_kills_and_timeout_stops() {
    let obstinate = "trap '' TERM; echo on; while :; do sleep 0.05; done";
    let agent =
        Agent::start(GuestConfig { attach: Attach::Wait { timeout_ms: 10_000 }, ..config(obstinate) }, helper());
    let agent = agent.unwrap();
    let workload = run(&agent);
    let mut follower = Session::open(&agent, &ToAgent::Attach { size: None });
    follower.expect("on");
    let mut stop = Session::open(&agent, &ToAgent::Stop { grace_ms: Some(200) });
    while stop.recv() != FromAgent::Done {}
    assert_eq!(follower.finish().2, FromAgent::Exited(ExitStatus::Signal(9)));
    assert!(matches!(workload.join().unwrap(), Ended::Exited { cause: EndCause::Stopped, .. }));

    let config = GuestConfig { timeout_ms: Some(100), ..config("exec sleep 30") };
    let Ended::Exited { status, cause } = run(&Agent::start(config, helper()).unwrap()).join().unwrap() else {
        panic!()
    };
    assert_eq!((status, cause), (ExitStatus::Signal(15), EndCause::Timeout));
}

#[test]
fn detached_output_goes_to_the_fallback_until_someone_attaches() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let agent = Agent::start(GuestConfig { stdin: true, ..config("echo before; read x; echo \"after $x\"") }, helper());
    let agent = agent.unwrap();
    let own = Arc::clone(&agent);
    let workload = std::thread::spawn(move || own.run_workload(Some(&writer), |_| {}));
    let mut line = [0u8; 7];
    std::fs::File::from(reader).read_exact(&mut line).unwrap();
    assert_eq!(&line, b"before\n");
    let mut session = Session::open(&agent, &ToAgent::Attach { size: None });
    session.until_started();
    session.send(&ToAgent::Stdin(Bytes(b"this\n".to_vec())));
    let (out, _, last) = session.finish();
    assert_eq!((out.as_str(), last), ("after this\n", exited(0)));
    workload.join().unwrap();
}
