//! Is the kernel auditing, who takes its records, and how many did it lose?
//!
//! AUDIT_GET over netlink (linux/audit.h, `struct audit_status`); needs CAP_AUDIT_CONTROL in the first user and pid
//! namespaces. It changes nothing.

use std::io;
use std::time::Duration;

use casemate_sys::rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};
use serde::Serialize;

const AUDIT_GET: u16 = 1000;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const HEADER: usize = 16;

/// `struct audit_status`, as far as it is of use here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Status {
    /// 0 off, 1 on, 2 on until the next boot.
    pub enabled: u32,
    /// The audit daemon; 0 where there is none, and records go to the kernel's log.
    pub daemon: u32,
    /// Records per second; 0 is no limit.
    pub rate_limit: u32,
    /// Since boot.
    pub lost: u32,
}

/// Asks the kernel. An error where it has no auditing, or this process may not ask.
pub fn status() -> io::Result<Status> {
    let protocol = Some(netlink::AUDIT);
    let socket = net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(2)))?;
    let request = request();
    net::sendto(&socket, &request, SendFlags::empty(), &netlink::SocketAddrNetlink::new(0, 0))?;
    let mut buffer = [0; 8192];
    // An audit daemon's other traffic does not come here; an acknowledgement may come first.
    for _ in 0..8 {
        let (length, _) = net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        if let Some(answer) = answer(&buffer[..length.min(8192)]) {
            return answer;
        }
    }
    Err(io::Error::other("the kernel's audit subsystem gave no answer"))
}

/// `struct nlmsghdr`: length, type, flags, sequence, port.
fn request() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER);
    bytes.extend(u32::to_ne_bytes(HEADER as u32));
    bytes.extend(AUDIT_GET.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend(u32::to_ne_bytes(1));
    bytes.extend(u32::to_ne_bytes(0));
    bytes
}

/// The status in a message, or the error that it is; `None` for another message.
fn answer(message: &[u8]) -> Option<io::Result<Status>> {
    let word = |at: usize| message.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    match kind {
        NLMSG_ERROR => match word(HEADER)?.cast_signed() {
            0 => None,
            errno => Some(Err(io::Error::from_raw_os_error(errno.wrapping_neg()))),
        },
        // mask, enabled, failure, pid, rate_limit, backlog_limit, lost, …
        AUDIT_GET => Some(Ok(Status {
            enabled: word(HEADER + 4)?,
            daemon: word(HEADER + 12)?,
            rate_limit: word(HEADER + 16)?,
            lost: word(HEADER + 24)?,
        })),
        _ => None,
    }
}

/// What is missing for an answer to be whole, and how to switch it on.
pub fn notes(status: &io::Result<Status>, cmdline: &str) -> Vec<String> {
    let mut notes = Vec::new();
    let off = cmdline.split_whitespace().any(|word| matches!(word, "audit=0" | "audit=off"));
    match status {
        Ok(Status { enabled: 0, .. }) if off => notes.push(
            "the kernel was booted with audit=0: no denial of any layer is recorded; boot without it, or with audit=1"
                .into(),
        ),
        Ok(Status { enabled: 0, .. }) => notes.push(
            "auditing is off: seccomp's and SELinux's denials are in the kernel's log, Landlock's and those by file \
             modes are not recorded at all; to switch it on: auditctl -e 1 (or boot with \
             audit=1), before the sandbox is started"
                .into(),
        ),
        Ok(status) => {
            if status.lost > 0 {
                notes.push(format!(
                    "the kernel lost {} audit records since boot; to lose fewer: auditctl -b 8192 (backlog){}",
                    status.lost,
                    if status.rate_limit > 0 { ", -r 0 (no rate limit)" } else { "" }
                ));
            }
            if status.daemon == 0 {
                notes.push(
                    "no audit daemon runs: records go to the kernel's log, which is a ring and takes ten in five seconds \
                     (kernel.printk_ratelimit_burst); start auditd to keep all"
                        .into(),
                );
            }
            notes.push(
                "denials by file modes and capabilities are recorded only where a rule asks for them: auditctl -a \
                 always,exit -F arch=b64 -S all -F exit=-EACCES -F uid=UID (and -EPERM)"
                    .into(),
            );
        }
        Err(error) => notes.push(format!(
            "whether the kernel is auditing is not known ({error}): ask as root, in the first namespaces"
        )),
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, words: &[u32]) -> Vec<u8> {
        let mut bytes = request();
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes.extend(words.iter().flat_map(|w| w.to_ne_bytes()));
        bytes
    }

    #[test]
    fn an_answer_is_read_whatever_its_length() {
        let whole = message(AUDIT_GET, &[0, 1, 1, 77, 5, 64, 3, 0]);
        let status = answer(&whole).unwrap().unwrap();
        assert_eq!(status, Status { enabled: 1, daemon: 77, rate_limit: 5, lost: 3 });
        for length in 0..whole.len() {
            let _ = answer(&whole[..length]);
        }
        let refused = answer(&message(NLMSG_ERROR, &[(-1i32).cast_unsigned()])).unwrap().unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(1));
        assert!(answer(&message(NLMSG_ERROR, &[0])).is_none(), "an acknowledgement");
        assert!(answer(&message(NLMSG_ERROR, &[i32::MIN.cast_unsigned()])).is_some());
    }

    #[test]
    fn what_is_missing_is_said_with_the_remedy() {
        let with = |enabled, daemon, lost| Ok(Status { enabled, daemon, rate_limit: 0, lost });
        let all = |status, cmdline| notes(&status, cmdline).join("\n");
        assert!(all(with(0, 0, 0), "quiet audit=0 x").contains("booted with audit=0"));
        assert!(all(with(0, 0, 0), "quiet").contains("auditctl -e 1"));
        assert!(all(with(1, 0, 0), "").contains("no audit daemon runs"));
        let daemon = all(with(1, 9, 4), "");
        assert!(daemon.contains("lost 4") && !daemon.contains("no audit daemon"));
        assert!(all(Err(io::Error::from_raw_os_error(1)), "").contains("not known"));
    }
}
