//! Kernels, initramfs and root file system images.
