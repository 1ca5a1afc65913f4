//! The register file with a disk, a console or an entropy device behind it.
#![no_main]

use std::io;

use casemate_devices::{Block, BlockBackend, Console, EntropySource, Rng, VirtioDevice};
use casemate_fuzz::testing::{Driver, PipeEnd, PipeStream, Sink};
use casemate_fuzz::{Input, step};
use libfuzzer_sys::fuzz_target;

struct Disk(Vec<u8>);

impl Disk {
    fn at(&mut self, offset: u64, len: usize) -> io::Result<&mut [u8]> {
        // The device has checked this already: anything else is a find.
        Ok(&mut self.0[offset as usize..offset as usize + len])
    }
}

impl BlockBackend for Disk {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.copy_from_slice(self.at(offset, buf.len())?);
        Ok(())
    }
    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.at(offset, buf.len())?.copy_from_slice(buf);
        Ok(())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.at(offset, len as usize).map(drop)
    }
    fn write_zeroes(&mut self, offset: u64, len: u64, _unmap: bool) -> io::Result<()> {
        self.at(offset, len as usize).map(|zeroes| zeroes.fill(0))
    }
}

struct Sevens;

impl EntropySource for Sevens {
    fn fill(&mut self, buf: &mut [u8]) -> io::Result<()> {
        buf.fill(7);
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let device: (Box<dyn VirtioDevice>, u8) = match input.u8() % 4 {
        0 => (Box::new(Rng::new(Box::new(Sevens))), 1),
        1 => {
            let keyboard = PipeEnd(PipeStream::new(b"typed"));
            (Box::new(Console::new(Box::new(Sink::default()), Some(Box::new(keyboard))).unwrap()), 2)
        }
        _ => (Box::new(Block::new(Box::new(Disk(vec![0; 64 * 512])), "fuzz")), 1),
    };
    let mut driver = Driver::new(device.0);
    if input.u8() != 0 {
        driver.start(!0);
    }
    while !input.is_empty() {
        step(&mut driver, &mut input, device.1);
    }
});
