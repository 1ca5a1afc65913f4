//! Random steps of guest and host against the device.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Client(u32, bool),
    Guest { op: u16, which: usize, len: usize, flags: u32, fwd: u32, alloc: u32 },
    Host { which: usize, bytes: usize, close: bool, broken: bool, room: usize, hangup: bool },
    Post(usize),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let port = prop_oneof![Just(80u32), Just(1024), Just(1), any::<u32>()];
    prop_oneof![
        2 => (port, any::<bool>()).prop_map(|(p, listen)| Step::Client(p, listen)),
        6 => (0u16..10, 0usize..12, 0usize..5000, 0u32..8, prop_oneof![Just(0u32), 0u32..5000, any::<u32>()], any::<u32>())
            .prop_map(|(op, which, len, flags, fwd, alloc)| Step::Guest { op, which, len, flags, fwd, alloc }),
        4 => (0usize..8, 0usize..9000, any::<bool>(), 0u8..10, 0usize..9000, 0u8..10).prop_map(
            |(which, bytes, close, broken, room, hangup)| Step::Host {
                which, bytes, close: close && bytes == 0, broken: broken == 0, room, hangup: hangup == 0,
            }
        ),
        4 => (1usize..32).prop_map(Step::Post),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Guest and host do what they like, and the device stays sane: bounded, alive, never past the guest's memory.
    #[test]
    fn anything_goes(steps in proptest::collection::vec(step(), 1..150)) {
        let mut w = World::with_buffers();
        let mut clients: Vec<PipeStream> = Vec::new();
        let mut keys: Vec<(u32, u32)> = vec![(REPORT_PORT, 5), (80, 6), (80, 7)];
        for step in steps {
            match step {
                Step::Client(port, listen) => {
                    let verb = if listen { "LISTEN" } else { "CONNECT" };
                    clients.push(w.client(format!("{verb} {port}\n").as_bytes()));
                }
                Step::Guest { op, which, len, flags, fwd, alloc } => {
                    let (host, guest) = keys[which % keys.len()];
                    let h = Header { flags, fwd_cnt: fwd, buf_alloc: alloc, ..from_guest(op, host, guest) };
                    w.send(h, &vec![7; if op == OP_RW { len } else { 0 }]);
                }
                Step::Host { which, bytes, close, broken, room, hangup } if !clients.is_empty() => {
                    let client = &clients[which % clients.len()];
                    let token = client.with(|p| {
                        p.input.extend(vec![3; bytes]);
                        p.input_closed |= close;
                        p.broken |= broken;
                        p.room = room;
                        p.token
                    });
                    w.event_with(token, Readiness { readable: true, writable: true, hangup });
                }
                Step::Host { .. } => {}
                Step::Post(n) => w.post(n),
                Step::Reset => {
                    w.driver.start(u64::MAX);
                    w.buffers = (0..64).map(|i| BUF + i * u64::from(RX_BUF)).collect();
                    w.posted.clear();
                }
            }
            for (h, _) in w.received() {
                if h.op == OP_REQUEST {
                    keys.push((h.src_port, h.dst_port));
                }
            }
            prop_assert!(!w.driver.needs_reset());
            let open = clients.iter().filter(|c| c.with(|p| !p.dropped)).count();
            prop_assert!(open <= SLOTS);
        }
    }
}
