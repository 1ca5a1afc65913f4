//! The register file against drivers that do not keep to the order.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use crate::console::Console;
use crate::testing::*;
use crate::traits::{Action, Progress};

fn console() -> (Box<Console>, Sink) {
    let sink = Sink::default();
    (Box::new(Console::new(Box::new(sink.clone()), None).unwrap()), sink)
}

fn floods() -> Vec<Vec<(u64, u32, u16)>> {
    vec![
        vec![(0, MEM as u32, 0)],
        vec![(BUF, 0, 0)],
        vec![(0, MEM as u32, 0); 30],
        vec![(BUF, 10, WRITE)],
        vec![(BUF, 4096, 0), (BUF, 4096, WRITE)],
    ]
}

#[test]
fn a_console_flood_is_cut_and_shared_out() {
    for parts in floods() {
        let (mut driver, sink) = started();
        let mut turns = 0;
        let mut answered = 0;
        for _ in 0..20 {
            for _ in 0..2 {
                driver.submit(1, &parts);
            }
            let _ = driver.notify(1);
            while driver.dev.process() == Progress::More {
                turns += 1;
            }
            answered += driver.used(1).len();
        }
        assert_eq!(answered, 40);
        // 64 KiB of each request, four of them a turn.
        assert!(sink.0.lock().unwrap().len() <= 40 * 65536, "{parts:?}");
        assert!(turns <= 40);
    }
}

#[test]
fn console_input_waits_for_buffers() {
    let input = PipeStream::new(b"typed ahead");
    let stream = PipeEnd(input.clone());
    let console = Console::new(Box::new(Sink::default()), Some(Box::new(stream))).unwrap();
    let mut driver = Driver::started(Box::new(console));
    assert_eq!(driver.used(0), []);
    driver.submit(0, &[(BUF, 5, WRITE)]);
    driver.submit(0, &[(BUF + 100, 0, WRITE)]);
    driver.submit(0, &[(BUF + 200, 3, WRITE), (BUF + 300, 100, WRITE)]);
    driver.submit(0, &[(BUF + 500, 10, WRITE)]);
    driver.kick(0);
    assert_eq!(driver.used(0), [(0, 5), (1, 0), (2, 6)]);
    assert_eq!([driver.get(BUF, 5), driver.get(BUF + 200, 3), driver.get(BUF + 300, 3)].concat(), b"typed ahead");
    input.with(|p| p.input.extend(b"!"));
    let _ = driver.dev.host_event(0, crate::Readiness::ALL);
    assert_eq!(driver.used(0), [(4, 1)]);
    driver.submit(0, &[(BUF + 500, 10, WRITE)]);
    input.with(|p| p.input_closed = true);
    let _ = driver.dev.host_event(0, crate::Readiness::ALL);
    assert!(driver.used(0).is_empty() && input.with(|p| p.dropped));
}

fn started() -> (Driver, Sink) {
    let (console, sink) = console();
    (Driver::started(console), sink)
}

fn print(driver: &mut Driver, text: &[u8]) {
    driver.put(BUF, text);
    driver.submit(1, &[(BUF, text.len() as u32, 0)]);
    driver.kick(1);
}

#[test]
fn identity_registers() {
    let driver = Driver::new(console().0);
    assert_eq!([driver.r(0), driver.r(4), driver.r(8)], [0x7472_6976, 2, 3]);
    assert_eq!(driver.r(0xb0), u32::MAX);
    // Other widths and odd offsets do not reach a register.
    let mut byte = [0xaa];
    driver.dev.read(0, &mut byte);
    assert_eq!(byte, [0]);
    assert_eq!(driver.r(2), 0);
    assert_eq!(driver.dev.write(0x70, &[1]), Action::None);
    assert_eq!(driver.r(0x70), 0);
}

