//! Credentials of the calling thread: groups, gid, uid, capability sets, securebits.
//!
//! The setters are the raw per-thread calls. They are meant for a process with a single thread (the
//! jailer's child); in another process they would change the calling thread only.

use crate::{Attempt, Result};
use rustix::process::{Gid, Uid};
use rustix::thread as raw;
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};

/// Real, effective and saved id.
pub type Triple = [u32; 3];

/// The four capability masks that a process can read of itself, bit n = capability n, plus bounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub bounding: u64,
    pub ambient: u64,
}

impl Capabilities {
    /// No capability in any set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// CAP_SYS_ADMIN as a mask bit, for "can I still install a filter without NNP".
pub const CAP_SYS_ADMIN: u64 = 1 << 21;

/// The last capability that the running kernel knows (the bounding set answers EINVAL above it).
pub fn last_capability() -> u32 {
    (0..64).take_while(|number| in_bounding(*number).is_some()).last().unwrap_or(0)
}

fn bit(number: u32) -> CapabilitySet {
    CapabilitySet::from_bits_retain(1 << number)
}

fn in_bounding(number: u32) -> Option<bool> {
    raw::capability_is_in_bounding_set(bit(number)).ok()
}

/// Reads all five sets of the calling thread; no /proc.
pub fn capabilities() -> Result<Capabilities> {
    let sets = raw::capabilities(None).attempt("read the capability sets")?;
    let mut all = Capabilities {
        effective: sets.effective.bits(),
        permitted: sets.permitted.bits(),
        inheritable: sets.inheritable.bits(),
        ..Capabilities::default()
    };
    for number in 0..64 {
        let Some(bounding) = in_bounding(number) else { break };
        all.bounding |= u64::from(bounding) << number;
        let ambient = raw::capability_is_in_ambient_set(bit(number)).unwrap_or(false);
        all.ambient |= u64::from(ambient) << number;
    }
    Ok(all)
}

/// Drops every capability from the bounding set (needs CAP_SETPCAP).
pub fn drop_bounding_set() -> Result<()> {
    for number in 0..64 {
        match in_bounding(number) {
            None => break,
            Some(false) => {}
            Some(true) => raw::remove_capability_from_bounding_set(bit(number))
                .attempt_with(|| format!("drop capability {number} from the bounding set"))?,
        }
    }
    Ok(())
}

/// Empties the ambient set.
pub fn clear_ambient() -> Result<()> {
    raw::clear_ambient_capability_set().attempt("clear the ambient capability set")
}

/// Sets effective, permitted and inheritable to nothing. There is no way back.
pub fn drop_capabilities() -> Result<()> {
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    raw::set_capabilities(None, sets).attempt("drop all capabilities")
}

/// The securebits of a confined process: uid 0 means nothing at exec; no keepcaps; no ambient raise;
/// the set-uid fix-up (leaving uid 0 clears the sets) cannot be turned off. All locked.
pub const LOCKED_SECUREBITS: u32 = CapabilitiesSecureBits::NO_ROOT.bits()
    | CapabilitiesSecureBits::NO_ROOT_LOCKED.bits()
    | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED.bits()
    | CapabilitiesSecureBits::KEEP_CAPS_LOCKED.bits()
    | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE.bits()
    | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED.bits();

/// Applies [`LOCKED_SECUREBITS`] (needs CAP_SETPCAP).
pub fn lock_securebits() -> Result<()> {
    raw::set_capabilities_secure_bits(CapabilitiesSecureBits::from_bits_retain(LOCKED_SECUREBITS))
        .attempt("lock the securebits")
}

/// The securebits of the calling thread.
pub fn securebits() -> Result<u32> {
    Ok(raw::capabilities_secure_bits().attempt("read the securebits")?.bits())
}

/// Leaves all supplementary groups (needs CAP_SETGID).
pub fn clear_groups() -> Result<()> {
    raw::set_thread_groups(&[]).attempt("leave all supplementary groups")
}

/// Sets real, effective and saved gid.
pub fn set_gid(gid: u32) -> Result<()> {
    let gid = Gid::from_raw(gid);
    raw::set_thread_res_gid(gid, gid, gid).attempt_with(|| format!("become gid {gid}"))
}

/// Sets real, effective and saved uid.
pub fn set_uid(uid: u32) -> Result<()> {
    let uid = Uid::from_raw(uid);
    raw::set_thread_res_uid(uid, uid, uid).attempt_with(|| format!("become uid {uid}"))
}

/// Real, effective and saved uid.
pub fn uids() -> Result<Triple> {
    let mut ids = [0; 3];
    let [real, effective, saved] = &mut ids;
    // SAFETY: getresuid(2) writes three ids through three distinct live pointers.
    let result = unsafe { libc::getresuid(real, effective, saved) };
    crate::error::check(result.into()).attempt("read the uids")?;
    Ok(ids)
}

/// Real, effective and saved gid.
pub fn gids() -> Result<Triple> {
    let mut ids = [0; 3];
    let [real, effective, saved] = &mut ids;
    // SAFETY: getresgid(2) writes three ids through three distinct live pointers.
    let result = unsafe { libc::getresgid(real, effective, saved) };
    crate::error::check(result.into()).attempt("read the gids")?;
    Ok(ids)
}

/// The supplementary groups.
pub fn groups() -> Result<Vec<u32>> {
    // SAFETY: with size 0 getgroups(2) only counts.
    let count = unsafe { libc::getgroups(0, std::ptr::null_mut()) };
    let count = crate::error::check(count.into()).attempt("count the groups")?;
    let mut groups = vec![0; count as usize];
    // SAFETY: the buffer holds `count` ids, and that is the size we give.
    let count = unsafe { libc::getgroups(groups.len() as i32, groups.as_mut_ptr()) };
    let count = crate::error::check(count.into()).attempt("read the groups")?;
    groups.truncate(count as usize);
    Ok(groups)
}

/// Is the effective uid 0? (For tests that skip themselves and for clear messages; not a check.)
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_credentials_can_be_read() {
        let capabilities = capabilities().unwrap();
        assert_eq!(capabilities.permitted & capabilities.effective, capabilities.effective);
        assert!(last_capability() >= 37);
        let uids = uids().unwrap();
        assert_eq!(uids[1], rustix::process::geteuid().as_raw());
        assert_eq!(gids().unwrap()[1], rustix::process::getegid().as_raw());
        groups().unwrap();
        securebits().unwrap();
    }
}
