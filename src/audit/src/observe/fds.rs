//! Open descriptors: what each is of, how it may be used, and whether it was planned.

use casemate_sys::path::{FileType, Identity};
use casemate_sys::process::errno;
use casemate_sys::procfs::ProcessView;
use casemate_wire::record::Descriptor;

use crate::subject::{Fd, Known};

/// A process may have a million; a report that holds them all helps nobody.
const MOST: usize = 65_536;

/// `planned` is empty for a role without a table.
pub(super) fn of(view: &ProcessView<'_>, planned: &[Descriptor], labels: bool) -> Known<Vec<Fd>> {
    let names = match view.list("fd") {
        Ok(names) => names,
        Err(error) => return Known::Unseen(error.report()),
    };
    if names.len() > MOST {
        return Known::unseen(format!("it has {} open descriptors, more than are looked at ({MOST})", names.len()));
    }
    let mut numbers: Vec<i32> = names.iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    let mut seen = Vec::with_capacity(numbers.len());
    for number in numbers {
        match one(view, number, planned, labels) {
            Ok(fd) => seen.push(fd),
            // Closed since it was listed.
            Err(error) if error.errno() == Some(errno::ENOENT) => {}
            Err(error) => return Known::Unseen(error.report()),
        }
    }
    Known::Seen(seen)
}

fn one(view: &ProcessView<'_>, number: i32, planned: &[Descriptor], labels: bool) -> casemate_sys::Result<Fd> {
    let target = view.read_link(&format!("fd/{number}"))?;
    let (read, write) = access(&view.read(&format!("fdinfo/{number}"))?);
    // What may not be opened even by its link (a file system of another user namespace) keeps its kind to itself.
    let identity = view.fd_identity(number).ok();
    let is = |fd: &&Descriptor| {
        let object = identity.map(|is| (is.dev, is.ino));
        fd.number == number && object == Some((fd.dev, fd.ino)) && !target.starts_with("anon_inode:")
    };
    Ok(Fd {
        number,
        kind: kind(&target, identity.as_ref()).to_owned(),
        read,
        write,
        planned: planned.iter().find(is).map(|fd| fd.name.clone()),
        label: labels.then(|| view.fd_label(number).ok()).flatten(),
        object: identity.map(|is| (is.dev, is.ino)),
        target,
    })
}

/// The access mode in the line `flags:` of fdinfo, octal (proc_pid_fdinfo(5)); O_PATH gives neither.
fn access(fdinfo: &str) -> (bool, bool) {
    const O_PATH: u32 = 0o10_000_000;
    let flags = fdinfo.lines().find_map(|line| line.strip_prefix("flags:"));
    match flags.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()) {
        Some(flags) if flags & O_PATH != 0 => (false, false),
        Some(flags) => (flags & 3 != 1, flags & 3 != 0),
        // Not told: taken for the widest.
        None => (true, true),
    }
}

fn kind(target: &str, identity: Option<&Identity>) -> &'static str {
    if target.starts_with("anon_inode:") {
        return "anon";
    }
    match identity.map(|is| is.kind) {
        Some(FileType::RegularFile) => "file",
        Some(FileType::Directory) => "dir",
        Some(FileType::CharacterDevice) => "chr",
        Some(FileType::BlockDevice) => "blk",
        Some(FileType::Socket) => "socket",
        Some(FileType::Fifo) => "pipe",
        Some(FileType::Symlink) => "link",
        Some(FileType::Unknown) => "anon",
        None => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_access_mode_is_that_of_the_flags() {
        let info = |flags: &str| format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t9\n");
        assert_eq!(access(&info("0100000")), (true, false));
        assert_eq!(access(&info("02")), (true, true));
        assert_eq!(access(&info("02100001")), (false, true));
        assert_eq!(access(&info("012000000")), (false, false), "O_PATH");
        assert_eq!(access(""), (true, true));
    }

    #[test]
    fn our_own_descriptors_are_seen_as_they_are() {
        use casemate_sys::{process, procfs::Proc};
        use std::os::fd::AsFd as _;
        let file = tempfile::tempfile().unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        let is = casemate_sys::path::identity(&file).unwrap();
        let own = process::own_pid();
        let (proc, pidfd) = (Proc::host().unwrap(), process::pidfd_open(own).unwrap());
        let view = ProcessView::new(&proc, own, pidfd.as_fd());
        let plan = |ino| vec![Descriptor { number, name: "disk.a".into(), read: true, write: true, dev: is.dev, ino }];
        let find = |planned: &[Descriptor]| {
            let all = of(&view, planned, false).seen().unwrap().clone();
            all.into_iter().find(|fd| fd.number == number).unwrap()
        };
        let fd = find(&plan(is.ino));
        assert_eq!((fd.kind.as_str(), fd.read, fd.write), ("file", true, true));
        assert_eq!(fd.planned.as_deref(), Some("disk.a"));
        assert_eq!(find(&plan(is.ino + 1)).planned, None, "another file under a planned number is not planned");
    }
}
