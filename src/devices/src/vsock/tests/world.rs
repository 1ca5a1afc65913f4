//! The device in a world that the test plays: a guest with its queues, host clients, the report sink.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use super::super::header::*;
use super::super::*;
use crate::testing::*;
use crate::traits::ReportVerdict;

pub const CID: u64 = 5;
pub const PORT: u32 = 1024;

#[derive(Clone, Default)]
pub struct Door(pub Arc<Mutex<VecDeque<PipeStream>>>);

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
pub struct Reports(pub Arc<Mutex<Vec<String>>>);

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

pub struct World {
    pub driver: Driver,
    pub door: Door,
    pub reports: Reports,
    /// Free receive buffers, by address; each 4 KiB.
    pub buffers: VecDeque<u64>,
    pub posted: std::collections::HashMap<u16, u64>,
}

pub const RX_BUF: u32 = 4096;
pub const TX_BUF: u64 = BUF + 0x20_0000;

impl World {
    pub fn new() -> Self {
        let (door, reports) = (Door::default(), Reports::default());
        let vsock = Vsock::new(CID, Some(Box::new(door.clone())), Box::new(reports.clone())).unwrap();
        let driver = Driver::started(Box::new(vsock));
        let buffers = (0..64).map(|i| BUF + i * u64::from(RX_BUF)).collect();
        Self { driver, door, reports, buffers, posted: Default::default() }
    }

    pub fn with_buffers() -> Self {
        let mut world = Self::new();
        world.post(64);
        world
    }

    pub fn post(&mut self, n: usize) {
        for _ in 0..n {
            let Some(addr) = self.buffers.pop_front() else { break };
            let head = self.driver.submit(RX, &[(addr, RX_BUF, WRITE)]);
            self.posted.insert(head, addr);
        }
        self.driver.kick(RX);
    }

    /// Sends a packet as the guest.
    pub fn send(&mut self, h: Header, data: &[u8]) {
        let h = Header { len: data.len() as u32, ..h };
        self.send_raw(h, data);
    }

    pub fn send_raw(&mut self, h: Header, data: &[u8]) {
        self.driver.put(TX_BUF, &[&h.to_bytes()[..], data].concat());
        self.driver.submit(TX, &[(TX_BUF, (LEN + data.len()) as u32, 0)]);
        self.driver.kick(TX);
        assert!(!self.driver.needs_reset());
        self.driver.used(TX);
    }

    /// Packets that the device sent, and their buffers given back.
    pub fn received(&mut self) -> Vec<(Header, Vec<u8>)> {
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
    pub fn drain(&mut self) -> Vec<(Header, Vec<u8>)> {
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

    pub fn ops(&mut self) -> Vec<u16> {
        self.drain().iter().map(|(h, _)| h.op).collect()
    }

    pub fn client(&mut self, text: &[u8]) -> PipeStream {
        let stream = PipeStream::new(text);
        self.door.0.lock().unwrap().push_back(stream.clone());
        self.event(0);
        stream
    }

    pub fn event(&mut self, token: u32) {
        self.event_with(token, Readiness::ALL);
    }

    pub fn event_with(&mut self, token: u32, ready: Readiness) {
        if self.driver.dev.host_event(token, ready) == Progress::More {
            self.driver.run();
        }
    }

    /// A host client connected to the guest's [`PORT`]; the header is a template for the guest's packets.
    pub fn connected(&mut self) -> (PipeStream, Header) {
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

pub fn from_guest(op: u16, host_port: u32, guest_port: u32) -> Header {
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

impl World {
    pub fn send_ignoring_used(&mut self, h: Header) {
        // Each packet has a place of its own: the device reads it later.
        let addr = TX_BUF + u64::from(h.src_port) * LEN as u64;
        self.driver.put(addr, &h.to_bytes());
        self.driver.submit(TX, &[(addr, LEN as u32, 0)]);
        self.driver.kick(TX);
    }
}