#[test]
fn a_correct_driver_is_served() {
    for mask in [!EVENT_IDX, u64::MAX] {
        let (console, sink) = console();
        let mut driver = Driver::new(console);
        driver.start(mask);
        print(&mut driver, b"hello");
        assert_eq!(*sink.0.lock().unwrap(), b"hello");
        assert_eq!(driver.used(1), [(0, 0)]);
        assert_eq!(driver.irqs.load(std::sync::atomic::Ordering::SeqCst), 1);
        assert_eq!(driver.r(0x60), 1);
        let _ = driver.w(0x64, 1);
        assert_eq!(driver.r(0x60), 0);
    }
}

#[test]
fn status_moves_one_step_at_a_time() {
    let driver = Driver::new(console().0);
    for skipped in [2, 4, 8, 15, 10, 64] {
        let _ = driver.w(0x70, skipped);
        assert_eq!(driver.r(0x70), 0, "{skipped}");
    }
    let _ = driver.w(0x70, 1);
    let _ = driver.w(0x70, 3);
    let _ = driver.w(0x70, 15);
    assert_eq!(driver.r(0x70), 3);
    let _ = driver.w(0x70, 1);
    assert_eq!(driver.r(0x70), 3, "no way back but reset");
    let _ = driver.w(0x70, 128);
    let _ = driver.w(0x70, 11);
    assert_eq!(driver.r(0x70), 131);
    let _ = driver.w(0x70, 0);
    assert_eq!(driver.r(0x70), 0);
}

#[test]
fn features_must_be_offered_and_modern() {
    let driver = Driver::new(console().0);
    let offered = driver.offered();
    for wanted in [0, offered & 0xffff_ffff, offered | 1, offered | 1 << 63, u64::MAX] {
        driver.negotiate(wanted);
        assert_eq!(driver.r(0x70) & 8, 0, "{wanted:#x}");
    }
    driver.negotiate(offered);
    assert_eq!(driver.r(0x70), 11);
    // Too late to change one's mind.
    let _ = driver.w(0x24, 0);
    let _ = driver.w(0x20, 1);
    let _ = driver.w(0x70, 15);
    assert_eq!(driver.r(0x70), 15);
}

#[test]
fn bits_beyond_64_are_not_accepted_in_silence() {
    let driver = Driver::new(console().0);
    let _ = driver.w(0x70, 1);
    let _ = driver.w(0x70, 3);
    let _ = driver.w(0x24, 2);
    let _ = driver.w(0x20, 1);
    assert_ne!(driver.r(0x70) & 128, 0);
}

#[test]
fn queues_do_not_change_after_driver_ok() {
    let (mut driver, sink) = started();
    let _ = driver.w(0x30, 1);
    for (register, value) in [(0x38, 0xffff), (0x80, 0xffff_0000), (0x94, 0xffff), (0xa4, 1), (0x44, 0)] {
        let _ = driver.w(register, value);
    }
    assert_eq!(driver.r(0x44), 1);
    print(&mut driver, b"same queue");
    assert_eq!(*sink.0.lock().unwrap(), b"same queue");
}

#[test]
fn queues_do_not_change_while_ready_or_before_features() {
    let driver = Driver::new(console().0);
    let _ = driver.w(0x44, 1);
    assert_eq!(driver.r(0x44), 0);
    driver.negotiate(driver.offered());
    driver.set_up_queue(0);
    let _ = driver.w(0x38, 1 << 20);
    let _ = driver.w(0x30, 1);
    driver.set_up_queue(1);
    assert_eq!(driver.w(0x70, 15), Action::Kick(7));
    assert!(!driver.needs_reset());
}

#[test]
fn impossible_queues_stop_the_device() {
    // (register, value) applied to an otherwise good queue 1
    for (register, value) in [
        (0x38, 0),
        (0x38, 3),
        (0x38, 128),
        (0x38, u32::MAX),
        (0x80, 8),
        (0x80, MEM as u32 - 16),
        (0x84, u32::MAX),
        (0x90, 1),
        (0x90, MEM as u32 - 8),
        (0xa0, 2),
        (0xa0, MEM as u32 - 8),
        (0xa4, 1),
    ] {
        let driver = Driver::new(console().0);
        driver.negotiate(driver.offered());
        driver.set_up_queue(0);
        driver.set_up_queue(1);
        let _ = driver.w(0x44, 0);
        let _ = driver.w(register, value);
        let _ = driver.w(0x44, 1);
        assert_eq!(driver.w(0x70, 15), Action::None, "{register:#x}={value:#x}");
        assert!(driver.needs_reset(), "{register:#x}={value:#x}");
        assert_eq!(driver.r(0x60), 2, "the driver is told");
        assert_eq!(driver.notify(1), Action::None);
        let _ = driver.w(0x70, 0);
        assert!(!driver.needs_reset());
    }
}

