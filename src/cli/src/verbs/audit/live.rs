//! `audit`, `audit vm`, `audit process`: what runs on this host, looked at from outside.
//!
//! The observer reads /proc and the records with the rights of whoever called; the ledger of labels is the jailer's to
//! read, and its `labels` verb is asked for it. What could not be looked at stands in the report with the reason.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use casemate_audit::observe::{Kept, LiveVm, Observer, Survey};
use casemate_audit::subject::{Known, Probe, Subject};
use casemate_client::jailer::Jailer;
use casemate_client::store::{self, Entry, Listing, Status};

use super::calls;
use super::output::{profile, tell};
use super::probe;
use crate::audit_args::{AuditProcessArgs, AuditVmArgs, OutputArgs};
use crate::failure::{Failure, Result};
use crate::output::{Context, say};

/// A directory without a record may be a start's, which takes milliseconds.
const YOUNG: Duration = Duration::from_secs(30);

/// Every sandbox of this host, and the host itself.
pub fn host(context: &Context, args: &OutputArgs) -> Result<u8> {
    profile(context, args)?;
    let observer = observer()?;
    let listing = match store::list(&context.dirs) {
        Ok(listing) => listing,
        Err(error) => {
            let failure = Failure::from(error);
            let why = format!("the sandboxes of this host cannot be listed: {}; run it as root", failure.sentence());
            say(&why);
            // Nothing is known of them, and the host's part says so.
            let host = observer.host(&context.dirs.run, &Kept::default(), &Known::Unseen(why));
            return tell(context, args, vec![host], None);
        }
    };
    let survey = survey(context);
    let mut subjects = Vec::new();
    for entry in &listing.entries {
        let subject = live(context, &observer, entry, &survey, None);
        let left = subject.leftovers.seen().is_some_and(|left| !left.is_empty()) || !subject.processes.is_empty();
        // Of an ended sandbox nothing is left to look at, unless something is.
        if entry.status != Status::Exited || left {
            subjects.push(subject);
        }
    }
    if subjects.is_empty() {
        say("no sandbox runs here: the host alone is judged");
    }
    subjects.push(observer.host(&context.dirs.run, &kept(&listing), &survey));
    tell(context, args, subjects, None)
}

pub fn vms(context: &Context, args: &AuditVmArgs) -> Result<u8> {
    profile(context, &args.output)?;
    calls::possible(context, args.calls)?;
    let observer = observer()?;
    let mut entries = Vec::new();
    for name in args.names.iter().collect::<BTreeSet<_>>() {
        let entry = store::load(&context.dirs, name)?;
        if entry.status == Status::Exited {
            let failure =
                Failure::new(format!("sandbox '{name}' has ended: nothing of it runs that could be looked at"));
            return Err(
                failure.remedy(format!("`casemate inspect {name}` tells how it ended; `casemate audit` what is left"))
            );
        }
        entries.push(entry);
    }
    let survey = survey(context);
    let mut subjects = Vec::new();
    for entry in &entries {
        let probed = args.probe.then(|| probe::rights(context, &entry.record.name)).transpose()?;
        subjects.push(live(context, &observer, entry, &survey, probed.as_deref()));
    }
    calls::print(context, args.calls, &subjects)?;
    tell(context, &args.output, subjects, None)
}

pub fn processes(context: &Context, args: &AuditProcessArgs) -> Result<u8> {
    profile(context, &args.output)?;
    calls::possible(context, args.calls)?;
    let observer = observer()?;
    let pids: BTreeSet<u32> = args.pids.iter().copied().collect();
    for pid in &pids {
        observer.find(*pid).map_err(|why| Failure::new(why).remedy("`ps -e` lists processes"))?;
    }
    let subjects: Vec<Subject> = pids.into_iter().map(|pid| observer.process(pid)).collect();
    calls::print(context, args.calls, &subjects)?;
    tell(context, &args.output, subjects, None)
}

pub fn observer() -> Result<Observer> {
    Observer::new().map_err(|error| {
        Failure::new(error.report()).remedy("whatever is read of a forged /proc is its forger's: umount what covers it")
    })
}

/// One sandbox as it stands now.
pub fn live(
    context: &Context,
    observer: &Observer,
    entry: &Entry,
    survey: &Known<Survey>,
    probed: Option<&[Probe]>,
) -> Subject {
    let directory = context.dirs.sandbox(&entry.record.name);
    let phase = entry.status.to_string();
    let vm = LiveVm { record: &entry.record, phase: &phase, directory: &directory, landlock: probed };
    observer.vm(&vm, survey)
}

/// Who has which level on this host, as `casemate labels` tells.
pub fn survey(context: &Context) -> Known<Survey> {
    let asked = Jailer::locate(&context.dirs).and_then(|jailer| jailer.ask(&["labels"], None));
    let answer = match asked {
        Ok(answer) => answer.json,
        Err(error) => return Known::Unseen(Failure::from(error).sentence()),
    };
    serde_json::from_value(answer)
        .map_err(|error| format!("the jailer's answer to 'labels' is not known here: {error}"))
        .into()
}

/// What the records account for.
fn kept(listing: &Listing) -> Kept {
    let mut kept = Kept::default();
    for entry in listing.entries.iter().filter(|entry| entry.status != Status::Exited) {
        kept.pids.extend(entry.record.runner.iter().chain([&entry.record.warden]).map(|process| process.pid));
        kept.cgroups.extend(entry.record.cgroups.iter().cloned());
    }
    // Of the future, or of no known time: that is no start's.
    let is_young = |at: SystemTime| SystemTime::now().duration_since(at).is_ok_and(|age| age <= YOUNG);
    let damaged = listing.damaged.iter().filter(|damaged| !damaged.modified.is_some_and(is_young));
    kept.left.extend(damaged.map(|d| format!("sandbox {} has no usable record: {}", d.name, d.problem)));
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use casemate_client::store::Damaged;

    #[test]
    fn a_directory_without_a_record_is_left_over_unless_a_start_may_have_made_it_just_now() {
        let now = SystemTime::now();
        let damaged = |name: &str, modified| Damaged { name: name.into(), problem: "none".into(), modified };
        let listing = Listing {
            entries: Vec::new(),
            damaged: vec![
                damaged("young", Some(now)),
                damaged("old", Some(now - 2 * YOUNG)),
                damaged("future", Some(now + 86_400 * YOUNG)),
                damaged("unknown", None),
            ],
        };
        let left = kept(&listing).left;
        let of = |name: &str| left.iter().any(|text| text.starts_with(&format!("sandbox {name} has no usable record")));
        assert!(!of("young") && of("old") && of("future") && of("unknown"), "{left:?}");
    }
}
