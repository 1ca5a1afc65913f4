//! Kills the jailer, its warden and `repair` at every point of their lives, and compares the host before and after.
//!
//! Used by the kvm tier, and through `bin/crash-driver` by the testbed tier on a host that enforces, with real labels.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use casemate_sys::memfd;
use casemate_sys::rustix::fs as rfs;
use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::guest;
use crate::jail::{Host, gone, soon};
use crate::step::{self, Steps};

/// A host on which sandboxes were killed again and again, and its images.
pub struct Site {
    host: Host,
    spec: Value,
    files: Vec<PathBuf>,
    before: Snapshot,
}

/// What a start and an end may have changed: attributes and content of files, trees, cgroups, locks, mounts, sockets,
/// processes. Not times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<String, String>);

impl Snapshot {
    pub fn take(host: &Host, files: &[PathBuf]) -> Result<Self, Failed> {
        let mut all = BTreeMap::new();
        let mut inodes = BTreeSet::new();
        for path in files {
            inodes.insert(fs::metadata(path)?.ino());
            note(path, &mut all)?;
        }
        for root in [host.run_dir(), host.state_dir()] {
            tree(&root, &mut all)?;
        }
        for cgroup in host.cgroups() {
            all.insert(format!("cgroup {}", cgroup.display()), String::new());
        }
        for lock in fs::read_to_string("/proc/locks")?.lines() {
            let inode = lock.split_whitespace().nth(5).and_then(|id| id.rsplit(':').next()?.parse().ok());
            if inode.is_some_and(|ino: u64| inodes.contains(&ino)) {
                all.insert(format!("lock {}", lock.split_once(' ').map_or(lock, |(_, rest)| rest)), String::new());
            }
        }
        let place = host.run_dir().to_string_lossy().into_owned();
        for file in ["/proc/self/mountinfo", "/proc/net/unix"] {
            for line in fs::read_to_string(file)?.lines().filter(|line| line.contains(&place)) {
                all.insert(format!("{file} {line}"), String::new());
            }
        }
        Ok(Self(all))
    }

    /// What is not the same, line by line.
    fn difference(&self, other: &Self) -> Vec<String> {
        let keys: BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        let changed = keys.into_iter().filter(|key| self.0.get(*key) != other.0.get(*key));
        changed.map(|key| format!("{key}: {:?} -> {:?}", self.0.get(key), other.0.get(key))).collect()
    }

    fn same_as(&self, now: &Self, when: &str) -> Result<(), Failed> {
        match self.difference(now) {
            none if none.is_empty() => Ok(()),
            some => Err(format!("{when}, the host is not as it was:\n  {}", some.join("\n  ")).into()),
        }
    }
}

fn tree(root: &Path, all: &mut BTreeMap<String, String>) -> Result<(), Failed> {
    let Ok(entries) = fs::read_dir(root) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        // What is kept of failed starts is no change of the host's.
        if path.ends_with("run/past") {
            continue;
        }
        note(&path, all)?;
        if fs::symlink_metadata(&path)?.is_dir() {
            tree(&path, all)?;
        }
    }
    Ok(())
}

/// Kind, mode, owner, every xattr (label and owner record among them), and the content of a regular file.
fn note(path: &Path, all: &mut BTreeMap<String, String>) -> Result<(), Failed> {
    let meta = fs::symlink_metadata(path)?;
    let mut told = format!("{:?} {:o} {}:{}", meta.file_type(), meta.mode(), meta.uid(), meta.gid());
    if meta.is_file() {
        let content = fs::read(path)?;
        told.push_str(&format!(
            " {} bytes {:?}",
            content.len(),
            String::from_utf8_lossy(&content[..content.len().min(2048)])
        ));
    }
    if meta.is_file() || meta.is_dir() {
        let mut names = vec![0; 65536];
        let length = rfs::listxattr(path, &mut names[..]).unwrap_or(0);
        let mut xattrs: Vec<String> = Vec::new();
        for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
            let name = String::from_utf8_lossy(name).into_owned();
            let mut value = vec![0; 65536];
            let size = rfs::getxattr(path, name.as_str(), &mut value[..]).unwrap_or(0);
            xattrs.push(format!("{name}={}", String::from_utf8_lossy(&value[..size])));
        }
        xattrs.sort();
        told.push_str(&format!(" {xattrs:?}"));
    }
    all.insert(path.display().to_string(), told);
    Ok(())
}

