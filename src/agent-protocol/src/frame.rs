//! Frames: a little-endian u32 length, then so many bytes of one postcard-encoded message.
//!
//! Trust: the bytes may come from the guest. A frame is at most [`MAX_PAYLOAD`] long, the decoder holds at most one
//! frame and what one read brought with it, and trailing bytes inside a frame are an error.
use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, Read};

/// Bytes of the length prefix.
pub const FRAME_HEADER: usize = 4;
/// Most bytes of one encoded message.
pub const MAX_PAYLOAD: usize = 64 * 1024;
const CAPACITY: usize = FRAME_HEADER + MAX_PAYLOAD;

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes is longer than {MAX_PAYLOAD}")]
    TooLong(usize),
    #[error("an empty frame")]
    Empty,
    #[error("a frame that is not a message")]
    Malformed(#[source] postcard::Error),
    #[error("a frame with {0} bytes after its message")]
    Trailing(usize),
    #[error("the stream ended inside a frame")]
    Truncated,
    #[error("reading the stream failed")]
    Io(#[from] io::Error),
}

/// One message as a whole frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; FRAME_HEADER];
    frame = postcard::to_extend(message, frame).map_err(FrameError::Malformed)?;
    let len = frame.len() - FRAME_HEADER;
    match u32::try_from(len) {
        Ok(len32) if len <= MAX_PAYLOAD => frame[..FRAME_HEADER].copy_from_slice(&len32.to_le_bytes()),
        _ => return Err(FrameError::TooLong(len)),
    }
    Ok(frame)
}

/// A message from the payload of one frame.
pub fn decode_payload<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    let (message, rest) = postcard::take_from_bytes(payload).map_err(FrameError::Malformed)?;
    if !rest.is_empty() {
        return Err(FrameError::Trailing(rest.len()));
    }
    Ok(message)
}

/// Collects bytes and hands out messages. Works with blocking and non-blocking streams.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for FrameDecoder {
    fn default() -> Self {
        FrameDecoder { buffer: vec![0; CAPACITY].into_boxed_slice(), start: 0, end: 0 }
    }
}

impl FrameDecoder {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One read from the stream. `Ok(0)` is its end. Take all messages with [`FrameDecoder::next`] before each call: a
    /// full buffer always holds a whole frame or an error, so the room is never empty then.
    pub fn fill(&mut self, stream: &mut impl Read) -> io::Result<usize> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == CAPACITY {
            return Err(io::Error::other("a whole frame waits to be taken"));
        }
        let n = stream.read(&mut self.buffer[self.end..])?;
        self.end += n;
        Ok(n)
    }

    /// Takes over bytes; returns how many there was room for.
    pub fn push(&mut self, mut bytes: &[u8]) -> usize {
        let before = bytes.len();
        while !bytes.is_empty() && self.end - self.start < CAPACITY {
            // Reading from a slice cannot fail.
            let _ = self.fill(&mut bytes);
        }
        before - bytes.len()
    }

    /// The next whole message, if it has arrived. After an error the stream is of no more use.
    #[allow(clippy::should_implement_trait)]
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let held = &self.buffer[self.start..self.end];
        let Some((header, rest)) = held.split_first_chunk::<FRAME_HEADER>() else {
            return Ok(None);
        };
        let len = u32::from_le_bytes(*header) as usize;
        if len > MAX_PAYLOAD {
            return Err(FrameError::TooLong(len));
        }
        if len == 0 {
            return Err(FrameError::Empty);
        }
        let Some(payload) = rest.get(..len) else {
            return Ok(None);
        };
        let message = decode_payload(payload)?;
        self.start += FRAME_HEADER + len;
        Ok(Some(message))
    }

    /// True when no byte of an unfinished frame is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Blocks until a whole message has arrived; `None` at the end of the stream between two frames.
    pub fn read<T: DeserializeOwned>(&mut self, stream: &mut impl Read) -> Result<Option<T>, FrameError> {
        loop {
            if let Some(message) = self.next()? {
                return Ok(Some(message));
            }
            match self.fill(stream) {
                Ok(0) if self.is_empty() => return Ok(None),
                Ok(0) => return Err(FrameError::Truncated),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bytes, ExecRequest, FromAgent, MAX_CHUNK, ToAgent};
    use proptest::prelude::*;

    #[test]
    fn messages_survive_any_fragmentation() {
        let messages = [
            ToAgent::Hello { version: 1 },
            ToAgent::Stdin(Bytes(vec![7; MAX_CHUNK])),
            ToAgent::Exec(ExecRequest::new(vec!["a".into()])),
        ];
        let wire: Vec<u8> = messages.iter().flat_map(|m| encode(m).unwrap()).collect();
        for step in [1, 3, 4096, wire.len()] {
            let mut decoder = FrameDecoder::new();
            let mut got = Vec::new();
            for piece in wire.chunks(step) {
                let mut piece = piece;
                while !piece.is_empty() {
                    piece = &piece[decoder.push(piece)..];
                    while let Some(m) = decoder.next::<ToAgent>().unwrap() {
                        got.push(m);
                    }
                }
            }
            assert_eq!(got, messages);
            assert!(decoder.is_empty());
        }
    }

    #[test]
    fn hostile_frames_are_refused() {
        let mut decoder = FrameDecoder::new();
        decoder.push(&u32::MAX.to_le_bytes());
        assert!(matches!(decoder.next::<FromAgent>(), Err(FrameError::TooLong(_))));
        let mut decoder = FrameDecoder::new();
        decoder.push(&[0; 4]);
        assert!(matches!(decoder.next::<FromAgent>(), Err(FrameError::Empty)));
        let mut long = encode(&FromAgent::Done).unwrap();
        long.push(0);
        long[0] += 1;
        let mut decoder = FrameDecoder::new();
        decoder.push(&long);
        assert!(matches!(decoder.next::<FromAgent>(), Err(FrameError::Trailing(1))));
        let oversized = encode(&FromAgent::Stdout(Bytes(vec![0; MAX_CHUNK + 1]))).unwrap();
        assert!(decode_payload::<FromAgent>(&oversized[FRAME_HEADER..]).is_err());
        let cut = encode(&FromAgent::Done).unwrap();
        assert!(matches!(
            FrameDecoder::new().read::<FromAgent>(&mut &cut[..cut.len() - 1]),
            Err(FrameError::Truncated)
        ));
        assert!(encode(&FromAgent::Stdout(Bytes(vec![0; MAX_PAYLOAD]))).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let mut decoder = FrameDecoder::new();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next::<FromAgent>() {}
            let _ = decode_payload::<FromAgent>(&bytes);
            let _ = decode_payload::<ToAgent>(&bytes);
        }
    }
}
