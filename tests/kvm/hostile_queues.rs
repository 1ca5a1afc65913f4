//! Guests whose virtqueues are wrong, for every virtio device: it stops with DEVICE_NEEDS_RESET, the runner lives, and
//! after a reset the device serves again. `R`: wants a reset; `U`: used the chain; see `casemate_tests::virtio`.

use casemate_tests::guest::{self, Asm, DATA_ADDR};
use casemate_tests::virtio::{self, BUFFERS, INDIRECT, NEXT, WRITE};
use casemate_vm::layout;
use iced_x86::code_asm::CodeAssembler;
use libtest_mimic::{Failed, Trial};

use crate::hostile::{self, CONSOLE, DEVICES, DISK, RNG, VSOCK};

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(format!("hostile_queues::{name}"), run);
    vec![
        trial("loops", || everywhere(|a, q| virtio::descriptor(a, virtio::table(q), 0, BUF, NEXT, 0))),
        trial("next_outside_the_table", || {
            everywhere(|a, q| virtio::descriptor(a, virtio::table(q), 0, BUF, NEXT, 16))
        }),
        trial("over_the_edge_of_memory", over_the_edge_of_memory),
        trial("nested_indirect_tables", || everywhere(nested_indirect)),
        trial("the_available_index_jumps", the_available_index_jumps),
        trial("heads_outside_the_table", heads_outside_the_table),
        trial("rings_where_no_memory_is", rings_where_no_memory_is),
        trial("queues_change_after_driver_ok", queues_change_after_driver_ok),
        trial("reset_during_io", reset_during_io),
        trial("a_stopped_device_serves_again_after_a_reset", serves_again),
        trial("registers_of_every_width", registers_of_every_width),
    ]
}

const BUF: (u64, u32) = (BUFFERS as u64, 512);
const MEMORY: u64 = 4 << 20;

/// The queue that the driver fills with requests, for each device.
fn busy_queue(device: u32) -> u32 {
    if device == VSOCK || device == CONSOLE { 1 } else { 0 }
}

/// A chain that each device accepts, at descriptor 0.
fn good_chain(a: &mut CodeAssembler, device: u32) -> Asm {
    let (at, queue) = (u64::from(BUFFERS), busy_queue(device));
    match device {
        DISK => {
            // T_IN of sector 1
            guest::store64(a, BUFFERS, 0)?;
            guest::store64(a, BUFFERS + 8, 1)?;
            virtio::chain(a, queue, &[(at, 16, 0), (at + 0x1000, 512, WRITE), (at + 0x2000, 1, WRITE)])
        }
        RNG => virtio::chain(a, queue, &[(at, 16, WRITE)]),
        // A packet of zeroes is ignored by vsock, and a console prints it.
        _ => virtio::chain(a, queue, &[(at, 44, 0)]),
    }
}

/// For each device: a queue with `bad` as descriptor 0, offered; the device must want a reset.
fn everywhere(bad: fn(&mut CodeAssembler, u32) -> Asm) -> Result<(), Failed> {
    hostile::shows("RRRR", |a| {
        for (device, queues) in DEVICES {
            let queue = busy_queue(device);
            virtio::start(a, device, queues)?;
            bad(a, queue)?;
            virtio::offer(a, device, queue, 0, 0)?;
            virtio::verdict(a, device, queue, 1)?;
            virtio::write(a, device, virtio::STATUS, 0)?;
        }
        Ok(())
    })
}

