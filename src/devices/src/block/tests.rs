//! virtio-blk between a hostile driver and a disk that fails.

use std::io;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::testing::*;

const SECTORS: usize = 64;

/// What happened to a disk in memory.
#[derive(Default)]
struct Store {
    bytes: Vec<u8>,
    flushes: u32,
    changes: u32,
    broken: bool,
}

#[derive(Clone)]
struct MemDisk {
    store: Arc<Mutex<Store>>,
    read_only: bool,
}

impl MemDisk {
    fn new(read_only: bool) -> Self {
        let bytes = (0..SECTORS * 512).map(|i| (i / 512) as u8).collect();
        Self { store: Arc::new(Mutex::new(Store { bytes, ..Default::default() })), read_only }
    }

    fn with<R>(&self, f: impl FnOnce(&mut Store) -> R) -> R {
        f(&mut self.store.lock().unwrap())
    }

    fn change(&self, f: impl FnOnce(&mut Store)) -> io::Result<()> {
        // The device must never ask a read-only disk.
        assert!(!self.read_only);
        self.with(|s| {
            if s.broken {
                return Err(io::ErrorKind::StorageFull.into());
            }
            s.changes += 1;
            f(s);
            Ok(())
        })
    }
}

impl BlockBackend for MemDisk {
    fn size(&self) -> u64 {
        (SECTORS * 512) as u64
    }
    fn is_read_only(&self) -> bool {
        self.read_only
    }
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.with(|s| {
            let from = s.bytes.get(offset as usize..offset as usize + buf.len()).filter(|_| !s.broken);
            buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }
    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.change(|s| s.bytes[offset as usize..][..buf.len()].copy_from_slice(buf))
    }
    fn flush(&mut self) -> io::Result<()> {
        self.with(|s| s.flushes += 1);
        Ok(())
    }
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.change(|s| s.bytes[offset as usize..][..len as usize].fill(0xdd))
    }
    fn write_zeroes(&mut self, offset: u64, len: u64, _unmap: bool) -> io::Result<()> {
        self.change(|s| s.bytes[offset as usize..][..len as usize].fill(0))
    }
}

const HEADER_AT: u64 = BUF;
const DATA_AT: u64 = BUF + 0x1000;
const STATUS_AT: u64 = BUF + 0xff000;

struct Rig {
    driver: Driver,
    disk: MemDisk,
}

fn rig(read_only: bool) -> Rig {
    let disk = MemDisk::new(read_only);
    let driver = Driver::started(Box::new(Block::new(Box::new(disk.clone()), "root")));
    Rig { driver, disk }
}

impl Rig {
    /// One request with `len` bytes of data; answers (status, used length).
    fn request(&mut self, kind: u32, sector: u64, len: u32, data_flags: u16) -> (u8, u32) {
        self.header(kind, sector);
        let data = (DATA_AT, len, data_flags);
        self.chain(&[(HEADER_AT, 16, 0), data, (STATUS_AT, 1, WRITE)])
    }

    fn header(&self, kind: u32, sector: u64) {
        self.driver.put(HEADER_AT, &kind.to_le_bytes());
        self.driver.put(HEADER_AT + 8, &sector.to_le_bytes());
    }

    fn chain(&mut self, parts: &[(u64, u32, u16)]) -> (u8, u32) {
        self.driver.put(STATUS_AT, &[0xee]);
        self.driver.submit(0, parts);
        self.driver.kick(0);
        assert!(!self.driver.needs_reset());
        let used = self.driver.used(0);
        (self.driver.get(STATUS_AT, 1)[0], used[0].1)
    }

    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        self.driver.put(DATA_AT, &sector.to_le_bytes());
        self.driver.put(DATA_AT + 8, &sectors.to_le_bytes());
        self.driver.put(DATA_AT + 12, &flags.to_le_bytes());
        self.request(kind, 0, 16, 0).0
    }
}

#[test]
fn reads_writes_flushes_and_names_itself() {
    let mut rig = rig(false);
    assert_eq!(rig.request(0, 3, 1024, WRITE), (0, 1025));
    assert_eq!(rig.driver.get(DATA_AT, 1024), [[3; 512], [4; 512]].concat());
    rig.driver.put(DATA_AT, &[9; 512]);
    assert_eq!(rig.request(1, 5, 512, 0), (0, 1));
    assert_eq!(rig.disk.with(|s| s.bytes[5 * 512..6 * 512].to_vec()), [9; 512]);
    assert_eq!(rig.disk.with(|s| s.flushes), 0);
    assert_eq!(rig.request(4, 0, 0, 0), (0, 1));
    assert_eq!(rig.disk.with(|s| s.flushes), 1);
    assert_eq!(rig.request(8, 0, 20, WRITE), (0, 21));
    assert_eq!(rig.driver.get(DATA_AT, 5), b"root\0");
    assert_eq!(rig.driver.r(0x100), SECTORS as u32);
}

