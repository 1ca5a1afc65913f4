//! Host clients: their connections to the socket, their lines, and the readiness of their streams.

use std::io::ErrorKind;

use super::conn::{Connection, End, Phase, due};
use super::guest::REPORT_PORT;
use super::header::{SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::line::{Line, Parsed, Wish};
use super::table::Slot;
use super::{ACCEPT_RETRY, Vsock};
use crate::traits::{HostStream, Progress, Readiness};

/// Host clients accepted per turn.
const ACCEPTS: usize = 16;
/// Our end of host-initiated connections: above what anybody listens on.
const PORTS: std::ops::Range<u32> = 1 << 30..1 << 31;

impl Vsock {
    /// Takes waiting clients; those for whom there is no slot are turned away at once.
    pub(super) fn accept(&mut self) -> Progress {
        for _ in 0..ACCEPTS {
            let Some(acceptor) = self.acceptor.as_mut().filter(|_| self.acceptable) else { return Progress::Idle };
            match acceptor.accept() {
                Ok(Some(stream)) => self.admit(stream),
                Ok(None) => self.acceptable = false,
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                // Out of descriptors or memory: the client waits in the backlog.
                Err(_) => return Progress::After(ACCEPT_RETRY),
            }
        }
        Progress::More
    }

    fn admit(&mut self, mut stream: Box<dyn HostStream>) {
        let Some(at) = self.table.free_slot().or_else(|| self.evict()) else {
            super::say(&mut *stream, "ERR too many connections\n");
            return;
        };
        if stream.register(self.table.token(at)).is_ok() {
            *self.table.slot(at) = Slot::Line(stream, Line::default());
            // It may have written before it was registered.
            self.read_line(at);
        }
    }

    /// Frees the slot of a connection that both sides have finished and whose reset the guest owes.
    fn evict(&mut self) -> Option<usize> {
        let finished = SHUTDOWN_SEND | SHUTDOWN_RECEIVE;
        let at = self.table.indices().find(|&at| {
            self.table.conn(at).is_some_and(|c| c.phase == Phase::Open && c.told == finished && c.due == 0)
        })?;
        self.forget(at);
        Some(at)
    }

    pub(super) fn client_ready(&mut self, token: u32, ready: Readiness) {
        let Some(at) = self.table.by_token(token) else { return };
        match self.table.slot(at) {
            Slot::Free => {}
            Slot::Line(..) => self.read_line(at),
            Slot::Parked(stream, _) => {
                // A parked client has nothing to say: bytes, end of stream and errors all end it.
                let waits = matches!(stream.read(&mut [0]), Err(e) if e.kind() == ErrorKind::WouldBlock);
                if !waits {
                    self.table.remove(at);
                }
            }
            Slot::Conn(conn) => {
                conn.ready(ready.readable, ready.writable, ready.hangup);
                if ready.hangup && matches!(conn.phase, Phase::Connecting { .. }) {
                    self.kill(at);
                } else {
                    conn.flush();
                }
                self.wake_if_wanted(at);
            }
        }
    }

    fn read_line(&mut self, at: usize) {
        loop {
            let Slot::Line(stream, line) = self.table.slot(at) else { return };
            match stream.read(line.room()) {
                Ok(0) => break,
                Ok(n) => line.took(n),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(_) => break,
            }
            match line.parse() {
                Parsed::Incomplete => {}
                Parsed::Wish(wish, used) => return self.grant(at, wish, used),
                Parsed::Bad => {
                    super::say(&mut **stream, "ERR expected CONNECT or LISTEN and a port\n");
                    break;
                }
            }
        }
        self.table.remove(at);
    }

    /// Turns a finished line into a connection or a parked client; slot and token stay.
    fn grant(&mut self, at: usize, wish: Wish, used: usize) {
        let Slot::Line(mut stream, line) = std::mem::replace(self.table.slot(at), Slot::Free) else { return };
        let granted = match wish {
            Wish::Connect(port) => {
                let key = (self.host_port(port), port);
                let phase = Phase::Connecting { asked: false };
                let conn = Connection::new(key, End::Stream(stream), phase, due::REQUEST, line.rest(used));
                self.table.wake(at);
                Some(Slot::Conn(Box::new(conn)))
            }
            Wish::Listen(REPORT_PORT) => {
                super::say(&mut *stream, "ERR port 1 is the runner's own\n");
                None
            }
            Wish::Listen(port) => {
                super::say(&mut *stream, &format!("OK {port}\n")).then_some(Slot::Parked(stream, port))
            }
        };
        match granted {
            Some(slot) => *self.table.slot(at) = slot,
            None => drop(self.table.remove(at)),
        }
    }

    /// A port that no connection to `guest_port` uses; the table is far smaller than the range.
    fn host_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = if port + 1 < PORTS.end { port + 1 } else { PORTS.start };
            if self.table.find((port, guest_port)).is_none() {
                return port;
            }
        }
    }

    pub(super) fn first_port() -> u32 {
        PORTS.start
    }
}
