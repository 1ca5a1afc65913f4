//! System calls that a confined process must not get through, each with arguments that change nothing
//! where it does. For `casemate-probe` and the tests; no other caller.
//!
//! An error past the permission checks (EINVAL, EBADF, …) shows that no layer said no: the caller
//! judges the errno.

use crate::error::check;
use std::io;

/// Calls by name; their arguments are chosen so that the permission check is what answers.
pub const CALLS: [&str; 24] = [
    "mount",
    "fsopen",
    "pivot_root",
    "chroot",
    "unshare-user",
    "unshare-net",
    "setns",
    "bpf",
    "io_uring_setup",
    "userfaultfd",
    "perf_event_open",
    "keyctl",
    "init_module",
    "kexec_load",
    "open_by_handle_at",
    "memfd_create",
    "fanotify_init",
    "syslog",
    "setresuid-root",
    "setresgid-root",
    "mmap-executable",
    "ioctl-tiocsti",
    "fork",
    "x32-getpid",
];

fn raw(number: libc::c_long, args: [usize; 5]) -> io::Result<i64> {
    let [a, b, c, d, e] = args;
    // SAFETY: callers in this module pass numbers, or addresses of live buffers of the size that the
    // call reads.
    check(unsafe { libc::syscall(number, a, b, c, d, e) })
}

/// Makes the call; None for a name that is not in [`CALLS`].
pub fn call(name: &str) -> Option<io::Result<i64>> {
    let text = |text: &std::ffi::CStr| text.as_ptr() as usize;
    let zeroes = [0u8; 256];
    let buffer = zeroes.as_ptr() as usize;
    Some(match name {
        // A file system type that does not exist: ENODEV once the right to mount was granted.
        "mount" => raw(libc::SYS_mount, [text(c"none"), text(c"/"), text(c"casemate-none"), 0, 0]),
        "fsopen" => raw(libc::SYS_fsopen, [text(c"tmpfs"), 1, 0, 0, 0]),
        // The root onto itself: EBUSY once the right was granted. Never ".": where the working directory is a mount point,
        // a control without any layer would give the host another root.
        "pivot_root" => raw(libc::SYS_pivot_root, [text(c"/"), text(c"/"), 0, 0, 0]),
        "chroot" => raw(libc::SYS_chroot, [text(c"/"), 0, 0, 0, 0]),
        "unshare-user" => raw(libc::SYS_unshare, [libc::CLONE_NEWUSER as usize, 0, 0, 0, 0]),
        "unshare-net" => raw(libc::SYS_unshare, [libc::CLONE_NEWNET as usize, 0, 0, 0, 0]),
        "setns" => raw(libc::SYS_setns, [usize::MAX, 0, 0, 0, 0]),
        // BPF_PROG_GET_NEXT_ID: reads a number, needs CAP_SYS_ADMIN.
        "bpf" => raw(libc::SYS_bpf, [11, buffer, 12, 0, 0]),
        "io_uring_setup" => io_uring(),
        // UFFD_USER_MODE_ONLY
        "userfaultfd" => raw(libc::SYS_userfaultfd, [1, 0, 0, 0, 0]),
        "perf_event_open" => perf(),
        // KEYCTL_GET_KEYRING_ID of the session keyring, without creating it.
        "keyctl" => raw(libc::SYS_keyctl, [0, -3isize as usize, 0, 0, 0]),
        "init_module" => raw(libc::SYS_init_module, [0, 0, text(c""), 0, 0]),
        // Flags that do not exist: EINVAL once the right was granted.
        "kexec_load" => raw(libc::SYS_kexec_load, [0, 0, 0, u32::MAX as usize, 0]),
        "open_by_handle_at" => by_handle(),
        "memfd_create" => raw(libc::SYS_memfd_create, [text(c"probe"), 1, 0, 0, 0]),
        "fanotify_init" => raw(libc::SYS_fanotify_init, [0, 0, 0, 0, 0]),
        // SYSLOG_ACTION_SIZE_UNREAD
        "syslog" => raw(libc::SYS_syslog, [9, 0, 0, 0, 0]),
        "setresuid-root" => raw(libc::SYS_setresuid, [0, 0, 0, 0, 0]),
        "setresgid-root" => raw(libc::SYS_setresgid, [0, 0, 0, 0, 0]),
        "mmap-executable" => map_executable(),
        "ioctl-tiocsti" => raw(libc::SYS_ioctl, [0, libc::TIOCSTI as usize, buffer, 0, 0]),
        "fork" => fork(),
        // The x32 number of getpid: another ABI behind the same architecture.
        "x32-getpid" => raw(0x4000_0000 | libc::SYS_getpid, [0; 5]),
        _ => return None,
    })
}

