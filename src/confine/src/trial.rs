//! Trials: what an attacker with a runner's exact confinement would try, as data. The jailer puts a
//! [`Trial`] where the runner's plan goes (a sealed memfd at descriptor 3), executes `casemate-probe`
//! in the runner's place, and reads one [`Report`] per attempt from the socket at descriptor 4.
//!
//! Which layer says no: the jailer applies a subset of the steps (all; only Landlock; only uid and
//! capabilities; …) and asks the same questions. Seccomp is special: its answer to most of them is
//! the death of the process, and the coarse filter forbids fork. So for a trial the jailer leaves the
//! filters out, and the probe forks a child per attempt that installs the very same filters
//! ([`Narrowing`]) before it tries. That costs nothing in truth: the filter of a process says nothing
//! about how its parent was confined, and the coarse filter that the runner has is the one built in here.

use crate::objects::{Act, Handle, Object};
use crate::seccomp::{self, Filter};
use crate::{Error, landlock};
use casemate_plan::Layer;
use serde::{Deserialize, Serialize};

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attempt {
    /// Open a path: another VM's disk, /etc/shadow, /proc of another process.
    Open {
        path: String,
        write: bool,
    },
    /// Execute a program.
    Execute {
        path: String,
    },
    /// Make a device node.
    MakeNode {
        path: String,
    },
    /// Connect to a Unix stream or seqpacket socket at a path.
    ConnectPath {
        path: String,
        seqpacket: bool,
    },
    ConnectAbstract {
        name: String,
    },
    /// `address:port`.
    ConnectTcp {
        address: String,
    },
    /// socket(2): family and type as numbers.
    Socket {
        family: i32,
        kind: i32,
    },
    Kill {
        pid: i32,
    },
    Trace {
        pid: i32,
    },
    ReadMemory {
        pid: i32,
    },
    StealDescriptor {
        pid: i32,
    },
    /// One of [`casemate_sys::provoke::CALLS`].
    Call {
        name: String,
    },
    /// A system call through the 32-bit gate.
    I386,
    /// So many processes at once (cgroup pids, RLIMIT_NPROC).
    Processes {
        count: u32,
    },
    /// So many bytes of touched memory (cgroup memory kills with SIGKILL).
    Allocate {
        bytes: u64,
    },
    /// So many open descriptors (RLIMIT_NOFILE).
    Descriptors {
        count: u32,
    },
    /// Positive controls on inherited descriptors, by number.
    ReadFd {
        number: i32,
    },
    /// Writes back the first byte that it read: changes nothing.
    WriteFd {
        number: i32,
    },
    /// KVM_GET_API_VERSION, the one KVM question that creates nothing.
    AskKvm {
        number: i32,
    },
    /// Use one right of Landlock's, as `fs.make_fifo`, in a directory laid out for it; what was done is undone.
    Right {
        right: String,
        place: String,
    },
    /// Make an object of a class, as the maker in a trial would; it goes at once.
    Make {
        object: Object,
        place: String,
        mark: String,
    },
    /// Try something on an object.
    Try {
        act: Act,
        at: Handle,
    },
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// A layer said no with this errno (a path or process that is not there is a no, too).
    Denied {
        errno: i32,
    },
    /// The process was killed; 31 is SIGSYS, seccomp's.
    Killed {
        signal: i32,
    },
    Allowed,
    /// No layer said no; the call failed on its harmless arguments. Counts as allowed.
    Reached {
        errno: i32,
    },
    /// The attempt could not be made at all, which proves nothing.
    Unclear {
        why: String,
    },
}

impl Outcome {
    /// Was it stopped?
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Denied { .. } | Self::Killed { .. })
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = casemate_sys::process::errno_name;
        match self {
            Self::Denied { errno } => write!(f, "denied ({})", name(*errno)),
            Self::Killed { signal: casemate_sys::seccomp::SIGSYS } => write!(f, "killed (SIGSYS)"),
            Self::Killed { signal } => write!(f, "killed (signal {signal})"),
            Self::Allowed => write!(f, "allowed"),
            Self::Reached { errno } => write!(f, "allowed ({} from the call itself)", name(*errno)),
            Self::Unclear { why } => write!(f, "unclear: {why}"),
        }
    }
}

