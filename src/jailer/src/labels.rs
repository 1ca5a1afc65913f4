//! The jailer's labelling step, and what an object that keeps no label of its own does to the posture.

use std::os::fd::AsFd;
use std::path::Path;

use casemate_label::{Choice, Held, LabelClass, Outcome, Transaction};
use casemate_plan::{ImageClass, LabelChoice, Plan, RolePlan, Step};
use casemate_spec::{Posture, SandboxSpec};
use casemate_storage::lock_metadata;
use casemate_sys::path::{self, OFlags};
use casemate_wire::record::ObjectLabel;

use crate::error::{StepFailed, sentence};
use crate::start::Start;

impl Start {
    pub(crate) fn relabel(
        &mut self,
        step: &Step,
        name: &str,
        class: ImageClass,
        choice: &LabelChoice,
    ) -> Result<(), StepFailed> {
        let fd = self.clone_fd(step, name)?;
        let level = self.level.ok_or_else(|| StepFailed::at_because(step, "no level is leased"))?;
        let choice = chosen(choice).map_err(|why| StepFailed::at_because(step, why))?;
        let object = self.labels.iter_mut().find(|object| object.fd == name);
        let object = object.ok_or_else(|| StepFailed::at_because(step, format!("'{name}' is not open")))?;
        let path = object.path.clone();
        let class = LabelClass::from(class);
        let mut transaction = Transaction::new(&self.relabeler, &mut self.journal, level);
        let held = transaction.label_as(fd.as_fd(), Path::new(&path), class, &choice);
        let held = held.map_err(|e| StepFailed::at(step, e))?;
        transaction.commit();
        note_label(object, &held);
        if class == LabelClass::Exclusive {
            // Labelling let go of libvirt's byte; held on the open file until the runner ends, it keeps libvirt from
            // relabelling a disk in use: it tries for ten seconds, then says that it cannot lock it.
            let file = std::fs::File::from(fd);
            lock_metadata(&file).map_err(|e| StepFailed::at_because(step, format!("{path}: {}", sentence(&e))))?;
        }
        if let Outcome::NoSeparation(why) = &held.outcome {
            let text = format!("no per-VM separation on {path}: {why}");
            // What is read-only or shared on purpose is every runner's anyway; what is this VM's alone is not.
            match class {
                LabelClass::Exclusive => self.unseparated.push(text),
                LabelClass::SharedWritable | LabelClass::Content => self.warnings.push(text),
            }
        }
        Ok(())
    }

    /// The posture with the objects taken into account, or a refusal. A writable object of this VM alone that every
    /// other runner may use is a hole in the layer (DESIGN, rule 2): reduced, so never under `require`.
    pub fn judged_posture(&mut self, spec: &SandboxSpec, plan: &Plan) -> Result<Posture, StepFailed> {
        const STAGE: &str = "judge the labels of the objects";
        if self.unseparated.is_empty() {
            return Ok(plan.posture);
        }
        let told = self.unseparated.join("; ");
        if let Some(required) = spec.require().filter(|required| *required > Posture::Reduced) {
            let why = format!("posture {required} is required, and there is {told}");
            return Err(StepFailed::because(STAGE, format!("{why}; copy it to a file system with labels")));
        }
        if spec.allow_reduced().is_none() {
            let remedy = "copy it to a file system with labels, or accept it with --allow-reduced REASON";
            return Err(StepFailed::because(STAGE, format!("the posture would be reduced: {told}; {remedy}")));
        }
        self.warnings.append(&mut self.unseparated);
        Ok(Posture::Reduced)
    }

    /// Images with the number of the runner's descriptor and the label that they must keep.
    pub(crate) fn attested_objects(&self, role: &RolePlan) -> Vec<(i32, String, String)> {
        let image = |object: &&ObjectLabel| object.fd.starts_with("disk.");
        let with_label =
            |object: &ObjectLabel| Some((role.fd(&object.fd)?.number, object.path.clone(), object.during.clone()?));
        self.labels.iter().filter(image).filter_map(with_label).collect()
    }

    /// The labels of the objects as they are now.
    pub fn labels_now(&self) -> Vec<ObjectLabel> {
        self.labels
            .iter()
            .cloned()
            .map(|mut label| {
                let path = Path::new(&label.path);
                let fd = path::open_no_symlinks(path, OFlags::RDONLY | OFlags::NONBLOCK).ok();
                let now = fd.and_then(|fd| self.relabeler.label_of(fd.as_fd(), path).ok().flatten());
                label.after = now.map(|context| context.to_string());
                label
            })
            .collect()
    }
}

fn chosen(choice: &LabelChoice) -> Result<Choice, String> {
    Ok(match choice {
        LabelChoice::OfClass => Choice::Class,
        LabelChoice::Keep { field } => Choice::Keep { field: field.clone() },
        LabelChoice::Given { label, field } => {
            let label = label.parse().map_err(|e| format!("{field}: {e}"))?;
            Choice::Given { label, field: field.clone() }
        }
    })
}

fn note_label(object: &mut ObjectLabel, held: &Held) {
    object.before = held.before.as_ref().map(ToString::to_string);
    let separated = !matches!(held.outcome, Outcome::NoSeparation(_));
    object.during = separated.then(|| held.label.to_string());
}
