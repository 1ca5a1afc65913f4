//! A driver for tests: speaks to a device through its registers and through memory, as a guest does, and can lie at
//! every step.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};

use crate::device::VirtioDevice;
use crate::memory::GuestMem;
use crate::mmio::VirtioMmio;
use crate::traits::{Action, ByteSink, HostStream, Progress, Trigger};

pub const MEM: usize = 0x40_0000;
/// Where tests put their buffers.
pub const BUF: u64 = 0x10_0000;
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
pub const EVENT_IDX: u64 = 1 << 29;

#[derive(Clone, Default)]
pub struct CountingLine(pub Arc<AtomicU32>);

impl Trigger for CountingLine {
    fn trigger(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// What a [`Sink`] got.
#[derive(Clone, Default)]
pub struct Sink(pub Arc<Mutex<Vec<u8>>>);

impl ByteSink for Sink {
    fn write(&mut self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

/// Both ends of a host stream in memory.
#[derive(Default)]
pub struct Pipe {
    /// To be read by the device.
    pub input: VecDeque<u8>,
    pub input_closed: bool,
    pub broken: bool,
    /// Written by the device, as long as there is room.
    pub output: Vec<u8>,
    pub room: usize,
    pub output_closed: bool,
    pub token: u32,
    pub dropped: bool,
}

#[derive(Clone)]
pub struct PipeStream(pub Arc<Mutex<Pipe>>);

impl PipeStream {
    pub fn new(input: &[u8]) -> Self {
        let pipe = Pipe { input: input.iter().copied().collect(), room: usize::MAX, ..Default::default() };
        Self(Arc::new(Mutex::new(pipe)))
    }

    pub fn with<R>(&self, f: impl FnOnce(&mut Pipe) -> R) -> R {
        f(&mut self.0.lock().unwrap())
    }
}

/// The device's handle; dropping it is closing.
pub struct PipeEnd(pub PipeStream);

impl Drop for PipeEnd {
    fn drop(&mut self) {
        self.0.with(|p| p.dropped = true);
    }
}

impl HostStream for PipeEnd {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.with(|p| {
            if p.broken {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            if p.input.is_empty() && !p.input_closed {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let n = buf.len().min(p.input.len());
            for byte in &mut buf[..n] {
                *byte = p.input.pop_front().unwrap();
            }
            Ok(n)
        })
    }

    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.with(|p| {
            if p.broken {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let n = buf.len().min(p.room);
            if n == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            p.room = p.room.saturating_sub(n);
            p.output.extend_from_slice(&buf[..n]);
            Ok(n)
        })
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        self.0.with(|p| p.output_closed = true);
        Ok(())
    }

    fn register(&mut self, token: u32) -> io::Result<()> {
        self.0.with(|p| p.token = token);
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Ring {
    size: u16,
    next_desc: u16,
    avail: u16,
    used: u16,
}

pub struct Driver {
    pub mem: GuestMem,
    pub dev: Arc<VirtioMmio>,
    pub irqs: Arc<AtomicU32>,
    rings: Vec<Ring>,
}

impl Driver {
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        let mem = GuestMem::from_ranges(&[(GuestAddress(0), MEM)]).unwrap();
        let line = CountingLine::default();
        let irqs = Arc::clone(&line.0);
        let rings = device.queue_sizes().iter().map(|&size| Ring { size, next_desc: 0, avail: 0, used: 0 }).collect();
        let dev = Arc::new(VirtioMmio::new(7, device, mem.clone(), Box::new(line)).unwrap());
        Self { mem, dev, irqs, rings }
    }

    /// A driver that has done everything right, without EVENT_IDX.
    pub fn started(device: Box<dyn VirtioDevice>) -> Self {
        let mut driver = Self::new(device);
        driver.start(!EVENT_IDX);
        driver
    }

    pub fn r(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.dev.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    pub fn w(&self, offset: u64, value: u32) -> Action {
        self.dev.write(offset, &value.to_le_bytes())
    }

    pub fn offered(&self) -> u64 {
        let _ = self.w(0x14, 1);
        let high = u64::from(self.r(0x10));
        let _ = self.w(0x14, 0);
        (high << 32) | u64::from(self.r(0x10))
    }

    pub fn negotiate(&self, wanted: u64) {
        for status in [0, 1, 3] {
            let _ = self.w(0x70, status);
        }
        for (select, half) in [(0, wanted as u32), (1, (wanted >> 32) as u32)] {
            let _ = self.w(0x24, select);
            let _ = self.w(0x20, half);
        }
        let _ = self.w(0x70, 11);
    }

    pub fn desc(queue: usize) -> u64 {
        0x1_0000 * (queue as u64 + 1)
    }

    pub fn avail(queue: usize) -> u64 {
        Self::desc(queue) + 0x4000
    }

    pub fn used_ring(queue: usize) -> u64 {
        Self::desc(queue) + 0x8000
    }

    pub fn set_up_queue(&self, queue: usize) {
        let _ = self.w(0x30, queue as u32);
        let _ = self.w(0x38, u32::from(self.rings[queue].size));
        let addresses = [(0x80, Self::desc(queue)), (0x90, Self::avail(queue)), (0xa0, Self::used_ring(queue))];
        for (register, address) in addresses {
            let _ = self.w(register, address as u32);
            let _ = self.w(register + 4, (address >> 32) as u32);
        }
        let _ = self.w(0x44, 1);
    }

    pub fn start(&mut self, mask: u64) {
        self.negotiate(self.offered() & mask);
        for queue in 0..self.rings.len() {
            let ring = &mut self.rings[queue];
            (ring.next_desc, ring.avail, ring.used) = (0, 0, 0);
            self.mem.write_slice(&[0; 0xc000], GuestAddress(Self::desc(queue))).unwrap();
            self.set_up_queue(queue);
        }
        assert_eq!(self.w(0x70, 15), Action::Kick(7));
        self.run();
    }

    pub fn put(&self, addr: u64, bytes: &[u8]) {
        self.mem.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    pub fn write_desc(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&addr.to_le_bytes());
        raw[8..12].copy_from_slice(&len.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        self.put(table + 16 * u64::from(index), &raw);
    }

    /// Makes the chain that starts at `head` available.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let slot = Self::avail(queue) + 4 + 2 * u64::from(ring.avail % ring.size);
        ring.avail = ring.avail.wrapping_add(1);
        let index = ring.avail;
        self.put(slot, &head.to_le_bytes());
        self.put(Self::avail(queue) + 2, &index.to_le_bytes());
    }

    /// Writes a chain of (address, length, WRITE or 0) and makes it available; answers its head.
    pub fn submit(&mut self, queue: usize, parts: &[(u64, u32, u16)]) -> u16 {
        let ring = self.rings[queue];
        let at = |i: usize| (ring.next_desc + i as u16) % ring.size;
        for (i, &(addr, len, flags)) in parts.iter().enumerate() {
            let more = if i + 1 < parts.len() { NEXT } else { 0 };
            self.write_desc(Self::desc(queue), at(i), addr, len, flags | more, at(i + 1));
        }
        self.rings[queue].next_desc = at(parts.len());
        self.offer(queue, at(0));
        at(0)
    }

    pub fn notify(&self, queue: usize) -> Action {
        self.w(0x50, queue as u32)
    }

    /// Lets the device work until it rests; the number of turns is bounded.
    pub fn run(&self) -> Progress {
        for _ in 0..10_000 {
            match self.dev.process() {
                Progress::More => {}
                rests => return rests,
            }
        }
        panic!("the device never rests");
    }

    pub fn kick(&self, queue: usize) -> Progress {
        let _ = self.notify(queue);
        self.run()
    }

    /// New entries of the used ring: (head, length).
    pub fn used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let index = self.get(Self::used_ring(queue) + 2, 2);
        let index = u16::from_le_bytes([index[0], index[1]]);
        let ring = &mut self.rings[queue];
        let mut news = Vec::new();
        while ring.used != index {
            let at = Self::used_ring(queue) + 4 + 8 * u64::from(ring.used % ring.size);
            let mut raw = [0; 8];
            self.mem.read_slice(&mut raw, GuestAddress(at)).unwrap();
            news.push((u16::from_le_bytes([raw[0], raw[1]]), u32::from_le_bytes([raw[4], raw[5], raw[6], raw[7]])));
            ring.used = ring.used.wrapping_add(1);
        }
        news
    }

    pub fn needs_reset(&self) -> bool {
        self.r(0x70) & 64 != 0
    }
}
