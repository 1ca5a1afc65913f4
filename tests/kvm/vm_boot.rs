//! `casemate-vm` alone, without devices: boot a tiny guest, end in each way a guest can end, hold and stop it.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use casemate_tests::{guest, soon};
use casemate_vm::{Ending, ExitHandler, Gate, Image, IrqMode, Kvm, Platform, Vcpu, Vm, VmConfig, layout};
use iced_x86::code_asm::*;
use libtest_mimic::{Failed, Trial};

/// The trials of this module.
pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(format!("vm::{name}"), run);
    vec![
        trial("prints_and_powers_off", prints_and_powers_off),
        trial("prints_and_powers_off_without_interrupts", prints_and_powers_off_without_interrupts),
        trial("triple_fault", || ends(guest::triple_fault, |e| matches!(e, Ending::TripleFault))),
        trial("reset", || ends(guest::reset, |e| matches!(e, Ending::Reset(_)))),
        trial("the_reset_vector_resets", || ends(reset_vector, |e| matches!(e, Ending::Reset(_)))),
        trial("guest_panic", || ends(guest::panic, |e| matches!(e, Ending::Panic(_)))),
        trial("halt_without_interrupts", halt_without_interrupts),
        trial("unknown_ports_and_addresses_read_ones", unknown_ports_and_addresses_read_ones),
        trial("start_info_is_where_ebx_points", start_info_is_where_ebx_points),
        trial("a_spinning_guest_is_stopped", a_spinning_guest_is_stopped),
        trial("pause_holds_and_resume_goes_on", pause_holds_and_resume_goes_on),
        trial("application_processors_wait_and_stop", application_processors_wait_and_stop),
        trial("state_moves_to_another_vm", state_moves_to_another_vm),
        trial("ioapic_storm", ioapic_storm),
        trial("a_reset_starts_afresh", a_reset_starts_afresh),
    ]
}

/// Collects what the guest writes to COM1; nothing else exists.
#[derive(Default)]
struct Console(Mutex<Vec<u8>>);

impl ExitHandler for Console {
    fn pio_read(&self, _: u16, _: &mut [u8]) {}
    fn pio_write(&self, port: u16, data: &[u8]) {
        if port == layout::COM1_PORT {
            self.0.lock().unwrap().extend_from_slice(data);
        }
    }
    fn mmio_read(&self, _: u64, _: &mut [u8]) {}
    fn mmio_write(&self, _: u64, _: &[u8]) {}
}

