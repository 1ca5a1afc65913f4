//! Well-behaved guests: every operation that a device offers works under the runner's filters.

use std::io::{Read, Write};
use std::time::Duration;

use casemate_tests::guest::{self, Asm};
use casemate_tests::virtio::{self, BUFFERS, WRITE};
use casemate_wire::runner::ToRunner;
use iced_x86::code_asm::*;
use libtest_mimic::{Failed, Trial};

use crate::hostile::{self, DISK, RNG, VSOCK, check};
use crate::hostile_devices::{DATA, packet, request};

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(format!("devices::{name}"), run);
    vec![
        trial("every_disk_operation", every_disk_operation),
        trial("random_numbers_differ", random_numbers_differ),
        trial("vsock_echo_and_half_close", vsock_echo_and_half_close),
    ]
}

/// Write, flush, discard, zeroes with and without unmap, read, name.
fn every_disk_operation() -> Result<(), Failed> {
    let file = tempfile::tempfile()?;
    file.set_len(16 * 512)?;
    let range = |a: &mut CodeAssembler, sector: u64, flags: u32| -> Asm {
        guest::store64(a, DATA as u32, sector)?;
        guest::store32(a, DATA as u32 + 8, 1)?;
        guest::store32(a, DATA as u32 + 12, flags)
    };
    let rig = hostile::with_disk(
        |a| {
            virtio::start(a, DISK, 1)?;
            guest::store32(a, DATA as u32, 0x6b6b_6b6b)?;
            for (nth, sector) in [1, 2, 3, 4].into_iter().enumerate() {
                request(a, 1, sector, (512, 0), nth as u16)?;
            }
            request(a, 4, 0, (0, 0), 4)?;
            range(a, 2, 0)?;
            request(a, 11, 0, (16, 0), 5)?;
            range(a, 3, 0)?;
            request(a, 13, 0, (16, 0), 6)?;
            range(a, 4, 1)?;
            request(a, 13, 0, (16, 0), 7)?;
            request(a, 0, 1, (512, WRITE), 8)?;
            virtio::print_digit(a, DATA as u32)?;
            request(a, 8, 0, (20, WRITE), 9)
        },
        file.try_clone()?,
        false,
    )?;
    let mut vm = rig.start()?;
    hostile::run(&mut vm)?;
    let seen = String::from_utf8_lossy(&vm.console()?).into_owned();
    // 'k' + '0' is what print_digit makes of the byte that was read back.
    let expected = [&b"U0".repeat(9)[..], &[b'k' + b'0'], b"U0"].concat();
    check(vm.console()? == expected, format!("{seen:?}"))?;
    let disk = vm_disk(&file)?;
    let first = |sector: usize| disk[sector * 512];
    check([first(0), first(1), first(3), first(4)] == [0, 0x6b, 0, 0], format!("{:?}", [first(1), first(3), first(4)]))
}

fn vm_disk(file: &std::fs::File) -> std::io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn random_numbers_differ() -> Result<(), Failed> {
    // Two requests of 8 bytes; the guest compares them: Z when they are equal.
    hostile::shows("UU", |a| {
        virtio::start(a, RNG, 1)?;
        for nth in 0..2u16 {
            let at = u64::from(BUFFERS) + 64 * u64::from(nth);
            virtio::chain(a, 0, &[(at, 8, WRITE)])?;
            virtio::offer(a, RNG, 0, 0, nth)?;
            virtio::verdict(a, RNG, 0, nth + 1)?;
        }
        let mut differ = a.create_label();
        guest::load32(a, BUFFERS)?;
        a.mov(edi, BUFFERS + 64)?;
        a.cmp(eax, dword_ptr(edi))?;
        a.jne(differ)?;
        guest::print(a, b"Z")?;
        a.set_label(&mut differ)?;
        a.nop()
    })
}

const RX_BUFFER: u32 = BUFFERS + 0x8000;

/// Sends a packet to the host port that the first received packet came from.
fn answer(a: &mut CodeAssembler, op: u32, len: u32, nth: u16) -> Asm {
    packet(a, BUFFERS, (0, 5), op, len, [1 << 16, 0])?;
    // SHUTDOWN: the guest will send no more.
    guest::store32(a, BUFFERS + 32, 2)?;
    guest::load32(a, RX_BUFFER + 16)?;
    a.mov(edi, BUFFERS + 20)?;
    a.mov(dword_ptr(edi), eax)?;
    virtio::chain(a, 1, &[(BUFFERS.into(), 44, 0), (u64::from(RX_BUFFER) + 0x1000 + 44, len, 0)])?;
    virtio::offer(a, VSOCK, 1, 0, nth)?;
    virtio::verdict(a, VSOCK, 1, nth + 1)
}

fn vsock_echo_and_half_close() -> Result<(), Failed> {
    // REQUEST arrives, RESPONSE goes; four bytes arrive and go back; SHUTDOWN. The host closes: a third packet.
    let mut vm = hostile::machine(|a| {
        virtio::start(a, VSOCK, 2)?;
        for nth in 0..4u16 {
            let at = u64::from(RX_BUFFER) + 0x1000 * u64::from(nth);
            virtio::descriptor(a, virtio::table(0), nth, (at, 4096), WRITE, 0)?;
            virtio::offer(a, VSOCK, 0, nth, nth)?;
        }
        virtio::verdict(a, VSOCK, 0, 1)?;
        answer(a, 2, 0, 0)?;
        virtio::verdict(a, VSOCK, 0, 2)?;
        answer(a, 5, 4, 1)?;
        answer(a, 4, 0, 2)?;
        virtio::verdict(a, VSOCK, 0, 3)
    })?
    .start()?;
    let mut client = vm.connect()?;
    client.set_read_timeout(Some(Duration::from_secs(10)))?;
    client.write_all(b"CONNECT 5\n")?;
    vm.tell(ToRunner::Go)?;
    let mut line = [0; 14];
    client.read_exact(&mut line)?;
    check(&line == b"OK 1073741824\n", String::from_utf8_lossy(&line))?;
    client.write_all(b"ping")?;
    let mut echo = Vec::new();
    client.read_to_end(&mut echo)?;
    check(echo == b"ping", String::from_utf8_lossy(&echo))?;
    drop(client);
    vm.end()?;
    check(vm.console()? == b"UUUUUU", String::from_utf8_lossy(&vm.console()?))
}
