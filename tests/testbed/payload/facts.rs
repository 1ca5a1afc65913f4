//! What the kernel does with labels of open files, sockets and memfds: tries it and says what happened. For
//! tests/testbed/matrix.rs; compiled static by `rustc` alone, executed as casemate_runner_exec_t into the twin domain.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::{UnixListener, UnixStream};

unsafe extern "C" {
    fn fgetxattr(fd: i32, name: *const i8, value: *mut u8, size: usize) -> isize;
    fn fsetxattr(fd: i32, name: *const i8, value: *const u8, size: usize, flags: i32) -> i32;
    fn memfd_create(name: *const i8, flags: u32) -> i32;
    fn mmap(at: *mut u8, length: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> *mut u8;
}

fn verdict<T>(result: io::Result<T>) -> String {
    match result {
        Ok(_) => "ok".into(),
        Err(e) => format!("errno {}", e.raw_os_error().unwrap_or(0)),
    }
}

fn label(object: &impl AsRawFd) -> String {
    let mut buffer = [0u8; 512];
    let name = c"security.selinux";
    // SAFETY: the buffer lives and is as long as is said.
    let length = unsafe { fgetxattr(object.as_raw_fd(), name.as_ptr(), buffer.as_mut_ptr(), buffer.len()) };
    let text = buffer.get(..usize::try_from(length).unwrap_or(0)).unwrap_or_default();
    String::from_utf8_lossy(text).trim_end_matches('\0').to_owned()
}

fn say(what: &str, how: &str) {
    println!("{what} {how}");
    let _ = io::stdout().flush();
}

/// A file that stays open, and a mapping of it, through relabels: one line of stdin, one round.
fn held(path: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    // SAFETY: PROT_READ, MAP_SHARED of a file of at least a byte; read below while the file has that length.
    let mapped = unsafe { mmap(std::ptr::null_mut(), 4096, 1, 1, file.as_raw_fd(), 0) };
    for line in io::stdin().lock().lines() {
        let round = line?;
        let mut byte = [0];
        say(&format!("{round} read"), &verdict(file.rewind().and_then(|()| file.read(&mut byte))));
        say(&format!("{round} write"), &verdict(file.rewind().and_then(|()| file.write(b"x"))));
        // SAFETY: the mapping above stands as long as this process.
        let seen = unsafe { mapped.read_volatile() };
        say(&format!("{round} mapped"), if seen == b'x' || seen == b'1' { "ok" } else { "other" });
    }
    Ok(())
}

/// Accepts so many connections and reads from each.
fn listen(path: &str, count: usize) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    say("listener", &label(&listener));
    for _ in 0..count {
        match listener.accept() {
            Ok((mut socket, _)) => {
                let mut byte = [0];
                say(&format!("accepted {}", label(&socket)), &verdict(socket.read(&mut byte)));
            }
            // With the exec bit of nothing: the accept itself may be refused.
            Err(e) => say("accept", &verdict::<()>(Err(e))),
        }
    }
    Ok(())
}

/// Connects with a socket of this label, or with the process's own.
fn connect(path: &str, with: Option<&str>) -> io::Result<()> {
    let attribute = "/proc/thread-self/attr/sockcreate";
    if let Some(with) = with {
        std::fs::write(attribute, with)?;
    }
    let mut socket = UnixStream::connect(path)?;
    say("connected", &label(&socket));
    let _ = socket.write(b"x");
    std::thread::sleep(std::time::Duration::from_millis(200));
    Ok(())
}

/// A memfd that is made with fscreate set, and relabelled.
fn memfd(wanted: &str) -> io::Result<()> {
    std::fs::write("/proc/thread-self/attr/fscreate", wanted)?;
    // SAFETY: the call makes a descriptor that nobody else knows.
    let file = unsafe { File::from_raw_fd(memfd_create(c"fact".as_ptr(), 1)) };
    say("made", &label(&file));
    let value = CString::new(wanted)?;
    let bytes = value.as_bytes();
    // SAFETY: name and value live, the length is the value's.
    let set = unsafe { fsetxattr(file.as_raw_fd(), c"security.selinux".as_ptr(), bytes.as_ptr(), bytes.len(), 0) };
    say("set", &verdict(if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }));
    say("relabelled", &label(&file));
    Ok(())
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["held", path] => held(path),
        ["listen", path, count] => listen(path, count.parse().unwrap_or(1)),
        ["connect", path] => connect(path, None),
        ["connect", path, with] => connect(path, Some(with)),
        ["memfd", wanted] => memfd(wanted),
        ["open", path] => OpenOptions::new().read(true).write(true).open(path).map(drop),
        _ => Err(io::Error::other("no such fact")),
    };
    say("end", &verdict(result));
}
