//! The last step before a workload: this program again, in a fresh process with one thread, that becomes the program.
//!
//! Order: new session; controlling terminal; stdio; limits; groups, gid, uid; working directory; signals; exec.
//! The socket to the agent closes with the exec, which is the agent's sign that the program runs.
use crate::spawn::{Launch, SpawnError};
use crate::users::{self, Identity};
use casemate_agent_protocol::{ErrorKind, Rlimit, RlimitKind};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::Resource;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The argument that makes this program the helper.
pub const ARGUMENT: &str = "--exec-helper";
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const MAX_LAUNCH: usize = 1 << 20;

/// Becomes the program that the agent asks for on stdin, or tells the agent why not and ends.
pub fn main() -> ! {
    let mut socket = match rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) {
        Ok(fd) => std::fs::File::from(fd),
        Err(_) => std::process::exit(125),
    };
    // Alive: the agent can now tell an exec (only this byte) from a helper that was killed (nothing).
    if socket.write_all(&[1]).is_err() {
        std::process::exit(125);
    }
    let error = match launch(&mut socket) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let code = error.kind.exit_code();
    if let Ok(bytes) = postcard::to_stdvec(&error) {
        let _ = socket.write_all(&bytes);
    }
    std::process::exit(i32::from(code));
}

enum Never {}

fn launch(socket: &mut std::fs::File) -> Result<Never, SpawnError> {
    let (launch, [stdin, stdout, stderr]) = receive(socket).map_err(SpawnError::system)?;
    let exec = &launch.exec;
    exec.validate().map_err(|e| SpawnError::new(ErrorKind::Protocol, e.to_string()))?;
    let identity =
        users::resolve(&exec.user, &exec.groups).map_err(|message| SpawnError::new(ErrorKind::NoSuchUser, message))?;
    let environment = environment(&launch, &identity);
    rustix::process::setsid().map_err(SpawnError::system)?;
    if exec.tty.is_some() {
        rustix::process::ioctl_tiocsctty(&stdin).map_err(SpawnError::system)?;
        // So that the user can reopen its own terminal. Not essential: a read-only devpts refuses.
        let _ = rustix::fs::fchown(&stdin, Some(Uid::from_raw(identity.uid)), None);
    }
    rustix::stdio::dup2_stdin(&stdin).map_err(SpawnError::system)?;
    rustix::stdio::dup2_stdout(&stdout).map_err(SpawnError::system)?;
    rustix::stdio::dup2_stderr(&stderr).map_err(SpawnError::system)?;
    drop((stdin, stdout, stderr));
    close_others(socket.as_raw_fd());
    for limit in &launch.rlimits {
        set_rlimit(limit)?;
    }
    become_user(&identity)?;
    std::env::set_current_dir(&exec.cwd).map_err(|e| {
        SpawnError::new(ErrorKind::WorkingDirectory, format!("entering the working directory {} failed: {e}", exec.cwd))
    })?;
    let path = environment.iter().find(|(k, _)| k == "PATH").map_or(DEFAULT_PATH, |(_, v)| v.as_str());
    let program = find_program(&exec.argv[0], path)?;
    // A parent that ignores SIGINT (a shell's background job does) would leave a workload that no ^C reaches.
    casemate_sys::signal::reset_for_exec().map_err(|e| SpawnError::new(ErrorKind::Io, e.to_string()))?;
    let error = Command::new(&program).arg0(&exec.argv[0]).args(&exec.argv[1..]).env_clear().envs(environment).exec();
    Err(exec_error(&program, &error))
}

