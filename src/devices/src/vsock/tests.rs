//! The vsock device between a guest that lies and host clients that misbehave.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use super::header::*;
use super::table::SLOTS;
use super::*;
use crate::testing::*;
use crate::traits::ReportVerdict;

const CID: u64 = 5;
const PORT: u32 = 1024;

#[derive(Clone, Default)]
struct Door(Arc<Mutex<VecDeque<PipeStream>>>);

impl HostAcceptor for Door {
    fn accept(&mut self) -> io::Result<Option<Box<dyn HostStream>>> {
        Ok(self.0.lock().unwrap().pop_front().map(|s| Box::new(PipeEnd(s)) as Box<dyn HostStream>))
    }

    fn register(&mut self, token: u32) -> io::Result<()> {
        assert_eq!(token, 0);
        Ok(())
    }
}

#[derive(Clone, Default)]
struct Reports(Arc<Mutex<Vec<String>>>);

impl ReportSink for Reports {
    fn opened(&mut self, id: u32) {
        self.0.lock().unwrap().push(format!("open {id}"));
    }
    fn data(&mut self, id: u32, bytes: &[u8]) -> ReportVerdict {
        self.0.lock().unwrap().push(format!("{id}: {}", String::from_utf8_lossy(bytes)));
        if bytes == b"bad" { ReportVerdict::Close } else { ReportVerdict::Continue }
    }
    fn closed(&mut self, id: u32) {
        self.0.lock().unwrap().push(format!("closed {id}"));
    }
}

struct World {
    driver: Driver,
    door: Door,
    reports: Reports,
    /// Free receive buffers, by address; each 4 KiB.
    buffers: VecDeque<u64>,
    posted: std::collections::HashMap<u16, u64>,
}

const RX_BUF: u32 = 4096;
const TX_BUF: u64 = BUF + 0x20_0000;

impl World {
    fn new() -> Self {
        let (door, reports) = (Door::default(), Reports::default());
        let vsock = Vsock::new(CID, Some(Box::new(door.clone())), Box::new(reports.clone())).unwrap();
        let driver = Driver::started(Box::new(vsock));
        let buffers = (0..64).map(|i| BUF + i * u64::from(RX_BUF)).collect();
        Self { driver, door, reports, buffers, posted: Default::default() }
    }

    fn with_buffers() -> Self {
        let mut world = Self::new();
        world.post(64);
        world
    }

    fn post(&mut self, n: usize) {
        for _ in 0..n {
            let Some(addr) = self.buffers.pop_front() else { break };
            let head = self.driver.submit(RX, &[(addr, RX_BUF, WRITE)]);
            self.posted.insert(head, addr);
        }
        self.driver.kick(RX);
    }

    /// Sends a packet as the guest.
    fn send(&mut self, h: Header, data: &[u8]) {
        let h = Header { len: data.len() as u32, ..h };
        self.send_raw(h, data);
    }

    fn send_raw(&mut self, h: Header, data: &[u8]) {
        self.driver.put(TX_BUF, &[&h.to_bytes()[..], data].concat());
        self.driver.submit(TX, &[(TX_BUF, (LEN + data.len()) as u32, 0)]);
        self.driver.kick(TX);
        assert!(!self.driver.needs_reset());
        self.driver.used(TX);
    }

    /// Packets that the device sent, and their buffers given back.
    fn received(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut out = Vec::new();
        for (head, len) in self.driver.used(RX) {
            let addr = self.posted.remove(&head).unwrap();
            let raw = self.driver.get(addr, len as usize);
            let h = Header::parse(raw[..LEN].try_into().unwrap());
            assert_eq!((h.src_cid, h.dst_cid, h.len as usize), (HOST_CID, CID, raw.len() - LEN));
            out.push((h, raw[LEN..].to_vec()));
            self.buffers.push_back(addr);
        }
        out
    }

    /// As [`Self::received`], posting new buffers until nothing more comes.
    fn drain(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut out = Vec::new();
        loop {
            let news = self.received();
            if news.is_empty() {
                return out;
            }
            out.extend(news);
            self.post(64);
        }
    }

    fn ops(&mut self) -> Vec<u16> {
        self.drain().iter().map(|(h, _)| h.op).collect()
    }

    fn client(&mut self, text: &[u8]) -> PipeStream {
        let stream = PipeStream::new(text);
        self.door.0.lock().unwrap().push_back(stream.clone());
        self.event(0);
        stream
    }

    fn event(&mut self, token: u32) {
        self.event_with(token, Readiness::ALL);
    }

