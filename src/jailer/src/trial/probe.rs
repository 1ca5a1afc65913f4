//! `probe NAME`: a probe under a live sandbox's uid, label, Landlock ruleset and filters, each layer alone and all
//! together; each of Landlock's rights by itself.
//!
//! The kernel lets nobody join a domain that exists, nor read one. So what is tried is a *second* domain, made by the same
//! code, of the same ABI, in the same order of steps; that the runner has made its own is shown by what it tried itself
//! before the first guest instruction (its attestation), and where auditing is on by the kernel's LANDLOCK_DOMAIN record
//! with the runner's pid (`casemate why NAME --all`).

use std::os::fd::OwnedFd;

use casemate_confine::controls::{self, Ground};
use casemate_confine::trial::Attempt;
use casemate_plan::{HostConfig, Layer};
use casemate_spec::SandboxId;
use casemate_sys::path::{self, OFlags};
use serde::Serialize;

use super::attack::living;
use super::jail::{EVERY, FIRST_GIVEN, Jail};
use super::outside::Outside;
use super::proof::{Selftest, finish, plain};
use super::scratch::{self, Scratch};
use super::{Part, word};
use crate::error::StepFailed;
use crate::store::RunDir;

const STEP: &str = "probe a sandbox's confinement";
/// What is told of the domain, in the report.
const DOMAIN: &str = "a second domain, made by the code and of the ABI that the runner's was: the kernel lets nobody join \
                      or read one that exists";
/// Layers that a probe can be put under alone, with a live sandbox's own values.
const ALONE: [Layer; 6] =
    [Layer::Landlock, Layer::Seccomp, Layer::Uid, Layer::Capabilities, Layer::Namespaces, Layer::Mounts];

#[derive(Debug, Serialize)]
pub struct Probed {
    pub sandbox: String,
    pub uid: u32,
    pub label: Option<String>,
    pub landlock_abi: u32,
    /// What the domain of `rights` is, and what it is not.
    pub domain: &'static str,
    pub rights: Vec<Right>,
    /// The layers alone, as selftest tries them.
    #[serde(flatten)]
    pub trials: Selftest,
}

/// One of Landlock's rights.
#[derive(Debug, Serialize)]
pub struct Right {
    /// `fs.read_file`
    pub right: String,
    /// With Landlock alone, with all layers, with none.
    pub alone: String,
    pub all: String,
    pub without: String,
    /// Denied alone and by all, and by nothing else.
    pub ok: bool,
}

pub fn probe(config: &HostConfig, name: &SandboxId, part: Part) -> Result<Probed, StepFailed> {
    let run = RunDir::open(&config.run_dir, true)?;
    let record = living(&run, name)?;
    let label = record.label.as_deref().map(str::parse).transpose();
    let label = label.map_err(|e| StepFailed::because(STEP, format!("its label cannot be read: {e}")))?;
    scratch::clear_stale(&config.run_dir, None)?;
    let mut scratch = Scratch::make(&config.run_dir, "probe")?;
    let place = scratch.place(record.landlock_abi)?;
    let own = image(&scratch)?;
    let outside = Outside::listen();
    let landlock_abi = record.landlock_abi;
    let ground = Ground { own_disk: FIRST_GIVEN, landlock_abi, place: Some(place), ..outside.ground() };
    let jail = Jail { uid: record.uid, label, landlock_abi, cgroup: None, rlimits: Vec::new() };
    let mut probed = Probed {
        sandbox: name.to_string(),
        uid: record.uid,
        label: record.label.clone(),
        landlock_abi,
        domain: DOMAIN,
        rights: Vec::new(),
        trials: Selftest::default(),
    };
    if landlock_abi > 0 {
        probed.rights = rights(&jail, &ground, part, &own)?;
    }
    for layer in ALONE.into_iter().filter(|layer| *layer != Layer::Landlock || landlock_abi > 0) {
        plain(layer, &jail, &ground, &own, &mut probed.trials);
    }
    finish(&mut probed.trials);
    Ok(probed)
}

/// A file that the probe is given open.
fn image(scratch: &Scratch) -> Result<OwnedFd, StepFailed> {
    let path = scratch.dir.join("own.img");
    std::fs::write(&path, b"scratch").map_err(|e| StepFailed::stage(STEP, e))?;
    path::open_no_symlinks(&path, OFlags::RDWR).map_err(|e| StepFailed::stage(STEP, e))
}

fn rights(jail: &Jail<'_>, ground: &Ground, part: Part, own: &OwnedFd) -> Result<Vec<Right>, StepFailed> {
    let rights = controls::rights(ground);
    let attempts: Vec<Attempt> = rights.iter().map(|(_, control)| control.attempt.clone()).collect();
    // In the caller's own domain SELinux lets nobody become a runner: there all the others are together.
    let every: Vec<Layer> = EVERY
        .iter()
        .copied()
        .filter(|layer| part != Part::Others || *layer != Layer::Selinux)
        .filter(|layer| !matches!(layer, Layer::Cgroup | Layer::Rlimits))
        .collect();
    let tried = |layers: &[Layer]| jail.try_all(layers, &attempts, &[own]);
    let (alone, all, without) = (tried(&[Layer::Landlock])?, tried(&every)?, tried(&[])?);
    let rows = rights.into_iter().zip(alone).zip(all.into_iter().zip(without));
    Ok(rows
        .map(|(((right, _), alone), (all, without))| Right {
            right,
            ok: alone.is_denied() && all.is_denied() && !without.is_denied(),
            alone: word(&alone),
            all: word(&all),
            without: word(&without),
        })
        .collect())
}
