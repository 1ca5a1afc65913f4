//! A live sandbox as a [`Subject`]: from its record, /proc and its files.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;

use casemate_sys::facts::kernel;
use casemate_sys::path;
use casemate_sys::process::errno;
use casemate_wire::record::{Finding, ProcessName, SandboxRecord};

use super::objects::{File, plain};
use super::process::Target;
use super::{Observer, Survey, landlock, together};
use crate::subject::{Kind, Known, Landlock, Object, Process, Standing, Subject};

/// Bytes of a list of processes: 100,000 of them.
const MOST_PROCS: usize = 1 << 20;

/// A sandbox as its record tells of it.
#[derive(Debug, Clone, Copy)]
pub struct LiveVm<'a> {
    pub record: &'a SandboxRecord,
    /// As seen now: `starting`, `running`, `paused`, `exited`, `lost`.
    pub phase: &'a str,
    /// `RUN/vms/NAME`.
    pub directory: &'a Path,
    /// What the probe in the runner's Landlock domain saw, where one was asked for.
    pub landlock: Option<&'a [crate::subject::Probe]>,
}

impl Observer {
    pub fn vm(&self, vm: &LiveVm<'_>, survey: &Known<Survey>) -> Subject {
        let record = vm.record;
        let (processes, left) = self.roles(vm);
        let strays = strays(record, &processes);
        let surveyed = survey.clone().map(|survey| (survey.collisions_of(&record.name), survey.leaks_of(&record.name)));
        let (neighbours, leaks) = match surveyed {
            Known::Seen((collisions, leaks)) => (Known::Seen(collisions), Known::Seen(leaks)),
            Known::Unseen(why) => (Known::Unseen(why.clone()), Known::Unseen(why)),
        };
        Subject {
            kind: Kind::Vm,
            name: record.name.clone(),
            file: None,
            processes,
            objects: self.objects(vm),
            separation: self.separation_of(record),
            standing: Known::Seen(standing(vm, survey.seen())),
            host: Known::Seen(self.host_facts().clone()),
            neighbours,
            leftovers: together([Known::Seen(left), strays, leaks]),
        }
    }

    /// Runner and warden; of an ended sandbox those that live all the same, each a leftover.
    fn roles(&self, vm: &LiveVm<'_>) -> (Vec<Process>, Vec<String>) {
        let record = vm.record;
        let this_boot = kernel::boot_id().is_ok_and(|id| id == record.boot_id);
        let ended = matches!(vm.phase, "exited" | "lost");
        let runner_landlock = landlock::runner(record.landlock_abi, vm.landlock);
        let named: [(&'static str, Option<ProcessName>, Known<Landlock>); 2] =
            [("runner", record.runner, runner_landlock), ("warden", Some(record.warden), landlock::warden())];
        let (mut seen, mut left) = (Vec::new(), Vec::new());
        for (role, name, landlock) in named {
            let Some(name) = name else { continue };
            if ended {
                if !this_boot || !self.lives(&name) {
                    continue;
                }
                left.push(format!(
                    "sandbox {} is {}, and its {role} (pid {}) still runs",
                    record.name, vm.phase, name.pid
                ));
            }
            let planned = if role == "runner" { &record.descriptors[..] } else { &[] };
            let start_time = Some(name.start_time);
            seen.push(self.look(&Target { role, pid: name.pid, start_time, planned, landlock }));
        }
        if vm.phase == "lost" {
            left.push(format!("the warden of {} died without cleaning up (what to do: casemate repair)", record.name));
        }
        (seen, left)
    }

    /// What the user named, with labels; and what was made for it: logs and sockets.
    fn objects(&self, vm: &LiveVm<'_>) -> Vec<Object> {
        let record = vm.record;
        if vm.phase == "exited" {
            return Vec::new();
        }
        let opened = |name: &str| {
            let fd = record.descriptors.iter().find(|fd| fd.name == name);
            fd.map(|fd| (fd.dev, fd.ino))
        };
        let mut objects = Vec::new();
        for label in &record.labels {
            let Some(path) = plain(&label.path) else { continue };
            let (name, wanted) = (label.fd.as_str(), label.during.clone());
            let opened = opened(name);
            objects.push(self.object(&File { name, path: &path, read_only: label.read_only, wanted, opened }));
        }
        let logs = record.descriptors.iter().filter(|fd| fd.name.contains("-log.")).map(|fd| fd.name.as_str());
        for name in logs {
            let path = vm.directory.join(name);
            let opened = opened(name);
            objects.push(self.object(&File { name, path: &path, read_only: false, wanted: None, opened }));
        }
        let vsock = record.descriptors.iter().any(|fd| fd.name == "vsock").then_some("vsock.sock");
        for name in [Some("control.sock"), vsock].into_iter().flatten() {
            let path = vm.directory.join(name);
            objects.push(self.object(&File { name, path: &path, read_only: false, wanted: None, opened: None }));
        }
        objects
    }
}

/// Whoever is in the sandbox's cgroups and is not its runner.
fn strays(record: &SandboxRecord, processes: &[Process]) -> Known<Vec<String>> {
    let mut found = BTreeSet::new();
    for dir in record.cgroups.iter().filter_map(|dir| plain(dir)) {
        let procs = path::open_dir(&dir).and_then(|fd| path::read_beneath(fd.as_fd(), "cgroup.procs", MOST_PROCS));
        match procs {
            Ok(bytes) => {
                found.extend(String::from_utf8_lossy(&bytes).lines().filter_map(|line| line.parse::<u32>().ok()));
            }
            // Removed, and nobody is in it.
            Err(error) if matches!(error.errno(), Some(errno::ENOENT | errno::ENODEV)) => {}
            Err(error) => return Known::Unseen(error.report()),
        }
    }
    let ours = |pid: &u32| processes.iter().any(|process| process.pid == Some(*pid));
    // 0 is a process of another pid namespace than ours.
    let strange = found.into_iter().filter(|pid| !ours(pid) && *pid != 0);
    let told = |pid| format!("process {pid} is in the cgroup of {} and is no role of its", record.name);
    Known::Seen(strange.map(told).collect())
}

fn standing(vm: &LiveVm<'_>, survey: Option<&Survey>) -> Standing {
    let record = vm.record;
    let sentence = |finding: &Finding| {
        format!("{}: {} is {}, not {}", finding.layer, finding.what, finding.seen, finding.expected)
    };
    // The jailer's own word for it, where the ledger could not be asked.
    let warned =
        || record.warnings.iter().any(|warning| warning.starts_with("the level ") && warning.contains(" is shared:"));
    Standing {
        phase: vm.phase.into(),
        posture: record.posture.to_string(),
        allow_reduced: record.allow_reduced.clone(),
        warnings: record.warnings.clone(),
        blockers: Vec::new(),
        cpus: record.cpus.into(),
        memory: record.memory,
        unproven: record.findings.iter().filter(|finding| !finding.ok).map(sentence).collect(),
        level_shared: survey.map_or_else(warned, |survey| survey.shares_level(&record.name) || warned()),
    }
}
