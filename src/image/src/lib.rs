//! Kernels, initramfs and root file system images: what a guest boots from, kept in one store.
//!
//! Trust: runs with the caller's rights, without network, and prints nothing. What it reads (packages, archives,
//! directories) may be hostile: sizes and counts are bounded, archives are unpacked beneath one directory, formats are
//! named by the caller or by the file's documented header. Called by the cli (and later by oci and shim).
//!
//! ```text
//! STATE/kernels/NAME/   vmlinuz [vmlinux] modules/*.ko manifest.json     made whole, renamed into place
//! STATE/kernels/.default                                                 the default kernel's name
//! STATE/cache/initramfs/DIGEST.cpio                                      DIGEST = what went in
//! STATE/cache/rootfs/DIGEST.erofs                                        DIGEST = content of the source
//! STATE/cache/seen/KEY                                                   stat fingerprint of a source -> DIGEST
//! STATE/cache/tmp/                                                       unfinished work, removed when stale
//! ```
#![forbid(unsafe_code)]

mod compress;
mod deb;
mod digest;
mod elf;
mod error;
mod fingerprint;
mod import;
mod initramfs;
mod kernel;
mod modules;
mod progress;
mod rootfs;
mod store;
mod unpack;

pub use digest::Digest;
pub use error::{Error, Result};
pub use initramfs::Initramfs;
pub use kernel::{Kernel, KernelManifest, KernelSource, ModuleFile};
pub use progress::{Phase, Progress, silent};
pub use rootfs::{RootSource, RootfsImage, TarCompression};
pub use store::{DEFAULT_STATE_DIR, Store};
