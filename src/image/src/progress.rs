//! How far long work has come; the caller draws it.

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    ReadingPackage,
    ReadingSource,
    Unpacking,
    Modules,
    Vmlinux,
    Image,
}

/// `total` is 0 where it is not known. Bytes, except for [`Phase::Modules`], which counts modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub phase: Phase,
    pub done: u64,
    pub total: u64,
}

/// For callers who do not show any.
pub fn silent(_: Progress) {}
