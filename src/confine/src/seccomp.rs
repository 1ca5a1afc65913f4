//! Seccomp: puts on the filters that the `filters` room compiles, and asks a thread which one it has.
//!
//! The coarse filter goes in before exec, without NNP, while CAP_SYS_ADMIN is held; the runner stacks
//! one per thread on top. Everything that is not allowed kills the process (SIGSYS, logged by the
//! kernel). Each filter answers one unused system call with an errno of its own, so that a thread can
//! show which filter is live: a filter that is missing, empty or another one gives itself away.

use crate::confined::{Finding, held};
use crate::{Confined, Error, Result};
use casemate_plan::Layer;
use casemate_sys as sys;

pub use casemate_filters::Filter;

/// Can this kernel run our filters?
pub fn probe() -> bool {
    let seccomp = sys::facts::kernel::seccomp();
    seccomp.kill_process && seccomp.errno
}

/// Installs a filter on the calling thread and asks it who it is. Needs CAP_SYS_ADMIN or NNP.
pub fn apply(filter: Filter) -> Result<Confined> {
    sys::seccomp::install(filter.program()).map_err(Error::call(Layer::Seccomp))?;
    held(Layer::Seccomp, vec![attest(filter)])
}

/// Is this filter the newest one on the calling thread?
pub fn attest(filter: Filter) -> Finding {
    let seen = match sys::seccomp::ask_marker() {
        Some(errno) => {
            Filter::ALL.into_iter().find(|filter| filter.marker() == errno).map_or("no filter of ours", Filter::name)
        }
        None => "no filter",
    };
    Finding::equal(Layer::Seccomp, "newest filter of the thread", filter.name(), seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfiltered_thread_is_found_out() {
        assert!(!attest(Filter::RunnerVcpu).ok);
    }
}
