//! The columns: the same attempts under one set of layers each.

use std::os::fd::OwnedFd;
use std::path::Path;

use casemate_confine::objects::{Handle, Object};
use casemate_confine::trial::{Attempt, Outcome};
use casemate_label::{Context, VerifiedProc};
use casemate_plan::{HostConfig, Layer};
use casemate_spec::SandboxId;
use casemate_sys::seqpacket;

use super::super::jail::{EVERY, Jail};
use super::inside::{self, FIRST_OBJECT, POST, Request};
use super::post::Post;
use super::stage::{Entry, Side};
use super::table::{Spec, TABLE, Way};
use crate::error::StepFailed;

const STEP: &str = "run the trials";

/// Layers that are asked alone in the caller's domain; `open` is none at all, which shows that an attempt is one.
pub const ALONE: [(&str, &[Layer]); 5] = [
    ("open", &[]),
    ("landlock", &[Layer::Landlock]),
    ("seccomp", &[Layer::Seccomp]),
    ("uid_and_caps", &[Layer::Uid, Layer::Capabilities]),
    ("namespaces", &[Layer::Namespaces, Layer::Mounts]),
];

/// One subject's own objects, and those of its neighbour.
pub struct Family {
    pub subject: Option<Context>,
    pub cross: Side,
    pub own: Side,
    /// Every descriptor of both sides, in the order of their tags.
    given: Vec<OwnedFd>,
    /// Which entry of `given` a row's object is, on each side.
    tags: [Vec<Option<u8>>; 2],
}

/// Which of a family's sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    Cross = 0,
    Own = 1,
}

impl Family {
    pub fn new(subject: Option<Context>, cross: Side, own: Side) -> Result<Family, StepFailed> {
        let mut family = Family { subject, cross, own, given: Vec::new(), tags: [Vec::new(), Vec::new()] };
        for whose in [Whose::Cross, Whose::Own] {
            let mut tags: Vec<Option<u8>> = Vec::new();
            for (at, spec) in TABLE.iter().enumerate() {
                let known = TABLE.iter().take(at).position(|earlier| earlier.thing == spec.thing);
                let tag = match (known, family.entry(spec, whose).and_then(|entry| entry.fd.as_ref())) {
                    (Some(earlier), _) => tags.get(earlier).copied().flatten(),
                    (None, None) => None,
                    (None, Some(fd)) => {
                        let copy = fd.try_clone().map_err(|e| StepFailed::stage(STEP, e))?;
                        let tag = u8::try_from(family.given.len()).map_err(|e| StepFailed::stage(STEP, e))?;
                        family.given.push(copy);
                        Some(tag)
                    }
                };
                tags.push(tag);
            }
            family.tags[whose as usize] = tags;
        }
        Ok(family)
    }

    pub fn side(&self, whose: Whose) -> &Side {
        match whose {
            Whose::Cross => &self.cross,
            Whose::Own => &self.own,
        }
    }

    pub fn entry(&self, spec: &Spec, whose: Whose) -> Option<&Entry> {
        self.side(whose).entries.get(&spec.thing)
    }

    /// The attempt of a row; `None` where its object is missing.
    fn attempt(&self, at: usize, whose: Whose) -> Option<Attempt> {
        let spec = TABLE.get(at)?;
        let tag = || self.tags[whose as usize].get(at).copied().flatten();
        let handle = match spec.way {
            Way::Name => self.entry(spec, whose)?.name.clone()?,
            Way::Passed => Handle::Passed(tag()?),
            Way::Inherited => Handle::Inherited(FIRST_OBJECT + i32::from(tag()?)),
        };
        Some(Attempt::Try { act: spec.act, at: handle })
    }
}

/// What one set of layers answered, by row.
#[derive(Default)]
pub struct Column {
    pub cross: Vec<Option<Outcome>>,
    pub own: Vec<Option<Outcome>>,
    /// By [`Object::ALL`].
    pub makes: Vec<Outcome>,
}

pub struct Columns {
    /// By [`ALONE`]; `None` for a layer that this host does not have.
    pub alone: Vec<Option<Column>>,
    pub selinux: Option<Column>,
    pub all: Column,
    pub twin: Option<Column>,
}

