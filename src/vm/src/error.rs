//! What can go wrong before and while a VM runs. One sentence names the attempt and its object.

/// Result of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// A refusal by KVM or the host, or an impossible configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's KVM interface is not the one this program speaks.
    #[error("/dev/kvm speaks API version {0}, this program needs 12: use a Linux kernel of 2.6.22 or later")]
    ApiVersion(i32),
    /// A KVM capability is absent.
    #[error("the host's KVM lacks {0}: use Linux 5.10 or later with the kvm_intel or kvm_amd module")]
    MissingCapability(&'static str),
    /// A KVM or memory call failed.
    #[error("cannot {attempt}")]
    Kvm {
        /// What was tried, with its object.
        attempt: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Fewer MSRs were accepted than were set.
    #[error("KVM refused MSR {index:#x} of the boot or restored state")]
    Msr {
        /// The first MSR that was refused.
        index: u32,
    },
    /// Configuration outside what the machine offers.
    #[error("{what} is {value}, must be between {min} and {max}")]
    Range {
        /// The field.
        what: &'static str,
        /// What was asked.
        value: u64,
        /// Smallest value.
        min: u64,
        /// Largest value.
        max: u64,
    },
    /// An interrupt line was asked from a VM without an interrupt chip.
    #[error("interrupt line {0} was requested, but the VM was configured without interrupts")]
    NoInterrupts(u32),
    /// Saved state is of another version or shape.
    #[error("saved {what} state has version {found}, this program reads {known}")]
    StateVersion {
        /// Whose state.
        what: &'static str,
        /// Version in the state.
        found: u32,
        /// Version this program reads.
        known: u32,
    },
    /// The kernel, initrd or command line cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
}

impl Error {
    /// Names the attempt of a failed KVM ioctl.
    pub(crate) fn kvm(attempt: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |e| Self::Kvm { attempt, source: std::io::Error::from_raw_os_error(e.errno()) }
    }

    /// Names the attempt of a failed system call.
    pub(crate) fn io(attempt: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Kvm { attempt, source }
    }
}

/// Why an image cannot be booted; each says what to give instead.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Neither ELF nor bzImage.
    #[error("the kernel is neither an ELF file nor a bzImage: give a vmlinuz or vmlinux built for x86-64")]
    UnknownFormat,
    /// The file could not be read.
    #[error("cannot read the {what}")]
    Read {
        /// kernel or initrd.
        what: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A header field contradicts the file or the machine.
    #[error("the kernel is malformed ({0}): give an unmodified x86-64 kernel image")]
    Malformed(&'static str),
    /// The loader library refused the image.
    #[error("the kernel is malformed or does not fit: give an unmodified x86-64 kernel image or more guest memory")]
    Loader(#[source] linux_loader::loader::Error),
    /// A 32-bit or otherwise unsupported kernel.
    #[error("the kernel has no 64-bit entry point: give an x86-64 kernel with boot protocol 2.12 or later, or PVH")]
    No64BitEntry,
    /// Kernel, initrd and tables do not fit into guest memory.
    #[error("{what} needs {needed} bytes of low guest memory, {available} are free: give the guest more memory")]
    NoRoom {
        /// kernel or initrd.
        what: &'static str,
        /// Bytes needed.
        needed: u64,
        /// Bytes free at the place it must go.
        available: u64,
    },
    /// The command line is too long for the kernel or not text.
    #[error("the kernel command line has {length} bytes, the kernel takes {max}: shorten it")]
    CommandLineTooLong {
        /// Its length.
        length: usize,
        /// What the kernel takes, the final zero left out.
        max: usize,
    },
    /// Control characters or NUL in the command line.
    #[error("the kernel command line contains byte {0:#04x}: only printable ASCII is allowed")]
    CommandLineByte(u8),
    /// Guest memory refused an access: a table does not fit.
    #[error("cannot write the {0} into guest memory: give the guest more memory")]
    Table(&'static str),
}
