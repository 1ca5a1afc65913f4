//! The attempts themselves, and what their errors mean.

use crate::rights;
use casemate_confine::objects::{self, Hands};
use casemate_confine::trial::{Attempt, Outcome};
use casemate_sys::process::errno::{
    EACCES, EAFNOSUPPORT, EAGAIN, ECONNREFUSED, EMFILE, ENETUNREACH, ENOENT, ENOSYS, EPERM, EROFS, ESRCH,
};
use casemate_sys::process::{CloneOptions, Cloned, clone3};
use casemate_sys::{provoke, rustix, seqpacket};
use std::ffi::{CStr, CString};
use std::fs::OpenOptions;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// KVM_GET_API_VERSION.
const KVM_GET_API_VERSION: u32 = 0xae00;

/// Makes one attempt. `fds` is the inherited table from descriptor 3 on.
pub fn perform(attempt: &Attempt, hands: Hands<'_>) -> Outcome {
    let fds = hands.table;
    match attempt {
        Attempt::Try { act, at } => act.perform(at, hands),
        Attempt::Right { right, place } => rights::attempt(right, Path::new(place)),
        Attempt::Make { object, place, mark } => {
            let made = objects::make(*object, Path::new(place), mark);
            judge(made.map(drop), &[ENOENT, EROFS])
        }
        Attempt::Open { path, write } => {
            // Never creates and never truncates: an attempt that succeeds must change nothing.
            let opened = OpenOptions::new().read(!write).write(*write).open(path);
            judge(opened.map(drop), &[ENOENT, EROFS])
        }
        Attempt::Execute { path } => with_path(path, |path| judge(Err(provoke::execute(path)), &[ENOENT])),
        Attempt::MakeNode { path } => with_path(path, |path| judge(provoke::make_node(path), &[ENOENT, EROFS])),
        Attempt::ConnectPath { path, seqpacket } => {
            let result = if *seqpacket {
                seqpacket::connect(Path::new(path)).map(drop).map_err(raw)
            } else {
                UnixStream::connect(path).map(drop)
            };
            judge(result, &[ENOENT])
        }
        Attempt::ConnectAbstract { name } => judge(connect_abstract(name), &[ECONNREFUSED]),
        Attempt::ConnectTcp { address } => connect_tcp(address),
        Attempt::Socket { family, kind } => judge(provoke::socket(*family, *kind), &[EAFNOSUPPORT]),
        Attempt::Kill { pid } => judge(provoke::kill(*pid), &[ESRCH]),
        Attempt::Trace { pid } => judge(provoke::trace(*pid), &[ESRCH]),
        Attempt::ReadMemory { pid } => judge(provoke::read_memory(*pid), &[ESRCH]),
        Attempt::StealDescriptor { pid } => judge(provoke::steal_descriptor(*pid), &[ESRCH]),
        Attempt::Call { name } => match provoke::call(name) {
            Some(result) => judge(result.map(drop), &[]),
            None => Outcome::Unclear { why: format!("no call is named {name}") },
        },
        Attempt::I386 => i386(),
        Attempt::Processes { count } => judge(processes(*count), &[EAGAIN]),
        Attempt::Allocate { bytes } => allocate(*bytes),
        Attempt::Descriptors { count } => {
            let copies: io::Result<Vec<_>> =
                (0..*count).map(|_| rustix::io::dup(io::stdin()).map_err(raw_errno)).collect();
            judge(copies.map(drop), &[EMFILE])
        }
        Attempt::ReadFd { number } => with_fd(fds, *number, |fd| read_first(fd).map(drop)),
        Attempt::WriteFd { number } => with_fd(fds, *number, |fd| {
            // One byte over itself, at its place.
            let byte = read_first(fd)?;
            rustix::io::pwrite(fd, &[byte], 0).map_err(io::Error::from).map(drop)
        }),
        Attempt::AskKvm { number } => {
            with_fd(fds, *number, |fd| provoke::ioctl(fd.as_fd(), KVM_GET_API_VERSION).map(drop))
        }
    }
}

fn connect_tcp(address: &str) -> Outcome {
    match address.parse::<SocketAddr>() {
        Ok(address) => {
            let result = TcpStream::connect_timeout(&address, Duration::from_secs(2));
            judge(result.map(drop), &[ENETUNREACH])
        }
        Err(error) => Outcome::Unclear { why: error.to_string() },
    }
}

fn allocate(bytes: u64) -> Outcome {
    // Touched by being filled with something else than zero; the kernel may kill us here.
    let memory = vec![1u8; usize::try_from(bytes).unwrap_or(usize::MAX)];
    if std::hint::black_box(&memory).len() as u64 == bytes {
        return Outcome::Allowed;
    }
    Outcome::Unclear { why: "the memory was not there".into() }
}

