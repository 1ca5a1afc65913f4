//! Reading back the seccomp filters that are installed on a thread: PTRACE_SEIZE, PTRACE_INTERRUPT,
//! PTRACE_SECCOMP_GET_FILTER, PTRACE_DETACH (ptrace(2); kernel/seccomp.c, seccomp_get_filter).
//!
//! The thread stands still for some ten microseconds. It is traced from a thread of our own that ends
//! with the reading: whatever happens to us, the kernel lets go of the tracee and it runs on
//! (PTRACE_O_EXITKILL is not set). A blocking call may return EINTR once, as with any signal that is
//! stopped and continued; KVM_RUN does. Called by the auditor.

use crate::error::check;
use crate::seccomp::Instruction;
use std::io;
use std::time::{Duration, Instant};

/// How long a thread may take to stop. One in uninterruptible sleep stops when its wait ends.
const PATIENCE: Duration = Duration::from_secs(2);
/// More filters than the kernel lets one thread have (32768 instructions on a path, each filter with
/// a penalty of four).
const MOST: usize = 8192;
/// PTRACE_SECCOMP_GET_FILTER (linux/ptrace.h), which libc lacks.
const SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
/// struct task's flags (linux/sched.h): threads that the kernel runs and that never call it.
const KERNEL_FLAGS: u64 = PF_KTHREAD | PF_USER_WORKER | PF_IO_WORKER;
const PF_KTHREAD: u64 = 0x0020_0000;
const PF_USER_WORKER: u64 = 0x0000_4000;
const PF_IO_WORKER: u64 = 0x0000_0010;

/// Why the filters of a thread could not be read, and what would help.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the thread ended")]
    Gone,
    #[error("it is a thread of the kernel's: it makes no system calls and has no filter of its own")]
    Kernel,
    #[error("process {0} traces it already, and a thread has one tracer: end that debugger or strace")]
    Traced(i32),
    #[error("tracing is refused ({0}): run as root, and under SELinux in a domain that may ptrace it")]
    Denied(io::Error),
    #[error("reading filters takes CAP_SYS_ADMIN in the initial user namespace: run as root, outside a container")]
    NeedsAdmin,
    #[error(
        "the auditor itself runs under a seccomp filter, and the kernel then shows no other: run it outside a container or sandbox"
    )]
    AuditorFiltered,
    #[error("it did not stop within {0:?} (uninterruptible sleep?): try again")]
    Busy(Duration),
    #[error("it runs in seccomp's strict mode, which has no filter: read, write, exit and sigreturn only")]
    Strict,
    #[error(
        "the kernel keeps no readable copy of its filter (CONFIG_CHECKPOINT_RESTORE is off, or the filter is not classic BPF): use a kernel that has it"
    )]
    NotKept,
    #[error("cannot {attempt}: {source}")]
    Call { attempt: &'static str, source: io::Error },
}

/// The filters of a thread, newest first; empty if it has none.
///
/// # Errors
/// As [`ReadError`] has them. A thread of another process than `pid` counts as gone.
pub fn installed(pid: i32, tid: i32) -> Result<Vec<Vec<Instruction>>, ReadError> {
    let reader = std::thread::Builder::new().name("filters".into()).stack_size(128 << 10);
    let reader = reader.spawn(move || read(pid, tid));
    let reader = reader.map_err(|source| ReadError::Call { attempt: "start a thread that traces", source })?;
    let lost = |_| ReadError::Call { attempt: "trace", source: io::Error::other("the tracing thread panicked") };
    reader.join().map_err(lost)?
}

fn read(pid: i32, tid: i32) -> Result<Vec<Vec<Instruction>>, ReadError> {
    match stat(pid, tid)? {
        (_, flags) if flags & KERNEL_FLAGS != 0 => return Err(ReadError::Kernel),
        ('Z' | 'X', _) => return Err(ReadError::Gone),
        _ => {}
    }
    ptrace(libc::PTRACE_SEIZE, tid, 0, 0).map_err(|error| refused(pid, tid, error))?;
    // It is held now: its number stays its own until we let go. Was it this process's thread?
    stat(pid, tid)?;
    ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0).map_err(|source| lost("interrupt it", source))?;
    let signal = stopped(pid, tid)?;
    let filters = filters(pid, tid);
    let detached = ptrace(libc::PTRACE_DETACH, tid, 0, signal as usize);
    match detached {
        // Killed while it stood: what was read was its own nevertheless.
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(lost("let it go", error)),
        _ => filters,
    }
}

/// State and PF_* of a thread (fields 3 and 9 of its stat).
fn stat(pid: i32, tid: i32) -> Result<(char, u64), ReadError> {
    const ATTEMPT: &str = "read its stat";
    let stat = std::fs::read(format!("/proc/{pid}/task/{tid}/stat")).map_err(|error| {
        let gone = error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH);
        if gone { ReadError::Gone } else { ReadError::Call { attempt: ATTEMPT, source: error } }
    })?;
    let stat = String::from_utf8_lossy(&stat);
    // The name may hold spaces and parentheses, and bytes that are no text: fields count from the last ')'.
    let parse = || {
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        Some((fields.next()?.chars().next()?, fields.nth(5)?.parse().ok()?))
    };
    parse().ok_or_else(|| ReadError::Call { attempt: ATTEMPT, source: io::Error::other("no field 9") })
}

