//! What a vCPU and a VM consist of, as plain versioned structs.
//!
//! Migration status: every part of a VM that this room owns is in these two structs; guest memory travels separately.
//! A state of another version is refused. Restored values pass KVM's own checks; the I/O APIC's pass the same masks as
//! guest writes.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::ioapic::IoapicState;
use super::regs;
use crate::vcpu::Vcpu;
use crate::vm::Shared;
use crate::{Error, Result};

/// KVM's clock, without the host's real time that it also reports.
const CLOCK_VALUE_ONLY: u32 = 0;

/// State of the VM itself. Version 1.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    /// Layout version of this struct.
    pub version: u32,
    /// kvmclock in nanoseconds.
    pub clock: u64,
    /// The I/O APIC, absent in a VM without interrupts.
    pub ioapic: Option<IoapicState>,
}

impl VmState {
    /// The layout this program writes and reads.
    pub const VERSION: u32 = 1;

    pub(crate) fn save(shared: &Shared) -> Result<Self> {
        let clock = shared.vm.get_clock().map_err(Error::kvm("read the guest clock (KVM_GET_CLOCK)"))?.clock;
        Ok(Self { version: Self::VERSION, clock, ioapic: shared.chip.as_ref().map(|chip| chip.save()) })
    }

    pub(crate) fn restore(&self, shared: &Shared) -> Result<()> {
        check_version("VM", self.version, Self::VERSION)?;
        let clock = kvm_clock_data { clock: self.clock, flags: CLOCK_VALUE_ONLY, ..Default::default() };
        shared.vm.set_clock(&clock).map_err(Error::kvm("set the guest clock (KVM_SET_CLOCK)"))?;
        match (&shared.chip, &self.ioapic) {
            (Some(chip), Some(state)) => chip.restore(&shared.vm, state),
            (None, None) => Ok(()),
            _ => Err(Error::StateVersion { what: "interrupt chip", found: 0, known: IoapicState::VERSION }),
        }
    }
}

/// State of one vCPU. Version 1.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    /// Layout version of this struct.
    pub version: u32,
    /// Number of the vCPU.
    pub index: u8,
    /// CPUID leaves as the guest sees them.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// TSC frequency in kHz, if KVM tells it.
    pub tsc_khz: Option<u32>,
    /// Everything that changes while it runs.
    pub registers: Registers,
}

/// All registers of one vCPU.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registers {
    /// Run state.
    pub mp_state: kvm_mp_state,
    /// General registers.
    pub regs: kvm_regs,
    /// System registers.
    pub sregs: kvm_sregs,
    /// Extended control registers.
    pub xcrs: kvm_xcrs,
    /// Floating point and vector registers.
    pub xsave: kvm_xsave,
    /// Debug registers.
    pub debug: kvm_debugregs,
    /// Local APIC, absent in a VM without interrupts.
    pub lapic: Option<kvm_lapic_state>,
    /// MSRs that this host can save.
    pub msrs: Vec<kvm_msr_entry>,
    /// Pending events.
    pub events: kvm_vcpu_events,
}

impl VcpuState {
    /// The layout this program writes and reads.
    pub const VERSION: u32 = 1;
}

impl Vcpu {
    /// Reads the state of a held vCPU; `msrs` is [`crate::Vm::msrs_to_save`].
    ///
    /// # Errors
    /// KVM refuses one of the parts.
    pub fn save(&mut self, msrs: &[u32]) -> Result<VcpuState> {
        self.complete_pending_exit()?;
        let cpuid = self.fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(Error::kvm("read CPUID"))?;
        Ok(VcpuState {
            version: VcpuState::VERSION,
            index: self.index,
            cpuid: cpuid.as_slice().to_vec(),
            tsc_khz: self.fd.get_tsc_khz().ok(),
            registers: Registers::read(&self.fd, self.shared.chip.is_some(), msrs)?,
        })
    }

