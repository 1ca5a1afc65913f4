//! The vCPU loop: KVM_RUN, exits to the handler, endings to the caller.
//!
//! Trust: ports, addresses and data of an exit come from the guest; each exit is bounded by KVM (at most one page of
//! port data, eight bytes of MMIO). The guest decides how often it exits, so the loop itself is only ended by an
//! [`Ending`] or by the [`Gate`].
//!
//! Kick: whoever changes the gate sends the kick signal to the vCPU's thread. Its handler sets `immediate_exit` in
//! the `kvm_run` page of the thread it interrupts, so a signal that arrives just before KVM_RUN is not lost.

use std::cell::Cell;
use std::ptr;
use std::sync::Arc;

use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::arch::platform;
use crate::arch::state::Registers;
use crate::gate::{Gate, Passage};
use crate::vm::Shared;
use crate::{Error, Result};

/// What the runner does with exits that are not the platform's own. Called on vCPU threads, several at a time.
///
/// Data slices of reads arrive filled with 0xff, what an empty bus answers: leave them alone when nothing is there.
/// Implementations neither panic nor block for long; a slice can have any length from 1 to 4096 (string I/O).
pub trait ExitHandler: Sync {
    /// `in` from a port.
    fn pio_read(&self, port: u16, data: &mut [u8]);
    /// `out` to a port.
    fn pio_write(&self, port: u16, data: &[u8]);
    /// Load from an address without RAM.
    fn mmio_read(&self, addr: u64, data: &mut [u8]);
    /// Store to an address without RAM.
    fn mmio_write(&self, addr: u64, data: &[u8]);
}

/// Which reset a guest asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetSource {
    /// ACPI reset register.
    Acpi,
    /// Port 0xcf9.
    ResetControl,
    /// Keyboard controller.
    Keyboard,
}

/// What a guest said through pvpanic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PanicKind {
    /// The kernel panicked and handles nothing more.
    Panicked,
    /// The kernel panicked and its crash kernel takes over.
    CrashKernel,
}

/// Why a vCPU left its loop. All but `Stopped` and `Recalled` end the VM, or reset it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// ACPI S5.
    PowerOff,
    /// The guest asked for a reset (reboot).
    Reset(ResetSource),
    /// KVM_EXIT_SHUTDOWN: triple fault.
    TripleFault,
    /// pvpanic.
    Panic(PanicKind),
    /// The guest halted in a VM without interrupts: nothing can wake it.
    Halted,
    /// KVM_EXIT_FAIL_ENTRY.
    FailEntry {
        /// Hardware's reason.
        reason: u64,
        /// Host CPU.
        cpu: u32,
    },
    /// KVM_EXIT_INTERNAL_ERROR.
    InternalError {
        /// KVM's sub-error (1 = emulation failed).
        suberror: u32,
    },
    /// KVM_RUN itself failed.
    RunFailed {
        /// errno.
        errno: i32,
    },
    /// An exit reason this machine never configures.
    UnexpectedExit {
        /// KVM's exit reason.
        reason: u32,
    },
    /// The gate was set to stop.
    Stopped,
    /// The gate called all vCPUs back, for a reset of the VM.
    Recalled,
}

/// One vCPU; moves to its thread and runs there.
#[derive(Debug)]
pub struct Vcpu {
    pub(crate) index: u8,
    pub(crate) fd: VcpuFd,
    pub(crate) shared: Arc<Shared>,
    /// The registers before the first instruction, if a reset is to be possible.
    pub(crate) origin: Option<Box<Registers>>,
}

impl Vcpu {
    /// Runs until an ending. Waits at the gate first.
    pub fn run<H: ExitHandler>(&mut self, handler: &H, gate: &Gate) -> Ending {
        let thread = gettid();
        let _kickable = Kickable::new(&mut self.fd);
        let ending = match gate.enter(thread) {
            Passage::Go | Passage::GoAfterHold => self.run_loop(handler, gate),
            Passage::Stop => Ending::Stopped,
            Passage::Recall => Ending::Recalled,
        };
        gate.leave(thread);
        ending
    }

    /// Number of this vCPU, 0 is the boot processor.
    pub fn index(&self) -> u8 {
        self.index
    }

    fn run_loop<H: ExitHandler>(&mut self, handler: &H, gate: &Gate) -> Ending {
        loop {
            let done = match self.fd.run() {
                Ok(exit) => self.shared.serve(exit, handler),
                // EAGAIN: an application processor that still waits for its SIPI was woken.
                Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                    self.fd.set_kvm_immediate_exit(0);
                    self.pass(gate)
                }
                Err(e) => Some(Served::End(Ending::RunFailed { errno: e.errno() })),
            };
            match done {
                None => {}
                Some(Served::End(ending)) => return ending,
                Some(Served::Abnormal) => return self.abnormal(),
            }
        }
    }

    /// At the gate after an interruption.
    fn pass(&self, gate: &Gate) -> Option<Served> {
        match gate.pass() {
            Passage::Go => None,
            Passage::GoAfterHold => {
                // Keeps the guest's watchdogs calm. Refused by KVM when the guest does not use kvmclock.
                let _ = self.fd.kvmclock_ctrl();
                None
            }
            Passage::Stop => Some(Served::End(Ending::Stopped)),
            Passage::Recall => Some(Served::End(Ending::Recalled)),
        }
    }

    /// Reads the details of an exit that kvm-ioctls reports without them.
    fn abnormal(&mut self) -> Ending {
        let run = self.fd.get_kvm_run();
        if run.exit_reason != kvm_bindings::KVM_EXIT_INTERNAL_ERROR {
            return Ending::UnexpectedExit { reason: run.exit_reason };
        }
        // SAFETY: the exit reason just checked says that the kernel filled `internal`; all its bit patterns are valid.
        let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
        Ending::InternalError { suberror }
    }
}