    fn event_with(&mut self, token: u32, ready: Readiness) {
        if self.driver.dev.host_event(token, ready) == Progress::More {
            self.driver.run();
        }
    }

    /// A host client connected to the guest's [`PORT`]; the header is a template for the guest's packets.
    fn connected(&mut self) -> (PipeStream, Header) {
        let stream = self.client(format!("CONNECT {PORT}\n").as_bytes());
        let packets = self.drain();
        let [(request, _)] = &packets[..] else { panic!("{packets:?}") };
        assert_eq!((request.op, request.dst_port), (OP_REQUEST, PORT));
        let reply = from_guest(OP_RESPONSE, request.src_port, PORT);
        self.send(reply, &[]);
        assert_eq!(stream.with(|p| std::mem::take(&mut p.output)), format!("OK {}\n", request.src_port).into_bytes());
        (stream, reply)
    }
}

fn from_guest(op: u16, host_port: u32, guest_port: u32) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: guest_port,
        dst_port: host_port,
        kind: TYPE_STREAM,
        op,
        buf_alloc: 1 << 16,
        ..Default::default()
    }
}

#[test]
fn a_host_client_talks_to_the_guest() {
    let mut w = World::with_buffers();
    let (stream, h) = w.connected();
    stream.with(|p| p.input.extend(b"ping"));
    let token = stream.with(|p| p.token);
    w.event(token);
    let got = w.drain();
    assert_eq!((got[0].0.op, got[0].1.as_slice()), (OP_RW, &b"ping"[..]));
    w.send(Header { op: OP_RW, fwd_cnt: 4, ..h }, b"pong");
    assert_eq!(stream.with(|p| p.output.clone()), b"pong");
    // The guest closes: what it sent is delivered, then both ends are gone.
    w.send(Header { op: OP_SHUTDOWN, flags: 3, fwd_cnt: 4, ..h }, &[]);
    assert_eq!(w.ops(), [OP_RST]);
    assert!(stream.with(|p| p.dropped));
}

#[test]
fn bytes_after_the_line_are_the_first_data() {
    let mut w = World::with_buffers();
    let stream = w.client(b"CONNECT 9\nearly");
    let (request, _) = w.drain()[0];
    w.send(from_guest(OP_RESPONSE, request.src_port, 9), &[]);
    stream.with(|p| p.input.extend(b" bird"));
    let token = stream.with(|p| p.token);
    w.event(token);
    let data: Vec<u8> = w.drain().into_iter().flat_map(|(_, d)| d).collect();
    assert_eq!(data, b"early bird");
}

#[test]
fn a_client_waits_for_the_guest_to_boot() {
    let mut w = World::new();
    let _ = w.driver.w(0x70, 0);
    let stream = w.client(b"CONNECT 1024\n");
    w.driver.start(u64::MAX);
    w.post(4);
    assert_eq!(w.ops(), [OP_REQUEST]);
    // A second reset (kexec, driver reload) asks again.
    w.driver.start(u64::MAX);
    w.buffers = (0..64).map(|i| BUF + i * u64::from(RX_BUF)).collect();
    w.posted.clear();
    w.post(4);
    assert_eq!(w.ops(), [OP_REQUEST]);
    assert!(!stream.with(|p| p.dropped));
}

#[test]
fn the_guest_refuses() {
    let mut w = World::with_buffers();
    let stream = w.client(b"CONNECT 7\n");
    let (request, _) = w.drain()[0];
    w.send(from_guest(OP_RST, request.src_port, 7), &[]);
    assert!(stream.with(|p| p.dropped && p.output.starts_with(b"ERR ")));
}

#[test]
fn a_parked_client_takes_one_connection() {
    let mut w = World::with_buffers();
    let stream = w.client(b"LISTEN 80\n");
    assert_eq!(stream.with(|p| std::mem::take(&mut p.output)), b"OK 80\n");
    w.send(from_guest(OP_REQUEST, 80, 4000), &[]);
    assert_eq!(w.ops(), [OP_RESPONSE]);
    assert_eq!(stream.with(|p| std::mem::take(&mut p.output)), b"ACCEPT 4000\n");
    w.send(from_guest(OP_RW, 80, 4000), b"hi");
    assert_eq!(stream.with(|p| p.output.clone()), b"hi");
    w.send(from_guest(OP_REQUEST, 80, 4001), &[]);
    assert_eq!(w.ops(), [OP_RST], "consumed");
    let port1 = w.client(b"LISTEN 1\n");
    assert!(port1.with(|p| p.dropped));
}

