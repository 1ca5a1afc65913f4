//! One process, from outside: everything that [`Process`] holds, or why not.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use casemate_sys::process::{errno, pidfd_open};
use casemate_sys::procfs::ProcessView;
use casemate_wire::record::{Descriptor, ProcessName};

use super::status::{self, Status};
use super::{ENDED, Observer, fds, known, landlock, memory, namespaces, tables};
use crate::seccomp;
use crate::subject::{Kind, Known, Landlock, Process, Subject, Thread};

/// Threads are listed again until no new one shows: one that is born meanwhile is not to escape.
const ROUNDS: usize = 8;
/// Bytes of a mount table: 100,000 mounts (fs.mount-max) of a line of some 150; a container's overlays have longer ones.
const MOST_MOUNTS: usize = 32 << 20;

/// Whom to look at.
pub(super) struct Target<'a> {
    pub role: &'static str,
    pub pid: u32,
    /// As it was when its name was written down; `None` for one that was named by its pid alone.
    pub start_time: Option<u64>,
    pub planned: &'a [Descriptor],
    pub landlock: Known<Landlock>,
}

impl Observer {
    /// A process that is nobody's of ours: another VMM's, for instance.
    pub fn process(&self, pid: u32) -> Subject {
        let target = Target { role: "process", pid, start_time: None, planned: &[], landlock: landlock::foreign() };
        let process = self.look(&target);
        // Its first thread may have any number: those of the others may have begun anew at the bottom.
        let leader = |threads: &Vec<Thread>| threads.iter().find(|thread| thread.tid == Some(pid)).cloned();
        let command = process.threads.seen().and_then(leader).map(|thread| thread.name);
        let why = || Known::unseen("this is no sandbox of Casemate's");
        Subject {
            kind: Kind::Process,
            name: command.map_or_else(|| pid.to_string(), |command| format!("{pid} ({command})")),
            file: None,
            processes: vec![process],
            objects: Vec::new(),
            separation: Known::unseen("asked of the policy for sandboxes alone: `casemate audit policy`"),
            standing: Known::unseen("this is no sandbox of Casemate's"),
            host: Known::Seen(self.host_facts().clone()),
            neighbours: why(),
            leftovers: why(),
        }
    }

    /// Never another's data: what cannot be told for sure to be this process's is unseen.
    pub(super) fn look(&self, target: &Target<'_>) -> Process {
        self.attempt(target).unwrap_or_else(|why| unseen(target, &why))
    }

    /// Is there such a process?
    ///
    /// # Errors
    /// A sentence: there is none, or it is a thread of another.
    pub fn find(&self, pid: u32) -> Result<(), String> {
        open(pid).map(drop)
    }

    fn attempt(&self, target: &Target<'_>) -> Result<Process, String> {
        let Target { pid, .. } = *target;
        let (number, pidfd) = open(pid)?;
        let view = ProcessView::new(&self.proc, number, pidfd.as_fd());
        let gone = |error: casemate_sys::Error| if view.ended() { ENDED.to_owned() } else { error.report() };
        let start = view.start().map_err(gone)?.ticks;
        if target.start_time.is_some_and(|planned| planned != start) {
            return Err(format!("it ended; {pid} is another process now"));
        }
        let text = view.read("status").map_err(gone)?;
        let status = Status::new(&text);
        let threads = threads(&view).map(|threads| self.with_filters(pid, threads));
        let leader = threads.seen().and_then(|all| all.iter().find(|thread| thread.tid == Some(pid)));
        let uid = leader.map(|thread| thread.uid[1]);
        let tids: Vec<u32> = threads.seen().into_iter().flatten().filter_map(|thread| thread.tid).collect();
        let process = Process {
            role: target.role.into(),
            pid: Some(pid),
            parent: status.parent(),
            start_time: Some(start),
            exe: known(view.read_link("exe")),
            label: if self.selinux { known(view.read("attr/current").map(Some)) } else { Known::Seen(None) },
            namespaces: namespaces::of(&view, &self.namespaces),
            cgroups: self.cgroups(&view, &tids),
            rlimits: parsed(view.read("limits"), tables::limits),
            fds: fds::of(&view, target.planned, self.selinux),
            mounts: parsed(view.read_at_most("mountinfo", MOST_MOUNTS), tables::mounts),
            environment: known(view.read("environ")).map(|text| tables::environment(&text)),
            memory: uid
                .map_or_else(|| Known::unseen("its threads cannot be read"), |uid| memory::of(&view, &status, uid)),
            landlock: target.landlock.clone(),
            threads,
        };
        let leaving = !view.read("stat").is_ok_and(|stat| !status::is_exiting(&stat));
        if leaving || view.ended() { Err(ENDED.into()) } else { Ok(process) }
    }

