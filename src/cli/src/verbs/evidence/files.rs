//! Digests of what a sandbox uses and of the programs that serve it: of the object that is open, not of what bears its name.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use casemate_client::dirs;
use casemate_client::store::{self, Entry};
use casemate_evidence::parts::{self, Planned};
use casemate_evidence::{Digest, Part};
use casemate_plan::{BoundFd, FdAccess, FdKind, FdSource};
use casemate_sys::path::{OFlags, open_no_symlinks};
use casemate_wire::record::ProcessName;

/// Kernel, initramfs and images, by the plan's table.
pub fn objects(planned: &Planned, entry: &Entry, live: bool) -> Vec<parts::File> {
    let runner = entry.record.runner.filter(|_| live);
    let of_path = planned.plan.fds.iter().filter_map(|slot| match &slot.source {
        FdSource::Path(path) if slot.kind != FdKind::CharDevice => Some((slot, path)),
        _ => None,
    });
    let made = of_path.map(|(slot, path)| {
        let bound = planned.role.fds.iter().find(|bound| bound.name == slot.name);
        let read_only = slot.access == FdAccess::ReadOnly;
        let held = Held { bound, runner, boot: &entry.record.boot_id };
        object(&slot.name, path, read_only, &held)
    });
    made.collect()
}

/// What the runner holds, or held.
struct Held<'a> {
    bound: Option<&'a BoundFd>,
    runner: Option<ProcessName>,
    boot: &'a str,
}

fn object(name: &str, path: &str, read_only: bool, held: &Held<'_>) -> parts::File {
    let mut file = parts::File {
        name: name.into(),
        path: path.into(),
        read_only,
        dev: 0,
        ino: 0,
        size: 0,
        replaced: false,
        via: "path".into(),
        digest: Part::Missing("not looked at".into()),
    };
    let Some(bound) = held.bound else {
        file.digest = Part::Missing("the plan's table binds no such descriptor".into());
        return file;
    };
    let named = by_path(path);
    let is_it = |file: &File| file.metadata().is_ok_and(|m| (m.dev(), m.ino()) == (bound.dev, bound.ino));
    file.replaced = !named.as_ref().is_ok_and(is_it);
    let link = format!("fd/{}", bound.number);
    let opened = match held.runner.map(|runner| (runner.pid, by_process(&runner, held.boot, &link))) {
        Some((pid, Ok(opened))) if is_it(&opened) => {
            file.via = format!("/proc/{pid}/{link}");
            Ok(opened)
        }
        // The runner closes kernel and initramfs when they are loaded, and the number may be another's by now.
        _ => named,
    };
    match opened {
        Err(why) => file.digest = Part::Missing(why),
        Ok(opened) if !is_it(&opened) => {
            let other = "the name leads to another object than the one that the sandbox had open";
            file.digest = Part::Missing(other.into());
        }
        Ok(opened) => look(&mut file, opened),
    }
    file
}

fn look(file: &mut parts::File, opened: File) {
    match opened.metadata() {
        Ok(is) => (file.dev, file.ino, file.size) = (is.dev(), is.ino(), is.size()),
        Err(error) => {
            file.digest = Part::Missing(error.to_string());
            return;
        }
    }
    if !file.read_only {
        file.digest = Part::Missing("it is writable: its content is the guest's and changes".into());
        return;
    }
    match Digest::of_reader(opened) {
        Ok((digest, length)) => {
            // A block device has no size of its own.
            if file.size == 0 {
                file.size = length;
            }
            file.digest = match length == file.size {
                true => Part::Taken(digest),
                false => Part::Missing(format!("it changed while it was read: {} bytes, then {length}", file.size)),
            };
        }
        Err(error) => file.digest = Part::Missing(error.to_string()),
    }
}

/// NONBLOCK: what was put there since may be a FIFO.
fn by_path(path: &str) -> Result<File, String> {
    let opened: Result<OwnedFd, _> = open_no_symlinks(Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK);
    opened.map(File::from).map_err(|e| e.report())
}

/// Through a process's own link, if it is the process that it was, before and after.
fn by_process(process: &ProcessName, boot: &str, link: &str) -> Result<File, String> {
    let path = format!("/proc/{}/{link}", process.pid);
    // NONBLOCK: a process may put anything under a number, a FIFO too.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let opened = File::options().read(true).custom_flags(flags).open(&path).map_err(|e| format!("{path}: {e}"));
    match store::is_alive(process, boot) {
        true => opened,
        false => Err(format!("process {} ended meanwhile", process.pid)),
    }
}