fn lost(attempt: &'static str, source: io::Error) -> ReadError {
    if source.raw_os_error() == Some(libc::ESRCH) { ReadError::Gone } else { ReadError::Call { attempt, source } }
}

/// A line of a thread's status file.
fn status(pid: i32, tid: i32, name: &str) -> Option<i64> {
    let bytes = std::fs::read(format!("/proc/{pid}/task/{tid}/status")).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value?.trim().parse().ok()
}

/// EPERM from PTRACE_SEIZE has many reasons.
fn refused(pid: i32, tid: i32, error: io::Error) -> ReadError {
    match error.raw_os_error() {
        Some(libc::ESRCH) => ReadError::Gone,
        Some(libc::EPERM | libc::EACCES) => match status(pid, tid, "TracerPid").and_then(|by| i32::try_from(by).ok()) {
            Some(by) if by > 0 => ReadError::Traced(by),
            _ => ReadError::Denied(error),
        },
        _ => ReadError::Call { attempt: "seize it", source: error },
    }
}

/// Waits until it stands. Returns the signal that it must get when it goes on: a signal may have come
/// first, and is not to be lost. Its death is left to its parent to see, which may be ourselves.
fn stopped(pid: i32, tid: i32) -> Result<i32, ReadError> {
    const ATTEMPT: &str = "wait until it stops";
    let id = libc::id_t::try_from(tid).map_err(|_| ReadError::Gone)?;
    let begun = Instant::now();
    let mut pause = Duration::from_micros(20);
    loop {
        // SAFETY: siginfo_t is plain numbers; all zero is a value of it, and means "nothing" here.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let options = libc::WSTOPPED | libc::WNOHANG | libc::__WALL;
        // SAFETY: waitid(2) writes one siginfo_t through a live pointer.
        let waited = unsafe { libc::waitid(libc::P_PID, id, &raw mut info, options) };
        match check(waited.into()) {
            Ok(_) if info.si_signo == libc::SIGCHLD => {
                // SAFETY: a SIGCHLD's information holds a status (kernel/exit.c, wait_task_stopped).
                let status = unsafe { info.si_status() };
                let event = status >> 8;
                return Ok(if event == 0 { status & 0x7f } else { 0 });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Err(ReadError::Gone),
            Err(source) => return Err(ReadError::Call { attempt: ATTEMPT, source }),
        }
        if matches!(stat(pid, tid)?.0, 'Z' | 'X') {
            return Err(ReadError::Gone);
        }
        if begun.elapsed() > PATIENCE {
            return Err(ReadError::Busy(PATIENCE));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

fn filters(pid: i32, tid: i32) -> Result<Vec<Vec<Instruction>>, ReadError> {
    // 0 none, 1 strict, 2 filter; the kernel answers EINVAL for the first two, so they are told apart here.
    match status(pid, tid, "Seccomp") {
        Some(0) => return Ok(Vec::new()),
        Some(1) => return Err(ReadError::Strict),
        _ => {}
    }
    let mut found = Vec::new();
    while found.len() < MOST {
        match filter(tid, found.len()) {
            Ok(program) => found.push(program),
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => break,
                Some(libc::ESRCH) => return Err(ReadError::Gone),
                Some(libc::EACCES) if under_seccomp() => return Err(ReadError::AuditorFiltered),
                Some(libc::EACCES) => return Err(ReadError::NeedsAdmin),
                Some(libc::EINVAL | libc::EMEDIUMTYPE | libc::EIO) => return Err(ReadError::NotKept),
                _ => return Err(ReadError::Call { attempt: "read its filter", source: error }),
            },
        }
    }
    // The kernel counts from the oldest (get_nth_filter), whatever ptrace(2) says.
    found.reverse();
    Ok(found)
}

fn under_seccomp() -> bool {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    status(own, own, "Seccomp").is_some_and(|mode| mode != 0)
}

/// One filter by its index.
fn filter(tid: i32, index: usize) -> io::Result<Vec<Instruction>> {
    let len = ptrace(SECCOMP_GET_FILTER, tid, index, 0)?;
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let mut program = vec![Instruction { code: 0, jt: 0, jf: 0, k: 0 }; len];
    // The tracee stands: its filters do not change between the two calls, so `len` is still right.
    let got = ptrace(SECCOMP_GET_FILTER, tid, index, program.as_mut_ptr() as usize)?;
    if usize::try_from(got).ok() == Some(len) { Ok(program) } else { Err(io::Error::other("its length changed")) }
}

fn ptrace(request: libc::c_uint, tid: i32, addr: usize, data: usize) -> io::Result<libc::c_long> {
    // SAFETY: the requests made here take numbers, but for PTRACE_SECCOMP_GET_FILTER, whose data is null
    // or points at a buffer of as many instructions as the kernel has just counted on a stopped tracee.
    check(unsafe { libc::ptrace(request, tid, addr, data) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt as _;
    use std::process::{Child, Command};

    /// `ret k`
    fn answer(k: u32) -> Vec<Instruction> {
        vec![Instruction { code: 0x06, jt: 0, jf: 0, k }]
    }

    /// A program that sleeps under these filters, the last one newest.
    struct Sleeper(Child);

    impl Sleeper {
        fn new(filters: Vec<Vec<Instruction>>) -> Self {
            let mut command = Command::new("sleep");
            command.arg("60");
            // SAFETY: the closure calls seccomp(2) only, and reads memory that it owns.
            unsafe {
                command.pre_exec(move || {
                    filters.iter().try_for_each(|filter| crate::seccomp::install(filter)).map_err(Into::into)
                });
            }
            Self(command.spawn().unwrap())
        }

        fn pid(&self) -> i32 {
            self.0.id() as i32
        }

        fn read(&self) -> Result<Vec<Vec<Instruction>>, ReadError> {
            installed(self.pid(), self.pid())
        }

        /// R, S, T, t or Z of its stat.
        fn state(&self) -> char {
            stat(self.pid(), self.pid()).unwrap().0
        }

        fn signal(&self, signal: i32) {
            // SAFETY: kill(2) takes numbers; the pid is our unreaped child's.
            assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn may_read() -> bool {
        rustix::process::geteuid().is_root() && !under_seccomp()
    }

    #[test]
    fn filters_come_back_newest_first_and_the_process_runs_on() {
        if !may_read() {
            eprintln!("skipped: reading filters takes root");
            return;
        }
        let stack = vec![answer(0x7fff_0000), answer(0x7ffc_0000), answer(0x7fff_0001)];
        let mut sleeper = Sleeper::new(stack.clone());
        for _ in 0..20 {
            let read = sleeper.read().unwrap();
            assert_eq!(read, stack.iter().rev().cloned().collect::<Vec<_>>());
        }
        assert!(sleeper.0.try_wait().unwrap().is_none());
        assert_eq!(status(sleeper.pid(), sleeper.pid(), "TracerPid"), Some(0));
    }

    #[test]
    fn a_process_without_a_filter_has_none() {
        if may_read() {
            assert_eq!(Sleeper::new(Vec::new()).read().unwrap(), Vec::<Vec<Instruction>>::new());
        }
    }

    #[test]
    fn a_stopped_process_is_read_and_stays_stopped() {
        if !may_read() {
            return;
        }
        let sleeper = Sleeper::new(vec![answer(0x7fff_0000)]);
        sleeper.signal(libc::SIGSTOP);
        assert_eq!(sleeper.state(), 'T');
        assert_eq!(sleeper.read().unwrap(), [answer(0x7fff_0000)]);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(sleeper.state(), 'T');
        sleeper.signal(libc::SIGCONT);
        assert_eq!(sleeper.state(), 'S');
    }

    #[test]
    fn a_signal_that_comes_meanwhile_is_not_lost() {
        if !may_read() {
            return;
        }
        // Blocked by nobody: SIGTERM must end it, read or not.
        let mut sleeper = Sleeper::new(vec![answer(0x7fff_0000)]);
        let pid = sleeper.pid();
        let reader = std::thread::spawn(move || (0..2000).take_while(|_| installed(pid, pid).is_ok()).count());
        std::thread::sleep(Duration::from_millis(20));
        sleeper.signal(libc::SIGTERM);
        assert!((1..2000).contains(&reader.join().unwrap()), "it was read before the signal, and ended by it");
        use std::os::unix::process::ExitStatusExt as _;
        assert_eq!(sleeper.0.wait().unwrap().signal(), Some(libc::SIGTERM));
    }

    #[test]
    fn who_is_gone_traced_or_the_kernels_is_told_apart() {
        if !may_read() {
            return;
        }
        let mut dead = Sleeper::new(Vec::new());
        dead.0.kill().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(matches!(dead.read(), Err(ReadError::Gone)), "a zombie");
        dead.0.wait().unwrap();
        assert!(matches!(dead.read(), Err(ReadError::Gone)), "a reaped one");

        let one = Sleeper::new(Vec::new());
        let other = Sleeper::new(Vec::new());
        assert!(matches!(installed(one.pid(), other.pid()), Err(ReadError::Gone)), "another process's thread");

        if stat(2, 2).is_ok_and(|(_, flags)| flags & PF_KTHREAD != 0) {
            assert!(matches!(installed(2, 2), Err(ReadError::Kernel)));
        }

        ptrace(libc::PTRACE_SEIZE, one.pid(), 0, 0).unwrap();
        match one.read() {
            Err(ReadError::Traced(by)) => assert!(by > 0),
            other => panic!("{other:?}"),
        }
        assert!(one.read().unwrap_err().to_string().contains("strace"));
    }
}