/// The runner's second narrowing, which each attempt's child takes before it tries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Narrowing {
    pub no_new_privs: bool,
    /// Deny everything by Landlock at this ABI; 0 to leave it out.
    pub landlock_abi: u32,
    /// The coarse filter, which the jailer left out.
    pub coarse: bool,
    /// The filter of a thread: `main`, `vcpu` or `io`.
    pub thread: Option<String>,
}

/// What the probe is asked to do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    pub narrowing: Narrowing,
    pub attempts: Vec<Attempt>,
    /// The descriptor of the socket on which objects are handed over ([`Handle::Passed`]); 0 for none.
    pub post: i32,
    /// Objects to be made and held until the socket at descriptor 4 ends, instead of attempts.
    pub hold: Option<Hold>,
}

/// What a maker is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    pub objects: Vec<Object>,
    pub place: String,
    pub mark: String,
}

/// A maker's word on one object, in the order of [`Hold::objects`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    pub index: u32,
    pub name: Option<Handle>,
    /// Its descriptor's number in the maker, to be taken with pidfd_getfd(2): not all can be sent over a socket.
    pub fd: Option<i32>,
    /// Why there is none.
    pub failed: Option<String>,
}

/// The answer to one attempt, by its index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub index: u32,
    pub outcome: Outcome,
}

/// The most bytes of an encoded trial.
pub const MAX_TRIAL: usize = 1 << 20;
/// The most bytes of an encoded report.
pub const MAX_REPORT: usize = 4096;

/// Encodes a trial or a report.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Plain structs of strings and numbers: postcard has no way to fail on them.
    postcard::to_stdvec(value).unwrap_or_default()
}

/// Decodes; None for bytes that are none.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<T> {
    postcard::from_bytes(bytes).ok()
}

impl Narrowing {
    /// As a full runner thread has it.
    pub fn of_thread(thread: &str, landlock_abi: u32) -> Self {
        Self { no_new_privs: true, landlock_abi, coarse: true, thread: Some(thread.into()) }
    }

    /// Applies it to the calling process, in the runner's order. Filters without NNP need
    /// CAP_SYS_ADMIN (a trial of seccomp alone runs as root).
    pub fn apply(&self) -> crate::Result<()> {
        if self.no_new_privs {
            casemate_sys::prctl::set_no_new_privs().map_err(Error::call(Layer::Seccomp))?;
        }
        let mut filters = Vec::new();
        if self.coarse {
            filters.push(Filter::JailerExec);
        }
        if let Some(thread) = &self.thread {
            let name = format!("runner.{thread}");
            let known = Filter::ALL.into_iter().find(|filter| filter.name() == name);
            let refused = || Error::Refused { layer: Layer::Seccomp, why: format!("no filter is named {name}") };
            filters.push(known.ok_or_else(refused)?);
        }
        // The runner has the coarse filter first; a trial has it from its first line here on.
        let mut filters = filters.into_iter();
        if self.coarse
            && let Some(coarse) = filters.next()
        {
            let _ = seccomp::apply(coarse)?;
        }
        if self.landlock_abi > 0 {
            let _ = landlock::apply_fully(self.landlock_abi)?;
        }
        for filter in filters {
            let _ = seccomp::apply(filter)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_survives_the_wire() {
        let trial = Trial {
            narrowing: Narrowing::of_thread("vcpu", 7),
            attempts: vec![Attempt::Kill { pid: 7 }, Attempt::Call { name: "mount".into() }],
            hold: Some(Hold { objects: Object::ALL.to_vec(), place: "/p".into(), mark: "m".into() }),
            ..Trial::default()
        };
        assert_eq!(decode::<Trial>(&encode(&trial)), Some(trial));
        assert_eq!(decode::<Trial>(b"\xff\xff"), None);
    }

    #[test]
    fn an_unknown_thread_is_refused() {
        let narrowing = Narrowing { thread: Some("nope".into()), ..Narrowing::default() };
        assert!(narrowing.apply().is_err());
    }
}
