//! The machine of the plan: VM, devices at their places, boot image.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use casemate_devices::host::{Events, UnixAcceptor};
use casemate_devices::legacy::{SERIAL_PORTS, SerialPort};
use casemate_devices::{
    Block, Bus, Console, EntropySource, HostAcceptor, RingLog, Rng, Trigger, VirtioDevice, VirtioMmio, Vsock,
};
use casemate_plan::{RolePlan, VmPlan, names};
use casemate_sys::memfd;
use casemate_sys::rustix::event::epoll;
use casemate_vm::{Gate, Image, IrqMode, Kvm, Platform, Vcpu, Vm, VmConfig, guest_memory, huge_memory, layout};
use vmm_sys_util::eventfd::EventFd;

use crate::disks;
use crate::error::{Error, Step};
use crate::exits::{Bell, Exits};
use crate::initrd_tail;
use crate::input::Table;
use crate::io::Device;
use crate::mailbox::Mailbox;
use crate::reports::{Again, Reports};
use crate::restart::Restart;
use crate::serial_tap::{Ear, SerialTap};
use crate::stages::Stages;

const VM: &str = "create the VM";
pub(crate) const DEVICES: &str = "make the devices";
const BOOT: &str = "load the kernel";

/// Everything the threads need.
pub struct Machine {
    pub vcpus: Vec<Vcpu>,
    pub gate: Arc<Gate>,
    pub exits: Arc<Exits>,
    /// By index, as bell and events name them.
    pub devices: Vec<Device>,
    pub epoll: Arc<OwnedFd>,
    pub mailbox: Arc<Mailbox>,
    pub ear: Ear,
    pub restart: Option<Restart>,
}

/// Builds the machine from the plan and its descriptors; each descriptor is used up.
pub fn build(plan: &RolePlan, fds: &mut Table, stages: &mut Stages) -> Result<Machine, Error> {
    casemate_vm::install_kick_handler().step(VM)?;
    let kvm = Kvm::from_fd(fds.take(names::KVM)?).step(VM)?;
    let config = VmConfig { vcpus: plan.vm.cpus, memory: plan.vm.memory, irq: IrqMode::Split };
    let memory = match plan.vm.hugepage {
        Some(page) => huge_memory(File::from(fds.take(names::MEMORY)?), config.memory, page),
        None => guest_memory(config.memory),
    };
    let mut vm = Vm::with_memory(kvm, config, memory.step(VM)?).step(VM)?;
    stages.lap("create VM, slots, interrupt chip");
    let mailbox = Arc::new(Mailbox::new()?);
    let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).step(DEVICES)?);
    let ear = Ear::default();
    let again = Again::default();
    let (exits, devices, platform) = Board::new(&vm, &epoll)?.populate(&plan.vm, fds, (&mailbox, &again), &ear)?;
    stages.lap("make the devices");
    let boot = boot(&mut vm, &plan.vm, fds, &platform)?;
    stages.lap("load the kernel");
    let mut vcpus = (0..plan.vm.cpus).map(|index| vm.vcpu(index)).collect::<Result<Vec<_>, _>>().step(VM)?;
    stages.lap("create the vCPUs");
    let restart = match plan.vm.restart_on_reboot {
        true => Some(restart(&vm, &plan.vm, &mut vcpus, boot, platform, &devices, again)?),
        false => None,
    };
    Ok(Machine { vcpus, gate: Arc::default(), exits, devices, epoll, mailbox, ear, restart })
}

/// The files that were booted.
struct Booted {
    kernel: File,
    initrd: Option<File>,
    initrd_tail: Vec<u8>,
}

fn restart(
    vm: &Vm,
    plan: &VmPlan,
    vcpus: &mut [Vcpu],
    boot: Booted,
    platform: Platform,
    devices: &[Device],
    again: Again,
) -> Result<Restart, Error> {
    let msrs = vm.msrs_to_save().step(VM)?;
    vcpus.iter_mut().try_for_each(|vcpu| vcpu.remember(&msrs)).step(VM)?;
    let Booted { kernel, initrd, initrd_tail } = boot;
    Ok(Restart {
        turns: Arc::default(),
        vcpus: vcpus.len(),
        reloader: vm.reloader(),
        platform,
        kernel,
        initrd,
        initrd_tail,
        command_line: plan.cmdline.clone(),
        devices: devices.to_vec(),
        again,
    })
}

fn boot(vm: &mut Vm, plan: &VmPlan, fds: &mut Table, platform: &Platform) -> Result<Booted, Error> {
    let mut kernel = File::from(fds.take(names::KERNEL)?);
    let mut initrd = fds.take_optional(names::INITRD).map(File::from);
    let initrd_tail = match fds.take_optional(names::GUEST_CONFIG) {
        Some(fd) => {
            let config = memfd::read_sealed(&fd, casemate_agent_protocol::MAX_CONFIG).step(BOOT)?;
            initrd_tail::pack(&config)?
        }
        None => Vec::new(),
    };
    let mut image =
        Image { kernel: &mut kernel, initrd: initrd.as_mut(), initrd_tail: &initrd_tail, command_line: &plan.cmdline };
    vm.boot(&mut image, platform).step(BOOT)?;
    Ok(Booted { kernel, initrd, initrd_tail })
}

