//! The descriptor table: what is open is exactly what the plan names, and each is what it should be.
//! (Placing and closing is [`casemate_sys::exec`]; this file compares.)

use crate::confined::{Finding, held};
use crate::{Confined, Result};
use casemate_plan::{BoundFd, FdKind, Layer};
use casemate_sys::path::{FileType, Identity, identity};
use casemate_sys::{fds, memfd, rustix};
use std::os::fd::{AsRawFd as _, OwnedFd};

const LAYER: Layer = Layer::Fds;

/// Above this number nobody looks from inside; the warden does, through /proc.
const LOOK_UP_TO: i32 = 512;

/// In the runner: `inherited` (from [`casemate_sys::exec::inherit`]) against the plan, and nothing
/// else open besides stdio.
pub fn apply(planned: &[BoundFd], inherited: &[OwnedFd]) -> Result<Confined> {
    held(LAYER, attest(planned, inherited))
}

/// The findings of [`apply`].
pub fn attest(planned: &[BoundFd], inherited: &[OwnedFd]) -> Vec<Finding> {
    let mut findings = vec![Finding::equal(
        LAYER,
        "open descriptors",
        numbers(planned.iter().map(|fd| fd.number)),
        numbers(fds::list_open(LOOK_UP_TO).into_iter().filter(|number| *number > 2)),
    )];
    for want in planned {
        let what = format!("descriptor {} ({})", want.number, want.name);
        let Some(fd) = inherited.iter().find(|fd| fd.as_raw_fd() == want.number) else {
            findings.push(Finding::judged(LAYER, what, "inherited", "missing", false));
            continue;
        };
        match identity(fd) {
            Ok(seen) => {
                let mut finding = compare(what, want, &seen);
                if finding.ok
                    && let Some(problem) = deeper(want.kind, fd)
                {
                    finding.ok = false;
                    finding.seen = problem;
                }
                findings.push(finding);
            }
            Err(error) => findings.push(Finding::unreadable(LAYER, what, &error)),
        }
    }
    findings
}

/// Kind and identity by stat: the part that inside and outside share.
pub(crate) fn compare(what: String, want: &BoundFd, seen: &Identity) -> Finding {
    let expected = format!("{:?} {}:{}", want.kind, want.dev, want.ino);
    let kind = if kind_fits(want.kind, seen.kind) { format!("{:?}", want.kind) } else { format!("{:?}", seen.kind) };
    Finding::equal(LAYER, what, expected, format!("{kind} {}:{}", seen.dev, seen.ino))
}

fn kind_fits(want: FdKind, seen: FileType) -> bool {
    match want {
        FdKind::RegularFile | FdKind::SealedMemfd | FdKind::SizedMemfd => seen == FileType::RegularFile,
        FdKind::BlockDevice => seen == FileType::BlockDevice,
        FdKind::Image => matches!(seen, FileType::RegularFile | FileType::BlockDevice),
        FdKind::CharDevice => seen == FileType::CharacterDevice,
        FdKind::SeqpacketSocket | FdKind::StreamListener => seen == FileType::Socket,
    }
}

/// What stat cannot tell; None when all is well.
fn deeper(kind: FdKind, fd: &OwnedFd) -> Option<String> {
    use rustix::net::{SocketType, sockopt};
    let socket = |want: SocketType, listening: bool| {
        let kind = sockopt::socket_type(fd);
        let accepting = sockopt::socket_acceptconn(fd);
        (kind != Ok(want) || accepting != Ok(listening)).then(|| format!("{kind:?}, listening {accepting:?}"))
    };
    match kind {
        FdKind::SealedMemfd if !memfd::is_sealed(fd) => Some("not sealed".into()),
        FdKind::SizedMemfd if !memfd::is_sized(fd) => Some("its size is not sealed".into()),
        FdKind::SeqpacketSocket => socket(SocketType::SEQPACKET, false),
        FdKind::StreamListener => socket(SocketType::STREAM, true),
        _ => None,
    }
}

pub(crate) fn numbers(numbers: impl IntoIterator<Item = i32>) -> String {
    let mut numbers: Vec<i32> = numbers.into_iter().collect();
    numbers.sort_unstable();
    numbers.iter().map(i32::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use casemate_plan::FdAccess;

    fn bound(fd: &OwnedFd, kind: FdKind) -> BoundFd {
        let id = identity(fd).unwrap();
        BoundFd {
            number: fd.as_raw_fd(),
            name: "x".into(),
            kind,
            access: FdAccess::ReadWrite,
            dev: id.dev,
            ino: id.ino,
        }
    }

    #[test]
    fn another_file_than_planned_is_found() {
        let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let zero: OwnedFd = std::fs::File::open("/dev/zero").unwrap().into();
        let mut want = bound(&zero, FdKind::CharDevice);
        want.number = null.as_raw_fd();
        let findings = attest(&[want], std::slice::from_ref(&null));
        assert!(findings.iter().any(|f| !f.ok && f.what.contains("(x)")), "{findings:?}");
    }

    #[test]
    fn an_unsealed_memfd_and_a_wrong_socket_are_found() {
        let memfd = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        assert_eq!(deeper(FdKind::SealedMemfd, &memfd).as_deref(), Some("not sealed"));
        let sealed = memfd::sealed("x", b"x").unwrap();
        assert_eq!(deeper(FdKind::SealedMemfd, &sealed), None);
        let (one, _other) = casemate_sys::seqpacket::pair().unwrap();
        assert_eq!(deeper(FdKind::SeqpacketSocket, &one), None);
        assert!(deeper(FdKind::StreamListener, &one).is_some());
    }
}
