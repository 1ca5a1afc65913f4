//! A qcow2 image with chosen damage, in a chain, under a guest's requests. Any answer is right but a panic, a hang, a
//! file that grows beyond what was written, or a byte changed below the top.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use casemate_fuzz::Input;
use casemate_storage::qcow2::{Header, NewImage, create};
use casemate_storage::{BlockBackend, ChainDisk, Format};
use libfuzzer_sys::fuzz_target;

const SIZE: u64 = 128 << 10;

fn file() -> File {
    tempfile::tempfile_in("/dev/shm").expect("a file in memory")
}

/// An image with data, zeroes and holes in it.
fn image(bits: u32, version: u32, order: u32, backing: Option<(&str, &str)>) -> File {
    let top = file();
    let order = if version == 2 { 4 } else { order };
    create(&top, &NewImage { size: SIZE, cluster_bits: bits, version, refcount_order: order, backing })
        .expect("create");
    top
}

fn damage(file: &File, input: &mut Input<'_>) {
    for _ in 0..input.u8() % 24 {
        // Mostly in the header and the tables, which are the first clusters.
        let at = match input.u8() {
            0..100 => u64::from(input.u8()) % 112,
            100..200 => u64::from(input.u16()) % 8192 & !7,
            _ => u64::from(input.u16()),
        };
        match input.u8() % 3 {
            0 => file.write_all_at(input.bytes(8), at).expect("write"),
            1 => file.write_all_at(&[input.u8()], at).expect("write"),
            _ => {
                // An entry that looks right: a few flags, and a cluster nearby.
                let flags = u64::from(input.u8() & 7) << 61 | u64::from(input.u8() & 1);
                let entry = flags | u64::from(input.u16()) << 9;
                file.write_all_at(&entry.to_be_bytes(), at & !7).expect("write");
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let kind = input.u8();
    if kind == 0 {
        let _ = Header::parse(input.0);
        return;
    }
    let (bits, version, order) = (9 + u32::from(input.u8() % 4), 2 + u32::from(kind & 1), u32::from(input.u8() % 7));
    let (top, middle, base) =
        (image(bits, version, order, Some(("m", "qcow2"))), image(9, 3, 4, Some(("b", "raw"))), file());
    base.write_all_at(&[0x5a; 4096], 0).expect("write");
    let chain = || -> Vec<(File, Format)> {
        let clone = |file: &File| file.try_clone().expect("clone");
        vec![(clone(&top), Format::Qcow2), (clone(&middle), Format::Qcow2), (clone(&base), Format::Raw)]
    };
    let mut sound = ChainDisk::open(chain(), false).expect("a sound image opens");
    sound.write_at(4096, &[1; 6144]).expect("write");
    sound.close().expect("close");
    drop(sound);
    damage(&top, &mut input);
    damage(&middle, &mut input);
    let below = middle.metadata().expect("stat").len();
    let Ok(mut disk) = ChainDisk::open(chain(), false) else { return };
    let mut buf = vec![0; 32 << 10];
    let mut written = 0;
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        let (op, at, len) = (input.u8(), u64::from(input.u8()) * 512, usize::from(input.u8() % 64) * 512);
        let _ = match op % 6 {
            0 | 1 => {
                written += len + (64 << 10);
                disk.write_at(at, &buf[..len])
            }
            2 => disk.write_zeroes(at, len as u64, op > 100),
            3 => disk.discard(at, len as u64),
            4 => disk.flush(),
            _ => disk.read_at(at, &mut buf[..len]),
        };
    }
    let _ = disk.close();
    let grown = top.metadata().expect("stat").len();
    assert!(grown < (8 << 20) + 4 * written as u64, "the image grew to {grown}");
    assert_eq!(middle.metadata().expect("stat").len(), below);
});
