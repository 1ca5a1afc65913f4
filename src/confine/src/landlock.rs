//! Landlock, twice: the jailer's child denies everything but executing the runner's file; the runner
//! then denies everything. Rights are those of the planned ABI, each a hard requirement.
//!
//! First time without NNP (needs CAP_SYS_ADMIN), so that the SELinux transition at exec is not
//! refused. Descriptors opened before stay usable: that is the point.

use crate::confined::{Finding, held};
use crate::{Confined, Error, Result};
use casemate_plan::Layer;
use casemate_sys::process::errno_name;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

const LAYER: Layer = Layer::Landlock;

/// The newest ABI that the landlock crate of this tree knows.
pub const NEWEST: u32 = 10;

/// The ABI to plan with: the kernel's, as far as we know it. 0: no Landlock.
pub fn probe() -> u32 {
    casemate_sys::facts::kernel::landlock_abi().min(NEWEST)
}

fn abi(number: u32) -> Option<ABI> {
    Some(match number {
        1 => ABI::V1,
        2 => ABI::V2,
        3 => ABI::V3,
        4 => ABI::V4,
        5 => ABI::V5,
        6 => ABI::V6,
        7 => ABI::V7,
        8 => ABI::V8,
        9 => ABI::V9,
        10 => ABI::V10,
        _ => return None,
    })
}

/// In the jailer's child: deny all files, TCP, abstract sockets and signals that ABI `number` can
/// deny, except executing and reading `runner`. Then the negative controls.
pub fn apply(number: u32, runner: BorrowedFd<'_>) -> Result<Confined> {
    // A listener from before, in our own network namespace: reachable unless the scope holds.
    let listener = abstract_listener();
    restrict(number, Some(runner))?;
    let mut findings = attest_files();
    if number >= 4 {
        findings.push(attest_tcp());
    }
    if number >= 6 {
        findings.push(attest_abstract(listener));
    }
    held(LAYER, findings)
}

/// In the runner, before it starts threads (no thread sync before ABI 8): deny everything. NNP is
/// set already. Controls: [`attest`].
pub fn apply_fully(number: u32) -> Result<Confined> {
    restrict(number, None)?;
    held(LAYER, attest_files())
}

/// What can be shown without opening a socket: no file can be opened.
pub fn attest() -> Vec<Finding> {
    attest_files()
}

fn restrict(number: u32, runner: Option<BorrowedFd<'_>>) -> Result<()> {
    let refused = |why: String| Error::Refused { layer: LAYER, why };
    let abi = abi(number).ok_or_else(|| refused(format!("ABI {number} is unknown to this build")))?;
    let status = build(abi, number, runner).map_err(|error| refused(error.to_string()))?;
    // Hard requirements make anything less an error already; the status is the kernel's last word.
    if status.ruleset != RulesetStatus::FullyEnforced {
        return Err(refused(format!("ABI {number} is {:?}, not fully enforced", status.ruleset)));
    }
    Ok(())
}

fn build(
    abi: ABI,
    number: u32,
    runner: Option<BorrowedFd<'_>>,
) -> std::result::Result<RestrictionStatus, RulesetError> {
    let mut ruleset =
        Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(AccessFs::from_all(abi))?;
    if number >= 4 {
        ruleset = ruleset.handle_access(AccessNet::from_all(abi))?;
    }
    if number >= 6 {
        ruleset = ruleset.scope(Scope::from_all(abi))?;
    }
    let mut created = ruleset.create()?;
    if let Some(runner) = runner {
        created = created.add_rule(PathBeneath::new(runner, AccessFs::Execute | AccessFs::ReadFile))?;
    }
    if number >= 7 {
        // Denials after the exec are the interesting ones; by default the kernel logs none of them.
        created = created.log_new_exec(true)?;
    }
    created.no_new_privs(false).restrict_self()
}

fn attest_files() -> Vec<Finding> {
    let what = "opening /";
    // O_RDONLY | O_CLOEXEC, which the coarse seccomp filter lets through for this control.
    let seen = verdict(std::fs::File::open("/").map(drop));
    vec![Finding::equal(LAYER, what, "EACCES", seen)]
}

fn attest_tcp() -> Finding {
    // The port does not matter: Landlock answers before routing does.
    let seen = verdict(std::net::TcpStream::connect(("127.0.0.1", 1)).map(drop));
    Finding::equal(LAYER, "connecting by TCP", "EACCES", seen)
}

fn abstract_listener() -> Option<(UnixListener, SocketAddr)> {
    // A network namespace of our own has its own abstract names; without one (a trial of this layer
    // alone) the time keeps two of us apart.
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos());
    let name = format!("casemate-control-{}-{now}", casemate_sys::process::own_pid());
    let address = SocketAddr::from_abstract_name(name).ok()?;
    Some((UnixListener::bind_addr(&address).ok()?, address))
}

fn attest_abstract(listener: Option<(UnixListener, SocketAddr)>) -> Finding {
    let what = "connecting to an abstract socket from before";
    match listener {
        Some((_listener, address)) => {
            Finding::equal(LAYER, what, "EPERM", verdict(UnixStream::connect_addr(&address).map(drop)))
        }
        None => Finding::judged(LAYER, what, "EPERM", "no listener could be made for this control", false),
    }
}

fn verdict(result: std::io::Result<()>) -> String {
    match result {
        Ok(()) => "allowed".into(),
        Err(error) => error.raw_os_error().map_or_else(|| error.to_string(), errno_name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `AbstractUnixSocket` to `abstract_unix_socket`.
    fn snake(name: &str) -> String {
        let mut out = String::new();
        for c in name.chars() {
            if c.is_ascii_uppercase() && !out.is_empty() {
                out.push('_');
            }
            out.push(c.to_ascii_lowercase());
        }
        out
    }

    #[test]
    fn the_auditors_table_is_what_is_applied() {
        for number in 1..=NEWEST {
            let of = abi(number).unwrap();
            let fs = AccessFs::from_all(of).iter().map(|right| format!("fs.{}", snake(&format!("{right:?}"))));
            let net = AccessNet::from_all(of).iter().map(|right| format!("net.{}", snake(&format!("{right:?}"))));
            let scope = Scope::from_all(of).iter().map(|right| format!("scope.{}", snake(&format!("{right:?}"))));
            let mut applied: Vec<String> = fs.chain(net).chain(scope).collect();
            let mut told = casemate_plan::landlock::handled(number);
            applied.sort();
            told.sort();
            assert_eq!(told, applied, "ABI {number}");
        }
    }
}