#[test]
fn scattered_requests() {
    let mut rig = rig(false);
    rig.header(0, 1);
    // Header in three pieces, data in two uneven ones, the status at the end of the last.
    let parts = [
        (HEADER_AT, 3, 0),
        (HEADER_AT + 3, 0, 0),
        (HEADER_AT + 3, 13, 0),
        (DATA_AT, 100, WRITE),
        (DATA_AT + 100, 413, WRITE),
    ];
    rig.chain(&parts);
    assert_eq!(rig.driver.get(DATA_AT, 513), [&[1; 512][..], &[0]].concat());
}

#[test]
fn impossible_requests_are_answered_with_an_error() {
    let mut rig = rig(false);
    let io_errors = [
        (0, 0, 511, WRITE),
        (0, SECTORS as u64, 512, WRITE),
        (0, SECTORS as u64 - 1, 1024, WRITE),
        (0, u64::MAX, 512, WRITE),
        (0, u64::MAX / 512, 512, WRITE),
        (1, SECTORS as u64, 512, 0),
        (1, 1 << 55, 512, 0),
        (1, 0, 513, 0),
        (8, 0, 19, WRITE),
        (11, 0, 15, 0),
        (11, 0, 0, 0),
        (13, 0, 17 * 16, 0),
    ];
    for (kind, sector, len, flags) in io_errors {
        assert_eq!(rig.request(kind, sector, len, flags).0, 1, "{kind} {sector} {len}");
    }
    for kind in [2, 3, 5, 10, 14, u32::MAX] {
        assert_eq!(rig.request(kind, 0, 512, WRITE).0, 2, "{kind}");
    }
    assert_eq!(rig.disk.with(|s| s.changes), 0);
}

#[test]
fn discard_and_zeroes_check_every_range_first() {
    let mut rig = rig(false);
    assert_eq!(rig.range(11, 2, 2, 0), 0);
    assert_eq!(rig.disk.with(|s| s.bytes[2 * 512]), 0xdd);
    assert_eq!(rig.range(13, 2, 1, 1), 0);
    assert_eq!(rig.disk.with(|s| s.bytes[2 * 512]), 0);
    assert_eq!(rig.range(11, 0, 1, 1), 2, "discard has no unmap flag");
    assert_eq!(rig.range(13, 0, 1, 2), 2);
    assert_eq!(rig.range(13, SECTORS as u64 - 1, 2, 0), 1);
    assert_eq!(rig.range(11, 0, u32::MAX, 0), 1);
    assert_eq!(rig.range(11, u64::MAX, 1, 0), 1);
    let before = rig.disk.with(|s| s.changes);
    // A good range followed by a bad one changes nothing.
    rig.driver.put(DATA_AT + 16, &u64::MAX.to_le_bytes());
    rig.driver.put(DATA_AT, &[0; 16]);
    rig.driver.put(DATA_AT + 8, &[1]);
    assert_eq!(rig.request(11, 0, 32, 0).0, 1);
    assert_eq!(rig.disk.with(|s| s.changes), before);
}

#[test]
fn a_read_only_disk_is_never_asked_to_change() {
    let mut rig = rig(true);
    assert_eq!(rig.request(1, 0, 512, 0).0, 1);
    assert_eq!(rig.range(11, 0, 1, 0), 1);
    assert_eq!(rig.range(13, 0, 1, 0), 1);
    assert_eq!(rig.request(0, 0, 512, WRITE).0, 0);
    assert_ne!(rig.driver.offered() & (1 << 5), 0);
    assert_eq!(rig.driver.offered() & (1 << 13 | 1 << 14), 0);
}

#[test]
fn a_failing_disk_is_an_error_for_the_guest() {
    let mut rig = rig(false);
    rig.disk.with(|s| s.broken = true);
    assert_eq!(rig.request(0, 0, 512, WRITE).0, 1);
    assert_eq!(rig.request(1, 0, 512, 0).0, 1);
    // An image that became shorter.
    rig.disk.with(|s| {
        s.broken = false;
        s.bytes.truncate(512);
    });
    assert_eq!(rig.request(0, 10, 512, WRITE).0, 1);
    assert_eq!(rig.request(0, 0, 512, WRITE).0, 0);
}

