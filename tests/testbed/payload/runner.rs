//! What stands in for the runner in the label tests: tries things and says what happened.
//!
//! Plain std, compiled static by `rustc` alone, because in casemate_runner_t not even the C
//! library can be opened. stdin is the object to read, stdout the object to write, stderr the
//! socket for the answers. Arguments name more attempts.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;

fn verdict<T>(result: io::Result<T>) -> String {
    match result {
        Ok(_) => "ok".into(),
        Err(e) => format!("errno {}", e.raw_os_error().unwrap_or(0)),
    }
}

/// The kernel puts the null device where the new domain may not have an fd.
fn kind(file: &File) -> String {
    match file.metadata() {
        Ok(m) if m.file_type().is_char_device() && m.rdev() == 0x103 => "null".into(),
        Ok(m) if m.file_type().is_file() => "file".into(),
        Ok(m) => format!("mode {:o}", m.mode()),
        Err(e) => format!("errno {}", e.raw_os_error().unwrap_or(0)),
    }
}

fn main() {
    let say = |name: &str, what: String| {
        let _ = writeln!(io::stderr(), "{name} {what}");
    };
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned().expect("stdin"));
    let mut output = File::from(io::stdout().as_fd().try_clone_to_owned().expect("stdout"));
    say("stdin", kind(&input));
    say("stdout", kind(&output));
    let mut byte = [0; 1];
    say("read", match input.read(&mut byte) {
        Ok(n) => format!("ok {n}"),
        Err(e) => format!("errno {}", e.raw_os_error().unwrap_or(0)),
    });
    say("write", verdict(output.rewind().and_then(|()| output.write_all(b"W"))));
    for attempt in std::env::args().skip(1) {
        let (verb, object) = attempt.split_once('=').unwrap_or((&attempt, ""));
        let what = match verb {
            "open" => verdict(File::open(object)),
            "create" => verdict(File::create(object)),
            "list" => verdict(std::fs::read_dir(object)),
            "connect" => verdict(UnixStream::connect(object)),
            "tcp" => verdict(std::net::TcpStream::connect(object)),
            "udp" => verdict(std::net::UdpSocket::bind("127.0.0.1:0")),
            "exec" => verdict(std::process::Command::new(object).spawn()),
            "thread" => verdict(std::thread::Builder::new().spawn(|| ()).map(|t| t.join().is_ok())),
            "wait" => {
                // stays until the socket ends, so that others can look at this process
                let mut rest = Vec::new();
                let mut socket = UnixStream::from(io::stderr().as_fd().try_clone_to_owned().expect("stderr"));
                say("waiting", "ok".into());
                verdict(socket.read_to_end(&mut rest))
            }
            _ => "unknown attempt".into(),
        };
        say(&attempt, what);
    }
}