#[test]
fn a_parked_client_that_leaves_is_forgotten() {
    let mut w = World::with_buffers();
    let stream = w.client(b"LISTEN 80\n");
    stream.with(|p| p.input_closed = true);
    let token = stream.with(|p| p.token);
    w.event(token);
    w.send(from_guest(OP_REQUEST, 80, 4000), &[]);
    assert_eq!(w.ops(), [OP_RST]);
}

#[test]
fn reports_reach_the_sink_and_are_few() {
    let mut w = World::with_buffers();
    for port in 0..10 {
        w.send(from_guest(OP_REQUEST, REPORT_PORT, port), &[]);
    }
    let ops = w.ops();
    assert_eq!(ops.iter().filter(|&&op| op == OP_RESPONSE).count(), 4);
    assert_eq!(ops.iter().filter(|&&op| op == OP_RST).count(), 6);
    w.send(from_guest(OP_RW, REPORT_PORT, 0), b"ready");
    w.send(from_guest(OP_RW, REPORT_PORT, 1), b"bad");
    w.send(from_guest(OP_SHUTDOWN, REPORT_PORT, 0), &[]);
    let log = w.reports.0.lock().unwrap().clone();
    assert_eq!(log[4..], ["1: ready", "2: bad", "closed 2", "closed 1"]);
    assert_eq!(w.ops(), [OP_RST, OP_RST]);
    w.send(from_guest(OP_REQUEST, REPORT_PORT, 99), &[]);
    assert_eq!(w.ops(), [OP_RESPONSE]);
}

#[test]
fn packets_in_another_name_are_ignored() {
    let mut w = World::with_buffers();
    let h = from_guest(OP_REQUEST, REPORT_PORT, 1);
    for (src_cid, dst_cid) in [(CID + 1, HOST_CID), (CID, 3), (HOST_CID, HOST_CID), (0, 0), (u64::MAX, HOST_CID)] {
        w.send(Header { src_cid, dst_cid, ..h }, &[]);
    }
    assert!(w.ops().is_empty());
    assert!(w.reports.0.lock().unwrap().is_empty());
}

#[test]
fn unknown_types_operations_and_connections_are_reset() {
    let mut w = World::with_buffers();
    w.send(Header { kind: 2, ..from_guest(OP_REQUEST, REPORT_PORT, 1) }, &[]);
    w.send(from_guest(OP_RW, 77, 1), b"x");
    w.send(from_guest(99, 77, 1), &[]);
    w.send(from_guest(OP_RST, 77, 1), &[]);
    assert_eq!(w.ops(), [OP_RST, OP_RST, OP_RST]);
    for bad in [OP_REQUEST, OP_RESPONSE, 0, 8, u16::MAX] {
        let (stream, h) = w.connected();
        w.send(Header { op: bad, ..h }, &[]);
        assert_eq!(w.ops(), [OP_RST], "op {bad}");
        assert!(stream.with(|p| p.dropped));
    }
}

#[test]
fn a_response_that_was_not_asked_for_is_reset() {
    let mut w = World::new();
    let stream = w.client(b"CONNECT 7\n");
    // The guest guesses the port before it has seen the request.
    w.send(from_guest(OP_RESPONSE, 1 << 30, 7), &[]);
    assert!(stream.with(|p| p.dropped));
    w.post(8);
    assert!(w.ops().is_empty(), "it never heard of it");
}

#[test]
fn lies_about_credit_end_the_connection() {
    let mut w = World::with_buffers();
    let (stream, h) = w.connected();
    w.send(Header { op: OP_CREDIT_UPDATE, fwd_cnt: 1, ..h }, &[]);
    assert_eq!(w.ops(), [OP_RST]);
    assert!(stream.with(|p| p.dropped));

    // Sending past the window.
    let (stream, h) = w.connected();
    stream.with(|p| p.room = 0);
    for _ in 0..16 {
        w.send(Header { op: OP_RW, ..h }, &[1; 4096]);
    }
    assert!(w.ops().is_empty());
    w.send(Header { op: OP_RW, ..h }, b"x");
    assert_eq!(w.ops(), [OP_RST]);
    assert!(stream.with(|p| p.dropped));

    // A length that is not there: the queue itself is broken.
    let (_, h) = w.connected();
    w.driver.put(TX_BUF, &Header { op: OP_RW, len: 1 << 15, ..h }.to_bytes());
    w.driver.submit(TX, &[(TX_BUF, LEN as u32, 0)]);
    w.driver.kick(TX);
    assert!(w.driver.needs_reset());
}

