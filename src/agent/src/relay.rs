//! Moves bytes between one process and one client, in one thread, with bounded buffers.
//!
//! ```text
//! client --Stdin--> stdin queue (<= STDIN_WINDOW) --> process
//! client <-- out (<= 128 KiB) <-- stdout, stderr    full: the process is not read, and blocks
//! no client: output goes to the fallback (the virtio console), or is dropped
//! ```
//! The window keeps control messages (signal, resize) from waiting behind input that nobody reads.
use crate::client::Client;
use crate::reaper::Process;
use crate::spawn::{Child, set_size};
use crate::stream::timespec;
use casemate_agent_protocol::{Bytes, ErrorKind, ExitStatus, FromAgent, MAX_CHUNK, STDIN_WINDOW, ToAgent};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::Signal;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// A client that takes nothing for so long after the process has ended is given up.
const STALLED: Duration = Duration::from_secs(60);

/// What the owner of a relay decides between two rounds.
pub trait Control {
    /// Called each round; may hand over a new client, and says when to be called again at the latest.
    fn tick(&mut self, process: &Process) -> Tick;
    /// Readable when [`Control::tick`] is to be called.
    fn wake(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// The client has gone. The process goes on, or not.
    fn client_lost(&mut self, process: &Process);
}

#[derive(Debug, Default)]
pub struct Tick {
    pub attach: Option<Client>,
    pub deadline: Option<Instant>,
}

enum Source {
    Stdout,
    Stderr,
}

/// One process, its stdio, and whom it talks to.
pub struct Relay<'a, C> {
    process: Process,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    tty: bool,
    client: Option<Client>,
    fallback: Option<&'a OwnedFd>,
    /// Waiting for the fallback.
    spare: VecDeque<u8>,
    input: VecDeque<u8>,
    input_eof: bool,
    /// Input that has left the queue without the client knowing.
    unacknowledged: u64,
    control: C,
}

impl<'a, C: Control> Relay<'a, C> {
    pub fn new(process: Process, child: Child, fallback: Option<&'a OwnedFd>, control: C) -> std::io::Result<Self> {
        let (stdin, stdout, stderr, tty) = match child {
            Child::Tty { master } => (Some(master.try_clone()?), Some(master), None, true),
            Child::Pipes { stdin, stdout, stderr } => (stdin, Some(stdout), Some(stderr), false),
        };
        Ok(Relay {
            process,
            stdin,
            stdout,
            stderr,
            tty,
            client: None,
            fallback,
            spare: VecDeque::new(),
            input: VecDeque::new(),
            input_eof: false,
            unacknowledged: 0,
            control,
        })
    }

    /// Greets a client and follows its messages from now on; a former one is told and let go.
    pub fn attach(&mut self, mut client: Client) {
        if let Some(mut former) = self.client.take() {
            former.queue(&FromAgent::Error { kind: ErrorKind::Busy, message: "another client has attached".into() });
            former.flush();
        }
        self.input.clear();
        self.unacknowledged = 0;
        client.queue(&FromAgent::Started { pid: self.process.pid() });
        if self.stdin.is_none() {
            client.queue(&FromAgent::StdinClosed);
        }
        self.client = Some(client);
        self.client_input();
    }

    /// Until the process has ended and all it wrote has been passed on.
    pub fn run(mut self) -> (ExitStatus, C) {
        loop {
            let tick = self.control.tick(&self.process);
            if let Some(client) = tick.attach {
                self.attach(client);
            }
            // Asked before the last look at the pipes: what was written before the end is then certainly there.
            if let Some(status) = self.process.status() {
                self.finish(status);
                return (status, self.control);
            }
            self.wait(tick.deadline);
            self.client_input();
            self.feed_process();
            self.drain_output();
            self.flush();
        }
    }

