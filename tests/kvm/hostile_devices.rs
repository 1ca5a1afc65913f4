//! Guests that use well-formed queues to ask for what they must not have, or for too much of it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use casemate_tests::guest::{self, Asm, DATA_ADDR};
use casemate_tests::virtio::{self, BUFFERS, WRITE};
use casemate_vm::layout;
use casemate_wire::runner::ToRunner;
use iced_x86::code_asm::CodeAssembler;
use libtest_mimic::{Failed, Trial};

use crate::hostile::{self, CONSOLE, DISK, GUEST_CID, RNG, VSOCK, check};

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(format!("hostile_devices::{name}"), run);
    vec![
        trial("disk_serves_what_is_there_and_nothing_else", disk_serves_what_is_there),
        trial("a_read_only_disk_stays_as_it_was", a_read_only_disk_stays_as_it_was),
        trial("an_image_truncated_under_the_guest", an_image_truncated_under_the_guest),
        trial("a_notify_storm", a_notify_storm),
        trial("a_console_flood_is_bounded", a_console_flood_is_bounded),
        trial("a_flood_for_random_numbers", a_flood_for_random_numbers),
        trial("a_flood_of_packets_without_buffers", a_flood_of_packets_without_buffers),
        trial("vsock_lies_are_reset", vsock_lies_are_reset),
        trial("a_flood_of_host_clients", a_flood_of_host_clients),
    ]
}

const HEADER: u64 = BUFFERS as u64;
pub const DATA: u64 = BUFFERS as u64 + 0x1000;
const STATUS_BYTE: u32 = BUFFERS + 0x2000;

/// A disk request with 512 bytes of data as the `nth` of the queue; prints its status as a digit.
pub fn request(a: &mut CodeAssembler, kind: u32, sector: u64, data: (u32, u16), nth: u16) -> Asm {
    guest::store64(a, HEADER as u32, kind.into())?;
    guest::store64(a, HEADER as u32 + 8, sector)?;
    guest::store32(a, STATUS_BYTE, 9)?;
    virtio::chain(a, 0, &[(HEADER, 16, 0), (DATA, data.0, data.1), (STATUS_BYTE.into(), 1, WRITE)])?;
    virtio::offer(a, DISK, 0, 0, nth)?;
    virtio::verdict(a, DISK, 0, nth + 1)?;
    virtio::print_digit(a, STATUS_BYTE)
}

fn disk_serves_what_is_there() -> Result<(), Failed> {
    // Read a sector, past the end, far past it, of odd length; write past the end; unknown request; discard nonsense.
    hostile::shows("U0U1U1U1U1U2U1", |a| {
        virtio::start(a, DISK, 1)?;
        request(a, 0, 5, (512, WRITE), 0)?;
        request(a, 0, 16, (512, WRITE), 1)?;
        request(a, 0, u64::MAX / 512, (512, WRITE), 2)?;
        request(a, 0, 0, (511, WRITE), 3)?;
        request(a, 1, 16, (512, 0), 4)?;
        request(a, 77, 0, (512, WRITE), 5)?;
        guest::store64(a, DATA as u32, u64::MAX)?;
        guest::store64(a, DATA as u32 + 8, 1)?;
        request(a, 11, 0, (16, 0), 6)
    })
}

fn a_read_only_disk_stays_as_it_was() -> Result<(), Failed> {
    let image = [0xa5; 4096];
    let file = tempfile::NamedTempFile::new()?;
    file.as_file().write_all_at(&image, 0)?;
    let rig = hostile::with_disk(
        |a| {
            virtio::start(a, DISK, 1)?;
            request(a, 1, 0, (512, 0), 0)?;
            guest::store64(a, DATA as u32, 0)?;
            guest::store64(a, DATA as u32 + 8, 1)?;
            request(a, 11, 0, (16, 0), 1)?;
            request(a, 13, 0, (16, 0), 2)
        },
        File::options().read(true).write(true).open(file.path())?,
        true,
    )?;
    let mut vm = rig.start()?;
    hostile::run(&mut vm)?;
    check(vm.console()? == b"U1U1U1", String::from_utf8_lossy(&vm.console()?))?;
    check(std::fs::read(file.path())? == image, "the image changed")
}

