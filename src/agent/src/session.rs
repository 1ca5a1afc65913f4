//! The agent's end of one session: greeting, one request, and its service.
use crate::client::Client;
use crate::copy;
use crate::engine::Agent;
use crate::reaper::Process;
use crate::relay::{Control, Relay, Tick};
use crate::spawn::{Launch, SpawnError, Spawner};
use crate::stream::{Stream, wait_for};
use casemate_agent_protocol::{
    ErrorKind, ExecRequest, FrameDecoder, FrameError, FromAgent, MAX_MESSAGE, PROTOCOL_VERSION, Stats, ToAgent, encode,
};
use rustix::event::PollFlags;
use rustix::process::Signal;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// A client that says nothing for so long before its request is let go.
const GREETING_TIME: Duration = Duration::from_secs(30);

/// Why a session ends early; sent to the client.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub kind: ErrorKind,
    pub message: String,
}

impl Refusal {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Refusal { kind, message: message.into() }
    }

    /// A failed operation on the guest's files.
    pub fn io(attempt: &str, path: &str, error: &std::io::Error) -> Self {
        let kind = if error.kind() == std::io::ErrorKind::NotFound { ErrorKind::NotFound } else { ErrorKind::Io };
        Refusal::new(kind, format!("{attempt} {path} failed: {error}"))
    }
}

impl From<FrameError> for Refusal {
    fn from(error: FrameError) -> Self {
        Refusal::new(ErrorKind::Protocol, error.to_string())
    }
}

impl From<SpawnError> for Refusal {
    fn from(error: SpawnError) -> Self {
        Refusal { kind: error.kind, message: error.message }
    }
}

