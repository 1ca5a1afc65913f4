//! Boots a kernel with its serial console on stdout, without any jail: for looking at the `vm` room alone.
//!
//! `boot KERNEL [--initrd FILE] [--cpus N] [--memory MIB] [--command-line TEXT] [--no-interrupts] [--trace]`
//! Prints the time of each stage and the ending on stderr.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::time::Instant;

use casemate_vm::{Ending, ExitHandler, Gate, Image, IrqMode, Kvm, Platform, Vm, VmConfig, layout};
use vm_superio::Serial;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::EventFd;

type AnyError = Box<dyn std::error::Error>;

struct Line(Option<EventFd>);

impl vm_superio::Trigger for Line {
    type E = std::io::Error;
    fn trigger(&self) -> std::io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |event| event.write(1))
    }
}

struct Com1 {
    uart: Mutex<Serial<Line, NoEvents, std::io::Stdout>>,
    /// With `--trace`: each access that nobody serves is shown once.
    strangers: Option<Mutex<BTreeSet<(&'static str, u64)>>>,
}

impl Com1 {
    fn offset(port: u16) -> Option<u8> {
        port.checked_sub(layout::COM1_PORT).filter(|offset| *offset < 8).map(|offset| offset as u8)
    }
}

impl Com1 {
    fn stranger(&self, kind: &'static str, address: u64) {
        if let Some(seen) = &self.strangers
            && seen.lock().unwrap().insert((kind, address))
        {
            eprintln!("[{kind} {address:#x}]");
        }
    }
}

impl ExitHandler for Com1 {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        match (Self::offset(port), data.first_mut()) {
            (Some(offset), Some(byte)) => *byte = self.uart.lock().unwrap().read(offset),
            _ => self.stranger("in", port.into()),
        }
    }
    fn pio_write(&self, port: u16, data: &[u8]) {
        let Some(offset) = Self::offset(port) else { return self.stranger("out", port.into()) };
        let mut uart = self.uart.lock().unwrap();
        data.iter().for_each(|byte| drop(uart.write(offset, *byte)));
    }
    fn mmio_read(&self, addr: u64, _: &mut [u8]) {
        self.stranger("load", addr);
    }
    fn mmio_write(&self, addr: u64, _: &[u8]) {
        self.stranger("store", addr);
    }
}

struct Options {
    kernel: String,
    initrd: Option<String>,
    command_line: String,
    config: VmConfig,
    trace: bool,
}

fn options() -> Result<Options, AnyError> {
    let mut args = std::env::args().skip(1);
    let config = VmConfig { vcpus: 1, memory: 256 << 20, irq: IrqMode::Split };
    let mut options = Options {
        kernel: args.next().ok_or("usage: boot KERNEL [options]")?,
        initrd: None,
        command_line: "console=ttyS0 reboot=t panic=-1".into(),
        config,
        trace: false,
    };
    while let Some(flag) = args.next() {
        let mut value = || args.next().ok_or(format!("{flag} needs a value"));
        match flag.as_str() {
            "--initrd" => options.initrd = Some(value()?),
            "--cpus" => options.config.vcpus = value()?.parse()?,
            "--memory" => options.config.memory = value()?.parse::<u64>()? << 20,
            "--command-line" => options.command_line = value()?,
            "--trace" => options.trace = true,
            "--no-interrupts" => options.config.irq = IrqMode::None,
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    Ok(options)
}

fn main() -> Result<(), AnyError> {
    let start = Instant::now();
    let stage = |name: &str| eprintln!("{:>9} us  {name}", start.elapsed().as_micros());
    let options = options()?;
    casemate_vm::install_kick_handler()?;
    let kvm = Kvm::from_fd(OwnedFd::from(File::options().read(true).write(true).open("/dev/kvm")?))?;
    stage("kvm open");
    let mut vm = Vm::new(kvm, options.config)?;
    stage("vm");
    let line = (options.config.irq == IrqMode::Split).then(|| vm.interrupt(layout::COM1_GSI)).transpose()?;
    let uart = Mutex::new(Serial::new(Line(line), std::io::stdout()));
    let com1 = Com1 { uart, strangers: options.trace.then(Mutex::default) };
    let mut kernel = File::open(&options.kernel)?;
    let mut initrd = options.initrd.as_ref().map(File::open).transpose()?;
    let mut image =
        Image { kernel: &mut kernel, initrd: initrd.as_mut(), initrd_tail: &[], command_line: &options.command_line };
    let platform = Platform { virtio: Vec::new(), serial: true, pvpanic: true };
    let protocol = vm.boot(&mut image, &platform)?;
    stage(&format!("loaded ({protocol:?})"));
    let vcpus = (0..options.config.vcpus).map(|i| vm.vcpu(i)).collect::<Result<Vec<_>, _>>()?;
    stage("vcpus");
    let ending = run(vcpus, &com1);
    std::io::stdout().flush()?;
    stage(&format!("{ending:?}"));
    Ok(())
}

fn run(vcpus: Vec<casemate_vm::Vcpu>, com1: &Com1) -> Option<Ending> {
    let gate = Gate::default();
    gate.resume();
    std::thread::scope(|scope| {
        let threads: Vec<_> = vcpus
            .into_iter()
            .map(|mut vcpu| {
                let gate = &gate;
                scope.spawn(move || {
                    let ending = vcpu.run(com1, gate);
                    gate.stop();
                    ending
                })
            })
            .collect();
        let endings: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().ok()).collect();
        endings.into_iter().find(|ending| *ending != Ending::Stopped)
    })
}