/// How an exit was served, when the guest does not simply go on.
pub(crate) enum Served {
    End(Ending),
    /// Details are in `kvm_run`.
    Abnormal,
}

impl Shared {
    fn serve<H: ExitHandler>(&self, exit: VcpuExit<'_>, handler: &H) -> Option<Served> {
        let ending = match exit {
            VcpuExit::IoIn(port, data) => {
                data.fill(0xff);
                if !platform::read(port, data) {
                    handler.pio_read(port, data);
                }
                return None;
            }
            VcpuExit::IoOut(port, data) => match platform::write(port, data) {
                Some(ending) => return ending.map(Served::End),
                None => {
                    handler.pio_write(port, data);
                    return None;
                }
            },
            VcpuExit::MmioRead(addr, data) => {
                data.fill(0xff);
                if !self.chip.as_ref().is_some_and(|chip| chip.mmio_read(addr, data)) {
                    handler.mmio_read(addr, data);
                }
                return None;
            }
            VcpuExit::MmioWrite(addr, data) => return self.mmio_write(addr, data, handler),
            VcpuExit::IoapicEoi(vector) => {
                self.chip.iter().for_each(|chip| chip.end_of_interrupt(vector));
                return None;
            }
            VcpuExit::Intr | VcpuExit::IrqWindowOpen => return None,
            VcpuExit::Shutdown => Ending::TripleFault,
            VcpuExit::Hlt => Ending::Halted,
            VcpuExit::FailEntry(reason, cpu) => Ending::FailEntry { reason, cpu },
            VcpuExit::SystemEvent(kind, _) => match kind {
                kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Ending::PowerOff,
                kvm_bindings::KVM_SYSTEM_EVENT_CRASH => Ending::Panic(PanicKind::Panicked),
                _ => Ending::Reset(ResetSource::Acpi),
            },
            _ => return Some(Served::Abnormal),
        };
        Some(Served::End(ending))
    }

    fn mmio_write<H: ExitHandler>(&self, addr: u64, data: &[u8], handler: &H) -> Option<Served> {
        let served = match &self.chip {
            Some(chip) => chip.mmio_write(&self.vm, addr, data),
            None => Ok(false),
        };
        match served {
            Ok(true) => None,
            Ok(false) => {
                handler.mmio_write(addr, data);
                None
            }
            // Only an exhausted host refuses valid routes; without them the guest would hang in silence.
            Err(Error::Kvm { source, .. }) => {
                let errno = source.raw_os_error().unwrap_or(0);
                Some(Served::End(Ending::RunFailed { errno }))
            }
            Err(_) => Some(Served::End(Ending::RunFailed { errno: 0 })),
        }
    }
}

thread_local! {
    /// The `kvm_run` page of the vCPU that this thread runs. Const-initialised and without destructor, so that a
    /// signal handler may read it.
    static CURRENT: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

/// While it lives, a kick of this thread reaches its vCPU.
struct Kickable;

impl Kickable {
    fn new(fd: &mut VcpuFd) -> Self {
        CURRENT.set(ptr::from_mut(fd.get_kvm_run()));
        Self
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        CURRENT.set(ptr::null_mut());
    }
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let run = CURRENT.get();
    if !run.is_null() {
        // SAFETY: CURRENT points to the mapping of a VcpuFd that `Vcpu::run` on this very thread keeps alive while
        // CURRENT is set (Kickable); `immediate_exit` is a plain byte that the kernel reads at KVM_RUN.
        unsafe { ptr::addr_of_mut!((*run).immediate_exit).write_volatile(1) };
    }
}

/// Installs the handler of the kick signal. Once per process, before the first [`Vcpu::run`].
///
/// # Errors
/// The kernel refuses the handler.
pub fn install_kick_handler() -> Result<()> {
    vmm_sys_util::signal::register_signal_handler(kick_signal(), on_kick)
        .map_err(|e| Error::io("install the vCPU kick handler")(e.into()))
}

/// The first real-time signal that the C library leaves free; seccomp filters know it as SIGRTMIN.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

fn gettid() -> libc::pid_t {
    // SAFETY: gettid has no preconditions and cannot fail.
    unsafe { libc::gettid() }
}

/// Interrupts a vCPU thread of this process. A thread that is gone is not an error.
pub(crate) fn kick(thread: libc::pid_t) {
    // SAFETY: tgkill with our own pid reaches only threads of this process; a stale id yields ESRCH.
    unsafe { libc::syscall(libc::SYS_tgkill, std::process::id() as libc::pid_t, thread, kick_signal()) };
}
