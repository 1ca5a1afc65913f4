//! The vsock device between a lying guest and misbehaving host clients.
#![no_main]

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use casemate_devices::{HostAcceptor, HostStream, Progress, Readiness, ReportSink, ReportVerdict, Vsock};
use casemate_fuzz::testing::{BUF, Driver, PipeEnd, PipeStream, WRITE};
use casemate_fuzz::{Input, step};
use libfuzzer_sys::fuzz_target;

const CID: u64 = 3;
const RX: usize = 0;
const TX: usize = 1;

#[derive(Clone, Default)]
struct Door(Arc<Mutex<VecDeque<PipeStream>>>);

impl HostAcceptor for Door {
    fn accept(&mut self) -> io::Result<Option<Box<dyn HostStream>>> {
        Ok(self.0.lock().unwrap().pop_front().map(|s| Box::new(PipeEnd(s)) as Box<dyn HostStream>))
    }
    fn register(&mut self, _token: u32) -> io::Result<()> {
        Ok(())
    }
}

/// Opened and closed must match, whatever the guest does.
#[derive(Default)]
struct Reports(Vec<u32>);

impl ReportSink for Reports {
    fn opened(&mut self, id: u32) {
        self.0.push(id);
        assert!(self.0.len() <= 4);
    }
    fn data(&mut self, id: u32, bytes: &[u8]) -> ReportVerdict {
        assert!(self.0.contains(&id));
        if bytes.first() == Some(&1) { ReportVerdict::Close } else { ReportVerdict::Continue }
    }
    fn closed(&mut self, id: u32) {
        assert!(self.0.contains(&id));
        self.0.retain(|&open| open != id);
    }
}

fn packet(driver: &mut Driver, input: &mut Input<'_>) {
    let (host, guest) = (u32::from(input.u8() % 4), u32::from(input.u8() % 4));
    // Ports that mean something: the report port, a parked one, the first that the device gives out, any.
    let dst_port = [1, 80, (1 << 30) + guest, input.u32()][host as usize];
    let len = u32::from(input.u16()) % 5000;
    let op = u16::from(input.u8() % 9);
    let mut raw = Vec::with_capacity(64);
    raw.extend(CID.to_le_bytes());
    raw.extend(2u64.to_le_bytes());
    raw.extend(guest.to_le_bytes());
    raw.extend(dst_port.to_le_bytes());
    raw.extend(if op == 5 { len } else { 0 }.to_le_bytes());
    raw.extend(1u16.to_le_bytes());
    raw.extend(op.to_le_bytes());
    raw.extend(u32::from(input.u8() % 5).to_le_bytes());
    raw.extend(input.u32().to_le_bytes());
    raw.extend(u32::from(input.u8() % 3).to_le_bytes());
    let at = BUF + 0x1_0000;
    driver.put(at, &raw);
    driver.submit(TX, &[(at, 44 + len, 0)]);
    driver.kick(TX);
}

fn host(driver: &mut Driver, input: &mut Input<'_>, clients: &[PipeStream]) {
    let Some(client) = clients.get(usize::from(input.u8()) % clients.len().max(1)) else { return };
    let flags = input.u8();
    let token = client.with(|pipe| {
        pipe.input.extend(vec![3; usize::from(input.u8()) * 16]);
        pipe.input_closed |= flags & 1 != 0;
        pipe.broken |= flags & 14 == 14;
        pipe.room = usize::from(input.u8()) * 64;
        pipe.token
    });
    let ready = Readiness { readable: true, writable: flags & 16 != 0, hangup: flags & 32 != 0 };
    if driver.dev.host_event(token, ready) == Progress::More {
        driver.run();
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let door = Door::default();
    let vsock = Vsock::new(CID, Some(Box::new(door.clone())), Box::new(Reports::default())).unwrap();
    let mut driver = Driver::started(Box::new(vsock));
    let mut clients = Vec::new();
    while !input.is_empty() {
        match input.u8() % 8 {
            0 | 1 => packet(&mut driver, &mut input),
            2 => {
                let n = u64::from(input.u8() % 16);
                for i in 0..n {
                    driver.submit(RX, &[(BUF + i * 0x1000, 4096, WRITE)]);
                }
                driver.kick(RX);
            }
            3 => {
                let lines = [&b"LISTEN 80\n"[..], b"CONNECT 0\n", b"CONNECT 1\nearly", b"CONNECT "];
                let client = PipeStream::new(lines[usize::from(input.u8()) % lines.len()]);
                door.0.lock().unwrap().push_back(client.clone());
                clients.push(client);
                if driver.dev.host_event(0, Readiness::ALL) == Progress::More {
                    driver.run();
                }
            }
            4 | 5 => host(&mut driver, &mut input, &clients),
            6 => driver.start(!0),
            _ => step(&mut driver, &mut input, 3),
        }
    }
});