/// Devices being placed.
struct Board<'a> {
    vm: &'a Vm,
    epoll: &'a Arc<OwnedFd>,
    exits: Exits,
    devices: Vec<Device>,
    platform: Platform,
}

impl<'a> Board<'a> {
    fn new(vm: &'a Vm, epoll: &'a Arc<OwnedFd>) -> Result<Self, Error> {
        let exits = Exits { pio: Bus::new(), mmio: Bus::new(), bell: Arc::new(Bell::new()?) };
        let platform = Platform { virtio: Vec::new(), serial: true, pvpanic: true };
        Ok(Self { vm, epoll, exits, devices: Vec::new(), platform })
    }

    /// Disks first, in the plan's order, so that their names in the guest do not depend on other devices.
    fn populate(
        mut self,
        plan: &VmPlan,
        fds: &mut Table,
        (mailbox, again): (&Arc<Mailbox>, &Again),
        ear: &Ear,
    ) -> Result<(Arc<Exits>, Vec<Device>, Platform), Error> {
        for disk in &plan.disks {
            self.virtio(Box::new(Block::new(disks::open(disk, fds)?, &disk.serial)))?;
        }
        if let Some(cid) = plan.vsock_cid {
            let listener = UnixListener::from(fds.take(names::VSOCK)?);
            let events = Events::new(Arc::clone(self.epoll), self.next_index());
            let acceptor: Box<dyn HostAcceptor> = Box::new(UnixAcceptor::new(listener, events).step(DEVICES)?);
            let reports = Box::new(Reports::new(Arc::clone(mailbox), again.clone()));
            self.virtio(Box::new(Vsock::new(cid.into(), Some(acceptor), reports).step(DEVICES)?))?;
        }
        if plan.console {
            let log = ring_log(fds, names::OUTPUT_LOG, plan.log_bytes)?;
            self.virtio(Box::new(Console::new(Box::new(log), None).step(DEVICES)?))?;
        }
        if plan.rng {
            self.virtio(Box::new(Rng::new(Box::new(HostEntropy))))?;
        }
        let log = ring_log(fds, names::CONSOLE_LOG, plan.log_bytes)?;
        self.serial(SerialTap::new(Box::new(log), ear.clone()))?;
        Ok((Arc::new(self.exits), self.devices, self.platform))
    }

    fn next_index(&self) -> u32 {
        self.devices.len() as u32
    }

    fn virtio(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), Error> {
        let index = self.next_index();
        let place = casemate_vm::VirtioMmio::nth(index)
            .ok_or_else(|| Error::because(DEVICES, format!("at most {} virtio devices fit", layout::VIRTIO_MAX)))?;
        let line = Line(self.vm.interrupt(place.gsi).step(DEVICES)?);
        let transport = VirtioMmio::new(index, device, self.vm.memory().clone(), Box::new(line)).step(DEVICES)?;
        let transport = Arc::new(transport);
        self.exits.mmio.add(place.addr, place.len, Box::new(Arc::clone(&transport))).step(DEVICES)?;
        self.platform.virtio.push(place);
        self.devices.push(Device::Virtio(transport));
        Ok(())
    }

    fn serial(&mut self, sink: SerialTap) -> Result<(), Error> {
        let line = Line(self.vm.interrupt(layout::COM1_GSI).step(DEVICES)?);
        let serial = Arc::new(SerialPort::new(self.next_index(), Arc::new(line), Box::new(sink)));
        self.exits.pio.add(layout::COM1_PORT.into(), SERIAL_PORTS, Box::new(Arc::clone(&serial))).step(DEVICES)?;
        self.devices.push(Device::Serial(serial));
        Ok(())
    }
}

fn ring_log(fds: &mut Table, files: [&str; 2], bytes: u64) -> Result<RingLog, Error> {
    let [first, second] = files;
    RingLog::new([File::from(fds.take(first)?), File::from(fds.take(second)?)], bytes).step(DEVICES)
}

/// One interrupt line: an irqfd.
struct Line(EventFd);

impl Trigger for Line {
    fn trigger(&self) {
        // A full counter means that the edge is pending anyway.
        let _ = self.0.write(1);
    }
}

/// The host's random numbers.
struct HostEntropy;

impl EntropySource for HostEntropy {
    fn fill(&mut self, mut buf: &mut [u8]) -> std::io::Result<()> {
        use casemate_sys::rustix::rand::{GetRandomFlags, getrandom};
        while !buf.is_empty() {
            let n = getrandom(&mut *buf, GetRandomFlags::empty())?;
            buf = &mut buf[n..];
        }
        Ok(())
    }
}