#[test]
fn a_slow_host_gets_everything_and_the_guest_its_credit_back() {
    let mut w = World::with_buffers();
    let (stream, h) = w.connected();
    stream.with(|p| p.room = 0);
    for i in 0..16u8 {
        w.send(Header { op: OP_RW, ..h }, &[i; 4096]);
    }
    assert!(w.ops().is_empty());
    let token = stream.with(|p| p.token);
    for _ in 0..16 {
        stream.with(|p| p.room = 4096);
        w.event(token);
    }
    let (update, _) = *w.drain().last().unwrap();
    assert_eq!(update.op, OP_CREDIT_UPDATE);
    assert!(update.fwd_cnt >= 32 * 1024);
    let expected: Vec<u8> = (0..16u8).flat_map(|i| [i; 4096]).collect();
    assert_eq!(stream.with(|p| p.output.clone()), expected);
}

#[test]
fn the_device_keeps_to_the_guests_credit() {
    let mut w = World::with_buffers();
    let (stream, h) = w.connected();
    w.send(Header { op: OP_CREDIT_UPDATE, buf_alloc: 1000, ..h }, &[]);
    stream.with(|p| p.input.extend([7; 5000]));
    let token = stream.with(|p| p.token);
    w.event(token);
    let packets = w.drain();
    assert_eq!(packets.iter().map(|(_, d)| d.len()).sum::<usize>(), 1000);
    assert_eq!(packets.last().unwrap().0.op, OP_CREDIT_REQUEST);
    w.event(token);
    assert!(w.ops().is_empty(), "asked once");
    w.send(Header { op: OP_CREDIT_UPDATE, buf_alloc: 1 << 20, fwd_cnt: 1000, ..h }, &[]);
    assert_eq!(w.drain().iter().map(|(_, d)| d.len()).sum::<usize>(), 4000);
}

#[test]
fn half_close_travels_both_ways() {
    let mut w = World::with_buffers();
    // The host is done first.
    let (stream, h) = w.connected();
    stream.with(|p| {
        p.input.extend(b"last words");
        p.input_closed = true;
    });
    let token = stream.with(|p| p.token);
    w.event(token);
    let packets = w.drain();
    assert_eq!(packets[0].1, b"last words");
    assert_eq!((packets[1].0.op, packets[1].0.flags), (OP_SHUTDOWN, SHUTDOWN_SEND));
    w.send(Header { op: OP_RW, fwd_cnt: 10, ..h }, b"answer");
    w.send(Header { op: OP_SHUTDOWN, flags: SHUTDOWN_SEND, fwd_cnt: 10, ..h }, &[]);
    assert_eq!(stream.with(|p| p.output.clone()), b"answer");
    assert_eq!(w.ops(), [OP_RST]);

    // The guest is done first; the host's answer still flows.
    let (stream, h) = w.connected();
    w.send(Header { op: OP_RW, ..h }, b"question");
    w.send(Header { op: OP_SHUTDOWN, flags: SHUTDOWN_SEND, ..h }, &[]);
    assert!(stream.with(|p| p.output_closed && !p.dropped));
    stream.with(|p| {
        p.input.extend(b"answer");
        p.input_closed = true;
    });
    let token = stream.with(|p| p.token);
    w.event(token);
    let packets = w.drain();
    assert_eq!(packets[0].1, b"answer");
    assert_eq!(packets.last().unwrap().0.op, OP_RST);
    // Data after one's own shutdown is a protocol error.
    let (_, h) = w.connected();
    w.send(Header { op: OP_SHUTDOWN, flags: SHUTDOWN_SEND, ..h }, &[]);
    w.send(Header { op: OP_RW, ..h }, b"zombie");
    assert_eq!(w.ops(), [OP_RST]);
}

#[test]
fn a_host_that_is_gone_still_delivers_what_it_sent() {
    let mut w = World::with_buffers();
    let (stream, h) = w.connected();
    let token = stream.with(|p| {
        p.input.extend(b"bye");
        p.input_closed = true;
        p.token
    });
    w.event_with(token, Readiness { readable: true, writable: true, hangup: true });
    let packets = w.drain();
    assert_eq!(packets[0].1, b"bye");
    assert_eq!((packets[1].0.op, packets[1].0.flags), (OP_SHUTDOWN, 3));
    w.send(Header { op: OP_RST, fwd_cnt: 3, ..h }, &[]);
    assert!(stream.with(|p| p.dropped));
}

#[test]
fn a_flood_of_host_clients_is_turned_away() {
    let mut w = World::with_buffers();
    let clients: Vec<_> = (0..SLOTS + 50).map(|_| w.client(b"LISTEN 80\n")).collect();
    let dropped = clients.iter().filter(|c| c.with(|p| p.dropped)).count();
    assert_eq!(dropped, 50);
    assert!(clients.last().unwrap().with(|p| p.output.starts_with(b"ERR ")));
    // One leaves, one comes.
    let token = clients[3].with(|p| {
        p.input_closed = true;
        p.token
    });
    w.event(token);
    assert!(!w.client(b"CONNECT 5\n").with(|p| p.dropped));
}

