//! What there is outside of the jail while a trial runs, so that a refusal is a layer's and not an empty host's.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use casemate_confine::controls::Ground;

/// A port where nobody listens: without a layer in the way the answer is "refused", which counts as reached.
const TCP: &str = "127.0.0.1:9";

/// An abstract socket that listens, where this process may have one.
pub struct Outside {
    name: String,
    _listener: Option<UnixListener>,
}

impl Outside {
    pub fn listen() -> Self {
        let name = format!("casemate-trial-{}", casemate_sys::process::own_pid());
        let listener = SocketAddr::from_abstract_name(&name).and_then(|address| UnixListener::bind_addr(&address));
        Outside { name, _listener: listener.ok() }
    }

    /// The ground of the controls.
    pub fn ground(&self) -> Ground {
        Ground {
            outsider: casemate_sys::process::own_pid(),
            abstract_name: Some(self.name.clone()),
            tcp: Some(TCP.into()),
            ..Ground::default()
        }
    }
}
