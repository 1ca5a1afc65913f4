//! One VM: its memory slots, interrupt chip, boot image and vCPUs.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::arch::acpi::Platform;
use crate::arch::boot::{self, Image, Protocol};
use crate::arch::state::VmState;
use crate::arch::{Chip, cpuid, layout, regs};
use crate::memory::{Memory, forget, guest_memory};
use crate::vcpu::Vcpu;
use crate::{Error, Result};

const API_VERSION: i32 = 12;

/// The host's KVM.
#[derive(Debug)]
pub struct Kvm {
    fd: kvm_ioctls::Kvm,
}

impl Kvm {
    /// Takes an open `/dev/kvm`.
    ///
    /// # Errors
    /// The descriptor does not speak KVM's API version 12.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        // SAFETY: the descriptor is owned and open, and its ownership moves into the Kvm object.
        let fd = unsafe { kvm_ioctls::Kvm::from_raw_fd(fd.into_raw_fd()) };
        match fd.get_api_version() {
            API_VERSION => Ok(Self { fd }),
            other => Err(Error::ApiVersion(other)),
        }
    }

    fn require(&self, cap: Cap, name: &'static str) -> Result<()> {
        if self.fd.check_extension(cap) { Ok(()) } else { Err(Error::MissingCapability(name)) }
    }
}

/// How the VM gets interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IrqMode {
    /// Local APICs in the kernel, I/O APIC in this program. What every operating system needs.
    #[default]
    Split,
    /// None at all: for tiny guests that poll and end by a port write.
    None,
}

/// What the VM is made of.
#[derive(Debug, Clone, Copy)]
pub struct VmConfig {
    /// vCPUs, 1 to 254.
    pub vcpus: u8,
    /// Guest memory in bytes.
    pub memory: u64,
    /// Interrupts.
    pub irq: IrqMode,
}

/// What vCPU threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) vm: VmFd,
    /// Kept mapped as long as any vCPU can run: the slots of `vm` point into it.
    pub(crate) memory: Memory,
    pub(crate) chip: Option<Chip>,
    /// Where the boot processor starts, once an image is loaded.
    entry: Mutex<Option<boot::Entry>>,
}

impl Shared {
    pub(crate) fn entry(&self) -> Option<boot::Entry> {
        *self.entry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self, image: &mut Image<'_>, platform: &Platform, vcpus: u8) -> Result<Protocol> {
        let entry = boot::load(&self.memory, image, platform, vcpus)?;
        *self.entry.lock().unwrap_or_else(PoisonError::into_inner) = Some(entry);
        Ok(entry.protocol)
    }
}

/// Loads the image anew for a reset, when the [`Vm`] itself is gone and only its vCPUs live.
#[derive(Debug)]
pub struct Reloader {
    shared: Arc<Shared>,
    vcpus: u8,
}

impl Reloader {
    /// Forgets all guest memory and loads the image into it. All vCPUs are rewound, and no device uses memory.
    ///
    /// # Errors
    /// The image changed and can no longer be loaded.
    pub fn reload(&self, image: &mut Image<'_>, platform: &Platform) -> Result<()> {
        forget(&self.shared.memory)?;
        self.shared.load(image, platform, self.vcpus).map(drop)
    }
}

/// One VM before and while its vCPUs run.
#[derive(Debug)]
pub struct Vm {
    kvm: Kvm,
    config: VmConfig,
    pub(crate) shared: Arc<Shared>,
    /// Filtered once, then specialised per vCPU.
    cpuid: CpuId,
}

impl Vm {
    /// Creates the VM, its memory slots and its interrupt chip, in this order (see the room's head).
    ///
    /// # Errors
    /// A capability is missing, a limit is exceeded, or KVM refuses a step.
    pub fn new(kvm: Kvm, config: VmConfig) -> Result<Self> {
        let memory = guest_memory(config.memory)?;
        Self::with_memory(kvm, config, memory)
    }