/// The programs that serve it, as they run; of an ended one as they lie there now.
pub fn programs(entry: &Entry, live: bool) -> Vec<parts::File> {
    let warden = Some(entry.record.warden).filter(|_| live);
    let runner = entry.record.runner.filter(|_| live);
    let running = |role: &str, name: &str, process: Option<ProcessName>| match process {
        Some(process) => {
            let path = std::fs::read_link(format!("/proc/{}/exe", process.pid)).unwrap_or_default();
            let via = format!("/proc/{}/exe", process.pid);
            program(role, path, via, by_process(&process, &entry.record.boot_id, "exe"))
        }
        None => lying(role, name),
    };
    let own = std::env::current_exe().unwrap_or_default();
    vec![
        running("jailer", "casemate-jailer", warden),
        running("runner", "casemate-runner", runner),
        lying("agent", "casemate-agent"),
        lying("probe", "casemate-probe"),
        program("casemate", own, "/proc/self/exe".into(), File::open("/proc/self/exe").map_err(|e| e.to_string())),
    ]
}

fn lying(role: &str, name: &str) -> parts::File {
    match dirs::program(name) {
        Ok(path) => {
            let opened = by_path(&path.to_string_lossy());
            program(role, path, "path, as it lies there now".into(), opened)
        }
        Err(error) => program(role, PathBuf::new(), "path".into(), Err(error.to_string())),
    }
}

fn program(role: &str, path: PathBuf, via: String, opened: Result<File, String>) -> parts::File {
    let path = path.to_string_lossy().into_owned();
    let mut file = parts::File {
        name: role.into(),
        path,
        read_only: true,
        dev: 0,
        ino: 0,
        size: 0,
        replaced: false,
        via,
        digest: Part::Missing("not looked at".into()),
    };
    match opened {
        Ok(opened) => {
            look(&mut file, opened);
            let there = std::fs::metadata(&file.path).map(|m| (m.dev(), m.ino()));
            file.replaced = !there.is_ok_and(|there| there == (file.dev, file.ino));
        }
        Err(why) => file.digest = Part::Missing(why),
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(path: &Path) -> BoundFd {
        let is = std::fs::metadata(path).unwrap();
        BoundFd {
            number: 3,
            name: "kernel".into(),
            kind: FdKind::RegularFile,
            access: FdAccess::ReadOnly,
            dev: is.dev(),
            ino: is.ino(),
        }
    }

    #[test]
    fn a_fifo_under_the_number_of_an_image_is_not_waited_for() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().canonicalize().unwrap().join("kernel");
        std::fs::write(&path, "one").unwrap();
        let fifo = temp.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let nonblock = OFlags::NONBLOCK.bits().cast_signed();
        let put = File::options().read(true).custom_flags(nonblock).open(&fifo).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&put);
        let bound = BoundFd { number, ..bound(&path) };
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let start_time = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
        let runner = Some(ProcessName { pid: std::process::id(), start_time });
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let held = Held { bound: Some(&bound), runner, boot: &boot };
        let seen = object("kernel", &path.to_string_lossy(), true, &held);
        assert_eq!((seen.via.as_str(), seen.digest), ("path", Part::Taken(Digest::of(b"one"))));
    }

    #[test]
    fn a_file_that_was_replaced_is_noticed() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().canonicalize().unwrap().join("kernel");
        let text = path.to_string_lossy().into_owned();
        std::fs::write(&path, "one").unwrap();
        let bound = bound(&path);
        let held = Held { bound: Some(&bound), runner: None, boot: "" };
        let seen = object("kernel", &text, true, &held);
        assert_eq!((seen.digest, seen.replaced, seen.size), (Part::Taken(Digest::of(b"one")), false, 3));
        let writable = object("disk.data", &text, false, &held);
        assert!(writable.digest.why().unwrap().contains("writable") && writable.ino == bound.ino);
        std::fs::write(temp.path().join("new"), "two").unwrap();
        std::fs::rename(temp.path().join("new"), &path).unwrap();
        let other = object("kernel", &text, true, &held);
        assert!(other.replaced && other.digest.why().unwrap().contains("another object"), "{other:?}");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(object("kernel", &text, true, &held).digest.taken().is_none());
    }
}