    fn wait(&mut self, deadline: Option<Instant>) {
        let room = self.has_room();
        let mut fds = vec![PollFd::from_borrowed_fd(self.process.exit_event(), PollFlags::IN)];
        if let Some(wake) = self.control.wake() {
            fds.push(PollFd::from_borrowed_fd(wake, PollFlags::IN));
        }
        if let Some(client) = &self.client {
            let out = if client.out.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            fds.push(PollFd::from_borrowed_fd(client.stream.as_fd(), PollFlags::IN | out));
        }
        for source in [&self.stdout, &self.stderr].into_iter().flatten().filter(|_| room) {
            fds.push(PollFd::from_borrowed_fd(source.as_fd(), PollFlags::IN));
        }
        if let (Some(stdin), false) = (&self.stdin, self.input.is_empty()) {
            fds.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::OUT));
        }
        if let (Some(fallback), false) = (self.fallback, self.spare.is_empty()) {
            fds.push(PollFd::from_borrowed_fd(fallback.as_fd(), PollFlags::OUT));
        }
        let time = deadline.map(|d| timespec(d.saturating_duration_since(Instant::now())));
        // An interrupted or failed wait is a round with nothing to do.
        let _ = poll(&mut fds, time.as_ref());
    }

    fn has_room(&self) -> bool {
        match &self.client {
            Some(client) => client.has_room(),
            None => self.spare.len() < MAX_CHUNK,
        }
    }

    /// Takes all messages that have been read, and reads on, a bounded number of times per round.
    fn client_input(&mut self) {
        for reads in 0..=16 {
            loop {
                let Some(client) = &mut self.client else { return };
                let problem = match client.decoder.next::<ToAgent>() {
                    Ok(Some(message)) => self.handle(message).err(),
                    Ok(None) => break,
                    Err(_) => Some("the message is malformed"),
                };
                if let Some(problem) = problem {
                    return self.refuse(problem);
                }
            }
            // What is held now is less than a frame: poll will tell of the rest.
            let (Some(client), 0..16) = (&mut self.client, reads) else { return };
            match client.decoder.fill(&mut client.stream) {
                Ok(0) => return self.lose_client(),
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return self.lose_client(),
            }
        }
    }

    fn handle(&mut self, message: ToAgent) -> Result<(), &'static str> {
        match message {
            ToAgent::Stdin(Bytes(bytes)) => {
                if (self.input.len() + bytes.len()) as u64 > STDIN_WINDOW {
                    return Err("more input than its window allows");
                }
                if self.stdin.is_some() && !self.input_eof {
                    self.input.extend(bytes);
                } else {
                    self.acknowledge(bytes.len());
                }
            }
            ToAgent::StdinEof => self.input_eof = true,
            ToAgent::Resize(size) => {
                if let (true, Some(master)) = (self.tty, &self.stdout) {
                    set_size(master.as_fd(), size);
                }
            }
            // A number that is no signal has no effect, as a signal to a process that has ended.
            ToAgent::Signal { signal } => {
                if let Some(signal) = Signal::from_named_raw(signal) {
                    self.signal(signal);
                }
            }
            _ => return Err("the message does not belong to a running process"),
        }
        Ok(())
    }

    /// On a terminal to its foreground job, as a key would; else to the process.
    fn signal(&self, signal: Signal) {
        let terminal = self.stdout.as_ref().filter(|_| self.tty);
        match terminal.and_then(|master| rustix::termios::tcgetpgrp(master).ok()) {
            Some(group) => drop(rustix::process::kill_process_group(group, signal)),
            None => self.process.signal(signal),
        }
    }

    /// Acknowledgements are summed up while the client does not read, so that they never pile up.
    fn acknowledge(&mut self, bytes: usize) {
        self.unacknowledged += bytes as u64;
        let client = self.client.as_mut().filter(|client| client.has_room());
        if let (Some(client), Ok(bytes @ 1..)) = (client, u32::try_from(self.unacknowledged)) {
            client.queue(&FromAgent::StdinAck { bytes });
            self.unacknowledged = 0;
        }
    }

    fn refuse(&mut self, problem: &str) {
        if let Some(client) = &mut self.client {
            client.queue(&FromAgent::Error { kind: ErrorKind::Protocol, message: problem.into() });
            client.flush();
        }
        self.lose_client();
    }

    fn lose_client(&mut self) {
        self.client = None;
        self.input.clear();
        self.control.client_lost(&self.process);
    }

    fn feed_process(&mut self) {
        while let (Some(stdin), false) = (&self.stdin, self.input.is_empty()) {
            match rustix::io::write(stdin, self.input.as_slices().0) {
                Ok(n) => {
                    self.input.drain(..n);
                    self.acknowledge(n);
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => {
                    let dropped = self.input.len();
                    self.input.clear();
                    self.stdin = None;
                    self.acknowledge(dropped);
                    if let Some(client) = &mut self.client {
                        client.queue(&FromAgent::StdinClosed);
                    }
                }
            }
        }
        if self.input_eof && self.input.is_empty() && self.stdin.is_some() {
            if self.tty {
                // The terminal's own end-of-input key; its line discipline makes an end of it.
                self.input_eof = false;
                self.input.push_back(4);
                if let Some(stdin) = &self.stdin {
                    let _ = rustix::io::write(stdin, &[4]);
                }
                self.input.clear();
            } else {
                self.stdin = None;
            }
        }
    }

    /// Passes on what the process wrote while there is room; true if anything moved.
    fn drain_output(&mut self) -> bool {
        let mut moved = false;
        let mut buffer = vec![0u8; MAX_CHUNK];
        for source in [Source::Stdout, Source::Stderr] {
            while self.has_room() {
                let fd = match source {
                    Source::Stdout => &mut self.stdout,
                    Source::Stderr => &mut self.stderr,
                };
                let Some(open) = fd else { break };
                match rustix::io::read(&*open, &mut buffer) {
                    Ok(n @ 1..) => {
                        moved = true;
                        self.pass_on(&source, &buffer[..n]);
                    }
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    // A terminal nobody has open any more reads as EIO.
                    Ok(_) | Err(_) => *fd = None,
                }
            }
        }
        moved
    }

    fn pass_on(&mut self, source: &Source, bytes: &[u8]) {
        match (&mut self.client, source) {
            (Some(client), Source::Stdout) => client.queue(&FromAgent::Stdout(bytes.into())),
            (Some(client), Source::Stderr) => client.queue(&FromAgent::Stderr(bytes.into())),
            (None, _) if self.fallback.is_some() => self.spare.extend(bytes),
            (None, _) => {}
        }
    }

    fn flush(&mut self) {
        self.acknowledge(0);
        if self.client.as_mut().is_some_and(|client| !client.flush()) {
            self.lose_client();
        }
        while let (Some(fallback), false) = (self.fallback, self.spare.is_empty()) {
            match rustix::io::write(fallback, self.spare.as_slices().0) {
                Ok(n @ 1..) => drop(self.spare.drain(..n)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Ok(_) | Err(_) => self.spare.clear(),
            }
        }
    }

    /// After the end: the rest of the output, the exit status, and the last flush.
    fn finish(&mut self, status: ExitStatus) {
        let mut stalled_since = Instant::now();
        let mut told = false;
        loop {
            if self.drain_output() {
                stalled_since = Instant::now();
            } else if !told && self.has_room() {
                told = true;
                if let Some(client) = &mut self.client {
                    client.queue(&FromAgent::Exited(status));
                }
            }
            let waiting = |relay: &Self| relay.spare.len() + relay.client.as_ref().map_or(0, |c| c.out.len());
            let before = waiting(self);
            self.flush();
            let left = waiting(self);
            if left < before {
                stalled_since = Instant::now();
            }
            if (told && left == 0) || stalled_since.elapsed() > STALLED {
                break;
            }
            if left > 0 {
                self.wait_writable();
            }
        }
        if let Some(client) = self.client.take() {
            client.stream.finish(Duration::from_secs(1));
        }
    }

    fn wait_writable(&mut self) {
        let mut fds = Vec::new();
        if let Some(client) = &self.client {
            fds.push(PollFd::from_borrowed_fd(client.stream.as_fd(), PollFlags::OUT));
        } else if let Some(fallback) = self.fallback {
            fds.push(PollFd::from_borrowed_fd(fallback.as_fd(), PollFlags::OUT));
        }
        let _ = poll(&mut fds, Some(&timespec(Duration::from_secs(1))));
    }
}
