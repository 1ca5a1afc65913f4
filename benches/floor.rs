//! The floor of the figures: what a monitor on our `vm` room costs that confines nothing.
//!
//! `floor KERNEL LOG`: memory slot, one vCPU, no interrupt chip, no device but a byte to LOG for a write to COM1.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use casemate_vm::{Ending, ExitHandler, Gate, Image, IrqMode, Kvm, Platform, Vm, VmConfig, layout};

struct Port(File);

impl ExitHandler for Port {
    fn pio_read(&self, _: u16, _: &mut [u8]) {}
    fn pio_write(&self, port: u16, data: &[u8]) {
        if port == layout::COM1_PORT {
            (&self.0).write_all(data).expect("the log takes a byte");
        }
    }
    fn mmio_read(&self, _: u64, _: &mut [u8]) {}
    fn mmio_write(&self, _: u64, _: &[u8]) {}
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1);
    let mut kernel = File::open(args.next().ok_or("usage: floor KERNEL LOG")?)?;
    let log = File::options().append(true).open(args.next().ok_or("usage: floor KERNEL LOG")?)?;
    casemate_vm::install_kick_handler()?;
    let kvm = Kvm::from_fd(OwnedFd::from(File::options().read(true).write(true).open("/dev/kvm")?))?;
    let mut vm = Vm::new(kvm, VmConfig { vcpus: 1, memory: 128 << 20, irq: IrqMode::None })?;
    let mut image = Image { kernel: &mut kernel, initrd: None, initrd_tail: &[], command_line: "" };
    vm.boot(&mut image, &Platform { virtio: Vec::new(), serial: true, pvpanic: true })?;
    let gate = Gate::default();
    gate.resume();
    match vm.vcpu(0)?.run(&Port(log), &gate) {
        Ending::PowerOff => Ok(()),
        other => Err(format!("the guest ended with {other:?}").into()),
    }
}
