//! All names of an object: a bind mount gives a file of /etc a second one that looks harmless.
//!
//! Trust: the kernel's own table of mounts (proc_pid_mountinfo(5)). Called by `guard`.

use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags};

/// Where else in this mount namespace the object at `place` can be seen. An error where that cannot be told: a name that
/// was not looked at may lie in a denied tree.
pub(crate) fn others(fd: BorrowedFd<'_>, place: &Path) -> io::Result<Vec<PathBuf>> {
    let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    let id = mount_id(stat.stx_mask, stat.stx_mnt_id)?;
    let table = std::fs::read("/proc/self/mountinfo")?;
    others_in(&table, id, place)
}

/// The kernel fills in what it knows, and says so in the mask.
fn mount_id(mask: u32, id: u64) -> io::Result<u64> {
    match StatxFlags::from_bits_retain(mask).contains(StatxFlags::MNT_ID) {
        true => Ok(id),
        false => Err(io::Error::other("statx(2) tells no mount of it (Linux 5.8 does)")),
    }
}

struct Mount {
    id: u64,
    /// major:minor
    device: Vec<u8>,
    /// What of the file system is mounted.
    root: PathBuf,
    at: PathBuf,
}

fn others_in(table: &[u8], id: u64, place: &Path) -> io::Result<Vec<PathBuf>> {
    let refused = |why: String| Err(io::Error::other(why));
    let mut mounts = Vec::new();
    for line in table.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        match parse(line) {
            Some(mount) => mounts.push(mount),
            None => {
                return refused(format!(
                    "/proc/self/mountinfo has a line that is none: {:?}",
                    line.escape_ascii().to_string()
                ));
            }
        }
    }
    let Some(here) = mounts.iter().find(|m| m.id == id) else {
        return refused(format!("its mount ({id}) is not in /proc/self/mountinfo: it lies in another mount namespace"));
    };
    let Ok(below) = place.strip_prefix(&here.at) else {
        return refused(format!(
            "the kernel names it {}, which is not below its mount {}",
            place.display(),
            here.at.display()
        ));
    };
    let inside = here.root.join(below);
    let same = mounts.iter().filter(|m| m.device == here.device);
    // what is mounted itself has no rest, and joining an empty one would add a slash
    let joined = |at: &Path, rest: &Path| if rest.as_os_str().is_empty() { at.to_owned() } else { at.join(rest) };
    let names = same.filter_map(|m| Some(joined(&m.at, inside.strip_prefix(&m.root).ok()?)));
    Ok(names.filter(|name| name != place).collect())
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = fields.nth(1)?.to_vec();
    Some(Mount { id, device, root: path(fields.next()?), at: path(fields.next()?) })
}

/// Space, tab, newline and backslash stand as three octal digits.
fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|d| *first == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match code {
            Some(d) => {
                bytes.push(d.iter().fold(0u8, |n, b| n.wrapping_mul(8).wrapping_add(b - b'0')));
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 21 8:1 /etc /srv/harmless rw - ext4 /dev/sda1 rw
31 21 8:1 /etc/passwd /srv/disk.img rw - ext4 /dev/sda1 rw
32 21 8:1 /data /srv/with\\040space rw - ext4 /dev/sda1 rw
40 21 0:33 / /tmp rw - tmpfs tmpfs rw
";

    fn names(id: u64, place: &str) -> Vec<String> {
        let found = others_in(TABLE, id, Path::new(place)).unwrap();
        found.iter().map(|p| p.display().to_string()).collect()
    }

    #[test]
    fn svirt_29_a_bind_mount_does_not_hide_where_a_file_lies() {
        assert!(names(30, "/srv/harmless/shadow").contains(&"/etc/shadow".into()));
        assert!(names(31, "/srv/disk.img").contains(&"/etc/passwd".into()));
        assert!(names(32, "/srv/with space/d.img").contains(&"/data/d.img".into()));
        assert_eq!(names(21, "/var/d.img"), Vec::<String>::new());
        assert_eq!(names(40, "/tmp/etc/x"), Vec::<String>::new(), "another file system");
    }

    #[test]
    fn svirt_29_names_that_cannot_be_told_are_an_error_and_not_none() {
        let why = |table: &[u8], id, place: &str| others_in(table, id, Path::new(place)).unwrap_err().to_string();
        assert!(why(TABLE, 99, "/tmp/x").contains("another mount namespace"));
        assert!(why(TABLE, 30, "/elsewhere/shadow").contains("not below its mount"));
        assert!(why(b"", 21, "/etc/x").contains("not in /proc/self/mountinfo"));
        assert!(mount_id(0, 21).is_err(), "a kernel that tells no mount");
        assert_eq!(mount_id(StatxFlags::MNT_ID.bits(), 21).unwrap(), 21);
        // One torn line may be the very mount that shows /etc under another name.
        let torn = [TABLE, b"33 21 8:1"].concat();
        assert!(why(&torn, 21, "/var/d.img").contains("a line that is none"));
    }

    #[test]
    fn svirt_29_a_torn_or_hostile_table_is_no_panic() {
        for table in [&b"21"[..], b"21 1 8:1", b"x 1 8:1 / /", b"21 1 8:1 /\\04 /\\777", b"\xff \xff \xff \xff \xff"] {
            assert!(others_in(table, 21, Path::new("/etc/x")).is_err());
        }
    }

    #[test]
    fn svirt_29_a_file_of_this_machine_has_names_that_can_be_told() {
        use std::os::fd::AsFd;
        let file = tempfile::NamedTempFile::new().unwrap();
        others(file.as_file().as_fd(), &file.path().canonicalize().unwrap()).unwrap();
        // A memfd lies on a mount of the kernel's own.
        let memfd = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert!(others(memfd.as_fd(), Path::new("/memfd:x")).is_err());
    }
}
