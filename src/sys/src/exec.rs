//! The last step of the jailer's child: descriptors at exact numbers, nothing else open, execveat.
//! Called by the jailer; the runner's side is [`inherit`].

use crate::error::check;
use crate::{Attempt, Error, Result, fds};
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The first number of the runner's descriptor table; 0, 1 and 2 are stdio.
pub const FIRST_FD: RawFd = 3;

/// What becomes of this process.
#[derive(Debug)]
pub struct Image {
    /// The program, opened by the jailer. No path is resolved at exec.
    pub program: OwnedFd,
    pub argv: Vec<CString>,
    pub env: Vec<CString>,
    /// The table: entry i becomes descriptor [`FIRST_FD`] + i.
    pub fds: Vec<OwnedFd>,
}

/// An exec that failed. The table is back in our hands, at its new numbers, so that the failure can
/// be reported through one of its sockets; everything else is closed. Only a report and
/// [`crate::process::exit_now`] may follow.
#[derive(Debug)]
pub struct Failed {
    pub error: Error,
    pub fds: Vec<OwnedFd>,
}

/// Places the table, closes every other descriptor above stdio, and executes the program.
/// Returns only on failure.
pub fn replace_process(image: Image) -> Failed {
    let Image { program, argv, env, fds: table } = image;
    let count = table.len() as RawFd;
    let mut all = table;
    all.push(program);
    let mut placed = match fds::place(all, FIRST_FD) {
        Ok(placed) => placed,
        Err(error) => return Failed { error, fds: Vec::new() },
    };
    let Some(program) = placed.pop() else {
        return Failed { error: Error::because("place descriptors", "none given"), fds: placed };
    };
    // The program's own descriptor sits right above the table and goes at exec.
    let error = fds::set_cloexec(&program, true)
        .and_then(|()| fds::close_from(FIRST_FD + count + 1))
        .and_then(|()| execveat(&program, &argv, &env));
    let error = match error {
        Err(error) => error,
        Ok(never) => match never {},
    };
    Failed { error, fds: placed }
}

enum Never {}

fn execveat(program: &OwnedFd, argv: &[CString], env: &[CString]) -> Result<Never> {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        let all = strings.iter().map(|string| string.as_ptr());
        all.chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    let empty: &CStr = c"";
    // SAFETY: both arrays are null-terminated lists of C strings that outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            empty.as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    match check(result).attempt("execute the program by its descriptor") {
        Err(error) => Err(error),
        Ok(_) => Err(Error::because("execute the program", "execveat returned")),
    }
}

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes ownership of the inherited table: `count` descriptors from [`FIRST_FD`] on. Must be the
/// first thing that a program does with descriptors; works once per process. Each gets close-on-exec.
///
/// # Errors
/// EBADF names the first number that is not open; a second call is refused.
pub fn inherit(count: usize) -> Result<Vec<OwnedFd>> {
    take((FIRST_FD..).take(count))
}

/// Takes whatever is open from [`FIRST_FD`] on, gaps left out: for a program that learns its table from the first
/// descriptor, and from which the exec may have taken some. Counts as the one call of [`inherit`].
pub fn inherit_open() -> Result<Vec<OwnedFd>> {
    /// More than any table has.
    const END: RawFd = 256;
    take((FIRST_FD..END).filter(|number| fds::is_open(*number)))
}

fn take(numbers: impl Iterator<Item = RawFd>) -> Result<Vec<OwnedFd>> {
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(Error::because("take the inherited descriptors", "they were taken before"));
    }
    numbers
        .map(|number| {
            if !fds::is_open(number) {
                return Err(Error::new(
                    format!("take inherited descriptor {number}"),
                    std::io::Error::from_raw_os_error(libc::EBADF),
                ));
            }
            // SAFETY: it is open, was open before we ran, and the once-flag above keeps a second
            // owner from being made here.
            let fd = unsafe { OwnedFd::from_raw_fd(number) };
            fds::set_cloexec(&fd, true)?;
            Ok(fd)
        })
        .collect()
}