/// Where a jailer was killed.
pub struct Point {
    calls: usize,
    /// It was about to exit by itself.
    over: bool,
    /// Lines that its journal had, at most.
    lines: Vec<String>,
}

impl Site {
    /// A bare guest with an image for itself, one to read, one to share; and one whole life before anything is compared.
    pub fn new() -> Result<Self, Failed> {
        let host = Host::new()?;
        let kernel = guest::pvh_elf(|a| {
            guest::print(a, b"x")?;
            guest::power_off(a)
        });
        let mut spec = host.bare("crash", kernel)?;
        let mut files = vec![PathBuf::from(spec["kernel"].as_str().unwrap_or_default())];
        let mut disks = Vec::new();
        for (id, more) in [("own", json!({})), ("read", json!({"read_only": true})), ("both", json!({"shared": true}))]
        {
            let path = host.file(&format!("{id}.raw"));
            fs::write(&path, [0; 4096])?;
            let mut disk = json!({ "id": id, "path": path, "format": "raw" });
            disk.as_object_mut().ok_or("no object")?.extend(more.as_object().cloned().unwrap_or_default());
            disks.push(disk);
            files.push(path);
        }
        spec["disks"] = Value::from(disks);
        spec["vsock"] = json!(true);
        let mut site = Self { host, spec, files, before: Snapshot(BTreeMap::new()) };
        let mut vm = site.host.start(&site.spec)?;
        vm.started()?;
        vm.exited()?;
        site.rm()?;
        site.before = site.now()?;
        Ok(site)
    }

    fn name(&self) -> &str {
        self.spec["name"].as_str().unwrap_or_default()
    }

    fn now(&self) -> Result<Snapshot, Failed> {
        Snapshot::take(&self.host, &self.files)
    }

    /// The record of an ended sandbox is its user's to remove.
    fn rm(&self) -> Result<(), Failed> {
        if self.host.files(self.name()).iter().any(|file| file == "exit.json") {
            let output = self.host.verb(&["rm", self.name()])?;
            if !output.status.success() {
                return Err(format!("rm: {}", String::from_utf8_lossy(&output.stderr)).into());
            }
        }
        Ok(())
    }

    fn journal(&self) -> Vec<String> {
        let path = self.host.run_dir().join("vms").join(self.name()).join("journal");
        fs::read_to_string(path).unwrap_or_default().lines().map(String::from).collect()
    }

    /// Starts, and kills after the first system call that `when` picks by its number and the journal's length.
    fn kill(&mut self, detached: bool, when: impl Fn(usize, &[String]) -> bool) -> Result<Point, Failed> {
        self.spec["detach"] = json!(detached);
        let spec = memfd::sealed("spec", self.spec.to_string().as_bytes())?;
        let mut vm = self.host.start_with(spec, step::held(&self.host.jailer()))?;
        let mut steps = Steps::follow(vm.pid(), vm.stdin())?;
        let (mut calls, mut lines, mut over) = (0, Vec::new(), false);
        loop {
            // at the end the journal is removed: what it once had counts
            let now = self.journal();
            lines = if now.len() >= lines.len() { now } else { lines };
            if when(calls, &lines) {
                break;
            }
            over = !steps.advance()?;
            if over {
                break;
            }
            calls += 1;
        }
        let children = step::children(vm.pid())?;
        steps.let_die()?;
        vm.kill()?;
        children.into_iter().try_for_each(gone)?;
        Ok(Point { calls, over, lines })
    }

