//! Memory that must not leave the process.

use crate::error::check;
use crate::{Attempt, Result};

/// Keeps whole pages of a mapping out of core dumps (MADV_DONTDUMP). `region` starts on a page.
pub fn dont_dump(region: &mut [u8]) -> Result<()> {
    // SAFETY: the slice is a live mapping that we hold exclusively; the advice changes no content.
    let result = unsafe { libc::madvise(region.as_mut_ptr().cast(), region.len(), libc::MADV_DONTDUMP) };
    check(result.into()).attempt("keep memory out of core dumps")?;
    Ok(())
}
