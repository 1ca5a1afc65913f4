//! The vsock device between a guest that lies and host clients that misbehave.

mod random;
mod world;

use std::sync::Arc;

use self::world::*;
use super::header::*;
use super::table::SLOTS;
use super::*;
use crate::testing::*;

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