fn over_the_edge_of_memory() -> Result<(), Failed> {
    // Across the end of RAM, past it, in the window of a device, at the end of the address space; read and written.
    for (addr, len) in
        [(MEMORY - 32, 64), (MEMORY, 64), (layout::VIRTIO_MMIO, 64), (u64::MAX - 15, 64), (1 << 52, 4096)]
    {
        hostile::shows("RRRR", |a| {
            for (device, queues) in DEVICES {
                let queue = busy_queue(device);
                virtio::start(a, device, queues)?;
                good_chain(a, device)?;
                let (index, flags) = match device {
                    // The data of a read request; its status stays where it was.
                    DISK => (1, WRITE | NEXT),
                    RNG => (0, WRITE),
                    _ => (0, 0),
                };
                let len = if device == DISK { 512 } else { len };
                virtio::descriptor(a, virtio::table(queue), index, (addr, len), flags, index + 1)?;
                virtio::offer(a, device, queue, 0, 0)?;
                virtio::verdict(a, device, queue, 1)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn nested_indirect(a: &mut CodeAssembler, queue: u32) -> Asm {
    virtio::descriptor(a, virtio::table(queue), 0, (BUFFERS.into(), 16), INDIRECT, 0)?;
    virtio::descriptor(a, BUFFERS, 0, (BUFFERS.into(), 16), INDIRECT, 0)
}

fn the_available_index_jumps() -> Result<(), Failed> {
    hostile::shows("RRRR", |a| {
        for (device, queues) in DEVICES {
            let queue = busy_queue(device);
            virtio::start(a, device, queues)?;
            good_chain(a, device)?;
            virtio::offer(a, device, queue, 0, 0x7fff)?;
            virtio::verdict(a, device, queue, 1)?;
        }
        Ok(())
    })
}

fn heads_outside_the_table() -> Result<(), Failed> {
    hostile::shows("RRRR", |a| {
        for (device, queues) in DEVICES {
            let queue = busy_queue(device);
            virtio::start(a, device, queues)?;
            virtio::offer(a, device, queue, 0xffff, 0)?;
            virtio::verdict(a, device, queue, 1)?;
        }
        Ok(())
    })
}

fn rings_where_no_memory_is() -> Result<(), Failed> {
    let good = [virtio::table(0), virtio::avail(0), virtio::used(0)].map(u64::from);
    let hole = layout::VIRTIO_MMIO;
    let bad = [
        (0u32, good),
        (3, good),
        (1 << 15, good),
        (u32::MAX, good),
        (16, [hole, good[1], good[2]]),
        (16, [good[0], hole, good[2]]),
        (16, [good[0], good[1], hole]),
        (16, [MEMORY - 16, good[1], good[2]]),
        (16, [good[0], MEMORY - 2, good[2]]),
        (16, [good[0], good[1], MEMORY - 4]),
        (16, [!15, good[1], good[2]]),
        (16, [good[0] + 1, good[1], good[2]]),
        (16, [good[0], good[1] + 1, good[2]]),
        (16, [good[0], good[1], good[2] + 2]),
    ];
    hostile::shows(&"R".repeat(DEVICES.len() * bad.len()), |a| {
        for (device, _) in DEVICES {
            for (size, rings) in bad {
                virtio::negotiate(a, device)?;
                virtio::place(a, device, 0, size, rings)?;
                virtio::write(a, device, virtio::STATUS, 15)?;
                virtio::write(a, device, virtio::QUEUE_NOTIFY, 0)?;
                virtio::verdict(a, device, 0, 1)?;
            }
        }
        Ok(())
    })
}

fn queues_change_after_driver_ok() -> Result<(), Failed> {
    hostile::shows("UUUU", |a| {
        for (device, queues) in DEVICES {
            let queue = busy_queue(device);
            virtio::start(a, device, queues)?;
            // Larger, elsewhere, off and on: nothing of it may hold.
            virtio::place(a, device, queue, 1 << 15, [layout::VIRTIO_MMIO; 3])?;
            virtio::write(a, device, virtio::QUEUE_READY, 0)?;
            virtio::place(a, device, queue, 0, [u64::MAX; 3])?;
            good_chain(a, device)?;
            virtio::offer(a, device, queue, 0, 0)?;
            virtio::verdict(a, device, queue, 1)?;
        }
        Ok(())
    })
}

fn reset_during_io() -> Result<(), Failed> {
    hostile::shows("UUUU", |a| {
        for (device, queues) in DEVICES {
            let queue = busy_queue(device);
            virtio::repeat(a, 200, |a| {
                virtio::start(a, device, queues)?;
                good_chain(a, device)?;
                for nth in 0..8 {
                    virtio::offer(a, device, queue, 0, nth)?;
                }
                virtio::write(a, device, virtio::STATUS, 0)
            })?;
            virtio::start(a, device, queues)?;
            good_chain(a, device)?;
            virtio::offer(a, device, queue, 0, 0)?;
            virtio::verdict(a, device, queue, 1)?;
        }
        Ok(())
    })
}

fn serves_again() -> Result<(), Failed> {
    hostile::shows("RURURURU", |a| {
        for (device, queues) in DEVICES {
            let queue = busy_queue(device);
            virtio::start(a, device, queues)?;
            virtio::descriptor(a, virtio::table(queue), 0, BUF, NEXT, 0)?;
            virtio::offer(a, device, queue, 0, 0)?;
            virtio::verdict(a, device, queue, 1)?;
            virtio::start(a, device, queues)?;
            good_chain(a, device)?;
            virtio::offer(a, device, queue, 0, 0)?;
            virtio::verdict(a, device, queue, 1)?;
        }
        Ok(())
    })
}

fn registers_of_every_width() -> Result<(), Failed> {
    use iced_x86::code_asm::*;
    hostile::shows("ok", |a| {
        for (device, _) in DEVICES {
            let window = virtio::window(device);
            // Every 4 bytes of the window, its configuration space included, at every alignment.
            a.mov(esi, window)?;
            virtio::repeat(a, 0x3ff, |a| {
                a.mov(eax, dword_ptr(esi + 1))?;
                a.mov(al, byte_ptr(esi + 3))?;
                a.mov(word_ptr(esi + 2), 0xffffu32)?;
                a.mov(byte_ptr(esi), 0xffu32)?;
                a.mov(dword_ptr(esi), 0xffff_ffffu32)?;
                a.add(esi, 4)
            })?;
        }
        a.mov(eax, dword_ptr(DATA_ADDR))?;
        guest::print(a, b"ok")
    })
}
