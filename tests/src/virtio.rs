//! The driver's side of virtio-mmio for tiny guests, in assembly: every step can be done right or wrong.
//!
//! Queue `q` of the one device that a guest drives has its rings at fixed places; buffers are the guest's own affair.

use casemate_vm::layout;
use iced_x86::code_asm::*;

use crate::guest::{self, Asm, DATA_ADDR};

/// Entries of each queue.
pub const SIZE: u16 = 16;
/// Free for buffers, up to 4 MiB.
pub const BUFFERS: u32 = DATA_ADDR + 0x10_0000;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const QUEUE_SEL: u32 = 0x30;
pub const QUEUE_NUM: u32 = 0x38;
pub const QUEUE_READY: u32 = 0x44;
pub const QUEUE_NOTIFY: u32 = 0x50;
pub const STATUS: u32 = 0x70;
pub const QUEUE_DESC: u32 = 0x80;
pub const QUEUE_DRIVER: u32 = 0x90;
pub const QUEUE_DEVICE: u32 = 0xa0;

/// Register window of the device with that index.
pub fn window(device: u32) -> u32 {
    (layout::VIRTIO_MMIO + u64::from(device) * layout::VIRTIO_MMIO_STRIDE) as u32
}

pub fn table(queue: u32) -> u32 {
    DATA_ADDR + queue * 0x4000
}

pub fn avail(queue: u32) -> u32 {
    table(queue) + 0x1000
}

pub fn used(queue: u32) -> u32 {
    table(queue) + 0x2000
}

/// Writes a register.
pub fn write(a: &mut CodeAssembler, device: u32, register: u32, value: u32) -> Asm {
    guest::store32(a, window(device) + register, value)
}

/// From reset to FEATURES_OK, with VERSION_1 alone.
pub fn negotiate(a: &mut CodeAssembler, device: u32) -> Asm {
    for status in [0, 1, 3] {
        write(a, device, STATUS, status)?;
    }
    for (select, features) in [(0, 0), (1, 1)] {
        write(a, device, 0x24, select)?;
        write(a, device, 0x20, features)?;
    }
    write(a, device, STATUS, 11)
}

/// Places one queue; `ready` is written last.
pub fn place(a: &mut CodeAssembler, device: u32, queue: u32, size: u32, rings: [u64; 3]) -> Asm {
    write(a, device, QUEUE_SEL, queue)?;
    write(a, device, QUEUE_NUM, size)?;
    for (register, address) in [QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE].into_iter().zip(rings) {
        write(a, device, register, address as u32)?;
        write(a, device, register + 4, (address >> 32) as u32)?;
    }
    write(a, device, QUEUE_READY, 1)
}

/// The device with its first `queues` queues, all right, up to DRIVER_OK. Rings are emptied.
pub fn start(a: &mut CodeAssembler, device: u32, queues: u32) -> Asm {
    negotiate(a, device)?;
    for queue in 0..queues {
        guest::store32(a, avail(queue), 0)?;
        guest::store32(a, used(queue), 0)?;
        place(a, device, queue, SIZE.into(), [table(queue), avail(queue), used(queue)].map(u64::from))?;
    }
    write(a, device, STATUS, 15)
}

pub fn descriptor(
    a: &mut CodeAssembler,
    table: u32,
    index: u16,
    (addr, len): (u64, u32),
    flags: u16,
    next: u16,
) -> Asm {
    let at = table + 16 * u32::from(index);
    guest::store64(a, at, addr)?;
    guest::store32(a, at + 8, len)?;
    guest::store32(a, at + 12, u32::from(flags) | (u32::from(next) << 16))
}

/// A chain of (address, length, WRITE or 0) from descriptor 0 on.
pub fn chain(a: &mut CodeAssembler, queue: u32, parts: &[(u64, u32, u16)]) -> Asm {
    for (i, &(addr, len, flags)) in parts.iter().enumerate() {
        let more = if i + 1 < parts.len() { NEXT } else { 0 };
        descriptor(a, table(queue), i as u16, (addr, len), flags | more, i as u16 + 1)?;
    }
    Ok(())
}

/// Makes `head` the available entry number `nth` (from 0) and notifies.
pub fn offer(a: &mut CodeAssembler, device: u32, queue: u32, head: u16, nth: u16) -> Asm {
    guest::store16(a, avail(queue) + 4 + 2 * u32::from(nth % SIZE), head)?;
    guest::store16(a, avail(queue) + 2, nth.wrapping_add(1))?;
    write(a, device, QUEUE_NOTIFY, queue)
}

/// Prints `U` when the device has used `count` chains, `R` when it wants a reset, `T` when neither comes in time.
pub fn verdict(a: &mut CodeAssembler, device: u32, queue: u32, count: u16) -> Asm {
    let mut top = a.create_label();
    let (mut is_used, mut is_reset, mut show) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(ecx, 50_000u32)?;
    a.set_label(&mut top)?;
    guest::load32(a, window(device) + STATUS)?;
    a.test(eax, 0x40)?;
    a.jnz(is_reset)?;
    guest::load32(a, used(queue))?;
    a.shr(eax, 16)?;
    a.cmp(eax, u32::from(count))?;
    a.je(is_used)?;
    a.dec(ecx)?;
    a.jnz(top)?;
    a.mov(eax, u32::from(b'T'))?;
    a.jmp(show)?;
    a.set_label(&mut is_reset)?;
    a.mov(eax, u32::from(b'R'))?;
    a.jmp(show)?;
    a.set_label(&mut is_used)?;
    a.mov(eax, u32::from(b'U'))?;
    a.set_label(&mut show)?;
    guest::print_al(a)
}

/// Prints the byte at `addr` as a digit or, above 9, as what follows it in ASCII.
pub fn print_digit(a: &mut CodeAssembler, addr: u32) -> Asm {
    a.mov(edi, addr)?;
    a.movzx(eax, byte_ptr(edi))?;
    a.add(eax, u32::from(b'0'))?;
    guest::print_al(a)
}

/// Runs `body` `times` times. The body may use every register but ebp.
pub fn repeat(a: &mut CodeAssembler, times: u32, body: impl FnOnce(&mut CodeAssembler) -> Asm) -> Asm {
    let mut top = a.create_label();
    a.mov(ebp, times)?;
    a.set_label(&mut top)?;
    body(a)?;
    a.dec(ebp)?;
    a.jnz(top)
}

/// As [`repeat`], inside of one: uses esi.
pub fn repeat_inner(a: &mut CodeAssembler, times: u32, body: impl FnOnce(&mut CodeAssembler) -> Asm) -> Asm {
    let mut top = a.create_label();
    a.mov(esi, times)?;
    a.set_label(&mut top)?;
    body(a)?;
    a.dec(esi)?;
    a.jnz(top)
}