impl Columns {
    pub fn run(
        config: &HostConfig,
        (name, plain): (&SandboxId, &Jail<'_>),
        family: &Family,
        twin: Option<&Family>,
        place: &Path,
    ) -> Result<Columns, StepFailed> {
        let trial = Asked::of(family, place);
        let (selinux, whole) = match &family.subject {
            None => (None, None),
            Some(_) => {
                let ask = |alone| {
                    let request = Request { alone, attempts: trial.attempts.clone(), given: family.given.len() };
                    trial.sort(inside::ask(config, name, &request, &family.given)?)
                };
                (Some(ask(true)?), Some(ask(false)?))
            }
        };
        let twin = twin.map(|family| Self::twin(plain, family, place)).transpose()?;
        // Last, those without SELinux: attaching to a tap gives it the attacher's label.
        let (ours, theirs) = pair(None)?;
        let post = Post::start(&family.given, (ours, Some(theirs)))?;
        let given: Vec<&OwnedFd> = post.socket.iter().chain(&family.given).collect();
        let mut alone = Vec::new();
        for (_, layers) in ALONE.into_iter().rev() {
            let lacks = layers == [Layer::Landlock].as_slice() && plain.landlock_abi == 0;
            let column = (!lacks).then(|| trial.sort(plain.try_with_post(layers, &trial.attempts, &given, POST)?));
            alone.push(column.transpose()?);
        }
        alone.reverse();
        let all = match whole {
            Some(all) => all,
            None => trial.sort(plain.try_with_post(EVERY, &trial.attempts, &given, POST)?)?,
        };
        Ok(Columns { alone, selinux, all, twin })
    }

    fn twin(plain: &Jail<'_>, family: &Family, place: &Path) -> Result<Column, StepFailed> {
        let trial = Asked::of(family, place);
        let (ours, theirs) = pair(family.subject.as_ref())?;
        let post = Post::start(&family.given, (ours, Some(theirs)))?;
        let given: Vec<&OwnedFd> = post.socket.iter().chain(&family.given).collect();
        let jail =
            Jail { uid: plain.uid, label: family.subject.clone(), landlock_abi: 0, cgroup: None, rlimits: Vec::new() };
        trial.sort(jail.try_with_post(&[Layer::Selinux], &trial.attempts, &given, POST)?)
    }
}

/// The attempts of a family in one list, and where each one's outcome goes.
struct Asked {
    attempts: Vec<Attempt>,
    cross: Vec<Option<usize>>,
    own: Vec<Option<usize>>,
    makes: usize,
}

impl Asked {
    fn of(family: &Family, place: &Path) -> Asked {
        let mut attempts = Vec::new();
        let mut side = |whose| -> Vec<Option<usize>> {
            let mut add = |attempt| {
                attempts.push(attempt);
                attempts.len() - 1
            };
            (0..TABLE.len()).map(|at| family.attempt(at, whose).map(&mut add)).collect()
        };
        let (cross, own) = (side(Whose::Cross), side(Whose::Own));
        let makes = attempts.len();
        let mark = format!("{}m", casemate_sys::process::own_pid());
        let place = place.display().to_string();
        let make = |object: Object| Attempt::Make { object, place: place.clone(), mark: mark.clone() };
        attempts.extend(Object::ALL.into_iter().map(make));
        Asked { attempts, cross, own, makes }
    }

    fn sort(&self, outcomes: Vec<Outcome>) -> Result<Column, StepFailed> {
        let pick = |places: &[Option<usize>]| -> Vec<Option<Outcome>> {
            places.iter().map(|at| at.and_then(|at| outcomes.get(at)).cloned()).collect()
        };
        let makes = outcomes.get(self.makes..).unwrap_or_default().to_vec();
        Ok(Column { cross: pick(&self.cross), own: pick(&self.own), makes })
    }
}

/// The post's sockets, with the label of whoever asks there.
pub fn pair(label: Option<&Context>) -> Result<(OwnedFd, OwnedFd), StepFailed> {
    let Some(label) = label else { return seqpacket::pair().map_err(|e| StepFailed::stage(STEP, e)) };
    let proc = VerifiedProc::open_host().map_err(|e| StepFailed::stage(STEP, e))?;
    proc.set_socket_label(Some(label)).map_err(|e| StepFailed::stage(STEP, e))?;
    let pair = seqpacket::pair();
    proc.set_socket_label(None).map_err(|e| StepFailed::stage(STEP, e))?;
    pair.map_err(|e| StepFailed::stage(STEP, e))
}