    /// With the verdicts of what is installed on each. A thread stands still for the moment of its reading.
    fn with_filters(&self, pid: u32, mut threads: Vec<Thread>) -> Vec<Thread> {
        for thread in &mut threads {
            let Some(tid) = thread.tid else { continue };
            thread.filters = match thread.seccomp_mode {
                _ if thread.kernel => Known::unseen("it runs in the kernel alone and makes no system call"),
                // Without a filter there is none to read, and nobody needs to be stopped.
                0 => self.filters.judge(&[]).into(),
                1 => Known::unseen("strict mode: read, write, _exit and sigreturn (seccomp(2))"),
                _ => seccomp::of_thread(pid, tid, &self.filters),
            };
        }
        threads
    }

    /// Is it there, and the one that was meant?
    pub(super) fn lives(&self, name: &ProcessName) -> bool {
        let start = i32::try_from(name.pid).ok().and_then(|pid| self.proc.start_of(pid).ok());
        start.is_some_and(|start| start.ticks == name.start_time)
    }
}

fn open(pid: u32) -> Result<(i32, OwnedFd), String> {
    let number = i32::try_from(pid).map_err(|_| format!("{pid} is no pid"))?;
    let pidfd = pidfd_open(number).map_err(|error| match error.errno() {
        Some(errno::ESRCH) => format!("there is no process {pid}"),
        // EINVAL before Linux 6.9, ENOENT later (pidfd_open(2)).
        Some(errno::EINVAL | errno::ENOENT) => format!("{pid} is a thread of another process; name its process"),
        _ => error.report(),
    })?;
    Ok((number, pidfd))
}

/// Every thread: one that a filter missed is found here.
fn threads(view: &ProcessView<'_>) -> Known<Vec<Thread>> {
    let mut seen: BTreeMap<u32, Option<Thread>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        let names = match view.list("task") {
            Ok(names) => names,
            Err(error) => return Known::Unseen(error.report()),
        };
        let new: Vec<u32> =
            names.iter().filter_map(|name| name.parse().ok()).filter(|tid| !seen.contains_key(tid)).collect();
        if new.is_empty() {
            return Known::Seen(seen.into_values().flatten().collect());
        }
        for tid in new {
            match thread(view, tid) {
                Ok(thread) => seen.insert(tid, thread),
                Err(why) => return Known::Unseen(why),
            };
        }
    }
    Known::unseen("its threads come and go faster than they can be read")
}

/// `None` for one that ended since it was listed.
fn thread(view: &ProcessView<'_>, tid: u32) -> Result<Option<Thread>, String> {
    let read = |file: &str| match view.read(&format!("task/{tid}/{file}")) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.errno(), Some(errno::ENOENT | errno::ESRCH)) => Ok(None),
        Err(error) => Err(error.report()),
    };
    let (Some(status), Some(stat)) = (read("status")?, read("stat")?) else { return Ok(None) };
    Status::new(&status).thread(tid, &stat).map(Some).map_err(|why| format!("thread {tid}: {why}"))
}

fn parsed<T>(text: casemate_sys::Result<String>, parse: impl Fn(&str) -> Result<T, String>) -> Known<T> {
    match text {
        Ok(text) => parse(&text).map_or_else(Known::Unseen, Known::Seen),
        Err(error) => Known::Unseen(error.report()),
    }
}

fn unseen(target: &Target<'_>, why: &str) -> Process {
    Process {
        role: target.role.into(),
        pid: Some(target.pid),
        parent: None,
        start_time: target.start_time,
        exe: Known::unseen(why),
        label: Known::unseen(why),
        threads: Known::unseen(why),
        namespaces: Known::unseen(why),
        cgroups: Known::unseen(why),
        rlimits: Known::unseen(why),
        fds: Known::unseen(why),
        mounts: Known::unseen(why),
        environment: Known::unseen(why),
        memory: Known::unseen(why),
        landlock: target.landlock.clone(),
    }
}
