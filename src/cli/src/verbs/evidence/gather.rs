//! Gathers what can be seen of a sandbox. What cannot is said in its place, with the reason.

use std::collections::BTreeMap;
use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use casemate_audit::seccomp;
use casemate_client::control::Control;
use casemate_client::store::{self, Entry, SandboxDir};
use casemate_evidence::parts::{self, Filters, KEPT, Kept, MAX_KEPT, Policy, ThreadFilters};
use casemate_evidence::{Digest, Evidence, Part};
use casemate_sys::installed;
use casemate_wire::record::ProcessName;
use rustix::rand::{GetRandomFlags, getrandom};

use super::{files, judged, redact};
use crate::evidence_args::{MakeArgs, Redact};
use crate::failure::{Failure, Result};
use crate::output::Context;

const ENDED: &str = "the sandbox has ended";
const POLICY: &str = "/sys/fs/selinux/policy";
const MODULE: &str = "/usr/share/casemate/policies";

pub fn gather(context: &Context, name: &str, args: &MakeArgs) -> Result<Evidence> {
    let dir = store::open(&context.dirs, name)?;
    let entry = dir.entry()?;
    let live = entry.status.is_alive();
    let kept = kept(&dir);
    let evidence = Evidence {
        version: parts::VERSION,
        sandbox: dir.name.to_string(),
        time: now(),
        nonce: args.nonce.clone(),
        casemate: env!("CARGO_PKG_VERSION").into(),
        spec: spec(&kept, args.env)?,
        attested: if live { attested(&dir) } else { Part::Missing(ENDED.into()) },
        filters: if live { filters(&entry) } else { Part::Missing(ENDED.into()) },
        files: kept.as_ref().map_or_else(|_| Vec::new(), |kept| files::objects(&kept.planned, &entry, live)),
        programs: files::programs(&entry, live),
        policy: policy(args.with_policy),
        audit: judged::report(context, &entry, args.profile.as_deref())?,
        start: kept.map(|kept| kept.planned).into(),
        record: entry.record,
    };
    let same = store::load(&context.dirs, name)?.status.is_alive() == live;
    if !same {
        return Err(Failure::new(format!("sandbox '{name}' ended while its evidence was gathered"))
            .remedy("ask again: the evidence is then that of an ended sandbox"));
    }
    evidence.check().map_err(super::refused)?;
    Ok(evidence)
}

pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// What the jailer kept of the start.
fn kept(dir: &SandboxDir) -> Result<Kept, String> {
    let failed = |why: &dyn std::fmt::Display| format!("{KEPT}, which the jailer keeps of a start: {why}");
    let file = dir.open_file(KEPT).map_err(|e| failed(&std::io::Error::from(e)))?;
    let mut bytes = Vec::new();
    std::fs::File::from(file).take(MAX_KEPT + 1).read_to_end(&mut bytes).map_err(|e| failed(&e))?;
    if bytes.len() as u64 > MAX_KEPT {
        return Err(failed(&format!("larger than {MAX_KEPT} bytes")));
    }
    let kept: Kept = serde_json::from_slice(&bytes).map_err(|e| failed(&e))?;
    if kept.version == parts::VERSION { Ok(kept) } else { Err(failed(&"of another version of Casemate")) }
}

fn spec(kept: &Result<Kept, String>, how: Redact) -> Result<Part<parts::SpecText>> {
    let mut salt = [0; 16];
    let got = getrandom(&mut salt, GetRandomFlags::empty());
    if got != Ok(salt.len()) {
        return Err(Failure::new("the kernel gives no random bytes"));
    }
    Ok(kept.as_ref().map_err(String::clone).and_then(|kept| redact::spec(&kept.spec, how, salt)).into())
}

fn attested(dir: &SandboxDir) -> Part<Vec<casemate_wire::record::Finding>> {
    Control::connect(dir).and_then(|control| control.attest()).map_err(|e| Failure::from(e).sentence()).into()
}

/// The filters of every thread of runner and warden.
fn filters(entry: &Entry) -> Part<Filters> {
    let mut filters = Filters { programs: BTreeMap::new(), threads: Vec::new() };
    let roles = [("runner", entry.record.runner), ("warden", Some(entry.record.warden))];
    for (role, process) in roles.into_iter().filter_map(|(role, process)| Some((role, process?))) {
        if let Err(why) = filters_of(role, &process, &entry.record.boot_id, &mut filters) {
            return Part::Missing(format!("{role} {}: {why}", process.pid));
        }
    }
    Part::Taken(filters)
}

fn filters_of(role: &str, process: &ProcessName, boot: &str, filters: &mut Filters) -> Result<(), String> {
    let pid = i32::try_from(process.pid).map_err(|e| e.to_string())?;
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).map_err(|e| e.to_string())?;
    for task in tasks {
        let task = task.map_err(|e| e.to_string())?;
        let tid: i32 = task.file_name().to_string_lossy().parse().map_err(|_| "a task without a number")?;
        let name = std::fs::read(task.path().join("comm")).unwrap_or_default();
        let programs = match installed::installed(pid, tid) {
            Ok(programs) => programs,
            Err(installed::ReadError::Kernel | installed::ReadError::Gone) => continue,
            Err(error) => return Err(format!("thread {tid}: {error}")),
        };
        let mut digests = Vec::with_capacity(programs.len());
        for program in programs {
            let digest = Digest::parse(&seccomp::digest(&program)).ok_or("a digest is none")?;
            filters.programs.entry(digest.clone()).or_insert_with(|| seccomp::to_hex(&program));
            digests.push(digest);
        }
        let name = String::from_utf8_lossy(&name).trim_end().to_owned();
        let (role, tid) = (role.to_owned(), tid.unsigned_abs());
        filters.threads.push(ThreadFilters { role, pid: process.pid, tid, name, filters: digests });
    }
    // All of it was this process's, if it still is.
    if store::is_alive(process, boot) { Ok(()) } else { Err("it ended meanwhile".into()) }
}

fn policy(whole: bool) -> Part<Policy> {
    if !std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        return Part::Missing("the host has no SELinux, or selinuxfs is not mounted".into());
    }
    let bytes = std::fs::read(POLICY).map_err(|e| format!("{POLICY}: {e}"));
    let enforce = std::fs::read_to_string("/sys/fs/selinux/enforce").map(|text| text.trim() == "1");
    Part::Taken(Policy {
        loaded: bytes.as_ref().map(|bytes| Digest::of(bytes)).map_err(String::clone).into(),
        enforcing: enforce.into(),
        module: module(),
        bytes: bytes.ok().filter(|_| whole).map(|bytes| STANDARD.encode(bytes)),
    })
}

/// The module's files as installed beside the programs; what is loaded is in the policy.
fn module() -> BTreeMap<String, Digest> {
    let entries = std::fs::read_dir(MODULE).into_iter().flatten().flatten();
    let cil = entries.filter(|entry| entry.path().extension().is_some_and(|e| e == "cil"));
    let digest = |path: std::path::PathBuf| Digest::of_reader(std::fs::File::open(path).ok()?).ok();
    cil.filter_map(|e| Some((e.file_name().to_string_lossy().into_owned(), digest(e.path())?.0))).collect()
}