    /// Puts saved state into a new vCPU that has not run.
    ///
    /// # Errors
    /// Another version or vCPU, or KVM refuses one of the parts.
    pub fn restore(&mut self, state: &VcpuState) -> Result<()> {
        check_version("vCPU", state.version, VcpuState::VERSION)?;
        if state.index != self.index {
            let own = u64::from(self.index);
            let value = state.index.into();
            return Err(Error::Range { what: "vCPU number of the state", value, min: own, max: own });
        }
        let cpuid = CpuId::from_entries(&state.cpuid)
            .map_err(|_| Error::io("rebuild the CPUID leaves")(std::io::ErrorKind::InvalidData.into()))?;
        self.fd.set_cpuid2(&cpuid).map_err(Error::kvm("set CPUID"))?;
        // Sound only if the frequency is the host's own or TSC scaling exists; KVM checks that.
        let scale = |khz| self.fd.set_tsc_khz(khz);
        state.tsc_khz.map_or(Ok(()), scale).map_err(Error::kvm("set the TSC frequency"))?;
        match state.registers.write(&self.fd)? {
            None => Ok(()),
            Some(index) => Err(Error::Msr { index }),
        }
    }

    /// Keeps the registers as they are before the first instruction, for [`Vcpu::rewind`].
    ///
    /// # Errors
    /// KVM refuses one of the parts.
    pub fn remember(&mut self, msrs: &[u32]) -> Result<()> {
        self.origin = Some(Box::new(Registers::read(&self.fd, self.shared.chip.is_some(), msrs)?));
        Ok(())
    }

    /// First half of a reset: the remembered registers, and with the boot processor an I/O APIC as at power-on.
    /// The vCPU must have left its loop. Must come before memory is loaded anew: until its MSRs are back, KVM may
    /// still write to the clock and steal-time pages that the guest of before named there.
    ///
    /// # Errors
    /// Nothing was remembered, or KVM refuses one of the parts.
    pub fn rewind(&mut self) -> Result<()> {
        self.complete_pending_exit()?;
        let origin = self.origin.as_ref().ok_or_else(|| {
            Error::io("reset a vCPU whose registers were not remembered")(std::io::ErrorKind::InvalidInput.into())
        })?;
        // MSRs that KVM takes no more once a vCPU ran keep their value: they are the host's features.
        let _refused = origin.write(&self.fd)?;
        match (self.index, &self.shared.chip) {
            (0, Some(chip)) => chip.reset(&self.shared.vm),
            _ => Ok(()),
        }
    }

    /// Second half of a reset, after [`crate::Reloader::reload`]: the boot processor goes to the image's entry.
    ///
    /// # Errors
    /// KVM refuses the registers.
    pub fn place(&mut self) -> Result<()> {
        match (self.index, self.shared.entry()) {
            (0, Some(entry)) => regs::set_entry(&self.fd, &self.shared.memory, &entry),
            _ => Ok(()),
        }
    }

    /// An exit whose result the guest has not consumed yet is finished by one immediate KVM_RUN.
    fn complete_pending_exit(&mut self) -> Result<()> {
        self.fd.set_kvm_immediate_exit(1);
        let outcome = self.fd.run().err().map(|e| e.errno());
        self.fd.set_kvm_immediate_exit(0);
        match outcome {
            Some(libc::EINTR | libc::EAGAIN) => Ok(()),
            other => {
                let errno = other.unwrap_or(libc::EBUSY);
                Err(Error::io("bring a held vCPU to rest")(std::io::Error::from_raw_os_error(errno)))
            }
        }
    }
}