impl Console {
    fn text(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

fn kvm() -> Result<Kvm, Failed> {
    let file = File::options().read(true).write(true).open("/dev/kvm")?;
    Ok(Kvm::from_fd(OwnedFd::from(file))?)
}

fn machine(elf: &[u8], irq: IrqMode, vcpus: u8) -> Result<(Vm, Vec<Vcpu>), Failed> {
    casemate_vm::install_kick_handler()?;
    let mut vm = Vm::new(kvm()?, VmConfig { vcpus, memory: 4 << 20, irq })?;
    let mut kernel = tempfile::tempfile()?;
    kernel.write_all(elf)?;
    let mut image = Image { kernel: &mut kernel, initrd: None, initrd_tail: &[], command_line: "tiny" };
    vm.boot(&mut image, &Platform::default())?;
    let vcpus = (0..vcpus).map(|index| vm.vcpu(index)).collect::<Result<Vec<_>, _>>()?;
    Ok((vm, vcpus))
}

fn run(elf: &[u8], irq: IrqMode) -> Result<(Ending, Vec<u8>), Failed> {
    let (_vm, mut vcpus) = machine(elf, irq, 1)?;
    let (console, gate) = (Console::default(), Gate::default());
    gate.resume();
    let ending = vcpus[0].run(&console, &gate);
    Ok((ending, console.text()))
}

fn ends(code: fn(&mut CodeAssembler) -> guest::Asm, expected: fn(&Ending) -> bool) -> Result<(), Failed> {
    let (ending, _) = run(&guest::pvh_elf(code), IrqMode::Split)?;
    check(expected(&ending), format!("{ending:?}"))
}

fn check(ok: bool, what: impl std::fmt::Display) -> Result<(), Failed> {
    if ok { Ok(()) } else { Err(what.to_string().into()) }
}

/// The vector's instructions mean the same in 16 and 32 bits but for `mov dx`: prefix it as a 16-bit caller would.
fn reset_vector(a: &mut CodeAssembler) -> guest::Asm {
    // Copy the nine bytes, with an operand-size prefix before `mov dx, imm16`, and run them.
    a.cld()?;
    a.mov(esi, layout::RESET_VECTOR as u32)?;
    a.mov(edi, guest::DATA_ADDR)?;
    a.movsw()?;
    a.mov(al, 0x66)?;
    a.stosb()?;
    a.mov(ecx, 7)?;
    a.rep().movsb()?;
    a.mov(eax, guest::DATA_ADDR)?;
    a.jmp(eax)
}

fn hello() -> Vec<u8> {
    guest::pvh_elf(|a| {
        guest::print(a, b"A")?;
        guest::power_off(a)
    })
}

fn prints_and_powers_off() -> Result<(), Failed> {
    let got = run(&hello(), IrqMode::Split)?;
    check(got == (Ending::PowerOff, b"A".to_vec()), format!("{got:?}"))
}

fn prints_and_powers_off_without_interrupts() -> Result<(), Failed> {
    let got = run(&hello(), IrqMode::None)?;
    check(got == (Ending::PowerOff, b"A".to_vec()), format!("{got:?}"))
}

fn halt_without_interrupts() -> Result<(), Failed> {
    let (ending, _) = run(&guest::pvh_elf(|a| a.hlt()), IrqMode::None)?;
    check(ending == Ending::Halted, format!("{ending:?}"))
}

fn unknown_ports_and_addresses_read_ones() -> Result<(), Failed> {
    let elf = guest::pvh_elf(|a| {
        a.mov(edx, 0x1234)?;
        a.in_(al, dx)?;
        guest::print_al(a)?;
        guest::load32(a, 0xd800_0000)?;
        guest::print_al(a)?;
        guest::power_off(a)
    });
    let got = run(&elf, IrqMode::Split)?;
    check(got == (Ending::PowerOff, vec![0xff, 0xff]), format!("{got:?}"))
}

fn start_info_is_where_ebx_points() -> Result<(), Failed> {
    let elf = guest::pvh_elf(|a| {
        for shift in 0..4 {
            a.mov(al, byte_ptr(ebx + shift))?;
            guest::print_al(a)?;
        }
        guest::power_off(a)
    });
    let (_, text) = run(&elf, IrqMode::Split)?;
    check(text == 0x336e_c578u32.to_le_bytes(), format!("{text:x?}"))
}

fn a_spinning_guest_is_stopped() -> Result<(), Failed> {
    let (_vm, mut vcpus) = machine(&guest::pvh_elf(guest::spin), IrqMode::Split, 1)?;
    let (console, gate) = (Console::default(), Gate::default());
    gate.resume();
    let started = Instant::now();
    let ending = std::thread::scope(|scope| {
        let vcpu = scope.spawn(|| vcpus[0].run(&console, &gate));
        std::thread::sleep(Duration::from_millis(30));
        gate.stop();
        vcpu.join()
    });
    let ending = ending.map_err(|_| "the vCPU thread panicked")?;
    check(ending == Ending::Stopped, format!("{ending:?}"))?;
    check(started.elapsed() < Duration::from_secs(20), "stopping took too long")
}

fn pause_holds_and_resume_goes_on() -> Result<(), Failed> {
    let elf = guest::pvh_elf(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        guest::print(a, b".")?;
        a.jmp(again)
    });
    let (_vm, mut vcpus) = machine(&elf, IrqMode::Split, 1)?;
    let (console, gate) = (Console::default(), Gate::default());
    gate.resume();
    std::thread::scope(|scope| {
        scope.spawn(|| vcpus[0].run(&console, &gate));
        let outcome = (|| {
            for _ in 0..5 {
                std::thread::sleep(Duration::from_millis(5));
                check(gate.pause(Duration::from_secs(20)), "the vCPU did not come to rest")?;
                let held = console.text().len();
                std::thread::sleep(Duration::from_millis(5));
                check(console.text().len() == held, "a held guest went on")?;
                gate.resume();
                soon(|| Ok(console.text().len() > held), "a resumed guest stands still")?;
            }
            Ok(())
        })();
        gate.stop();
        outcome
    })
}

fn application_processors_wait_and_stop() -> Result<(), Failed> {
    let (_vm, vcpus) = machine(&hello(), IrqMode::Split, 3)?;
    let console = Arc::new(Console::default());
    let gate = Arc::new(Gate::default());
    gate.resume();
    let threads: Vec<_> = vcpus
        .into_iter()
        .map(|mut vcpu| {
            let (console, gate) = (Arc::clone(&console), Arc::clone(&gate));
            std::thread::spawn(move || {
                let ending = vcpu.run(&*console, &gate);
                gate.stop();
                ending
            })
        })
        .collect();
    let endings: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().ok()).collect();
    let expected = [Ending::PowerOff, Ending::Stopped, Ending::Stopped];
    check(endings == expected && console.text() == b"A", format!("{endings:?} {:?}", console.text()))
}

