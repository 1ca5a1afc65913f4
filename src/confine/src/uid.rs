//! The uid of its own: no groups, then gid, then uid, each read back at once. No way back to root.

use crate::confined::{Finding, held};
use crate::{Confined, Error, Result};
use casemate_plan::Layer;
use casemate_sys::cred;

const LAYER: Layer = Layer::Uid;

/// Step "drop all supplementary groups".
pub fn drop_groups() -> Result<()> {
    cred::clear_groups().map_err(Error::call(LAYER))
}

/// Step "set the gid", all three.
pub fn set_gid(gid: u32) -> Result<()> {
    refuse_root("gid", gid)?;
    cred::set_gid(gid).map_err(Error::call(LAYER))
}

/// Step "set the uid", all three; then groups, gid and uid are read back.
pub fn set_uid(uid: u32, gid: u32) -> Result<Confined> {
    refuse_root("uid", uid)?;
    cred::set_uid(uid).map_err(Error::call(LAYER))?;
    held(LAYER, attest(uid, gid))
}

fn refuse_root(what: &str, id: u32) -> Result<()> {
    // -1 means "leave as it is" to the kernel.
    if id == 0 || id == u32::MAX {
        return Err(Error::Refused { layer: LAYER, why: format!("{what} {id} is not an unprivileged id") });
    }
    Ok(())
}

/// Real, effective and saved ids and the groups, as the thread itself sees them; no /proc.
pub fn attest(uid: u32, gid: u32) -> Vec<Finding> {
    let triple = |ids: [u32; 3]| format!("{} {} {}", ids[0], ids[1], ids[2]);
    let ids = |what: &str, want: u32, seen: casemate_sys::Result<[u32; 3]>| match seen {
        Ok(seen) => Finding::equal(LAYER, what, triple([want; 3]), triple(seen)),
        Err(error) => Finding::unreadable(LAYER, what, &error),
    };
    let groups = match cred::groups() {
        Ok(groups) => Finding::equal(LAYER, "groups", "[]", format!("{groups:?}")),
        Err(error) => Finding::unreadable(LAYER, "groups", &error),
    };
    vec![ids("uid", uid, cred::uids()), ids("gid", gid, cred::gids()), groups]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_minus_one_are_refused_before_the_kernel_is_asked() {
        for id in [0, u32::MAX] {
            assert!(matches!(set_gid(id), Err(Error::Refused { .. })));
            assert!(matches!(set_uid(id, 5), Err(Error::Refused { .. })));
        }
    }

    #[test]
    fn another_uid_than_planned_is_found() {
        let findings = attest(4_000_000_001, 4_000_000_001);
        assert!(findings.iter().any(|finding| !finding.ok && finding.what == "uid"));
    }
}
