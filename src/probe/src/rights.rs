//! One attempt for each right that a Landlock ruleset can handle (include/uapi/linux/landlock.h), in a directory that was
//! laid out for it. Where nothing says no, the attempt is undone, so that the next one finds the same.

use crate::attempts::judge;
use casemate_confine::trial::Outcome;
use casemate_sys::process::errno::{ENETUNREACH, ENOENT, EROFS};
use casemate_sys::rustix;
use rustix::fs::{CWD, FileType, Mode};
use std::fs::{self, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

/// A port where nobody listens: refused means that the way there was open.
const NOBODY: ([u8; 4], u16) = ([127, 0, 0, 1], 9);

/// A layer's way to say no may be to leave nothing there: the empty root, the network without interfaces.
const ABSENT: [i32; 3] = [ENOENT, EROFS, ENETUNREACH];

/// Uses the right.
pub fn attempt(right: &str, place: &Path) -> Outcome {
    let at = |name: &str| place.join(name);
    // Device nodes need their numbers: the null device's, and the first of RAM disks.
    let node = |kind: FileType, device: u64| {
        let path = at("made");
        rustix::fs::mknodat(CWD, &path, kind, Mode::from_raw_mode(0o600), device)?;
        fs::remove_file(path)
    };
    let result = match right {
        "fs.write_file" => OpenOptions::new().write(true).open(at("file")).map(drop),
        "fs.read_file" => fs::File::open(at("file")).map(drop),
        "fs.read_dir" => fs::read_dir(at("dir")).map(drop),
        "fs.remove_dir" => fs::remove_dir(at("empty")).and_then(|()| fs::create_dir(at("empty"))),
        "fs.remove_file" => fs::remove_file(at("gone")).and_then(|()| fs::write(at("gone"), b"")),
        "fs.make_char" => node(FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
        "fs.make_block" => node(FileType::BlockDevice, rustix::fs::makedev(1, 0)),
        "fs.make_reg" => node(FileType::RegularFile, 0),
        "fs.make_sock" => node(FileType::Socket, 0),
        "fs.make_fifo" => node(FileType::Fifo, 0),
        "fs.make_dir" => fs::create_dir(at("made")).and_then(|()| fs::remove_dir(at("made"))),
        "fs.make_sym" => std::os::unix::fs::symlink("nowhere", at("made")).and_then(|()| fs::remove_file(at("made"))),
        "fs.refer" => fs::rename(at("gone"), at("dir/gone")).and_then(|()| fs::rename(at("dir/gone"), at("gone"))),
        "fs.truncate" => OpenOptions::new().write(true).truncate(true).open(at("gone")).map(drop),
        // A device that is opened in the domain: one that was inherited is not held back.
        "fs.ioctl_dev" => fs::File::open("/dev/null").and_then(|null| match rustix::io::ioctl_fionread(&null) {
            // The null device knows no such question: it was asked.
            Err(rustix::io::Errno::NOTTY | rustix::io::Errno::INVAL) | Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        }),
        "net.bind_tcp" => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(drop),
        "net.connect_tcp" => TcpStream::connect_timeout(&NOBODY.into(), Duration::from_secs(2)).map(drop),
        "net.bind_udp" => UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map(drop),
        "net.connect_send_udp" => return connect_udp(),
        other => return Outcome::Unclear { why: format!("no attempt is known for {other}") },
    };
    judge(result, &ABSENT)
}

/// Binding is a right of its own, so the socket is not bound first.
fn connect_udp() -> Outcome {
    use rustix::net::{AddressFamily, SocketAddrV4, SocketType, connect, socket};
    let made = socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(io::Error::from);
    let result = made.and_then(|udp| {
        let (ip, port) = NOBODY;
        connect(&udp, &SocketAddrV4::new(ip.into(), port)).map_err(io::Error::from)
    });
    judge(result, &ABSENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a layer each attempt gets through, as root; and leaves the place as it was, so that a second one does too.
    #[test]
    fn each_attempt_gets_through_where_nothing_says_no_and_undoes_itself() {
        let place = std::env::temp_dir().join(format!("casemate-rights-{}", std::process::id()));
        for dir in ["dir", "empty"] {
            fs::create_dir_all(place.join(dir)).unwrap();
        }
        for file in ["file", "gone"] {
            fs::write(place.join(file), b"").unwrap();
        }
        let root = casemate_sys::cred::is_root();
        for right in tried_here() {
            for _ in 0..2 {
                let outcome = attempt(right, &place);
                let device = matches!(right, "fs.make_char" | "fs.make_block");
                assert!(!outcome.is_denied() || (device && !root), "{right}: {outcome}");
                assert!(!matches!(outcome, Outcome::Unclear { .. }), "{right}: {outcome}");
            }
        }
        let mut left: Vec<_> = fs::read_dir(&place).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["dir", "empty", "file", "gone"]);
        fs::remove_dir_all(place).unwrap();
        assert!(matches!(attempt("fs.nothing", Path::new("/")), Outcome::Unclear { .. }));
    }

    /// Those that have an attempt here.
    fn tried_here() -> [&'static str; 19] {
        [
            "fs.write_file",
            "fs.read_file",
            "fs.read_dir",
            "fs.remove_dir",
            "fs.remove_file",
            "fs.make_char",
            "fs.make_block",
            "fs.make_reg",
            "fs.make_sock",
            "fs.make_fifo",
            "fs.make_dir",
            "fs.make_sym",
            "fs.refer",
            "fs.truncate",
            "fs.ioctl_dev",
            "net.bind_tcp",
            "net.connect_tcp",
            "net.bind_udp",
            "net.connect_send_udp",
        ]
    }
}
