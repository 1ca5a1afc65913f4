//! What listens outside of the jail while a trial runs, so that a refusal is a layer's and not an empty host's.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use casemate_confine::controls::Ground;

/// Listeners, where this process may have them; else addresses that answer "nobody there", which is not a denial.
pub struct Outside {
    name: String,
    _unix: Option<UnixListener>,
    tcp: Option<TcpListener>,
}

impl Outside {
    pub fn listen() -> Self {
        let name = format!("casemate-trial-{}", casemate_sys::process::own_pid());
        let unix = SocketAddr::from_abstract_name(&name).and_then(|address| UnixListener::bind_addr(&address));
        Outside { name, _unix: unix.ok(), tcp: TcpListener::bind("127.0.0.1:0").ok() }
    }

    /// The ground of the controls.
    pub fn ground(&self) -> Ground {
        let address = self.tcp.as_ref().and_then(|listener| listener.local_addr().ok());
        Ground {
            outsider: casemate_sys::process::own_pid(),
            abstract_name: Some(self.name.clone()),
            tcp: Some(address.map_or_else(|| "127.0.0.1:9".into(), |a| a.to_string())),
            ..Ground::default()
        }
    }
}
