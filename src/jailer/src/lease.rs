//! The steps that lease a uid and a level: what the caller may have, who else has what, and the ledger's word.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use casemate_label::mode::SelinuxFs;
use casemate_label::{Context, InUse, Intent, Level, Sources, UidRange, VerifiedProc, Window, durable};
use casemate_plan::{Action, FdKind, HostConfig, Plan, Step};

use crate::error::StepFailed;
use crate::start::Start;

/// How deep image directories are looked into.
const DEPTH: u32 = 2;

impl Start {
    pub(crate) fn lease_uid(&mut self, step: &Step, first: u32, last: u32) -> Result<(), StepFailed> {
        let owner = self.journal.owner().clone();
        let range = UidRange { first, count: last - first + 1 };
        let (uid, lease) = self.ledger.lease_uid(&owner, range).map_err(|e| StepFailed::at(step, e))?;
        self.uid = Some(uid);
        self.note(step, Intent::Lease { lease: lease.key })
    }

    pub(crate) fn lease_pair(&mut self, step: &Step, plan: &Plan) -> Result<(), StepFailed> {
        let owner = self.journal.owner().clone();
        let (own, fs) = self.caller(step)?;
        let label = |level: Level| self.relabeler.profile().runner_label(&own, level);
        let window = self.window.declared(|level| fs.is_valid(&label(level)));
        let mut in_use = InUse::survey(&sources(&self.config, Some(plan)));
        // After a reboot no lease speaks for the pairs that crashed sandboxes left on files.
        durable::add_held(&self.config.state_dir, &mut in_use).map_err(|e| StepFailed::at(step, e))?;
        let leased = self.ledger.lease_pair(&owner, &window.categories, &in_use);
        let (pair, lease) = leased.map_err(|e| StepFailed::at(step, e))?;
        self.have(window.level(pair), &own);
        self.warnings.extend(in_use.warnings);
        self.note(step, Intent::Lease { lease: lease.key })?;
        self.check_label(step, &fs)
    }

    pub(crate) fn lease_level(
        &mut self,
        step: &Step,
        plan: &Plan,
        level: &str,
        shared: bool,
    ) -> Result<(), StepFailed> {
        let level: Level = level.parse().map_err(|e| StepFailed::at(step, e))?;
        let owner = self.journal.owner().clone();
        let (own, fs) = self.caller(step)?;
        if !level.categories.is_subset(&self.window.categories) {
            let range = self.window.categories;
            return Err(StepFailed::at_because(step, format!("{level} is not within the caller's categories {range}")));
        }
        self.have(level, &own);
        self.check_label(step, &fs)?;
        let in_use = InUse::survey(&sources(&self.config, Some(plan)));
        let leased = self.ledger.lease_static(&owner, &level, shared, &in_use);
        let (lease, warnings) = leased.map_err(|e| StepFailed::at(step, e))?;
        self.warnings.extend(in_use.warnings);
        self.warnings.extend(warnings);
        self.note(step, Intent::Lease { lease: lease.key })
    }

    fn have(&mut self, level: Level, own: &Context) {
        let label = self.relabeler.profile().runner_label(own, level);
        self.relabeler.judge_for(label.clone());
        (self.label, self.level) = (Some(label), Some(level));
    }

    /// Our own label, whose user and role the runner gets; the window is that of whoever executed us.
    fn caller(&mut self, step: &Step) -> Result<(Context, SelinuxFs), StepFailed> {
        self.name_host(step)?;
        let proc = VerifiedProc::open_host().map_err(|e| StepFailed::at(step, e))?;
        let caller = proc.callers_label().map_err(|e| StepFailed::at(step, e))?;
        self.window = Window::of_caller(&caller);
        let own = proc.own_label().map_err(|e| StepFailed::at(step, e))?;
        let fs = SelinuxFs::here().map_err(|e| StepFailed::at(step, e))?;
        let fs = fs.ok_or_else(|| StepFailed::at_because(step, "SELinux is off"))?;
        Ok((own, fs))
    }

    /// The kernel's word on the whole label, before anything carries it.
    fn check_label(&self, step: &Step, fs: &SelinuxFs) -> Result<(), StepFailed> {
        match self.label.as_ref().filter(|label| !fs.is_valid(label)) {
            None => Ok(()),
            Some(label) => Err(StepFailed::at_because(step, format!("the loaded policy does not accept {label}"))),
        }
    }
}

/// Where levels in use are looked for: what the host's other managers write, and files where images lie: the
/// configured directories, our own, and those of this sandbox's images.
pub fn sources(config: &HostConfig, plan: Option<&Plan>) -> Sources {
    let beside = plan.into_iter().flat_map(|plan| &plan.steps).filter_map(|step| match &step.action {
        Action::OpenFile { path, kind: FdKind::Image, .. } => Path::new(path).parent(),
        _ => None,
    });
    let beside: BTreeSet<PathBuf> = beside.filter(|dir| dir.is_absolute()).map(PathBuf::from).collect();
    let known = |dir: &PathBuf| config.image_dirs.contains(dir);
    let mut images: Vec<(PathBuf, u32)> = beside.into_iter().filter(|dir| !known(dir)).map(|dir| (dir, 0)).collect();
    images.extend(config.image_dirs.iter().map(|dir| (dir.clone(), DEPTH)));
    images.push((config.state_dir.clone(), DEPTH));
    images.push((config.run_dir.join("vms"), 1));
    Sources { images, ..Sources::host() }
}