#[test]
fn a_device_can_be_used_again_after_a_fault_and_a_reset() {
    let (mut driver, sink) = started();
    driver.write_desc(Driver::desc(1), 0, BUF, 1, NEXT, 0);
    driver.offer(1, 0);
    driver.kick(1);
    assert!(driver.needs_reset());
    assert!(driver.dev.take_fault().is_some());
    assert!(driver.dev.take_fault().is_none());
    driver.start(u64::MAX);
    print(&mut driver, b"again");
    assert_eq!(*sink.0.lock().unwrap(), b"again");
}

#[test]
fn a_notify_storm_wakes_the_io_thread_once() {
    let (driver, _) = started();
    assert_eq!(driver.notify(1), Action::Kick(7));
    for queue in 0..1000 {
        assert_eq!(driver.notify(queue % 5), Action::None);
    }
    assert_eq!(driver.run(), Progress::Idle);
    assert_eq!(driver.notify(2), Action::None, "no such queue");
    assert_eq!(driver.w(0x50, u32::MAX), Action::None);
    assert_eq!(driver.notify(0), Action::Kick(7));
}

#[test]
fn a_reset_during_work_waits_and_leaves_nothing() {
    let (mut driver, sink) = started();
    for round in 0..200 {
        print(&mut driver, b"x");
        let dev = std::sync::Arc::clone(&driver.dev);
        let worker = std::thread::spawn(move || while dev.process() != Progress::Idle {});
        let _ = driver.w(0x70, 0);
        let before = driver.get(Driver::used_ring(1), 4);
        worker.join().unwrap();
        assert_eq!(driver.get(Driver::used_ring(1), 4), before, "no write after reset, round {round}");
        assert_eq!(driver.r(0x60), 0);
        driver.start(u64::MAX);
    }
    assert!(!sink.0.lock().unwrap().is_empty());
}

#[test]
fn state_comes_back() {
    let (mut driver, _) = started();
    print(&mut driver, b"before");
    let state = driver.dev.save();
    let (console, sink) = console();
    let copy = crate::VirtioMmio::new(7, console, driver.mem.clone(), Box::new(CountingLine::default())).unwrap();
    copy.restore(&state).unwrap();
    assert_eq!(copy.save(), state);
    driver.dev = std::sync::Arc::new(copy);
    print(&mut driver, b"after");
    assert_eq!(*sink.0.lock().unwrap(), b"after");
    assert_eq!(driver.used(1).len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// Any sequence of register accesses and any ring contents: no panic, no endless work, nothing outside memory.
    #[test]
    fn registers_survive_anything(
        live: bool,
        junk in proptest::collection::vec((0u64..0xc000, any::<u64>()), 0..40),
        ops in proptest::collection::vec((any::<bool>(), 0u64..0x140, any::<u32>(), 0usize..9), 0..120),
    ) {
        let (console, _) = console();
        let mut driver = Driver::new(console);
        if live {
            driver.start(u64::MAX);
        }
        for (offset, value) in junk {
            driver.mem.write_obj(value, GuestAddress(Driver::desc(1) + offset)).unwrap();
        }
        for (write, offset, value, width) in ops {
            let offset = if width == 4 { offset & !3 } else { offset };
            if write {
                let bytes = [value.to_le_bytes(), value.to_le_bytes(), [0; 4]].concat();
                let _ = driver.dev.write(offset, &bytes[..width]);
            } else {
                driver.dev.read(offset, &mut vec![0; width]);
            }
            let _ = driver.notify(1);
            driver.run();
        }
    }
}
