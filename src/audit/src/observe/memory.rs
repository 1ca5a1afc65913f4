//! Mappings and memory flags: /proc/PID/maps (proc_pid_maps(5)), core(5).

use casemate_sys::procfs::ProcessView;

use super::status::Status;
use crate::subject::{Known, Memory};

/// A process has 65,530 mappings at most by default, each a line of some 100 bytes.
const MOST: usize = 32 << 20;
/// More lines than this say nothing new.
const SHOWN: usize = 64;

pub(super) fn of(view: &ProcessView<'_>, status: &Status<'_>, uid: u32) -> Known<Memory> {
    let maps = match view.read_at_most("maps", MOST) {
        Ok(maps) => maps,
        Err(error) => return Known::Unseen(error.report()),
    };
    // Empty for a kernel thread, which cannot dump either.
    let filter = view.read("coredump_filter").ok().and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    Known::Seen(Memory {
        writable_executable: writable_executable(&maps),
        coredump_filter: filter,
        dumpable: dumpable(view, uid),
        locked: status.locked(),
        executable_stack: maps.lines().any(executable_stack),
    })
}

fn permissions(line: &str) -> &str {
    line.split(' ').nth(1).unwrap_or_default()
}

/// The main thread's stack bears this name alone; that of a file begins with a slash.
fn executable_stack(line: &str) -> bool {
    line.split_ascii_whitespace().nth(5) == Some("[stack]") && permissions(line).contains('x')
}

fn writable_executable(maps: &str) -> Vec<String> {
    let both = |line: &&str| permissions(line).contains('w') && permissions(line).contains('x');
    maps.lines().filter(both).take(SHOWN).map(str::to_owned).collect()
}

/// `uid` is the effective one: that is whose the entries of a dumpable process are.
fn dumpable(view: &ProcessView<'_>, uid: u32) -> Known<bool> {
    if uid == 0 {
        return Known::unseen("the entries of a process of root's are root's either way");
    }
    super::known(view.identity("status").map(|is| is.uid == uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_both_is_shown() {
        let maps = "00400000-00452000 r-xp 00000000 08:02 1 /bin/x\n7f00-7f01 rwxp 00000000 00:00 0 \n\
                    7f02-7f03 rw-p 00000000 00:00 0 /tmp/rwxp file\n7f04-7f05 -wxs 0 00:00 0\n";
        let found = writable_executable(maps);
        assert_eq!(found.len(), 2);
        assert!(found[0].starts_with("7f00-") && found[1].starts_with("7f04-"));
    }

    #[test]
    fn a_file_that_is_called_a_stack_is_none() {
        let stack = |permissions: &str, name: &str| {
            executable_stack(&format!("7ffc00000000-7ffc00021000 {permissions} 00000000 00:00 0          {name}"))
        };
        assert!(stack("rwxp", "[stack]") && !stack("rw-p", "[stack]"));
        assert!(!stack("r-xp", "/tmp/[stack]") && !stack("r-xp", "/tmp/a [stack]") && !stack("r-xp", ""));
    }
}
