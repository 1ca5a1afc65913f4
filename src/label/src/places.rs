//! All names of an object: a bind mount gives a file of /etc a second one that looks harmless.
//!
//! Trust: the kernel's own table of mounts (proc_pid_mountinfo(5)). Called by `guard`.

use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags};

/// Where else in this mount namespace the object at `place` can be seen. Empty where the kernel does not tell.
pub(crate) fn others(fd: BorrowedFd<'_>, place: &Path) -> Vec<PathBuf> {
    let Ok(stat) = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID) else { return Vec::new() };
    if !StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID) {
        return Vec::new();
    }
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    others_in(&table, stat.stx_mnt_id, place)
}

struct Mount {
    id: u64,
    /// major:minor
    device: Vec<u8>,
    /// What of the file system is mounted.
    root: PathBuf,
    at: PathBuf,
}

fn others_in(table: &[u8], id: u64, place: &Path) -> Vec<PathBuf> {
    let mounts: Vec<Mount> = table.split(|b| *b == b'\n').filter_map(parse).collect();
    let Some(here) = mounts.iter().find(|m| m.id == id) else { return Vec::new() };
    let Ok(below) = place.strip_prefix(&here.at) else { return Vec::new() };
    let inside = here.root.join(below);
    let same = mounts.iter().filter(|m| m.device == here.device);
    // what is mounted itself has no rest, and joining an empty one would add a slash
    let joined = |at: &Path, rest: &Path| if rest.as_os_str().is_empty() { at.to_owned() } else { at.join(rest) };
    same.filter_map(|m| Some(joined(&m.at, inside.strip_prefix(&m.root).ok()?))).filter(|name| name != place).collect()
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
        others_in(TABLE, id, Path::new(place)).iter().map(|p| p.display().to_string()).collect()
    }

    #[test]
    fn svirt_29_a_bind_mount_does_not_hide_where_a_file_lies() {
        assert!(names(30, "/srv/harmless/shadow").contains(&"/etc/shadow".into()));
        assert!(names(31, "/srv/disk.img").contains(&"/etc/passwd".into()));
        assert!(names(32, "/srv/with space/d.img").contains(&"/data/d.img".into()));
        assert_eq!(names(21, "/var/d.img"), Vec::<String>::new());
        assert_eq!(names(40, "/tmp/etc/x"), Vec::<String>::new(), "another file system");
        assert_eq!(names(99, "/tmp/x"), Vec::<String>::new(), "an unknown mount");
    }

    #[test]
    fn svirt_29_a_torn_or_hostile_table_is_no_panic() {
        for table in [
            &b""[..],
            b"\n\n",
            b"21",
            b"21 1 8:1",
            b"x 1 8:1 / /",
            b"21 1 8:1 /\\04 /\\777",
            b"\xff \xff \xff \xff \xff",
        ] {
            others_in(table, 21, Path::new("/etc/x"));
        }
    }
}
