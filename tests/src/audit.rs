//! The kernel's auditing, switched on for a test and back again: netlink as auditctl(8) speaks it.

use std::io;

use casemate_sys::rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, sendto, socket_with,
};

const AUDIT_SET: u16 = 1001;
const AUDIT_ADD_RULE: u16 = 1011;
const AUDIT_DEL_RULE: u16 = 1012;
const NLMSG_ERROR: u16 = 2;
const REQUEST_ACK: u16 = 5;
/// `struct audit_rule_data`: AUDIT_FILTER_EXIT, AUDIT_ALWAYS, and fields.
const EXIT_ALWAYS: [u32; 2] = [4, 2];
const UID: u32 = 1;
const EXIT: u32 = 103;
const EQUAL: u32 = 0x4000_0000;
/// Seconds; 0 is no limit.
const INTERVAL: &str = "/proc/sys/kernel/printk_ratelimit";

/// On while it lives.
pub struct Auditing {
    was: u32,
    interval: String,
    rules: Vec<Vec<u8>>,
}

impl Auditing {
    pub fn on() -> io::Result<Self> {
        let was = casemate_audit::why::status::status()?.enabled;
        if was == 0 {
            set(ENABLED, 1)?;
        }
        // 64 unless somebody set it: a burst of records is lost before it is written anywhere.
        set(BACKLOG, 8192)?;
        // Without an audit daemon the kernel writes ten lines in five seconds to its log and drops the rest.
        let interval = std::fs::read_to_string(INTERVAL)?;
        std::fs::write(INTERVAL, "0")?;
        Ok(Auditing { was, interval, rules: Vec::new() })
    }

    /// `-a always,exit -S all -F uid=UID -F exit=-EACCES`
    pub fn watch_denials_of(&mut self, uid: u32) -> io::Result<()> {
        let mut rule = Vec::new();
        let mut words = |words: &[u32]| rule.extend(words.iter().flat_map(|w| w.to_ne_bytes()));
        let padded = |first: [u32; 2]| -> Vec<u32> { first.into_iter().chain(std::iter::repeat_n(0, 62)).collect() };
        words(&EXIT_ALWAYS);
        words(&[2]);
        words(&[u32::MAX; 64]);
        words(&padded([UID, EXIT]));
        words(&padded([uid, (-13i32).cast_unsigned()]));
        words(&padded([EQUAL, EQUAL]));
        words(&[0]);
        ask(AUDIT_ADD_RULE, &rule)?;
        self.rules.push(rule);
        Ok(())
    }
}

impl Drop for Auditing {
    fn drop(&mut self) {
        for rule in &self.rules {
            let _ = ask(AUDIT_DEL_RULE, rule);
        }
        if self.was == 0 {
            let _ = set(ENABLED, 0);
        }
        let _ = set(BACKLOG, 64);
        let _ = std::fs::write(INTERVAL, &self.interval);
    }
}

/// A field of `struct audit_status`: its bit in the mask, and its place.
const ENABLED: (u32, usize) = (1, 1);
const BACKLOG: (u32, usize) = (0x10, 5);

fn set((mask, at): (u32, usize), value: u32) -> io::Result<()> {
    let mut status = [0u32; 11];
    (status[0], status[at]) = (mask, value);
    ask(AUDIT_SET, &status.map(u32::to_ne_bytes).concat())
}

fn ask(kind: u16, payload: &[u8]) -> io::Result<()> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::AUDIT))?;
    let length = u32::try_from(16 + payload.len()).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(REQUEST_ACK.to_ne_bytes());
    message.extend([1u32, 0].map(u32::to_ne_bytes).concat());
    message.extend(payload);
    sendto(&socket, &message, SendFlags::empty(), &netlink::SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0; 4096];
    let (length, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    let word = |at: usize| answer.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    match (u16::from_ne_bytes([answer[4], answer[5]]), word(16)) {
        (NLMSG_ERROR, 0) => Ok(()),
        (NLMSG_ERROR, errno) => Err(io::Error::from_raw_os_error(-errno)),
        (other, _) => Err(io::Error::other(format!("an answer of type {other} and {length} bytes"))),
    }
}
