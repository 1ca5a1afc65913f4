//! What the kernel logged of SELinux's decisions about one sandbox: denied, or, where SELinux is permissive, let through.
//!
//! Source: /dev/kmsg, for whoever may read it. It forgets: the ring overwrites, audit limits its rate, a permissive
//! domain is logged once per kind of access, and with an audit daemon the messages go to that instead. So the counts are
//! "at least".

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

use serde::Serialize;

/// More records than any ring holds.
const MAX_RECORDS: usize = 200_000;
/// `USER_HZ`: the unit of a process's start time (proc_pid_stat(5)).
const MICROS_PER_TICK: u64 = 10_000;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Denials {
    pub denied: u32,
    /// Allowed only because SELinux or the domain is permissive.
    pub would_be_denied: u32,
}

/// Counts for a process's label, since the process started (clock ticks since boot). `None`: the log cannot be read.
pub fn count(label: &str, start_ticks: u64) -> Option<Denials> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let mut log = File::options().read(true).custom_flags(nonblocking).open("/dev/kmsg").ok()?;
    let mut found = Denials::default();
    let mut record = [0; 8192];
    for _ in 0..MAX_RECORDS {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(n) => found.take(&String::from_utf8_lossy(&record[..n]), label, start_ticks * MICROS_PER_TICK),
            Err(e) if e.kind() == ErrorKind::BrokenPipe || e.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    Some(found)
}

impl Denials {
    /// One record: `priority,sequence,microseconds,flags;text` (Documentation/ABI/testing/dev-kmsg).
    fn take(&mut self, record: &str, label: &str, since: u64) {
        let Some((head, text)) = record.split_once(';') else { return };
        let at = head.split(',').nth(2).and_then(|t| t.parse::<u64>().ok()).unwrap_or_default();
        let subject = text.split_whitespace().find_map(|word| word.strip_prefix("scontext="));
        if at < since || !text.contains("avc:  denied") || subject != Some(label) {
            return;
        }
        match text.contains("permissive=1") {
            true => self.would_be_denied += 1,
            false => self.denied += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn svirt_52_denials_are_counted_by_label_time_and_mode() {
        let label = "u:r:casemate_runner_t:s0:c1,c2";
        let line = |at: u64, subject: &str, permissive: u8| {
            format!(
                "6,1,{at},-;audit: type=1400 audit(1.2:3): avc:  denied  {{ read }} for  pid=1 scontext={subject} tcontext=x tclass=file permissive={permissive}\n"
            )
        };
        let mut found = Denials::default();
        for (at, subject, permissive) in [
            (50, label, 0),
            (100, label, 0),
            (101, label, 1),
            (102, label, 1),
            (103, "u:r:casemate_runner_t:s0:c1,c23", 1),
        ] {
            found.take(&line(at, subject, permissive), label, 100);
        }
        found.take("6,1,200,-;audit: avc:  granted scontext=u:r:casemate_runner_t:s0:c1,c2\n", label, 100);
        found.take("no record", label, 0);
        assert_eq!(found, Denials { denied: 1, would_be_denied: 2 });
    }
}