fn io_uring() -> io::Result<i64> {
    let mut params = [0u8; 120];
    raw(libc::SYS_io_uring_setup, [1, params.as_mut_ptr() as usize, 0, 0, 0])
}

fn perf() -> io::Result<i64> {
    // struct perf_event_attr, version 0: software cpu-clock of ourselves, user space only.
    let mut attr = [0u64; 8];
    attr[0] = 1 | 64 << 32;
    attr[5] = 1 << 5 | 1 << 6;
    raw(libc::SYS_perf_event_open, [attr.as_ptr() as usize, 0, usize::MAX, usize::MAX, 0])
}

fn by_handle() -> io::Result<i64> {
    // struct file_handle: 8 bytes of type 1, then zeroes.
    let handle: [u32; 4] = [8, 1, 0, 0];
    raw(libc::SYS_open_by_handle_at, [libc::AT_FDCWD as usize, handle.as_ptr() as usize, 0, 0, 0])
}

fn map_executable() -> io::Result<i64> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches no memory of
    // ours; it is never executed or unmapped.
    let page = unsafe {
        libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC, flags, -1, 0)
    };
    if page == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(0) }
}

fn fork() -> io::Result<i64> {
    // clone with SIGCHLD alone is fork, and unlike clone3 a filter can see it.
    match raw(libc::SYS_clone, [libc::SIGCHLD as usize, 0, 0, 0, 0])? {
        0 => crate::process::exit_now(0),
        pid => Ok(pid),
    }
}

/// Signal 0: may we signal this process?
pub fn kill(pid: i32) -> io::Result<()> {
    // SAFETY: signal 0 is a permission check only.
    check(unsafe { libc::kill(pid, 0) }.into()).map(drop)
}

/// May we trace it? (SEIZE does not stop it; our exit releases it.)
pub fn trace(pid: i32) -> io::Result<()> {
    const PTRACE_SEIZE: usize = 0x4206;
    raw(libc::SYS_ptrace, [PTRACE_SEIZE, pid as usize, 0, 0, 0]).map(drop)
}

/// May we read its memory? One byte at an address that is never mapped: EFAULT means yes.
pub fn read_memory(pid: i32) -> io::Result<()> {
    let mut byte = 0u8;
    let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(1), iov_len: 1 };
    // SAFETY: the kernel writes at most one byte through `local`, which lives.
    let result = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    match check(result as libc::c_long) {
        Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Ok(()),
        other => other.map(drop),
    }
}

/// May we have one of its descriptors? (pidfd_getfd of its standard input.)
pub fn steal_descriptor(pid: i32) -> io::Result<()> {
    let pidfd = raw(libc::SYS_pidfd_open, [pid as usize, 0, 0, 0, 0])?;
    raw(libc::SYS_pidfd_getfd, [pidfd as usize, 0, 0, 0, 0]).map(drop)
}

/// Opens a socket of any family and type.
pub fn socket(family: i32, kind: i32) -> io::Result<()> {
    raw(libc::SYS_socket, [family as usize, kind as usize, 0, 0, 0]).map(drop)
}

/// Makes a device node (the null device's numbers) and removes it again.
pub fn make_node(path: &std::ffi::CStr) -> io::Result<()> {
    let device = libc::makedev(1, 3);
    // SAFETY: `path` is a live C string.
    check(unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o600, device) }.into())?;
    // SAFETY: as above; we just made this node.
    check(unsafe { libc::unlink(path.as_ptr()) }.into()).map(drop)
}

/// Executes a program with nothing but its name; returns only the reason why not.
pub fn execute(path: &std::ffi::CStr) -> io::Error {
    let argv = [path.as_ptr(), std::ptr::null()];
    let env = [std::ptr::null()];
    // SAFETY: both lists end with a null pointer, and they and `path` outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// An ioctl without an argument on an inherited descriptor (KVM_GET_API_VERSION is 0xae00).
pub fn ioctl(fd: std::os::fd::BorrowedFd<'_>, request: u32) -> io::Result<i64> {
    use std::os::fd::AsRawFd as _;
    raw(libc::SYS_ioctl, [fd.as_raw_fd() as usize, request as usize, 0, 0, 0])
}

/// A system call through the 32-bit gate (getpid, i386 number 20): another architecture to a filter.
#[cfg(target_arch = "x86_64")]
pub fn i386_getpid() -> i32 {
    let result: i32;
    // SAFETY: i386 getpid takes no argument and writes only eax; int 0x80 may clobber r8 to r11.
    unsafe {
        std::arch::asm!("int 0x80", inout("eax") 20 => result, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_known() {
        for name in ["mount", "keyctl", "setns"] {
            assert!(CALLS.contains(&name));
        }
        assert!(call("no-such-call").is_none());
        // setns on no descriptor fails wherever it gets to.
        assert!(call("setns").unwrap().is_err());
    }
}