/// A text cut to what a message may hold, at a character.
pub fn cut(text: &str) -> String {
    let mut end = text.len().min(MAX_MESSAGE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

pub fn send(stream: &mut Stream, message: &FromAgent) -> Result<(), Refusal> {
    let frame = encode(message)?;
    stream.write_all(&frame).map_err(|e| Refusal::new(ErrorKind::Io, format!("the client is gone: {e}")))
}

pub fn refuse_busy(mut stream: Stream) {
    let message = "the guest agent has too many sessions".into();
    let _ = send(&mut stream, &FromAgent::Error { kind: ErrorKind::Busy, message });
}

/// Serves one connection to its end.
pub fn run(agent: &Agent, mut stream: Stream) {
    // Blocking until the request is known; relays switch to non-blocking.
    if stream.set_nonblocking(false).is_err() {
        return;
    }
    let mut decoder = FrameDecoder::new();
    let request = match greet(&mut stream, &mut decoder) {
        Ok(Some(request)) => request,
        Ok(None) => return,
        Err(refusal) => return report(stream, &refusal),
    };
    match request {
        // These two hand the stream on.
        ToAgent::Attach { size } => attach(agent, stream, decoder, size),
        ToAgent::Exec(request) => exec(agent, stream, decoder, request),
        other => match serve(agent, &mut stream, &mut decoder, other) {
            Ok(()) => stream.finish(Duration::from_secs(1)),
            Err(refusal) => report(stream, &refusal),
        },
    }
}

fn report(mut stream: Stream, refusal: &Refusal) {
    let message = FromAgent::Error { kind: refusal.kind, message: cut(&refusal.message) };
    if send(&mut stream, &message).is_ok() {
        stream.finish(Duration::from_secs(1));
    }
}

/// Hello both ways, then the request.
fn greet(stream: &mut Stream, decoder: &mut FrameDecoder) -> Result<Option<ToAgent>, Refusal> {
    match read_timely(stream, decoder)? {
        Some(ToAgent::Hello { version: PROTOCOL_VERSION }) => {}
        Some(ToAgent::Hello { version }) => {
            let message = format!("the client speaks version {version} of the protocol, this agent {PROTOCOL_VERSION}");
            return Err(Refusal::new(ErrorKind::Protocol, message));
        }
        Some(_) => return Err(Refusal::new(ErrorKind::Protocol, "a session begins with Hello")),
        None => return Ok(None),
    }
    send(stream, &FromAgent::Hello { version: PROTOCOL_VERSION })?;
    read_timely(stream, decoder)
}

fn read_timely(stream: &mut Stream, decoder: &mut FrameDecoder) -> Result<Option<ToAgent>, Refusal> {
    let deadline = Instant::now() + GREETING_TIME;
    loop {
        if let Some(message) = decoder.next()? {
            return Ok(Some(message));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if !wait_for(stream.as_fd(), PollFlags::IN, left) {
            return Err(Refusal::new(ErrorKind::Protocol, "the client asked for nothing"));
        }
        match decoder.fill(stream) {
            Ok(0) | Err(_) => return Ok(None),
            Ok(_) => {}
        }
    }
}

fn attach(agent: &Agent, stream: Stream, decoder: FrameDecoder, size: Option<casemate_agent_protocol::WinSize>) {
    if stream.set_nonblocking(true).is_err() {
        return;
    }
    if let Err(client) = agent.workload.attach(Client::new(stream, decoder), size) {
        let _ = client.stream.set_nonblocking(false);
        report(client.stream, &Refusal::new(ErrorKind::NotRunning, "the workload has ended"));
    }
}

fn exec(agent: &Agent, stream: Stream, decoder: FrameDecoder, request: ExecRequest) {
    let launch = Launch { exec: request, rlimits: Vec::new(), hostname: None };
    if let Err(problem) = launch.exec.validate() {
        return report(stream, &Refusal::new(ErrorKind::Protocol, problem.to_string()));
    }
    let spawner = Spawner { helper: agent.helper.clone(), launch };
    let (process, child) = match agent.reaper.spawn(&spawner) {
        Ok(pair) => pair,
        Err(error) => return report(stream, &error.into()),
    };
    let ready = stream.set_nonblocking(true);
    match ready.and_then(|()| Relay::new(process, child, None, Orphan::default())) {
        Ok(mut relay) => {
            relay.attach(Client::new(stream, decoder));
            relay.run();
        }
        Err(error) => eprintln!("casemate-agent: an exec session failed: {error}"),
    }
}

/// An exec whose client is gone is hung up, then killed.
#[derive(Debug, Default)]
struct Orphan {
    kill_at: Option<Instant>,
}

impl Control for Orphan {
    fn tick(&mut self, process: &Process) -> Tick {
        if self.kill_at.is_some_and(|at| at <= Instant::now()) {
            process.signal_group(Signal::KILL);
            self.kill_at = Some(Instant::now() + Duration::from_secs(1));
        }
        Tick { attach: None, deadline: self.kill_at }
    }

    fn client_lost(&mut self, process: &Process) {
        process.signal_group(Signal::HUP);
        self.kill_at = Some(Instant::now() + Duration::from_secs(2));
    }
}

fn serve(agent: &Agent, stream: &mut Stream, decoder: &mut FrameDecoder, request: ToAgent) -> Result<(), Refusal> {
    match request {
        ToAgent::CopyIn { path, format } => {
            copy::copy_in(stream, decoder, &path, format)?;
            send(stream, &FromAgent::Done)
        }
        ToAgent::CopyOut { path } => copy::copy_out(stream, &path),
        ToAgent::Stop { grace_ms } => {
            send(stream, &FromAgent::Done)?;
            agent.workload.stop(grace_ms.map(Duration::from_millis));
            Ok(())
        }
        query @ (ToAgent::Stats | ToAgent::Ping { .. }) => queries(agent, stream, decoder, query),
        _ => Err(Refusal::new(ErrorKind::Protocol, "the message opens no session")),
    }
}

fn queries(agent: &Agent, stream: &mut Stream, decoder: &mut FrameDecoder, first: ToAgent) -> Result<(), Refusal> {
    let mut query = Some(first);
    while let Some(message) = query {
        match message {
            ToAgent::Ping { token } => send(stream, &FromAgent::Pong { token })?,
            ToAgent::Stats => send(stream, &FromAgent::Stats(stats(agent)))?,
            _ => return Err(Refusal::new(ErrorKind::Protocol, "only queries belong to this session")),
        }
        query = decoder.read(stream)?;
    }
    Ok(())
}

fn stats(agent: &Agent) -> Stats {
    let info = rustix::system::sysinfo();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| {
        let line = memory.lines().find_map(|l| l.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
    };
    Stats {
        uptime_ms: u64::from(crate::report::uptime_ms()),
        mem_total_kib: kib("MemTotal").unwrap_or(0),
        mem_available_kib: kib("MemAvailable").unwrap_or(0),
        // The kernel's fixed point has 16 fractional bits.
        load1_centi: u32::try_from((info.loads[0] * 100) >> 16).unwrap_or(u32::MAX),
        processes: u32::from(info.procs),
        sessions: u32::try_from(agent.sessions()).unwrap_or(u32::MAX),
    }
}