fn receive(socket: &mut std::fs::File) -> std::io::Result<(Launch, [OwnedFd; 3])> {
    let mut length = [0u8; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(&*socket, &mut [IoSliceMut::new(&mut length)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    let bad = |what| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
    let length = u32::from_le_bytes(length) as usize;
    if got != 4 || length > MAX_LAUNCH {
        return Err(bad("the launch message is malformed"));
    }
    let fds = <[OwnedFd; 3]>::try_from(fds).map_err(|_| bad("the launch message brought no stdio"))?;
    let mut launch = vec![0; length];
    socket.read_exact(&mut launch)?;
    Ok((postcard::from_bytes(&launch).map_err(std::io::Error::other)?, fds))
}

/// Closes whatever this process inherited beyond stdio. Everything of our own closes at the exec; a parent's leak would not.
fn close_others(keep: RawFd) {
    let names = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten().map(|e| e.file_name());
    let fds: Vec<RawFd> = names.filter_map(|n| n.to_str()?.parse().ok()).filter(|&fd| fd > 2 && fd != keep).collect();
    for fd in fds {
        // The directory that was just read is among them, and closed already.
        let _ = nix::unistd::close(fd);
    }
}

fn environment(launch: &Launch, identity: &Identity) -> Vec<(String, String)> {
    let mut env = launch.exec.env.clone();
    let mut default = |name: &str, value: Option<&str>| {
        if let (false, Some(value)) = (env.iter().any(|(k, _)| k == name), value) {
            env.push((name.into(), value.into()));
        }
    };
    default("PATH", Some(DEFAULT_PATH));
    default("HOME", Some(&identity.home));
    default("USER", identity.name.as_deref());
    default("HOSTNAME", launch.hostname.as_deref());
    default("TERM", launch.exec.tty.map(|_| "xterm"));
    env
}

/// Groups, gid, uid, in this order; all capabilities go with the uid.
fn become_user(identity: &Identity) -> Result<(), SpawnError> {
    use rustix::process::{getegid, geteuid};
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    if !geteuid().is_root() && (geteuid(), getegid()) == (uid, gid) && identity.groups.is_empty() {
        return Ok(());
    }
    let groups: Vec<Gid> = identity.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    // "This thread" is the whole process here.
    rustix::thread::set_thread_groups(&groups)
        .and_then(|()| rustix::thread::set_thread_res_gid(gid, gid, gid))
        .and_then(|()| rustix::thread::set_thread_res_uid(uid, uid, uid))
        .map_err(|e| SpawnError::new(ErrorKind::Io, format!("becoming uid {} failed: {e}", identity.uid)))
}

fn set_rlimit(limit: &Rlimit) -> Result<(), SpawnError> {
    let resource = match limit.kind {
        RlimitKind::As => Resource::As,
        RlimitKind::Core => Resource::Core,
        RlimitKind::Cpu => Resource::Cpu,
        RlimitKind::Data => Resource::Data,
        RlimitKind::Fsize => Resource::Fsize,
        RlimitKind::Locks => Resource::Locks,
        RlimitKind::Memlock => Resource::Memlock,
        RlimitKind::Msgqueue => Resource::Msgqueue,
        RlimitKind::Nice => Resource::Nice,
        RlimitKind::Nofile => Resource::Nofile,
        RlimitKind::Nproc => Resource::Nproc,
        RlimitKind::Rss => Resource::Rss,
        RlimitKind::Rtprio => Resource::Rtprio,
        RlimitKind::Rttime => Resource::Rttime,
        RlimitKind::Sigpending => Resource::Sigpending,
        RlimitKind::Stack => Resource::Stack,
    };
    let new = rustix::process::Rlimit { current: limit.soft, maximum: limit.hard };
    rustix::process::setrlimit(resource, new)
        .map_err(|e| SpawnError::new(ErrorKind::Io, format!("setting the limit {:?} failed: {e}", limit.kind)))
}

/// As execvp(3) looks: the first executable file of that name; "permission denied" only if nothing better was found.
fn find_program(name: &str, path: &str) -> Result<PathBuf, SpawnError> {
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let mut denied = None;
    for directory in path.split(':') {
        let candidate = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
        if let Ok(meta) = std::fs::metadata(&candidate) {
            if meta.is_file() && meta.permissions().mode() & 0o111 != 0 {
                return Ok(candidate);
            }
            denied = Some(candidate);
        }
    }
    Err(match denied {
        Some(found) => SpawnError::new(ErrorKind::NotExecutable, format!("{} is not executable", found.display())),
        None => SpawnError::new(ErrorKind::NotFound, format!("no program '{name}' in the guest's PATH ({path})")),
    })
}

fn exec_error(program: &Path, error: &std::io::Error) -> SpawnError {
    let missing = [Errno::NOENT, Errno::NOTDIR].map(|e| Some(e.raw_os_error()));
    let name = String::from_utf8_lossy(program.as_os_str().as_bytes());
    if missing.contains(&error.raw_os_error()) {
        let hint = if program.exists() { " (its interpreter or loader is missing in the guest)" } else { "" };
        return SpawnError::new(ErrorKind::NotFound, format!("executing {name} failed: {error}{hint}"));
    }
    SpawnError::new(ErrorKind::NotExecutable, format!("executing {name} failed: {error}"))
}