/// EPERM, EACCES and ENOSYS are a layer's no; so is `absent` where the layer's way is to leave nothing
/// there to be found. Any other error came after the permission was given.
pub(crate) fn judge(result: io::Result<()>, absent: &[i32]) -> Outcome {
    let Err(error) = result else { return Outcome::Allowed };
    match error.raw_os_error() {
        Some(errno) if [EPERM, EACCES, ENOSYS].contains(&errno) || absent.contains(&errno) => Outcome::Denied { errno },
        Some(errno) => Outcome::Reached { errno },
        None => Outcome::Unclear { why: error.to_string() },
    }
}

fn with_path(path: &str, act: impl FnOnce(&CStr) -> Outcome) -> Outcome {
    match CString::new(path) {
        Ok(path) => act(&path),
        Err(error) => Outcome::Unclear { why: error.to_string() },
    }
}

fn raw(error: casemate_sys::Error) -> io::Error {
    error.errno().map_or_else(|| io::Error::other(error.report()), io::Error::from_raw_os_error)
}

fn raw_errno(errno: rustix::io::Errno) -> io::Error {
    errno.into()
}

/// Waiting children, until the kernel refuses one; all are killed before the answer.
fn processes(count: u32) -> io::Result<()> {
    let mut born = Vec::new();
    let mut result = Ok(());
    for _ in 0..count {
        match clone3(&CloneOptions::default()) {
            Ok(Cloned::Child) => loop {
                std::thread::sleep(Duration::from_secs(60));
            },
            Ok(Cloned::Parent(child)) => born.push(child),
            Err(error) => {
                result = Err(raw(error));
                break;
            }
        }
    }
    for child in born {
        let _ = child.kill();
        let _ = child.wait();
    }
    result
}

fn connect_abstract(name: &str) -> io::Result<()> {
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    UnixStream::connect_addr(&address).map(drop)
}

fn with_fd(fds: &[OwnedFd], number: i32, act: impl FnOnce(&OwnedFd) -> io::Result<()>) -> Outcome {
    match fds.iter().find(|fd| fd.as_raw_fd() == number) {
        Some(fd) => judge(act(fd), &[]),
        None => Outcome::Unclear { why: format!("descriptor {number} was not inherited") },
    }
}

fn read_first(fd: &OwnedFd) -> io::Result<u8> {
    let mut byte = [0];
    rustix::io::pread(fd, &mut byte, 0)?;
    Ok(byte[0])
}

#[cfg(target_arch = "x86_64")]
fn i386() -> Outcome {
    if provoke::i386_getpid() > 0 { Outcome::Allowed } else { Outcome::Denied { errno: ENOSYS } }
}

#[cfg(not(target_arch = "x86_64"))]
fn i386() -> Outcome {
    Outcome::Unclear { why: "this machine has no 32-bit gate".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_to_everyone_is_allowed_and_what_is_not_there_is_denied() {
        let open = |path: &str| perform(&Attempt::Open { path: path.into(), write: false }, Hands::EMPTY);
        assert_eq!(open("/"), Outcome::Allowed);
        assert_eq!(open("/casemate/nothing"), Outcome::Denied { errno: ENOENT });
        let missing = perform(&Attempt::ReadFd { number: 99 }, Hands::EMPTY);
        assert!(matches!(missing, Outcome::Unclear { .. }), "a control that cannot be made proves nothing");
    }

    #[test]
    fn a_file_is_read_and_written_without_change() {
        let path = std::env::temp_dir().join(format!("casemate-probe-{}", std::process::id()));
        std::fs::write(&path, "abc").unwrap();
        let file: OwnedFd = OpenOptions::new().read(true).write(true).open(&path).unwrap().into();
        let number = file.as_raw_fd();
        let fds = [file];
        assert_eq!(perform(&Attempt::ReadFd { number }, Hands { table: &fds, post: None }), Outcome::Allowed);
        assert_eq!(perform(&Attempt::WriteFd { number }, Hands { table: &fds, post: None }), Outcome::Allowed);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "abc");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn an_error_after_the_permission_is_no_denial() {
        assert!(!judge(Err(io::Error::from_raw_os_error(22)), &[]).is_denied());
        assert!(judge(Err(io::Error::from_raw_os_error(EPERM)), &[]).is_denied());
    }

    #[test]
    fn signalling_oneself_is_allowed() {
        let pid = casemate_sys::process::own_pid();
        assert_eq!(perform(&Attempt::Kill { pid }, Hands::EMPTY), Outcome::Allowed);
    }
}