#[test]
fn without_flush_every_write_is_stable() {
    let disk = MemDisk::new(false);
    let mut driver = Driver::new(Box::new(Block::new(Box::new(disk.clone()), "")));
    driver.start(!(EVENT_IDX | F_FLUSH));
    let mut rig = Rig { driver, disk };
    assert_eq!(rig.request(1, 0, 512, 0).0, 0);
    assert_eq!(rig.disk.with(|s| s.flushes), 1);
}

#[test]
fn broken_layouts_stop_the_device() {
    let layouts: [&[(u64, u32, u16)]; 8] = [
        &[(HEADER_AT, 15, 0), (STATUS_AT, 1, WRITE)],
        &[(HEADER_AT, 16, 0)],
        &[(HEADER_AT, 16, 0), (STATUS_AT, 0, WRITE)],
        &[(STATUS_AT, 1, WRITE)],
        &[(STATUS_AT, 1, WRITE), (HEADER_AT, 16, 0)],
        &[(HEADER_AT, 16, 0), (MEM as u64 - 256, 512, WRITE), (STATUS_AT, 1, WRITE)],
        &[(HEADER_AT, 16, 0), (DATA_AT, 512, WRITE), (MEM as u64, 1, WRITE)],
        &[(MEM as u64 - 8, 16, 0), (STATUS_AT, 1, WRITE)],
    ];
    for layout in layouts {
        let mut rig = rig(false);
        rig.header(0, 0);
        rig.driver.submit(0, layout);
        rig.driver.kick(0);
        assert!(rig.driver.needs_reset(), "{layout:?}");
        assert!(rig.driver.used(0).is_empty());
    }
}

#[test]
fn one_request_cannot_hold_the_thread_for_long() {
    let mut rig = rig(false);
    rig.header(0, 0);
    // 33 MiB in one request: more than a compliant driver can ask for.
    let mut parts = vec![(HEADER_AT, 16, 0)];
    parts.extend([(DATA_AT, 0x10_0000 / 4, WRITE); 132]);
    parts.push((STATUS_AT, 1, WRITE));
    assert_eq!(rig.chain(&parts).0, 1);
}

#[test]
fn a_full_queue_is_worked_off_in_turns() {
    let mut rig = rig(false);
    rig.header(0, 0);
    for _ in 0..85 {
        rig.driver.submit(0, &[(HEADER_AT, 16, 0), (DATA_AT, SECTORS as u32 * 512, WRITE), (STATUS_AT, 1, WRITE)]);
    }
    let _ = rig.driver.notify(0);
    rig.driver.run();
    assert_eq!(rig.driver.used(0).len(), 85);
}

#[test]
fn a_disk_of_another_size_does_not_take_the_state() {
    let rig = rig(false);
    let state = rig.driver.dev.save();
    let mut read_only = Block::new(Box::new(MemDisk::new(true)), "");
    assert!(read_only.restore(&state.device).is_err());
    let mut same = Block::new(Box::new(MemDisk::new(false)), "");
    same.restore(&state.device).unwrap();
    assert_eq!(same.id[..4], *b"root");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Any header, any layout: no panic, no write outside the disk, and an answer or a stopped device.
    #[test]
    fn any_request(
        kind in prop_oneof![0u32..16, any::<u32>()],
        sector in prop_oneof![0u64..70, any::<u64>()],
        data: [u8; 32],
        parts in proptest::collection::vec(
            (prop_oneof![Just(HEADER_AT), Just(DATA_AT), BUF..MEM as u64 + 64, any::<u64>()],
             prop_oneof![Just(16u32), Just(1), (0u32..5).prop_map(|n| n * 512), any::<u32>()],
             0u16..2),
            1..8),
        sorted: bool,
    ) {
        let mut rig = rig(false);
        rig.header(kind, sector);
        rig.driver.put(DATA_AT, &data);
        let mut parts: Vec<_> = parts.into_iter().map(|(a, l, w)| (a, l, w * WRITE)).collect();
        if sorted {
            parts.sort_by_key(|p| p.2);
        }
        rig.driver.submit(0, &parts);
        rig.driver.kick(0);
        let answered = rig.driver.used(0).len();
        prop_assert_eq!(answered == 0, rig.driver.needs_reset());
        prop_assert_eq!(rig.disk.with(|s| s.bytes.len()), SECTORS * 512);
    }
}
