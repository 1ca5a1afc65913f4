//! The split interrupt chip: local APICs in the kernel, the I/O APIC here.

use std::sync::Mutex;

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi, kvm_irq_routing_msi__bindgen_ty_1,
};
use kvm_ioctls::VmFd;

use super::ioapic::{Ioapic, IoapicState};
use super::layout;
use crate::{Error, Result};

/// The I/O APIC and its routes in KVM.
#[derive(Debug)]
pub(crate) struct Chip {
    ioapic: Mutex<Ioapic>,
}

impl Chip {
    /// Splits the interrupt chip of a VM that has no vCPU yet.
    pub(crate) fn create(vm: &VmFd) -> Result<Self> {
        let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
        cap.args[0] = u64::from(layout::IOAPIC_PINS);
        vm.enable_cap(&cap).map_err(Error::kvm("split the interrupt chip (KVM_CAP_SPLIT_IRQCHIP)"))?;
        Ok(Self { ioapic: Mutex::new(Ioapic::default()) })
    }

    /// Serves a read if `addr` is in the chip's window.
    pub(crate) fn mmio_read(&self, addr: u64, data: &mut [u8]) -> bool {
        let Some(offset) = window_offset(addr) else { return false };
        self.lock().read(offset, data);
        true
    }

    /// Serves a write if `addr` is in the chip's window, and tells KVM when a route changed.
    pub(crate) fn mmio_write(&self, vm: &VmFd, addr: u64, data: &[u8]) -> Result<bool> {
        let Some(offset) = window_offset(addr) else { return Ok(false) };
        let mut ioapic = self.lock();
        if ioapic.write(offset, data) {
            apply_routes(vm, &ioapic)?;
        }
        Ok(true)
    }

    pub(crate) fn end_of_interrupt(&self, vector: u8) {
        self.lock().end_of_interrupt(vector);
    }

    pub(crate) fn save(&self) -> IoapicState {
        self.lock().save()
    }

    pub(crate) fn restore(&self, vm: &VmFd, state: &IoapicState) -> Result<()> {
        let restored = Ioapic::restore(state)?;
        apply_routes(vm, &restored)?;
        *self.lock() = restored;
        Ok(())
    }

    /// As at power-on: everything masked, no route.
    pub(crate) fn reset(&self, vm: &VmFd) -> Result<()> {
        let mut ioapic = self.lock();
        *ioapic = Ioapic::default();
        apply_routes(vm, &ioapic)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ioapic> {
        // A panic while holding the lock cannot leave the plain registers half-written.
        self.ioapic.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn window_offset(addr: u64) -> Option<u64> {
    addr.checked_sub(layout::IOAPIC).filter(|offset| *offset < layout::IOAPIC_LEN)
}

fn apply_routes(vm: &VmFd, ioapic: &Ioapic) -> Result<()> {
    let entries: Vec<_> = (0..layout::IOAPIC_PINS).filter_map(|pin| routing_entry(ioapic, pin)).collect();
    let routing = KvmIrqRouting::from_entries(&entries)
        .map_err(|_| Error::io("build the interrupt routes")(std::io::ErrorKind::InvalidInput.into()))?;
    vm.set_gsi_routing(&routing).map_err(Error::kvm("set the interrupt routes (KVM_SET_GSI_ROUTING)"))
}

fn routing_entry(ioapic: &Ioapic, pin: u32) -> Option<kvm_irq_routing_entry> {
    let msi = ioapic.route(pin as usize)?;
    let msi = kvm_irq_routing_msi {
        address_lo: msi.address,
        address_hi: 0,
        data: msi.data,
        __bindgen_anon_1: kvm_irq_routing_msi__bindgen_ty_1 { pad: 0 },
    };
    let u = kvm_irq_routing_entry__bindgen_ty_1 { msi };
    Some(kvm_irq_routing_entry { gsi: pin, type_: KVM_IRQ_ROUTING_MSI, flags: 0, pad: 0, u })
}
