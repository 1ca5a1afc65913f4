//! A SOCK_SEQPACKET socket that carries one type each way.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{self, CodecError, MAX_MESSAGE};

#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("the peer is gone")]
    Closed,
    #[error("no message is waiting")]
    WouldBlock,
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("the socket failed: {0}")]
    Socket(#[from] io::Error),
}

/// One end. Sends never raise SIGPIPE.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Takes a connected SEQPACKET socket.
    pub fn new(socket: OwnedFd) -> Self {
        Channel(socket)
    }

    /// A connected pair, close-on-exec.
    pub fn pair() -> io::Result<(Channel, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Channel(ours), theirs))
    }

    pub fn send<T: Serialize>(&self, message: &T) -> Result<(), ChannelError> {
        let bytes = codec::encode(message)?;
        loop {
            match send(&self.0, &bytes, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(classify(error)),
            }
        }
    }

    /// Waits for the next message.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<T, ChannelError> {
        self.receive_with(RecvFlags::empty())
    }

    /// The next message if one is there, else [`ChannelError::WouldBlock`].
    pub fn try_receive<T: DeserializeOwned>(&self) -> Result<T, ChannelError> {
        self.receive_with(RecvFlags::DONTWAIT)
    }

    fn receive_with<T: DeserializeOwned>(&self, flags: RecvFlags) -> Result<T, ChannelError> {
        // Room for the largest, of which only what arrives is touched: zeroing it would cost more than all the rest.
        let mut buffer = Vec::with_capacity(MAX_MESSAGE + 1);
        loop {
            // With TRUNC the true length comes back, so that a giant is refused instead of being cut.
            match recv(&self.0, spare_capacity(&mut buffer), flags | RecvFlags::TRUNC) {
                Ok((_, 0)) => return Err(ChannelError::Closed),
                Ok((_, length)) if length > MAX_MESSAGE => return Err(CodecError::TooLong(length).into()),
                Ok(_) => return Ok(codec::decode(&buffer)?),
                Err(Errno::INTR) => {}
                Err(error) => return Err(classify(error)),
            }
        }
    }
}

fn classify(error: Errno) -> ChannelError {
    match error {
        Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => ChannelError::Closed,
        Errno::AGAIN => ChannelError::WouldBlock,
        other => ChannelError::Socket(other.into()),
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> OwnedFd {
        channel.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Request;

    #[test]
    fn messages_arrive_whole_and_a_gone_peer_is_told() {
        let (ours, theirs) = Channel::pair().unwrap();
        let theirs = Channel::new(theirs);
        ours.send(&Request::Kill).unwrap();
        ours.send(&Request::Wait).unwrap();
        assert_eq!(theirs.receive::<Request>().unwrap(), Request::Kill);
        assert_eq!(theirs.try_receive::<Request>().unwrap(), Request::Wait);
        assert!(matches!(theirs.try_receive::<Request>(), Err(ChannelError::WouldBlock)));
        drop(ours);
        assert!(matches!(theirs.receive::<Request>(), Err(ChannelError::Closed)));
    }

    #[test]
    fn a_giant_datagram_is_refused_not_cut() {
        let (ours, theirs) = Channel::pair().unwrap();
        rustix::net::send(&theirs, &vec![0u8; MAX_MESSAGE + 9], SendFlags::empty()).unwrap();
        assert!(matches!(ours.receive::<Vec<u8>>(), Err(ChannelError::Codec(CodecError::TooLong(_)))));
    }
}
