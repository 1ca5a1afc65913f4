//! The session engine: any number (bounded) of concurrent sessions over stream fds, one thread each.
use crate::reaper::Reaper;
use crate::session;
use crate::stream::Stream;
use crate::workload::Workload;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

const MAX_SESSIONS: usize = 64;

/// What all sessions share.
#[derive(Debug)]
pub struct Agent {
    pub(crate) reaper: Arc<Reaper>,
    pub(crate) workload: Arc<Workload>,
    pub(crate) helper: PathBuf,
    sessions: AtomicUsize,
}

impl Agent {
    /// `helper` is this program's own executable.
    pub fn new(reaper: Arc<Reaper>, workload: Arc<Workload>, helper: PathBuf) -> Arc<Self> {
        Arc::new(Agent { reaper, workload, helper, sessions: AtomicUsize::new(0) })
    }

    /// An agent outside a guest, for tests. All of a process share one reaper, which waits for all its children.
    pub fn start(config: casemate_agent_protocol::GuestConfig, helper: PathBuf) -> std::io::Result<Arc<Self>> {
        static REAPER: OnceLock<Arc<Reaper>> = OnceLock::new();
        let workload = Workload::new(config, helper.clone())?;
        let reaper = Arc::clone(REAPER.get_or_init(|| Arc::new(Reaper::default())));
        reaper.start()?;
        Ok(Agent::new(reaper, workload, helper))
    }

    /// Runs the workload in this thread; its output goes to `fallback` while no client follows it.
    pub fn run_workload(&self, fallback: Option<&OwnedFd>, started: impl FnOnce(u32)) -> crate::Ended {
        self.workload.run(&self.reaper, fallback, started)
    }

    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Serves one connection in a thread of its own.
    pub fn serve(self: &Arc<Self>, connection: OwnedFd) {
        let stream = Stream::new(connection);
        let busy = self.sessions.fetch_add(1, Ordering::Relaxed) >= MAX_SESSIONS;
        let agent = Arc::clone(self);
        let session = move || {
            if busy {
                session::refuse_busy(stream);
            } else {
                session::run(&agent, stream);
            }
            agent.sessions.fetch_sub(1, Ordering::Relaxed);
        };
        let thread = std::thread::Builder::new().name("session".into()).stack_size(256 * 1024);
        if thread.spawn(session).is_err() {
            // The connection is dropped with the closure: the client sees its end.
            self.sessions.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
