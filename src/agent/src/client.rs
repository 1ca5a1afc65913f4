//! A client that follows a process: its stream, what it has said, what it is still to get.
use crate::stream::Stream;
use casemate_agent_protocol::{FrameDecoder, FromAgent, encode};
use std::collections::VecDeque;
use std::io::Write;

/// Bytes that wait for a client; beyond, its process is not read.
const OUT_LIMIT: usize = 128 * 1024;

/// A client that follows the process.
#[derive(Debug)]
pub struct Client {
    pub stream: Stream,
    pub decoder: FrameDecoder,
    pub out: VecDeque<u8>,
}

impl Client {
    pub fn new(stream: Stream, decoder: FrameDecoder) -> Self {
        Client { stream, decoder, out: VecDeque::new() }
    }

    pub fn queue(&mut self, message: &FromAgent) {
        // Our own messages always fit a frame: chunks and texts are cut where they are made.
        if let Ok(frame) = encode(message) {
            self.out.extend(frame);
        }
    }

    pub fn has_room(&self) -> bool {
        self.out.len() < OUT_LIMIT
    }

    /// Writes what the stream takes; false when the client is gone.
    pub fn flush(&mut self) -> bool {
        while !self.out.is_empty() {
            match self.stream.write(self.out.as_slices().0) {
                Ok(0) => return false,
                Ok(n) => drop(self.out.drain(..n)),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}