fn an_image_truncated_under_the_guest() -> Result<(), Failed> {
    let file = tempfile::tempfile()?;
    file.set_len(8192)?;
    let rig = hostile::with_disk(
        |a| {
            virtio::start(a, DISK, 1)?;
            request(a, 0, 8, (512, WRITE), 0)?;
            // The host truncates when it sees the first answer, and then asks for a connection.
            wait_for_host(a)?;
            request(a, 0, 8, (512, WRITE), 1)?;
            request(a, 0, 0, (512, WRITE), 2)
        },
        file.try_clone()?,
        false,
    )?;
    let mut vm = rig.start()?;
    vm.tell(ToRunner::Go)?;
    let mut seen = Vec::new();
    for _ in 0..1000 {
        seen = vm.console()?;
        if seen.len() >= 3 {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    check(seen == b"U0\n", String::from_utf8_lossy(&seen))?;
    file.set_len(512)?;
    let mut client = vm.connect()?;
    client.write_all(b"CONNECT 1024\n")?;
    vm.end()?;
    check(vm.console()? == b"U0\nU1U0", String::from_utf8_lossy(&vm.console()?))
}

/// Waits until a host client asks for a connection: the request arrives in a receive buffer of the vsock device, whose
/// queue takes the place of queue 1, so that the disk's is not disturbed.
fn wait_for_host(a: &mut CodeAssembler) -> Asm {
    use iced_x86::code_asm::*;
    let (table, avail, used) = (virtio::table(1), virtio::avail(1), virtio::used(1));
    virtio::negotiate(a, VSOCK)?;
    guest::store32(a, avail, 0)?;
    guest::store32(a, used, 0)?;
    virtio::place(a, VSOCK, 0, 16, [table, avail, used].map(u64::from))?;
    virtio::write(a, VSOCK, virtio::STATUS, 15)?;
    virtio::descriptor(a, table, 0, (u64::from(BUFFERS) + 0x4000, 4096), WRITE, 0)?;
    guest::store16(a, avail + 4, 0)?;
    guest::store16(a, avail + 2, 1)?;
    virtio::write(a, VSOCK, virtio::QUEUE_NOTIFY, 0)?;
    // COM1 reaches the log line by line.
    guest::print(a, b"\n")?;
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    // A register read lets the host in; the guest would otherwise never leave.
    guest::load32(a, virtio::window(VSOCK) + virtio::STATUS)?;
    guest::load32(a, used)?;
    a.shr(eax, 16)?;
    a.test(eax, eax)?;
    a.jz(top)
}

fn a_notify_storm() -> Result<(), Failed> {
    hostile::shows("UUUU", |a| {
        for (device, queues) in hostile::DEVICES {
            virtio::start(a, device, queues)?;
            virtio::repeat(a, 5_000, |a| {
                for queue in [0, 1, 2, 3, 31, 32, u32::MAX] {
                    virtio::write(a, device, virtio::QUEUE_NOTIFY, queue)?;
                }
                Ok(())
            })?;
        }
        for (device, queue) in [(RNG, 0), (CONSOLE, 1), (VSOCK, 1), (DISK, 0)] {
            virtio::start(a, device, queue + 1)?;
            good_request(a, device, queue)?;
            virtio::verdict(a, device, queue, 1)?;
        }
        Ok(())
    })
}

fn good_request(a: &mut CodeAssembler, device: u32, queue: u32) -> Asm {
    guest::store64(a, HEADER as u32, 0)?;
    guest::store64(a, HEADER as u32 + 8, 0)?;
    match device {
        DISK => virtio::chain(a, queue, &[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS_BYTE.into(), 1, WRITE)])?,
        RNG => virtio::chain(a, queue, &[(DATA, 512, WRITE)])?,
        _ => virtio::chain(a, queue, &[(HEADER, 44, 0)])?,
    }
    virtio::offer(a, device, queue, 0, 0)
}

fn a_console_flood_is_bounded() -> Result<(), Failed> {
    // 16 chains of 1 MiB, 20 times over hvc0; 100,000 bytes through COM1.
    let mut vm = hostile::machine(|a| {
        virtio::repeat(a, 20, |a| {
            virtio::start(a, CONSOLE, 2)?;
            for i in 0..virtio::SIZE {
                virtio::descriptor(a, virtio::table(1), i, (0x10_0000, 1 << 20), 0, 0)?;
                virtio::offer(a, CONSOLE, 1, i, i)?;
            }
            virtio::verdict(a, CONSOLE, 1, virtio::SIZE)
        })?;
        virtio::repeat(a, 100_000, |a| guest::out8(a, layout::COM1_PORT, b'x'))
    })?
    .start()?;
    hostile::run(&mut vm)?;
    let (console, output) = (vm.console()?.len(), vm.output()?.len());
    // Bounded by the capacity, and not emptied: something of the flood is left.
    check((16 << 10..=64 << 10).contains(&console), format!("{console} bytes of serial log"))?;
    check((16 << 10..=64 << 10).contains(&output), format!("{output} bytes of console log"))
}

fn a_flood_for_random_numbers() -> Result<(), Failed> {
    hostile::shows("U", |a| {
        virtio::start(a, RNG, 1)?;
        for i in 0..virtio::SIZE {
            virtio::descriptor(a, virtio::table(0), i, (DATA_ADDR.into(), 2 << 20), WRITE, 0)?;
        }
        // The chain overwrites the rings themselves with random bytes as far as it may: 4096 bytes, the table.
        virtio::offer(a, RNG, 0, 0, 0)?;
        virtio::verdict(a, RNG, 0, 1)
    })
}

/// A packet header at `addr`.
pub fn packet(
    a: &mut CodeAssembler,
    addr: u32,
    (dst_port, src_port): (u32, u32),
    op: u32,
    len: u32,
    credit: [u32; 2],
) -> Asm {
    guest::store64(a, addr, GUEST_CID)?;
    guest::store64(a, addr + 8, 2)?;
    for (at, word) in [(16, src_port), (20, dst_port), (24, len), (28, 1 | (op << 16)), (32, 3)] {
        guest::store32(a, addr + at, word)?;
    }
    guest::store32(a, addr + 36, credit[0])?;
    guest::store32(a, addr + 40, credit[1])
}

fn a_flood_of_packets_without_buffers() -> Result<(), Failed> {
    use iced_x86::code_asm::*;
    // 16 packets a round from ever new ports, no receive buffer ever: the device stops listening at 64 debts.
    hostile::shows("T", |a| {
        virtio::start(a, VSOCK, 3)?;
        packet(a, BUFFERS, (99, 0), 5, 0, [1 << 16, 0])?;
        for i in 0..virtio::SIZE {
            virtio::descriptor(a, virtio::table(1), i, (BUFFERS.into(), 44), 0, 0)?;
            guest::store16(a, virtio::avail(1) + 4 + 2 * u32::from(i), i)?;
        }
        virtio::repeat(a, 20, |a| {
            guest::load32(a, virtio::used(1))?;
            a.shr(eax, 16)?;
            a.add(eax, u32::from(virtio::SIZE))?;
            a.mov(edi, virtio::avail(1) + 2)?;
            a.mov(word_ptr(edi), ax)?;
            virtio::write(a, VSOCK, virtio::QUEUE_NOTIFY, 1)?;
            virtio::repeat_inner(a, 200, |a| guest::load32(a, virtio::window(VSOCK)))
        })?;
        virtio::verdict(a, VSOCK, 1, 320)
    })
}

fn vsock_lies_are_reset() -> Result<(), Failed> {
    // Connect to the report port, then claim to have consumed what was never sent: the answers are RESPONSE, RST (2, 3).
    hostile::shows("UU2UU3", |a| {
        virtio::start(a, VSOCK, 3)?;
        let buffer = u64::from(BUFFERS) + 0x8000;
        for (nth, (op, credit)) in [(1, [1 << 16, 0]), (6, [1 << 16, 1])].into_iter().enumerate() {
            let nth = nth as u16;
            virtio::descriptor(a, virtio::table(0), nth, (buffer, 4096), WRITE, 0)?;
            virtio::offer(a, VSOCK, 0, nth, nth)?;
            packet(a, BUFFERS, (1, 7), op, 0, credit)?;
            virtio::chain(a, 1, &[(BUFFERS.into(), 44, 0)])?;
            virtio::offer(a, VSOCK, 1, 0, nth)?;
            virtio::verdict(a, VSOCK, 1, nth + 1)?;
            virtio::verdict(a, VSOCK, 0, nth + 1)?;
            virtio::print_digit(a, buffer as u32 + 30)?;
        }
        Ok(())
    })
}

fn a_flood_of_host_clients() -> Result<(), Failed> {
    let mut vm =
        hostile::machine(|a| virtio::repeat(a, 20_000, |a| guest::load32(a, virtio::window(VSOCK))))?.start()?;
    let mut clients = Vec::new();
    for _ in 0..200 {
        match vm.connect() {
            Ok(mut client) => {
                // A full backlog or a closed end is an answer too.
                let _ = client.write_all(b"LISTEN 80\n");
                clients.push(client);
            }
            Err(_) => break,
        }
    }
    let turned_away = clients.iter_mut().filter_map(|client| {
        client.set_read_timeout(Some(Duration::from_millis(200))).ok()?;
        let mut answer = [0; 4];
        client.read_exact(&mut answer).ok()?;
        (&answer == b"ERR ").then_some(())
    });
    let turned_away = turned_away.count();
    check(
        turned_away >= clients.len().saturating_sub(128) && clients.len() > 128,
        format!("{turned_away} of {}", clients.len()),
    )?;
    hostile::run(&mut vm).map(drop)
}
