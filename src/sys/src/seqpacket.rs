//! SOCK_SEQPACKET over Unix sockets, with descriptors and the peer's identity.
//! Messages keep their edges, so a peer cannot make one message look like two.

use crate::{Attempt, Error, Result};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// The most descriptors that one message may carry.
pub const MAX_FDS: usize = 32;

/// A received message. No bytes and no descriptors: the peer closed.
#[derive(Debug)]
pub struct Received {
    pub len: usize,
    pub fds: Vec<OwnedFd>,
}

/// Who is at the other end, as the kernel recorded it at connect or socketpair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
}

/// Two connected ends, close-on-exec.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .attempt("make a pair of sockets")
}

/// Sends one message; descriptors travel with it. A message is sent whole or not at all.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    const ATTEMPT: &str = "send a message";
    if fds.len() > MAX_FDS {
        return Err(Error::because(ATTEMPT, format!("more than {MAX_FDS} descriptors")));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Error::because(ATTEMPT, "the descriptors do not fit"));
    }
    let parts = [IoSlice::new(bytes)];
    let socket = socket.as_fd();
    rustix::io::retry_on_intr(|| rustix::net::sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL))
        .attempt(ATTEMPT)?;
    Ok(())
}

/// Receives one message into `buffer`, and its descriptors (close-on-exec).
///
/// # Errors
/// A message that is longer than the buffer or has more than [`MAX_FDS`] descriptors is an error,
/// never cut; EAGAIN from a non-blocking socket is an error with that errno.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<Received> {
    const ATTEMPT: &str = "receive a message";
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let socket = socket.as_fd();
    let message = rustix::io::retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(buffer)];
        rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
    })
    .attempt(ATTEMPT)?;
    let mut fds = Vec::new();
    for received in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = received {
            fds.extend(rights);
        }
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(Error::because(ATTEMPT, "it is longer than allowed"));
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Error::because(ATTEMPT, "it carries more descriptors than allowed"));
    }
    Ok(Received { len: message.bytes, fds })
}

/// A listening socket at a path that must not exist yet. Its directory decides who may reach it.
pub fn listen(path: &Path, backlog: i32) -> Result<OwnedFd> {
    let attempt = || format!("listen at {}", path.display());
    let socket = socket().attempt_with(attempt)?;
    let address = SocketAddrUnix::new(path).attempt_with(attempt)?;
    rustix::net::bind(&socket, &address).attempt_with(attempt)?;
    rustix::net::listen(&socket, backlog).attempt_with(attempt)?;
    Ok(socket)
}

/// Accepts one connection, close-on-exec.
pub fn accept(listener: impl AsFd) -> Result<OwnedFd> {
    rustix::io::retry_on_intr(|| rustix::net::accept_with(listener.as_fd(), SocketFlags::CLOEXEC))
        .attempt("accept a connection")
}

/// Connects to a listening socket.
pub fn connect(path: &Path) -> Result<OwnedFd> {
    let attempt = || format!("connect to {}", path.display());
    let socket = socket().attempt_with(attempt)?;
    let address = SocketAddrUnix::new(path).attempt_with(attempt)?;
    rustix::net::connect(&socket, &address).attempt_with(attempt)?;
    Ok(socket)
}

fn socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// The peer's pid, uid and gid.
pub fn peer(socket: impl AsFd) -> Result<Peer> {
    let credentials = rustix::net::sockopt::socket_peercred(socket).attempt("read who the peer is")?;
    Ok(Peer {
        pid: credentials.pid.as_raw_nonzero().get(),
        uid: credentials.uid.as_raw(),
        gid: credentials.gid.as_raw(),
    })
}

/// The peer's security label (SO_PEERSEC). ENOPROTOOPT where no labelling LSM is active.
pub fn peer_label(socket: impl AsFd) -> Result<String> {
    const ATTEMPT: &str = "read the peer's label";
    let mut buffer = [0u8; 4096];
    let mut len = buffer.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into the live buffer and updates `len`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERSEC,
            buffer.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    crate::error::check(result.into()).attempt(ATTEMPT)?;
    let bytes = buffer.get(..len as usize).unwrap_or_default();
    Ok(String::from_utf8_lossy(bytes).trim_end_matches(['\0', '\n']).to_owned())
}

/// Our own security label without /proc: the label of the other end of a fresh socket pair.
/// None where no labelling LSM is active.
pub fn own_label() -> Result<Option<String>> {
    let (one, _other) = pair()?;
    match peer_label(&one) {
        Ok(label) => Ok(Some(label)),
        Err(error) if error.errno() == Some(libc::ENOPROTOOPT) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_and_its_descriptor_arrive() {
        let (one, other) = pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        send(&one, b"hello", &[file.as_fd()]).unwrap();
        let mut buffer = [0; 16];
        let received = receive(&other, &mut buffer).unwrap();
        assert_eq!(&buffer[..received.len], b"hello");
        assert_eq!(received.fds.len(), 1);
        let flags = rustix::io::fcntl_getfd(&received.fds[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn a_long_message_is_an_error_and_the_end_is_an_empty_one() {
        let (one, other) = pair().unwrap();
        send(&one, &[0; 64], &[]).unwrap();
        assert!(receive(&other, &mut [0; 16]).is_err());
        drop(one);
        let end = receive(&other, &mut [0; 16]).unwrap();
        assert_eq!((end.len, end.fds.len()), (0, 0));
    }

    #[test]
    fn the_peer_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = listen(&path, 4).unwrap();
        assert!(listen(&path, 4).is_err(), "an existing path is refused");
        let client = connect(&path).unwrap();
        let server = accept(&listener).unwrap();
        assert_eq!(peer(&server).unwrap().pid, crate::process::own_pid());
        send(&client, b"x", &[]).unwrap();
        assert_eq!(receive(&server, &mut [0; 4]).unwrap().len, 1);
        own_label().unwrap();
    }
}
