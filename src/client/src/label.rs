//! What a client has to do with its own label, on hosts with SELinux.
//!
//! The level of a socket that connects to a runner:
//! The kernel gives an accepted socket the listener's type and the *connector's* level
//! (security/selinux/hooks.c, selinux_socket_unix_stream_connect). A runner reads only what its pair dominates, so a
//! client whose level holds every category must connect with its low level, else the runner may not read what it accepts.

use std::fs;
use std::io;

const CURRENT: &str = "/proc/thread-self/attr/current";
const EXEC: &str = "/proc/thread-self/attr/exec";
const SOCKCREATE: &str = "/proc/thread-self/attr/sockcreate";

/// Runs `start` so that the program it executes stays in our domain instead of entering its own. Without SELinux it
/// just runs.
pub fn in_own_domain<T>(start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let current = fs::read(CURRENT).unwrap_or_default();
    if !active(&current) {
        return start();
    }
    fs::write(EXEC, &current)?;
    let started = start();
    fs::write(EXEC, "\n")?;
    started
}

/// Does this host label processes?
pub fn is_active() -> bool {
    active(&fs::read(CURRENT).unwrap_or_default())
}

fn active(context: &[u8]) -> bool {
    context.iter().filter(|byte| **byte == b':').count() >= 2
}

/// Runs `make` so that the sockets it creates carry the low level of our own range. Without SELinux it just runs.
pub fn at_low_level<T>(make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let current = fs::read(CURRENT).unwrap_or_default();
    let Some(low) = low_level(&current) else { return make() };
    fs::write(SOCKCREATE, &low)?;
    let made = make();
    // One newline clears the attribute; procfs ignores an empty write.
    fs::write(SOCKCREATE, "\n")?;
    made
}

/// `user:role:type:low` of a context with a range; `None` where there is no range, or no label.
fn low_level(context: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(context).ok()?.trim_end_matches(['\0', '\n']);
    let mut fields = text.splitn(4, ':');
    let (user, role, type_) = (fields.next()?, fields.next()?, fields.next()?);
    let (low, _high) = fields.next()?.split_once('-')?;
    Some(format!("{user}:{role}:{type_}:{low}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_modules_attributes_are_no_context() {
        assert!(active(b"u:r:t:s0"));
        for none in [&b""[..], b"unconfined\n", b"docker-default (enforce)\n"] {
            assert!(!active(none));
        }
    }

    #[test]
    fn only_a_range_has_another_low_level() {
        let low = |text: &str| low_level(text.as_bytes());
        assert_eq!(low("u:r:t:s0-s0:c0.c1023\0").as_deref(), Some("u:r:t:s0"));
        assert_eq!(low("u:r:t:s0:c1,c2-s0:c1,c2,c5\n").as_deref(), Some("u:r:t:s0:c1,c2"));
        for none in ["", "unconfined\n", "u:r:t", "u:r:t:s0", "u:r:t:s0:c1,c2"] {
            assert_eq!(low(none), None, "{none:?}");
        }
    }
}