    /// After a kill: the dry run changes nothing and says what is then done; the host is as it was; nothing is left.
    fn repaired(&self) -> Result<(), Failed> {
        // A runner that is being taken apart holds its locks for a moment longer than it can be seen.
        let locked = |s: Snapshot| s.0.keys().any(|key| key.starts_with("lock "));
        soon("the images are let go", || self.now().is_ok_and(|now| !locked(now)))?;
        let killed = self.now()?;
        let would = self.host.repair(&["--dry-run"])?;
        killed.same_as(&self.now()?, "after a dry run")?;
        let did = self.host.repair(&[])?;
        let (foreseen, done) = (acts(&would), acts(&did));
        if foreseen != done {
            return Err(format!("foreseen: {foreseen:#?}\ndone: {done:#?}").into());
        }
        if let Some(bad) = did["sandboxes"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|s| s["state"] == "failed" || s["state"] == "waiting")
        {
            return Err(format!("not repaired: {bad}").into());
        }
        let second = self.host.repair(&[])?;
        let idle = |s: &Value| s["state"] == "ended" && s["did"] == json!([]);
        if !second["sandboxes"].as_array().is_some_and(|s| s.iter().all(idle)) || second["leases_dropped"] != json!([])
        {
            return Err(format!("a second repair finds: {second}").into());
        }
        self.rm()?;
        self.before.same_as(&self.now()?, "after the repair")
    }

    fn once(&mut self, detached: bool, when: impl Fn(usize, &[String]) -> bool) -> Result<Point, Failed> {
        let point = self.kill(detached, when)?;
        self.repaired().map_err(|e| {
            let why = e.message().unwrap_or_default().to_owned();
            format!("killed after {} calls, with the journal {:#?}\n{why}", point.calls, point.lines)
        })?;
        Ok(point)
    }

    /// A kill after each line that the journal gets in a whole life. The lines are held against the plan: each of its
    /// steps that has an undo must have been there to be killed after.
    ///
    /// From line `first` on, every `step`-th; those of even number detached.
    pub fn each_line(&mut self, first: usize, step: usize) -> Result<String, Failed> {
        let mut lines = first;
        let last = loop {
            let point = self.once(lines.is_multiple_of(2), |_, journal| journal.len() >= lines)?;
            if point.over {
                break point;
            }
            lines += step;
        };
        let kinds =
            |kind: &str| last.lines.iter().filter(|line| line.contains(&format!("\"kind\":\"{kind}\""))).count();
        let plan = self.host.plan(&self.spec)?;
        let mut steps = 0;
        let mut wanted: BTreeMap<&str, usize> = BTreeMap::new();
        for step in plan["steps"].as_array().ok_or("a plan without steps")? {
            let action = action_of(step);
            let kind = match action.as_str() {
                "lease_uid" | "lease_mcs" | "lease_level" => "lease",
                "relabel" => "relabel",
                "create_cgroup" => "cgroup",
                "clone_runner" => "process",
                // its undo is the directory's removal, after the journal
                "reserve_name" => continue,
                other if !step["undo"].is_null() => {
                    return Err(format!("the plan's step {other} has an undo, and no line that is known here").into());
                }
                _ => continue,
            };
            steps += 1;
            *wanted.entry(kind).or_default() += 1;
        }
        for (kind, count) in wanted {
            if kinds(kind) < count {
                return Err(format!("{count} steps of the plan are a {kind}, the journal has {}", kinds(kind)).into());
            }
        }
        Ok(format!("kills after lines {first} to {lines} by {step}; {steps} steps of the plan with an undo"))
    }

    /// A kill after every `stride`-th system call of a whole life.
    pub fn each_call(&mut self, stride: usize) -> Result<String, Failed> {
        let (mut calls, mut kills) = (0, 0);
        while !self.once(calls % 2 == 0, |now, _| now >= calls)?.over {
            calls += stride;
            kills += 1;
        }
        Ok(format!("{kills} kills over {calls} system calls"))
    }

