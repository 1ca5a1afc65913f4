//! The control socket: who asks, what is asked, and who waits for the runner's answer or for the end.

use casemate_sys::seqpacket;
use casemate_wire::control::{Request, Response};
use casemate_wire::record::{ExitCause, ExitReport};
use casemate_wire::runner::ToRunner;
use casemate_wire::{Channel, ChannelError};

use super::{Serving, Warden};

/// Connections at once.
const MAX_CONNECTIONS: usize = 32;

pub(super) struct Connection {
    pub channel: Channel,
    pub waits: bool,
    /// Waiting for the runner to answer this request.
    pub pending: Option<Request>,
    pub closed: bool,
}

impl Warden {
    pub(super) fn accept(&self, serving: &mut Serving) {
        let Ok(socket) = seqpacket::accept(&self.control) else { return };
        // The directory is root's alone; this asks the peer itself.
        let root = seqpacket::peer(&socket).is_ok_and(|peer| peer.uid == rustix::process::geteuid().as_raw());
        if root && serving.connections.len() < MAX_CONNECTIONS {
            let channel = Channel::new(socket);
            serving.connections.push(Connection { channel, waits: false, pending: None, closed: false });
        }
    }

    pub(super) fn hear_connection(&mut self, serving: &mut Serving, index: usize) {
        let Some(connection) = serving.connections.get_mut(index) else { return };
        let request = match connection.channel.try_receive::<Request>() {
            Ok(request) => request,
            Err(ChannelError::WouldBlock) => return,
            Err(_) => {
                connection.closed = true;
                return;
            }
        };
        let phase = self.record.phase;
        if !request.allowed_in(phase) || connection.pending.is_some() {
            let phase = format!("{phase:?}").to_lowercase();
            return connection.reply(&Response::Refused(format!("the sandbox is {phase}")));
        }
        match request {
            Request::Inspect => connection.reply(&Response::Record(Box::new(self.record.clone()))),
            Request::Wait => connection.waits = true,
            Request::Pause => self.ask(serving, index, request, &ToRunner::Pause),
            Request::Resume => match self.held_back() {
                Some(refused) => connection.reply(&refused),
                None => self.ask(serving, index, request, &ToRunner::Resume),
            },
            Request::ResumeReduced(reason) => {
                self.accept_reduced(&reason);
                self.ask(serving, index, Request::Resume, &ToRunner::Resume);
            }
            Request::Attest => self.ask(serving, index, request, &ToRunner::Attest),
            Request::Kill => {
                connection.waits = true;
                self.kill(serving, ExitCause::Killed);
            }
        }
    }

    fn ask(&self, serving: &mut Serving, index: usize, request: Request, message: &ToRunner) {
        let Some(connection) = serving.connections.get_mut(index) else { return };
        // Asked already, by somebody else: one answer of the runner's is for both. A second message would be out of turn.
        if request != Request::Attest && serving.asked.contains(&request) {
            connection.pending = Some(request);
            return;
        }
        match self.runner.send(message) {
            Ok(()) => {
                connection.pending = Some(request.clone());
                serving.asked.push(request);
            }
            Err(error) => connection.reply(&Response::Refused(format!("the runner does not listen: {error}"))),
        }
    }

    /// Tells those who asked and wait how it ended. The last thing a warden says to them.
    pub fn answer_waiting(&mut self, report: &ExitReport) {
        for channel in self.waiting.drain(..) {
            // A client that left does not matter any more.
            let _gone = channel.send(&Response::Exited(report.clone()));
        }
    }
}

impl Connection {
    pub fn reply(&mut self, response: &Response) {
        // A client that left does not matter to the VM.
        self.closed |= self.channel.send(response).is_err();
    }
}