/// Runs to a mark, saves, and lets the rest of the same program run in another VM.
fn state_moves_to_another_vm() -> Result<(), Failed> {
    let elf = guest::pvh_elf(|a| {
        guest::print(a, b"A")?;
        let mut wait = a.create_label();
        a.set_label(&mut wait)?;
        a.mov(eax, dword_ptr(guest::DATA_ADDR))?;
        a.test(eax, eax)?;
        a.jz(wait)?;
        guest::print(a, b"B")?;
        guest::power_off(a)
    });
    let (vm, mut vcpus) = machine(&elf, IrqMode::Split, 1)?;
    let (console, gate) = (Console::default(), Gate::default());
    gate.resume();
    std::thread::scope(|scope| {
        scope.spawn(|| vcpus[0].run(&console, &gate));
        while console.text().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        gate.stop();
    });
    let state = vcpus[0].save(&vm.msrs_to_save()?)?;
    let machine_state = vm.save()?;
    let (other, mut restored) = machine(&elf, IrqMode::Split, 1)?;
    other.restore(&machine_state)?;
    restored[0].restore(&state)?;
    use vm_memory::{Bytes, GuestAddress};
    other.memory().write_obj(1u32, GuestAddress(guest::DATA_ADDR.into()))?;
    let (console, gate) = (Console::default(), Gate::default());
    gate.resume();
    let ending = restored[0].run(&console, &gate);
    check(ending == Ending::PowerOff && console.text() == b"B", format!("{ending:?} {:?}", console.text()))
}

/// The guest shows a byte of its memory, changes it, programs the I/O APIC, resets: the second run sees none of it.
fn a_reset_starts_afresh() -> Result<(), Failed> {
    let elf = guest::pvh_elf(|a| {
        guest::load32(a, guest::DATA_ADDR)?;
        guest::print_al(a)?;
        guest::store32(a, guest::DATA_ADDR, 0x55)?;
        guest::store32(a, layout::IOAPIC as u32, 0x18)?;
        guest::load32(a, layout::IOAPIC as u32 + 0x10)?;
        guest::print_al(a)?;
        guest::store32(a, layout::IOAPIC as u32 + 0x10, 0x41)?;
        guest::reset(a)
    });
    casemate_vm::install_kick_handler()?;
    let mut vm = Vm::new(kvm()?, VmConfig { vcpus: 2, memory: 4 << 20, irq: IrqMode::Split })?;
    let mut kernel = tempfile::tempfile()?;
    kernel.write_all(&elf)?;
    let mut image = Image { kernel: &mut kernel, initrd: None, initrd_tail: &[], command_line: "tiny" };
    vm.boot(&mut image, &Platform::default())?;
    let mut vcpus = [vm.vcpu(0)?, vm.vcpu(1)?];
    let (reloader, msrs) = (vm.reloader(), vm.msrs_to_save()?);
    vcpus.iter_mut().try_for_each(|vcpu| vcpu.remember(&msrs))?;
    drop(vm);
    let (console, gate) = (Console::default(), Gate::default());
    for _ in 0..3 {
        gate.resume();
        let endings: Vec<Ending> = std::thread::scope(|scope| {
            let (console, gate) = (&console, &gate);
            let threads: Vec<_> = vcpus.iter_mut().map(|vcpu| scope.spawn(move || vcpu.run(console, gate))).collect();
            std::thread::sleep(Duration::from_millis(30));
            gate.recall(Duration::from_secs(5));
            threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
        });
        check(matches!(endings[..], [Ending::Reset(_), Ending::Recalled]), format!("{endings:?}"))?;
        vcpus.iter_mut().try_for_each(|vcpu| vcpu.rewind())?;
        reloader.reload(&mut image, &Platform::default())?;
        vcpus.iter_mut().try_for_each(|vcpu| vcpu.place())?;
    }
    check(console.text() == [0; 6], format!("{:?}", console.text()))
}

/// Every redirection entry written with every kind of nonsense: KVM takes the routes, nothing ends.
fn ioapic_storm() -> Result<(), Failed> {
    let elf = guest::pvh_elf(|a| {
        for (pin, low) in [(0u32, 0x0000_0041u32), (5, 0xffff_ffff), (23, 0x0000_8930), (4, 0x0000_0700)] {
            for (register, value) in [(0x11 + 2 * pin, 0xffff_ffff), (0x10 + 2 * pin, low)] {
                guest::store32(a, layout::IOAPIC as u32, register)?;
                guest::store32(a, layout::IOAPIC as u32 + 0x10, value)?;
            }
        }
        guest::print(a, b"A")?;
        guest::power_off(a)
    });
    let got = run(&elf, IrqMode::Split)?;
    check(got == (Ending::PowerOff, b"A".to_vec()), format!("{got:?}"))
}