    /// A warden is killed, and the repair after it after every `stride`-th of its system calls.
    pub fn each_call_of_repair(&mut self, stride: usize) -> Result<String, Failed> {
        let mut kills = 0;
        for calls in (0..).step_by(stride) {
            self.kill(false, all_there)?;
            let mut held = step::held(&self.host.jailer());
            let mut repair = held.arg("repair").args(self.host.dirs()).stdout(Stdio::null()).spawn()?;
            let mut steps = Steps::follow(repair.id(), repair.stdin.take())?;
            let mut over = false;
            for _ in 0..calls {
                over = !steps.advance()?;
                if over {
                    break;
                }
            }
            steps.let_die()?;
            repair.kill()?;
            repair.wait()?;
            self.repaired()
                .map_err(|e| format!("repair killed after {calls} calls: {}", e.message().unwrap_or_default()))?;
            kills += 1;
            if over {
                break;
            }
        }
        Ok(format!("{kills} kills of repair"))
    }

    /// The machine goes down with a sandbox on it: RUN is gone, labels and records are of a boot that is over.
    pub fn reboot(&mut self) -> Result<String, Failed> {
        let point = self.kill(false, all_there)?;
        let held = self.host.state_dir().join("held");
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        const EARLIER: &str = "00000000-1111-2222-3333-444444444444";
        for dir in ["vms", "leases"] {
            fs::remove_dir_all(self.host.run_dir().join(dir))?;
        }
        let mut records = 0;
        for entry in fs::read_dir(&held).into_iter().flatten() {
            let path = entry?.path();
            let text = fs::read_to_string(&path)?.replace(&boot, EARLIER);
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().replace(&boot, EARLIER);
            fs::remove_file(&path)?;
            fs::write(held.join(name), text)?;
            records += 1;
        }
        if (records == 1) != point.lines.iter().any(|line| line.contains("\"kind\":\"relabel\"")) {
            return Err(format!("{records} records on disk, and the journal {:#?}", point.lines).into());
        }
        // cgroups of an earlier boot are gone by themselves
        for cgroup in self.host.cgroups() {
            let _ = fs::remove_dir(cgroup);
        }
        let would = self.host.repair(&["--dry-run"])?;
        let did = self.host.repair(&[])?;
        if acts(&would) != acts(&did) {
            return Err(format!("foreseen {would}\ndone {did}").into());
        }
        for path in &self.files {
            let mut all = BTreeMap::new();
            note(path, &mut all)?;
            let was = self.before.0.get(&path.display().to_string());
            if all.values().next() != was {
                return Err(format!("{}: {was:?} before, {all:?} after {did}", path.display()).into());
            }
        }
        if fs::read_dir(&held).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(format!("a record is left after {did}").into());
        }
        Ok(format!("{records} records of an earlier boot: {}", acts(&did).len()))
    }
}

/// Everything of a sandbox is there: labels, leases, cgroup, and its runner.
fn all_there(_calls: usize, journal: &[String]) -> bool {
    journal.iter().any(|line| line.contains("\"kind\":\"process\""))
}

/// What a repair did or would do, without the word that tells the two apart.
fn acts(repair: &Value) -> Vec<String> {
    let each = repair["sandboxes"].as_array().into_iter().flatten();
    let mut all: Vec<String> = Vec::new();
    for sandbox in each {
        for report in sandbox["did"].as_array().into_iter().flatten() {
            let mut report = report.clone();
            if report["outcome"]["outcome"] == "would" {
                report["outcome"]["outcome"] = json!("undone");
            }
            all.push(format!("{} {report}", sandbox["sandbox"]));
        }
    }
    let mut leases: Vec<String> =
        repair["leases_dropped"].as_array().into_iter().flatten().map(|lease| format!("lease {lease}")).collect();
    leases.sort();
    all.extend(leases);
    all
}

/// The name of a step's action, whichever way it is written.
fn action_of(step: &Value) -> String {
    match &step["action"] {
        Value::String(name) => name.clone(),
        Value::Object(map) => match map.get("kind").or_else(|| map.get("action")).and_then(Value::as_str) {
            Some(name) => name.to_owned(),
            None => map.keys().next().cloned().unwrap_or_default(),
        },
        _ => String::new(),
    }
}
