//! Host streams over real Unix sockets and an epoll instance, all handed in: what the runner plugs into the console and
//! the vsock device. Registration is edge-triggered and made once, so that a busy stream costs no epoll_ctl.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketFlags, accept_with, recv, send, shutdown};

use crate::traits::{HostAcceptor, HostStream, Readiness};

/// The runner's epoll instance and the part of its event data that names the device.
#[derive(Clone)]
pub struct Events {
    epoll: Arc<OwnedFd>,
    base: u64,
}

impl Events {
    /// Events arrive with data `(u64::from(device) << 32) | token`.
    pub fn new(epoll: Arc<OwnedFd>, device: u32) -> Self {
        Self { epoll, base: u64::from(device) << 32 }
    }

    fn add(&self, fd: impl AsFd, token: u32, flags: EventFlags) -> io::Result<()> {
        let data = EventData::new_u64(self.base | u64::from(token));
        Ok(epoll::add(&*self.epoll, fd, data, flags | EventFlags::ET)?)
    }
}

/// Splits epoll event data into device and token.
pub fn split_event_data(data: u64) -> (u32, u32) {
    ((data >> 32) as u32, data as u32)
}

/// What an epoll event means to a device.
pub fn readiness(flags: EventFlags) -> Readiness {
    Readiness {
        readable: flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR),
        writable: flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR),
        hangup: flags.intersects(EventFlags::HUP | EventFlags::ERR),
    }
}

/// A connected stream socket.
pub struct UnixHost {
    socket: OwnedFd,
    events: Events,
}

impl UnixHost {
    pub fn new(stream: UnixStream, events: Events) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { socket: stream.into(), events })
    }
}

impl HostStream for UnixHost {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let (n, _) = recv(&self.socket, buf, RecvFlags::DONTWAIT)?;
        Ok(n)
    }

    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        // A gone reader is an error here, never a signal.
        Ok(send(&self.socket, buf, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(shutdown(&self.socket, Shutdown::Write)?)
    }

    fn register(&mut self, token: u32) -> io::Result<()> {
        self.events.add(&self.socket, token, EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP)
    }
}

/// A listening stream socket.
pub struct UnixAcceptor {
    listener: OwnedFd,
    events: Events,
}

impl UnixAcceptor {
    pub fn new(listener: UnixListener, events: Events) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener: listener.into(), events })
    }
}

impl HostAcceptor for UnixAcceptor {
    fn accept(&mut self) -> io::Result<Option<Box<dyn HostStream>>> {
        // Nonblocking from the start: the io thread needs no ioctl for it.
        match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => Ok(Some(Box::new(UnixHost { socket, events: self.events.clone() }))),
            Err(Errno::AGAIN) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn register(&mut self, token: u32) -> io::Result<()> {
        self.events.add(&self.listener, token, EventFlags::IN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn real_sockets_report_themselves_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
        let mut acceptor = UnixAcceptor::new(listener, Events::new(Arc::clone(&epoll), 5)).unwrap();
        acceptor.register(0).unwrap();
        assert!(acceptor.accept().unwrap().is_none());
        let mut client = UnixStream::connect(&path).unwrap();
        assert_eq!(wait(&epoll), [((5, 0), EventFlags::IN)]);
        let mut stream = acceptor.accept().unwrap().unwrap();
        stream.register(0x1_0002).unwrap();
        client.write_all(b"hi").unwrap();
        let events = wait(&epoll);
        assert_eq!(events, [((5, 0x1_0002), EventFlags::IN | EventFlags::OUT)]);
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 2);
        assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(client);
        let ready = readiness(wait(&epoll)[0].1);
        assert!(ready.readable && ready.hangup);
        assert_eq!(stream.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    fn wait(epoll: &OwnedFd) -> Vec<((u32, u32), EventFlags)> {
        let mut events = Vec::with_capacity(8);
        epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), None).unwrap();
        events.iter().map(|e: &epoll::Event| (split_event_data(e.data.u64()), e.flags)).collect()
    }
}
