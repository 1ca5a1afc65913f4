//! What label a path has by the policy's file_contexts: the second source of a restore.
//!
//! Trust: reads the policy's own configuration through libselinux (`selinux` crate), which
//! only the jailer links. Opening file_contexts costs 11 to 17 ms, so it is done only when a
//! remembered label is missing, never on the start path.
//! Called by `relabel`.

use std::path::Path;

use crate::context::Context;

/// The policy's label for `path` with st_mode `mode`; `None` where it names none.
pub fn lookup(path: &Path, mode: u32) -> Option<Context> {
    if selinux::kernel_support() == selinux::KernelSupport::Unsupported {
        return None;
    }
    let labeler = selinux::label::Labeler::<selinux::label::back_end::File>::new(&[], true).ok()?;
    let access = selinux::FileAccessMode::new(mode)?;
    let found = labeler.look_up_by_path(path, Some(access)).ok()?;
    let context = Context::from_bytes(found.as_bytes()).ok()?;
    (context.type_() != "<<none>>").then_some(context)
}
