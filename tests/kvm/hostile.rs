//! What the hostile guests share: a machine with every device, watched for growth.

use std::fs::File;
use std::time::Duration;

use casemate_tests::guest::{self, Asm};
use casemate_tests::rig::{Rig, Running};
use casemate_wire::record::{ExitCause, ExitReport};
use iced_x86::code_asm::CodeAssembler;
use libtest_mimic::Failed;

/// Devices in the order of the runner.
pub const DISK: u32 = 0;
pub const VSOCK: u32 = 1;
pub const CONSOLE: u32 = 2;
pub const RNG: u32 = 3;
/// Each device, and how many queues it has.
pub const DEVICES: [(u32, u32); 4] = [(DISK, 1), (VSOCK, 3), (CONSOLE, 2), (RNG, 1)];

pub const GUEST_CID: u64 = 3;
/// What the runner may use beyond the guest's 4 MiB: program, stacks, and the bounded buffers of all its devices.
const OWN_KIB: u64 = 24 << 10;
const GUEST_KIB: u64 = 4 << 10;

pub fn check(ok: bool, what: impl std::fmt::Display) -> Result<(), Failed> {
    if ok { Ok(()) } else { Err(what.to_string().into()) }
}

/// A machine with all devices; the disk is 16 sectors.
pub fn machine(code: impl FnOnce(&mut CodeAssembler) -> Asm) -> Result<Rig, Failed> {
    let disk = tempfile::tempfile()?;
    disk.set_len(16 * 512)?;
    with_disk(code, disk, false)
}

pub fn with_disk(code: impl FnOnce(&mut CodeAssembler) -> Asm, disk: File, read_only: bool) -> Result<Rig, Failed> {
    let elf = guest::pvh_elf(|a| {
        code(a)?;
        guest::power_off(a)
    });
    let rig = Rig::new(elf).disk_file("root", disk, read_only).vsock()?;
    Ok(rig.with(|vm| (vm.console, vm.rng) = (true, true)))
}

/// The most memory the process has used, as long as it lives.
pub fn peak_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

/// Runs to the guest's own power-off. Neither panic, hang nor growth of the runner.
pub fn run(vm: &mut Running) -> Result<ExitReport, Failed> {
    let pid = vm.pid();
    let watcher = std::thread::spawn(move || {
        let mut peak = 0;
        while let Some(now) = peak_kib(pid) {
            peak = peak.max(now);
            std::thread::sleep(Duration::from_millis(2));
        }
        peak
    });
    let report = vm.run_to_end()?;
    let peak = watcher.join().map_err(|_| "the watcher died")?;
    check(peak < GUEST_KIB + OWN_KIB, format!("the runner grew to {peak} KiB"))?;
    check(report.cause == ExitCause::PowerOff, format!("{report:?}"))?;
    Ok(report)
}

/// Runs the code with all devices; COM1 must show exactly `expected`.
pub fn shows(expected: &str, code: impl FnOnce(&mut CodeAssembler) -> Asm) -> Result<(), Failed> {
    let mut vm = machine(code)?.start()?;
    let report = run(&mut vm)?;
    let seen = String::from_utf8_lossy(&vm.console()?).into_owned();
    check(seen == expected, format!("the guest shows {seen:?} instead of {expected:?}; {report:?}"))
}
