//! Reports to the runner: one connection to host port [`REPORT_PORT`], and the same news on the console.
use casemate_agent_protocol::{REPORT_PORT, Report};
use nix::sys::socket::VsockAddr;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socket_with};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

const HOST_CID: u32 = 2;

/// Milliseconds since the guest's kernel started.
pub fn uptime_ms() -> u32 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u32::try_from(now.tv_sec.saturating_mul(1000) + now.tv_nsec / 1_000_000).unwrap_or(u32::MAX)
}

/// The connection, if there is one: a guest without vsock still runs its workload.
#[derive(Debug, Default)]
pub struct Reporter {
    connection: Option<OwnedFd>,
}

impl Reporter {
    pub fn connect(&mut self) -> std::io::Result<()> {
        if self.connection.is_none() {
            let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            nix::sys::socket::connect(socket.as_raw_fd(), &VsockAddr::new(HOST_CID, REPORT_PORT))?;
            self.connection = Some(socket);
        }
        Ok(())
    }

    pub fn send(&mut self, report: &Report) {
        if let Report::Failed { stage, text, .. } = report {
            eprintln!("casemate-agent: {} failed: {text}", stage.name());
        }
        if let Some(connection) = &self.connection {
            // 128 bytes fit every send buffer; a runner that does not take them loses them.
            let sent = rustix::net::send(connection, &report.encode(uptime_ms()), SendFlags::NOSIGNAL);
            if sent.is_err() {
                self.connection = None;
            }
        }
    }

    /// The last report: gives the runner a moment to take it, and to close, before the power goes.
    pub fn finish(&mut self, report: &Report) {
        self.send(report);
        if let Some(connection) = self.connection.take() {
            crate::stream::wait_for(connection.as_fd(), rustix::event::PollFlags::IN, Duration::from_millis(100));
        }
    }
}

/// A listening vsock socket.
pub fn listen(port: u32) -> std::io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    nix::sys::socket::bind(socket.as_raw_fd(), &VsockAddr::new(u32::MAX, port))?;
    rustix::net::listen(&socket, 64)?;
    Ok(socket)
}