#[test]
fn a_guest_that_takes_no_buffers_away_is_not_listened_to() {
    let mut w = World::new();
    for port in 0..200 {
        w.send_ignoring_used(from_guest(OP_RW, 77, port));
    }
    assert_eq!(w.driver.used(TX).len(), RESETS_MAX);
    // As buffers come, the rest follows.
    w.post(64);
    let mut resets = 0;
    for _ in 0..20 {
        resets += w.drain().len();
        w.post(64);
        w.driver.kick(TX);
    }
    assert_eq!(resets, 200);
    assert_eq!(w.driver.used(TX).len(), 200 - RESETS_MAX);
}

impl World {
    fn send_ignoring_used(&mut self, h: Header) {
        // Each packet has a place of its own: the device reads it later.
        let addr = TX_BUF + u64::from(h.src_port) * LEN as u64;
        self.driver.put(addr, &h.to_bytes());
        self.driver.submit(TX, &[(addr, LEN as u32, 0)]);
        self.driver.kick(TX);
    }
}

#[test]
fn clients_that_play_games_with_the_line() {
    let mut w = World::with_buffers();
    for text in [&b"GET / HTTP/1.1\r\n"[..], b"CONNECT -1\n", &[b'A'; 100], b"\n", b"\0\0\n", b"LISTEN 1\n"] {
        assert!(w.client(text).with(|p| p.dropped), "{text:?}");
    }
    // One byte at a time is fine.
    let slow = w.client(b"");
    for &byte in b"CONNECT 5\n" {
        let token = slow.with(|p| {
            p.input.push_back(byte);
            p.token
        });
        w.event(token);
    }
    assert_eq!(w.ops(), [OP_REQUEST]);
    // An event for a stream that is long gone hits nobody.
    let token = slow.with(|p| p.token);
    w.send(from_guest(OP_RST, 1 << 30, 5), &[]);
    let other = w.client(b"LISTEN 6\n");
    w.event_with(token, Readiness { readable: true, writable: true, hangup: true });
    w.event(u32::MAX);
    w.event(0xffff);
    assert!(!other.with(|p| p.dropped));
}

#[test]
fn receive_buffers_without_room_stop_the_device() {
    for len in [0, 1, LEN as u32 - 1, LEN as u32] {
        let mut w = World::new();
        w.driver.submit(RX, &[(BUF, len, WRITE)]);
        w.driver.kick(RX);
        let _client = w.client(b"CONNECT 5\n");
        assert!(w.driver.needs_reset(), "{len}");
    }
}

#[test]
fn packets_may_be_scattered() {
    let mut w = World::with_buffers();
    let (stream, h) = w.connected();
    let raw = [&Header { op: OP_RW, len: 10, ..h }.to_bytes()[..], b"0123456789"].concat();
    w.driver.put(TX_BUF, &raw);
    w.driver.submit(TX, &[(TX_BUF, 7, 0), (TX_BUF + 7, 0, 0), (TX_BUF + 7, 40, 0), (TX_BUF + 47, 7, 0)]);
    w.driver.kick(TX);
    assert_eq!(stream.with(|p| p.output.clone()), b"0123456789");
}

#[test]
fn after_a_restore_the_guest_learns_that_its_connections_are_gone() {
    let mut w = World::with_buffers();
    let state = w.driver.dev.save();
    let vsock = Vsock::new(CID, None, Box::new(Reports::default())).unwrap();
    let line = CountingLine::default();
    let copy = crate::VirtioMmio::new(7, Box::new(vsock), w.driver.mem.clone(), Box::new(line)).unwrap();
    copy.restore(&state).unwrap();
    w.driver.dev = Arc::new(copy);
    w.driver.put(BUF, &[0xff; 8]);
    w.driver.submit(EVENT, &[(BUF, 8, WRITE)]);
    w.driver.kick(EVENT);
    assert_eq!(w.driver.used(EVENT).len(), 1);
    assert_eq!(w.driver.get(BUF, 8), [0, 0, 0, 0, 255, 255, 255, 255]);

    let other = Vsock::new(CID + 1, None, Box::new(Reports::default())).unwrap();
    let line = Box::new(CountingLine::default());
    let other = crate::VirtioMmio::new(7, Box::new(other), w.driver.mem.clone(), line).unwrap();
    assert!(other.restore(&state).is_err());
}

mod random {
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
}