impl Registers {
    /// Order as in Linux' own tools: mp_state first (it may flush the local APIC), events last.
    fn read(fd: &VcpuFd, has_lapic: bool, msrs: &[u32]) -> Result<Self> {
        let mp_state = match has_lapic {
            true => fd.get_mp_state().map_err(Error::kvm("read a vCPU's run state"))?,
            false => kvm_mp_state::default(),
        };
        let lapic = has_lapic.then(|| fd.get_lapic()).transpose().map_err(Error::kvm("read a local APIC"))?;
        Ok(Self {
            mp_state,
            regs: fd.get_regs().map_err(Error::kvm("read registers"))?,
            sregs: fd.get_sregs().map_err(Error::kvm("read system registers"))?,
            xcrs: fd.get_xcrs().map_err(Error::kvm("read extended control registers"))?,
            xsave: fd.get_xsave().map_err(Error::kvm("read vector registers"))?,
            debug: fd.get_debug_regs().map_err(Error::kvm("read debug registers"))?,
            lapic,
            msrs: read_msrs(fd, msrs)?,
            events: fd.get_vcpu_events().map_err(Error::kvm("read pending events"))?,
        })
    }

    /// Returns the first MSR that KVM did not take, if any.
    fn write(&self, fd: &VcpuFd) -> Result<Option<u32>> {
        fd.set_regs(&self.regs).map_err(Error::kvm("set registers"))?;
        set_xsave(fd, &self.xsave)?;
        fd.set_sregs(&self.sregs).map_err(Error::kvm("set system registers"))?;
        fd.set_xcrs(&self.xcrs).map_err(Error::kvm("set extended control registers"))?;
        fd.set_debug_regs(&self.debug).map_err(Error::kvm("set debug registers"))?;
        if let Some(lapic) = &self.lapic {
            fd.set_lapic(lapic).map_err(Error::kvm("set a local APIC"))?;
            fd.set_mp_state(self.mp_state).map_err(Error::kvm("set a vCPU's run state"))?;
        }
        let refused = write_msrs(fd, &self.msrs)?;
        fd.set_vcpu_events(&self.events).map_err(Error::kvm("set pending events"))?;
        Ok(refused)
    }
}

fn set_xsave(fd: &VcpuFd, xsave: &kvm_xsave) -> Result<()> {
    // SAFETY: without dynamically enabled features (AMX is never offered) KVM reads the 4096 bytes of `kvm_xsave`.
    unsafe { fd.set_xsave(xsave) }.map_err(Error::kvm("set vector registers"))
}

/// Reads MSRs; those that KVM lists but this vCPU lacks are left out.
fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>> {
    let mut out = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let part = &rest[..rest.len().min(kvm_bindings::KVM_MAX_MSR_ENTRIES)];
        let entries: Vec<_> = part.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let mut msrs = Msrs::from_entries(&entries)
            .map_err(|_| Error::io("build the MSR list")(std::io::ErrorKind::InvalidInput.into()))?;
        let read = fd.get_msrs(&mut msrs).map_err(Error::kvm("read MSRs"))?;
        out.extend_from_slice(&msrs.as_slice()[..read.min(part.len())]);
        // KVM stops at the first MSR it cannot read: skip it and go on. Each round shortens the list.
        rest = &rest[(read + usize::from(read < part.len())).min(rest.len())..];
    }
    Ok(out)
}

/// Writes MSRs; the first one that KVM does not take is returned, the others are written all the same.
fn write_msrs(fd: &VcpuFd, msrs: &[kvm_msr_entry]) -> Result<Option<u32>> {
    let (mut rest, mut refused) = (msrs, None);
    while !rest.is_empty() {
        let part = &rest[..rest.len().min(kvm_bindings::KVM_MAX_MSR_ENTRIES)];
        let list = Msrs::from_entries(part)
            .map_err(|_| Error::io("build the MSR list")(std::io::ErrorKind::InvalidInput.into()))?;
        let taken = fd.set_msrs(&list).map_err(Error::kvm("set MSRs"))?.min(part.len());
        if let Some(msr) = part.get(taken) {
            refused.get_or_insert(msr.index);
        }
        // Each round shortens the list.
        rest = &rest[(taken + usize::from(taken < part.len())).min(rest.len())..];
    }
    Ok(refused)
}

fn check_version(what: &'static str, found: u32, known: u32) -> Result<()> {
    if found == known { Ok(()) } else { Err(Error::StateVersion { what, found, known }) }
}