    /// [`Vm::new`] on memory that exists already, of `config.memory` bytes.
    ///
    /// # Errors
    /// As [`Vm::new`].
    pub fn with_memory(kvm: Kvm, config: VmConfig, memory: Memory) -> Result<Self> {
        if !(1..=layout::VCPU_MAX).contains(&config.vcpus) {
            let (min, max) = (1, u64::from(layout::VCPU_MAX));
            return Err(Error::Range { what: "number of vCPUs", value: config.vcpus.into(), min, max });
        }
        kvm.require(Cap::UserMemory, "KVM_CAP_USER_MEMORY")?;
        kvm.require(Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT")?;
        let vm = kvm.fd.create_vm().map_err(Error::kvm("create a VM (KVM_CREATE_VM)"))?;
        register_slots(&vm, &memory)?;
        let chip = match config.irq {
            IrqMode::None => None,
            IrqMode::Split => {
                kvm.require(Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP")?;
                vm.set_tss_address(layout::KVM_TSS as usize).map_err(Error::kvm("set the TSS address"))?;
                Some(Chip::create(&vm)?)
            }
        };
        let supported =
            kvm.fd.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(Error::kvm("ask for supported CPUID leaves"))?;
        let deadline_timer = chip.is_some() && kvm.fd.check_extension(Cap::TscDeadlineTimer);
        let cpuid = cpuid::template(supported.as_slice(), config.vcpus, deadline_timer);
        let cpuid = CpuId::from_entries(&cpuid)
            .map_err(|_| Error::io("build the CPUID template")(std::io::ErrorKind::InvalidData.into()))?;
        let shared = Arc::new(Shared { vm, memory, chip, entry: Mutex::default() });
        Ok(Self { kvm, config, shared, cpuid })
    }

    /// Guest memory; clones share it.
    pub fn memory(&self) -> &Memory {
        &self.shared.memory
    }

    /// An interrupt line: each write to the returned event is one edge on `gsi`.
    ///
    /// # Errors
    /// The VM has no interrupts, the line does not exist, or KVM refuses (KVM_IRQFD).
    pub fn interrupt(&self, gsi: u32) -> Result<EventFd> {
        if self.shared.chip.is_none() {
            return Err(Error::NoInterrupts(gsi));
        }
        if gsi >= layout::IOAPIC_PINS {
            let max = u64::from(layout::IOAPIC_PINS - 1);
            return Err(Error::Range { what: "interrupt line", value: gsi.into(), min: 0, max });
        }
        let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(Error::io("create an interrupt event"))?;
        self.shared.vm.register_irqfd(&event, gsi).map_err(Error::kvm("connect an interrupt line (KVM_IRQFD)"))?;
        Ok(event)
    }

    /// Loads kernel, initrd, command line and firmware tables into guest memory; the vCPUs made later start there.
    ///
    /// # Errors
    /// The image is malformed or does not fit.
    pub fn boot(&mut self, image: &mut Image<'_>, platform: &Platform) -> Result<Protocol> {
        self.shared.load(image, platform, self.config.vcpus)
    }

    /// What a reset of this VM needs.
    pub fn reloader(&self) -> Reloader {
        Reloader { shared: Arc::clone(&self.shared), vcpus: self.config.vcpus }
    }

    /// Creates vCPU `index` with its registers as the boot protocol wants them.
    ///
    /// # Errors
    /// `index` is out of range or KVM refuses a step.
    pub fn vcpu(&self, index: u8) -> Result<Vcpu> {
        if index >= self.config.vcpus {
            let max = u64::from(self.config.vcpus - 1);
            return Err(Error::Range { what: "vCPU index", value: index.into(), min: 0, max });
        }
        let fd = self.shared.vm.create_vcpu(index.into()).map_err(Error::kvm("create a vCPU (KVM_CREATE_VCPU)"))?;
        let tsc_khz = fd.get_tsc_khz().ok();
        let mut leaves = self.cpuid.clone();
        cpuid::specialise(leaves.as_mut_slice(), index, tsc_khz);
        fd.set_cpuid2(&leaves).map_err(Error::kvm("set the CPUID leaves (KVM_SET_CPUID2)"))?;
        regs::set_boot_msrs(&fd)?;
        if self.shared.chip.is_some() {
            regs::set_local_apic(&fd)?;
        }
        // Application processors wait for their SIPI in the state KVM creates them in.
        if let (0, Some(entry)) = (index, self.shared.entry()) {
            regs::set_entry(&fd, &self.shared.memory, &entry)?;
        }
        Ok(Vcpu { index, fd, shared: Arc::clone(&self.shared), origin: None })
    }

    /// State that belongs to the VM and not to one vCPU. The vCPUs must be held.
    ///
    /// # Errors
    /// KVM refuses to tell.
    pub fn save(&self) -> Result<VmState> {
        VmState::save(&self.shared)
    }

    /// Takes state saved by [`Vm::save`], before the vCPUs run.
    ///
    /// # Errors
    /// Another version, or KVM refuses.
    pub fn restore(&self, state: &VmState) -> Result<()> {
        state.restore(&self.shared)
    }

    /// MSRs that belong into a vCPU's saved state on this host.
    ///
    /// # Errors
    /// KVM refuses to list them.
    pub fn msrs_to_save(&self) -> Result<Vec<u32>> {
        let list = self.kvm.fd.get_msr_index_list().map_err(Error::kvm("list the MSRs (KVM_GET_MSR_INDEX_LIST)"))?;
        Ok(list.as_slice().to_vec())
    }
}

fn register_slots(vm: &VmFd, memory: &Memory) -> Result<()> {
    for (slot, region) in memory.iter().enumerate() {
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is one whole mapping of `memory`, which `Shared` keeps mapped as long as the VM descriptor
        // that it owns beside it; the regions do not overlap, in guest or host.
        unsafe { vm.set_user_memory_region(slot) }.map_err(Error::kvm("register guest memory"))?;
    }
    Ok(())
}
