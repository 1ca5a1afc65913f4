//! Capabilities: bounding and ambient set emptied and securebits locked while CAP_SETPCAP is held,
//! all other sets emptied at the end.

use crate::confined::{Finding, held};
use crate::{Confined, Error, Result};
use casemate_plan::Layer;
use casemate_sys::cred;

const LAYER: Layer = Layer::Capabilities;

/// Do we hold what the jailer's child needs (CAP_SYS_ADMIN, CAP_SETPCAP, CAP_SETUID, CAP_SETGID)?
pub fn probe() -> bool {
    const NEEDED: u64 = 1 << 21 | 1 << 8 | 1 << 7 | 1 << 6;
    cred::capabilities().is_ok_and(|sets| sets.effective & NEEDED == NEEDED)
}

/// Step "empty the bounding set": ambient set, securebits, bounding set. What is read back here is
/// repeated by [`attest`] after [`drop_all`].
pub fn drop_bounding() -> Result<()> {
    cred::clear_ambient().map_err(Error::call(LAYER))?;
    cred::drop_bounding_set().map_err(Error::call(LAYER))?;
    // Last: with NOROOT locked, uid 0 alone grants nothing any more.
    cred::lock_securebits().map_err(Error::call(LAYER))
}

/// Step "empty all capability sets", after the uid changed.
pub fn drop_all() -> Result<Confined> {
    cred::drop_capabilities().map_err(Error::call(LAYER))?;
    held(LAYER, attest())
}

/// All five sets empty and the securebits locked, as the thread itself sees them; no /proc.
pub fn attest() -> Vec<Finding> {
    let sets = cred::capabilities();
    let bits = cred::securebits();
    let mut findings = match sets {
        Ok(sets) => {
            let hex = |mask: u64| format!("{mask:016x}");
            [
                ("CapEff", sets.effective),
                ("CapPrm", sets.permitted),
                ("CapInh", sets.inheritable),
                ("CapBnd", sets.bounding),
                ("CapAmb", sets.ambient),
            ]
            .map(|(what, mask)| Finding::equal(LAYER, what, hex(0), hex(mask)))
            .to_vec()
        }
        Err(error) => vec![Finding::unreadable(LAYER, "capability sets", &error)],
    };
    findings.push(match bits {
        Ok(bits) => {
            Finding::equal(LAYER, "securebits", format!("{:#x}", cred::LOCKED_SECUREBITS), format!("{bits:#x}"))
        }
        Err(error) => Finding::unreadable(LAYER, "securebits", &error),
    });
    findings
}
