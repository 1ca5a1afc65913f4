//! The runner as a program, under its real filters and Landlock, with tiny guests.

use std::time::Duration;

use casemate_tests::rig::Rig;
use casemate_tests::{guest, soon};
use casemate_wire::record::ExitCause;
use casemate_wire::runner::{FromRunner, ToRunner};
use iced_x86::code_asm::*;
use libtest_mimic::{Failed, Trial};

/// The trials of this module.
pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(format!("runner::{name}"), run);
    vec![
        trial("attests_before_the_first_instruction", attests_before_the_first_instruction),
        trial("power_off_and_serial_log", power_off_and_serial_log),
        trial("reboot", || ends(guest::reset, ExitCause::Reboot)),
        trial("reboot_starts_again_where_the_plan_says_so", reboot_starts_again),
        trial("triple_fault", || ends(guest::triple_fault, ExitCause::TripleFault)),
        trial("guest_panic", || ends(guest::panic, ExitCause::GuestPanic)),
        trial("a_linux_panic_is_told_from_a_reboot", a_linux_panic_is_told_from_a_reboot),
        trial("quit_ends_a_spinning_guest", quit_ends_a_spinning_guest),
        trial("pause_and_resume", pause_and_resume),
        trial("no_agent_in_time", no_agent_in_time),
        trial("all_devices_together", all_devices_together),
        trial("two_vcpus", two_vcpus),
        trial("a_gone_warden_ends_the_runner", a_gone_warden_ends_the_runner),
        trial("a_bad_kernel_is_reported", a_bad_kernel_is_reported),
        trial("a_serial_flood_is_bounded", a_serial_flood_is_bounded),
        trial("words_out_of_turn_end_the_runner", words_out_of_turn_end_the_runner),
    ]
}

fn check(ok: bool, what: impl std::fmt::Display) -> Result<(), Failed> {
    if ok { Ok(()) } else { Err(what.to_string().into()) }
}

fn ends(code: fn(&mut CodeAssembler) -> guest::Asm, cause: ExitCause) -> Result<(), Failed> {
    let report = Rig::new(guest::pvh_elf(code)).start()?.run_to_end()?;
    check(report.cause == cause, format!("{report:?}"))
}

fn attests_before_the_first_instruction() -> Result<(), Failed> {
    let mut vm = Rig::new(guest::pvh_elf(|a| guest::print(a, b"early"))).start()?;
    for thread in ["main", "io", "vcpu0"] {
        let what = format!("seccomp filter of thread {thread}");
        check(vm.findings.iter().any(|f| f.what == what && f.ok), format!("no finding: {what}"))?;
    }
    let bad: Vec<_> = vm.findings.iter().filter(|finding| !finding.ok).collect();
    check(bad.is_empty(), format!("{bad:?}"))?;
    std::thread::sleep(Duration::from_millis(20));
    check(vm.console()?.is_empty(), "the guest ran before it was allowed to")
}

fn power_off_and_serial_log() -> Result<(), Failed> {
    let elf = guest::pvh_elf(|a| {
        guest::print(a, b"hello")?;
        guest::power_off(a)
    });
    let mut vm = Rig::new(elf).start()?;
    let report = vm.run_to_end()?;
    check(report.cause == ExitCause::PowerOff && vm.console()? == b"hello", format!("{report:?} {:?}", vm.console()))
}

/// The disk is all that a guest keeps over a reboot: its first life writes there, its second reads and powers off.
/// Here a register of the disk's transport stands for it: a reset device has status 0 again.
fn reboot_starts_again() -> Result<(), Failed> {
    let elf = guest::pvh_elf(|a| {
        guest::load32(a, 0xd000_0070)?;
        guest::print_al(a)?;
        guest::load32(a, guest::DATA_ADDR)?;
        guest::print_al(a)?;
        guest::store32(a, 0xd000_0070, 1)?;
        guest::store32(a, guest::DATA_ADDR, 7)?;
        guest::reset(a)
    });
    let rig = Rig::new(elf).disk("root", &[0; 4096], true)?;
    let mut vm = rig.with(|vm| (vm.restart_on_reboot, vm.cpus) = (true, 2)).start()?;
    vm.tell(ToRunner::Go)?;
    std::thread::sleep(Duration::from_millis(700));
    vm.tell(ToRunner::Pause)?;
    check(vm.next(Duration::from_secs(5))? == FromRunner::Paused, "not paused")?;
    vm.tell(ToRunner::Resume)?;
    check(vm.next(Duration::from_secs(5))? == FromRunner::Resumed, "not resumed")?;
    vm.tell(ToRunner::Quit)?;
    let report = vm.end()?;
    let seen = vm.console()?;
    let afresh = seen.len() >= 6 && seen.iter().all(|byte| *byte == 0);
    check(report.cause == ExitCause::Killed && afresh, format!("{report:?} {seen:?}"))
}

fn a_linux_panic_is_told_from_a_reboot() -> Result<(), Failed> {
    let elf = guest::pvh_elf(|a| {
        guest::print(a, b"[    1.0] Kernel panic - not syncing: x\n")?;
        guest::reset(a)
    });
    let report = Rig::new(elf).start()?.run_to_end()?;
    let detail = report.detail.as_deref().unwrap_or_default();
    check(report.cause == ExitCause::GuestPanic && detail.contains("not syncing: x"), format!("{report:?}"))
}

