//! KVM: memory slots, vCPUs, interrupts, boot protocols, CPUID, and their state.
//!
//! Purpose: everything between `/dev/kvm` and the devices. It knows no device: the runner hands it an
//! [`ExitHandler`] for the ports and addresses it does not serve itself, and gets one `EventFd` per interrupt line.
//! Trust: kernel images, initrds and every value the guest writes are hostile. They end in a typed error or in an end
//! of the VM ([`Ending`]), never in a panic or an unbounded loop.
//! Called by: `runner` only.
//!
//! ```text
//! Kvm::from_fd -> Vm::new (memory slots first, then split irqchip)
//!     -> Vm::interrupt(gsi) per device -> Vm::boot(image) -> Vm::vcpu(i) per vCPU -> Vcpu::run on its own thread
//! ```
//! Order matters twice: a memory slot registered after an in-kernel device costs milliseconds (deferred SRCU frees),
//! and the split interrupt chip must exist before the first vCPU.

mod error;
mod gate;
mod memory;
mod vcpu;
mod vm;

#[cfg(target_arch = "x86_64")]
#[path = "x86_64/mod.rs"]
mod arch;

pub use arch::acpi::{Platform, VirtioMmio};
pub use arch::boot::{Image, Protocol};
pub use arch::ioapic::{Ioapic, IoapicState};
pub use arch::layout;
pub use arch::state::{Registers, VcpuState, VmState};
pub use error::{BootError, Error, Result};
pub use gate::Gate;
pub use memory::{Memory, guest_memory, huge_memory};
pub use vcpu::{Ending, ExitHandler, Vcpu, install_kick_handler};
pub use vm::{IrqMode, Kvm, Reloader, Vm, VmConfig};
