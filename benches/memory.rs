//! Memory of an idle VM's two processes, guest RAM left out.

use std::path::Path;

use crate::jail::AnyError;

/// KiB of one process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    pub rss: u64,
    pub pss: u64,
    /// Private_Dirty: what one more VM takes of the host, program pages being shared.
    pub private: u64,
    /// VmHWM: the most it ever had, guest RAM included.
    pub peak: u64,
    /// Rss of the mappings left out.
    pub guest: u64,
}

/// Sums smaps but for anonymous mappings of `guest_kib` each (the guest's RAM).
pub fn of(pid: u32, guest_kib: u64) -> Result<Memory, AnyError> {
    let proc = Path::new("/proc").join(pid.to_string());
    let mut memory =
        Memory { peak: field(&std::fs::read_to_string(proc.join("status"))?, "VmHWM:"), ..Memory::default() };
    for mapping in mappings(&std::fs::read_to_string(proc.join("smaps"))?) {
        if field(mapping, "Size:") == guest_kib {
            memory.guest += field(mapping, "Rss:");
        } else {
            memory.rss += field(mapping, "Rss:");
            memory.pss += field(mapping, "Pss:");
            memory.private += field(mapping, "Private_Dirty:");
        }
    }
    Ok(memory)
}

/// One text per mapping: each ends with its VmFlags.
fn mappings(smaps: &str) -> impl Iterator<Item = &str> {
    smaps.split_inclusive("VmFlags:").filter(|text| text.contains("Rss:"))
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0)
}