fn quit_ends_a_spinning_guest() -> Result<(), Failed> {
    let mut vm = Rig::new(guest::pvh_elf(guest::spin)).start()?;
    vm.tell(ToRunner::Go)?;
    std::thread::sleep(Duration::from_millis(20));
    vm.tell(ToRunner::Quit)?;
    let report = vm.end()?;
    check(report.cause == ExitCause::Killed, format!("{report:?}"))
}

fn pause_and_resume() -> Result<(), Failed> {
    let elf = guest::pvh_elf(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        guest::print(a, b".\n")?;
        a.jmp(again)
    });
    let mut vm = Rig::new(elf).with(|vm| vm.log_bytes = 1 << 20).start()?;
    vm.tell(ToRunner::Go)?;
    std::thread::sleep(Duration::from_millis(10));
    vm.tell(ToRunner::Pause)?;
    check(vm.next(Duration::from_secs(5))? == FromRunner::Paused, "not paused")?;
    std::thread::sleep(Duration::from_millis(10));
    let held = vm.console()?.len();
    std::thread::sleep(Duration::from_millis(20));
    check(vm.console()?.len() == held, "a paused guest goes on")?;
    vm.tell(ToRunner::Resume)?;
    check(vm.next(Duration::from_secs(5))? == FromRunner::Resumed, "not resumed")?;
    soon(|| Ok(vm.console()?.len() > held), "a resumed guest stands still")?;
    vm.tell(ToRunner::Quit)?;
    vm.end().map(drop)
}

fn no_agent_in_time() -> Result<(), Failed> {
    let rig = Rig::new(guest::pvh_elf(guest::spin)).with(|vm| (vm.agent, vm.boot_timeout_ms) = (true, 100));
    let report = rig.start()?.run_to_end()?;
    check(report.cause == ExitCause::BootTimeout, format!("{report:?}"))
}

/// Each device answers at its place: magic, version 2, its own device id.
fn all_devices_together() -> Result<(), Failed> {
    let elf = guest::pvh_elf(|a| {
        for n in 0..5u32 {
            let base = 0xd000_0000 + n * 0x1000;
            for register in [0u32, 4, 8] {
                guest::load32(a, base + register)?;
                guest::print_al(a)?;
            }
        }
        guest::power_off(a)
    });
    let rig = Rig::new(elf).disk("root", &[0; 4096], true)?.disk("data", &[0; 8192], false)?.vsock()?;
    let mut vm = rig.with(|vm| (vm.console, vm.rng) = (true, true)).start()?;
    let report = vm.run_to_end()?;
    let seen = vm.console()?;
    let ids: Vec<u8> = seen.chunks(3).map(|device| device[2]).collect();
    let healthy = seen.chunks(3).all(|device| device[..2] == [b'v', 2]);
    check(report.cause == ExitCause::PowerOff && healthy && ids == [2, 2, 19, 3, 4], format!("{report:?} {seen:?}"))
}

fn two_vcpus() -> Result<(), Failed> {
    let elf = guest::pvh_elf(|a| {
        guest::print(a, b"A")?;
        guest::power_off(a)
    });
    let mut vm = Rig::new(elf).with(|vm| vm.cpus = 2).start()?;
    let report = vm.run_to_end()?;
    check(report.cause == ExitCause::PowerOff && vm.console()? == b"A", format!("{report:?}"))
}

fn a_gone_warden_ends_the_runner() -> Result<(), Failed> {
    let vm = Rig::new(guest::pvh_elf(guest::spin)).start()?;
    vm.tell(ToRunner::Go)?;
    let status = vm.abandon(Duration::from_secs(5))?;
    check(!status.success(), format!("{status}"))
}

fn a_bad_kernel_is_reported() -> Result<(), Failed> {
    let message = Rig::new(b"not a kernel".to_vec()).start_failing()?;
    check(message.contains("neither an ELF file nor a bzImage"), message)
}

/// Far more than the log holds, as fast as the guest can: the log stays bounded and the end is not delayed.
fn a_serial_flood_is_bounded() -> Result<(), Failed> {
    let elf = guest::pvh_elf(|a| {
        a.mov(ecx, 20_000)?;
        a.mov(esi, guest::LOAD_ADDR)?;
        a.mov(edx, 0x3f8)?;
        a.rep().outsb()?;
        guest::print(a, b"end\n")?;
        guest::power_off(a)
    });
    let mut vm = Rig::new(elf).with(|vm| vm.log_bytes = 8192).start()?;
    let report = vm.run_to_end()?;
    let log = vm.console()?;
    check(report.cause == ExitCause::PowerOff && log.len() <= 8192, format!("{report:?}, {} bytes", log.len()))
}

fn words_out_of_turn_end_the_runner() -> Result<(), Failed> {
    let mut vm = Rig::new(guest::pvh_elf(guest::spin)).start()?;
    vm.tell(ToRunner::Resume)?;
    let refused = vm.next(Duration::from_secs(5));
    check(refused.is_err(), format!("{refused:?}"))
}
