//! Descriptor chains that no correct driver makes. Every one of them stops the device, none harms it.

use proptest::prelude::*;

use crate::memory::{GuestAddr, GuestMem, Segment};
use crate::queue::{Chain, Fault, QueueSetup, VirtQueue};
use crate::testing::*;
use crate::traits::EntropySource;

/// A queue of 16 with the rings where [`Driver`] has those of queue 0.
struct Rig {
    driver: Driver,
    queue: VirtQueue,
    chain: Chain,
}

struct Zero;
impl EntropySource for Zero {
    fn fill(&mut self, buf: &mut [u8]) -> std::io::Result<()> {
        buf.fill(0x5a);
        Ok(())
    }
}

const TABLE: u64 = 0x1_0000;

fn rig() -> Rig {
    let driver = Driver::new(Box::new(crate::Rng::new(Box::new(Zero))));
    let mut queue = VirtQueue::new(16).unwrap();
    let setup = QueueSetup {
        size: 16,
        desc: Driver::desc(0),
        avail: Driver::avail(0),
        used: Driver::used_ring(0),
        ready: true,
        ..Default::default()
    };
    queue.activate(0, &setup, false, &driver.mem).unwrap();
    Rig { driver, queue, chain: Chain::default() }
}

impl Rig {
    fn avail(&self, heads: &[u16], index: u16) {
        for (i, head) in heads.iter().enumerate() {
            self.driver.put(Driver::avail(0) + 4 + 2 * i as u64, &head.to_le_bytes());
        }
        self.driver.put(Driver::avail(0) + 2, &index.to_le_bytes());
    }

    fn pop(&mut self) -> Result<bool, Fault> {
        let mem: GuestMem = self.driver.mem.clone();
        self.queue.pop(&mem, &mut self.chain)
    }

    /// Offers the chain that starts at descriptor 0.
    fn pop_first(&mut self) -> Result<bool, Fault> {
        self.avail(&[0], 1);
        self.pop()
    }
}

#[test]
fn a_good_chain_is_collected() {
    let mut rig = rig();
    rig.driver.write_desc(TABLE, 0, BUF, 16, NEXT, 5);
    rig.driver.write_desc(TABLE, 5, BUF + 32, 8, NEXT | WRITE, 2);
    rig.driver.write_desc(TABLE, 2, BUF + 64, 1, WRITE, 0);
    assert_eq!(rig.pop_first(), Ok(true));
    assert_eq!(rig.chain.readable(), [Segment { addr: GuestAddr(BUF), len: 16 }]);
    assert_eq!(rig.chain.writable().len(), 2);
    assert_eq!(rig.pop(), Ok(false));
    rig.queue.unpop();
    assert_eq!(rig.pop(), Ok(true));
}

#[test]
fn loops_end() {
    let mut rig = rig();
    rig.driver.write_desc(TABLE, 0, BUF, 16, NEXT, 0);
    assert_eq!(rig.pop_first(), Err(Fault::BrokenChain));
    let mut rig = self::rig();
    for i in 0..16 {
        rig.driver.write_desc(TABLE, i, BUF, 1, NEXT, (i + 1) % 16);
    }
    assert_eq!(rig.pop_first(), Err(Fault::BrokenChain));
}

#[test]
fn indices_outside_the_table_are_refused() {
    for next in [16, 17, 0x7fff, 0xffff] {
        let mut rig = rig();
        rig.driver.write_desc(TABLE, 0, BUF, 16, NEXT, next);
        assert_eq!(rig.pop_first(), Err(Fault::BrokenChain));
        let mut rig = self::rig();
        rig.avail(&[next], 1);
        assert_eq!(rig.pop(), Err(Fault::BrokenChain));
    }
}

#[test]
fn the_available_index_may_not_jump() {
    for jump in [17, 0x8000, 0xffff] {
        let mut rig = rig();
        rig.avail(&[0], jump);
        assert_eq!(rig.pop(), Err(Fault::AvailIndex));
    }
}

#[test]
fn the_order_is_readable_before_writable() {
    let mut rig = rig();
    rig.driver.write_desc(TABLE, 0, BUF, 16, NEXT | WRITE, 1);
    rig.driver.write_desc(TABLE, 1, BUF, 16, 0, 0);
    assert_eq!(rig.pop_first(), Err(Fault::Misordered));
}

#[test]
fn lengths_that_sum_beyond_32_bits_are_refused() {
    let mut rig = rig();
    rig.driver.write_desc(TABLE, 0, BUF, u32::MAX, NEXT, 1);
    rig.driver.write_desc(TABLE, 1, BUF, 1, 0, 0);
    assert_eq!(rig.pop_first(), Err(Fault::BrokenChain));
}

#[test]
fn indirect_tables() {
    let table = BUF + 0x1000;
    // Good: three entries.
    let mut rig = rig();
    rig.driver.write_desc(TABLE, 0, table, 48, INDIRECT, 0);
    for i in 0..3 {
        rig.driver.write_desc(table, i, BUF, 4, if i < 2 { NEXT } else { 0 }, i + 1);
    }
    assert_eq!(rig.pop_first(), Ok(true));
    assert_eq!(rig.chain.readable().len(), 3);

    // Nested, of odd size, empty, huge, outside memory, looping, and longer than the queue.
    let broken: [(u64, u32, u16, u16, Fault); 7] = [
        (table, 16, INDIRECT, 0, Fault::BrokenChain),
        (table, 17, 0, 0, Fault::BrokenChain),
        (table, 0, 0, 0, Fault::BrokenChain),
        (table, 0xffff_fff0, 0, 0, Fault::BrokenChain),
        (u64::MAX - 8, 16, 0, 0, Fault::BrokenChain),
        (table, 16, NEXT, 0, Fault::BrokenChain),
        (table, 32 * 16, NEXT, 1, Fault::ChainTooLong),
    ];
    for (addr, len, flags, step, fault) in broken {
        let mut rig = self::rig();
        rig.driver.write_desc(TABLE, 0, addr, len, INDIRECT, 0);
        for i in 0..32 {
            rig.driver.write_desc(table, i, table, 16, flags, i + step);
        }
        assert_eq!(rig.pop_first(), Err(fault), "{addr:#x} {len} {flags}");
    }
}

#[test]
fn a_queue_that_is_not_live_is_left_alone() {
    let mut rig = rig();
    rig.queue.stop();
    rig.avail(&[0], 1);
    assert_eq!(rig.pop(), Ok(false));
    let mem = rig.driver.mem.clone();
    assert_eq!(rig.queue.push(&mem, 0, 0), Ok(()));
    assert_eq!(rig.driver.get(Driver::used_ring(0), 8), [0; 8]);
}

#[test]
fn rng_fills_in_part_and_never_outside() {
    let mut driver = Driver::started(Box::new(crate::Rng::new(Box::new(Zero))));
    driver.submit(0, &[(BUF, 10, WRITE), (BUF + 100, 10, WRITE)]);
    driver.submit(0, &[(BUF + 0x1000, 0x10_0000, WRITE)]);
    driver.submit(0, &[(BUF, 0, WRITE)]);
    driver.kick(0);
    assert_eq!(driver.used(0), [(0, 20), (2, 4096), (3, 0)]);
    assert_eq!(driver.get(BUF + 9, 2), [0x5a, 0]);
    driver.submit(0, &[(MEM as u64 - 8, 16, WRITE)]);
    driver.kick(0);
    assert!(driver.needs_reset());
    assert_eq!(driver.get(MEM as u64 - 8, 8), [0; 8]);
}

#[test]
fn rng_is_rate_limited() {
    let mut driver = Driver::started(Box::new(crate::Rng::new(Box::new(Zero))));
    for _ in 0..64 {
        driver.submit(0, &[(BUF, 4096, WRITE)]);
    }
    assert!(matches!(driver.kick(0), crate::Progress::After(_)));
    assert_eq!(driver.notify(0), crate::Action::Kick(7), "a limited device still hears its driver");
    assert!(matches!(driver.run(), crate::Progress::After(_)));
    let first = driver.used(0).len();
    assert!(first < 64, "{first}");
    std::thread::sleep(std::time::Duration::from_millis(110));
    driver.run();
    assert!(!driver.used(0).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Any descriptor table and any available ring: what comes out is bounded by the queue, or a fault.
    #[test]
    fn any_table(
        raw in proptest::collection::vec((any::<u64>(), any::<u32>(), 0u16..8, 0u16..20), 16),
        heads in proptest::collection::vec(0u16..20, 16),
        index: u16,
        near: bool,
    ) {
        let mut rig = rig();
        for (i, &(addr, len, flags, next)) in raw.iter().enumerate() {
            // Half of the cases point into memory, so that indirect tables are followed.
            let (addr, len) = if near { (TABLE + addr % 512, len % 300) } else { (addr, len) };
            rig.driver.write_desc(TABLE, i as u16, addr, len, flags, next);
        }
        rig.avail(&heads, if near { index % 17 } else { index });
        for _ in 0..17 {
            match rig.pop() {
                Ok(true) => prop_assert!(rig.chain.readable().len() + rig.chain.writable().len() <= 16),
                Ok(false) => break,
                Err(Fault::AvailIndex) => break,
                Err(_) => {}
            }
        }
        prop_assert!(matches!(rig.pop(), Ok(false) | Err(Fault::AvailIndex)));
    }
}
