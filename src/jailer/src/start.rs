//! The jailer's own steps, taken one by one from the plan. Each host change stands in the journal before it happens;
//! a failure takes everything back in reverse, by the same code as `repair`.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use casemate_confine::cgroup::{self, Cgroup};
use casemate_label::{
    Attribute, Context, Intent, Journal, LabelClass, Ledger, Level, Owner, Profile, Relabeler, UndoOutcome, Undoer,
    VerifiedProc, Window, durable, record,
};
use casemate_plan::{Action, CgroupPlan, FdAccess, FdKind, HostConfig, HostFacts, Plan, Step, names};
use casemate_spec::{Posture, SandboxId};
use casemate_storage::{LockError, LockMode, lock_image, lock_metadata};
use casemate_sys::path::{self, Identity, OFlags};
use casemate_sys::{memfd, seqpacket};
use casemate_wire::Channel;
use casemate_wire::record::{ObjectLabel, ProcessName};
use rustix::fs::FileType;

use crate::clock::{ChildClock, Stopwatch};
use crate::error::{StepFailed, sentence};
use crate::store::{CONTROL, RunDir, SandboxDir, VSOCK};

/// What a plan is made from, beside the host's configuration: kept for evidence.
pub struct Asked {
    /// The caller's bytes, and what they say.
    pub bytes: Vec<u8>,
    pub facts: HostFacts,
}

/// What the steps have made so far.
pub struct Start {
    pub run: RunDir,
    pub dir: SandboxDir,
    pub name: SandboxId,
    pub journal: Journal,
    pub(crate) ledger: Ledger,
    pub(crate) relabeler: Relabeler,
    pub(crate) config: HostConfig,
    pub uid: Option<u32>,
    /// What only this sandbox has: a leased pair, or the level that its user fixed.
    pub level: Option<Level>,
    /// What the caller may lease pairs from.
    pub window: Window,
    /// The runner's label.
    pub label: Option<Context>,
    /// Descriptors for the runner, by name.
    pub fds: BTreeMap<String, OwnedFd>,
    pub labels: Vec<ObjectLabel>,
    pub warnings: Vec<String>,
    /// Objects of this sandbox alone that every other runner may use too: they lower the posture.
    pub unseparated: Vec<String>,
    /// Known once the objects are labelled.
    pub posture: Posture,
    pub cgroup: Option<Cgroup>,
    pub runner: Option<Channel>,
    pub control: Option<OwnedFd>,
    guest_config: Option<Vec<u8>>,
    /// From what it was planned.
    pub asked: Asked,
    pub watch: Stopwatch,
    pub child_clock: Option<ChildClock>,
}

impl Start {
    /// The first step, without which there is no journal: reserve the name.
    pub fn reserve(
        config: &HostConfig,
        name: SandboxId,
        step: &Step,
        profile: Profile,
        asked: Asked,
        mut watch: Stopwatch,
    ) -> Result<Self, StepFailed> {
        let run = RunDir::open(&config.run_dir, true)?;
        let ledger = Ledger::open(&config.run_dir).map_err(|e| StepFailed::at(step, e))?;
        let _lock = run.lock()?;
        let dir = run.reserve(&name)?;
        let owner = Owner::of_self(name.as_str()).map_err(|e| StepFailed::at(step, e))?;
        let held = config.state_dir.join(durable::HELD);
        let kept = |mut journal: Journal| journal.keep_labels_in(&held).map(|()| journal);
        let journal = match Journal::create(dir.fd(), dir.path(), owner).and_then(kept) {
            Ok(journal) => journal,
            Err(error) => {
                let failed = StepFailed::at(step, error);
                run.remove(dir, &name)?;
                return Err(failed);
            }
        };
        watch.lap(&step.what);
        Ok(Start {
            run,
            dir,
            name,
            journal,
            ledger,
            relabeler: Relabeler::new(profile),
            config: config.clone(),
            uid: None,
            level: None,
            window: Window::ALL,
            label: None,
            fds: BTreeMap::new(),
            labels: Vec::new(),
            warnings: Vec::new(),
            unseparated: Vec::new(),
            posture: Posture::Reduced,
            cgroup: None,
            runner: None,
            control: None,
            guest_config: None,
            asked,
            watch,
            child_clock: None,
        })
    }

    /// What the guest will be told; becomes a sealed memfd with the other made descriptors.
    pub fn guest_config(&mut self, json: Option<Vec<u8>>) {
        self.guest_config = json;
    }

    /// Takes one step of the plan. `CloneRunner` is not taken here: it ends the preparation.
    pub fn apply(&mut self, step: &Step, plan: &Plan) -> Result<(), StepFailed> {
        match &step.action {
            Action::ReserveName { .. } => Ok(()),
            Action::LeaseUid { first, last } => self.lease_uid(step, *first, *last),
            Action::LeaseMcs => self.lease_pair(step, plan),
            Action::LeaseLevel { level, shared } => self.lease_level(step, plan, level, *shared),
            Action::OpenFile { fd, path, kind, access } => self.open(step, fd, path, *kind, *access),
            Action::LockImage { fd, exclusive } => self.lock(step, fd, *exclusive),
            Action::Relabel { fd, class, choice } => self.relabel(step, fd, *class, choice),
            Action::CreateLogs { .. } => self.create_logs(step),
            Action::CreateSockets => self.create_sockets(step, plan),
            Action::CreateMemory { bytes, page } => self.create_memory(step, *bytes, *page),
            Action::CreateCgroup(cgroup) => self.create_cgroup(step, cgroup),
            _ => Err(StepFailed::at_because(step, "this is not a step of the jailer's")),
        }
    }

    /// Owner records name the host that wrote them.
    pub(crate) fn name_host(&mut self, step: &Step) -> Result<(), StepFailed> {
        let state = &self.config.state_dir;
        let id = record::host_id(state).map_err(|e| {
            StepFailed::at_because(step, format!("{}/host-id cannot be read or made: {e}", state.display()))
        })?;
        self.relabeler.set_host(id);
        Ok(())
    }

    /// Writes the runner down as soon as its pid is known, so that `repair` finds it.
    pub fn note_process(&mut self, role: &str, process: ProcessName) -> Result<(), StepFailed> {
        let intent = Intent::Process { role: role.into(), pid: process.pid, start: process.start_time };
        let failed = |e: casemate_label::JournalError| StepFailed::stage("note the runner in the journal", e);
        let number = self.journal.intend(intent).map_err(failed)?;
        self.journal.done(number).map_err(failed)
    }

    /// A lease is atomic in the ledger and names its owner, so the journal may follow it: a crash in between leaves a
    /// lease of a dead owner, which `repair` and the next allocation drop.
    pub(crate) fn note(&mut self, step: &Step, intent: Intent) -> Result<(), StepFailed> {
        let number = self.journal.intend(intent).map_err(|e| StepFailed::at(step, e))?;
        self.journal.done(number).map_err(|e| StepFailed::at(step, e))
    }

    fn open(&mut self, step: &Step, name: &str, path: &str, kind: FdKind, access: FdAccess) -> Result<(), StepFailed> {
        if !path.starts_with('/') {
            return Err(StepFailed::at_because(step, format!("{path} is not a file yet; the client resolves it")));
        }
        let mode = if access == FdAccess::ReadOnly { OFlags::RDONLY } else { OFlags::RDWR };
        // NONBLOCK: opening a FIFO must not wait for its other end.
        let fd = path::open_no_symlinks(Path::new(path), mode | OFlags::NONBLOCK | OFlags::NOCTTY)
            .map_err(|e| StepFailed::at_because(step, explain_open(&e, path)))?;
        let is = path::identity(&fd).map_err(|e| StepFailed::at(step, e))?;
        check_object(&is, kind, access).map_err(|why| StepFailed::at_because(step, format!("{path} {why}")))?;
        self.fds.insert(name.into(), fd);
        if kind != FdKind::CharDevice {
            self.labels.push(ObjectLabel {
                fd: name.into(),
                path: path.into(),
                read_only: access == FdAccess::ReadOnly,
                before: None,
                during: None,
                after: None,
            });
        }
        Ok(())
    }

    fn lock(&mut self, step: &Step, name: &str, exclusive: bool) -> Result<(), StepFailed> {
        let file = File::from(self.clone_fd(step, name)?);
        let mode = if exclusive { LockMode::Exclusive } else { LockMode::Shared };
        let path = self.labels.iter().find(|object| object.fd == name).map_or(name, |object| &object.path);
        let failed = |e: LockError| StepFailed::at_because(step, format!("{path}: {}", sentence(&e)));
        lock_image(&file, mode).map_err(failed)?;
        // Held on the open file until the runner ends: libvirt does not relabel what it cannot lock.
        if exclusive { lock_metadata(&file).map_err(failed) } else { Ok(()) }
    }

    pub(crate) fn clone_fd(&self, step: &Step, name: &str) -> Result<OwnedFd, StepFailed> {
        let fd = self.fds.get(name).ok_or_else(|| StepFailed::at_because(step, format!("'{name}' is not open")))?;
        fd.try_clone().map_err(|e| StepFailed::at(step, e))
    }

    fn create_logs(&mut self, step: &Step) -> Result<(), StepFailed> {
        let names = names::CONSOLE_LOG.into_iter().chain(names::OUTPUT_LOG);
        let label = self.log_label();
        with_label(Attribute::File, label.as_ref(), || {
            for name in names {
                let fd = self.dir.create(name)?;
                self.fds.insert(name.into(), fd);
            }
            Ok(())
        })
        .map_err(|e| StepFailed::at_because(step, e.error))
    }

    /// The label of a writable image with the level: what the runner may write of the run directory.
    fn log_label(&self) -> Option<Context> {
        Some(LabelClass::Exclusive.target(self.relabeler.profile(), self.level?))
    }

    /// Gives a memfd the sandbox's level. It is made with the low level of ours, whatever fscreate says: the kernel labels
    /// it by the task alone (shmem has no parent to inherit from), so any runner could read it if it were handed over.
    pub fn to_own_level(&self, fd: &OwnedFd) -> Result<(), StepFailed> {
        const NAME: &str = "security.selinux";
        const STEP: &str = "label a memfd";
        let Some(level) = self.level else { return Ok(()) };
        let failed = |e: rustix::io::Errno| StepFailed::stage(STEP, std::io::Error::from(e));
        let mut buffer = [0; 4096];
        let length = rustix::fs::fgetxattr(fd, NAME, &mut buffer).map_err(failed)?;
        let made = Context::from_bytes(buffer.get(..length).unwrap_or_default());
        let label = made.map_err(|e| StepFailed::stage(STEP, e))?.with_level(level).to_string();
        rustix::fs::fsetxattr(fd, NAME, label.as_bytes(), rustix::fs::XattrFlags::empty()).map_err(failed)
    }

    fn create_sockets(&mut self, step: &Step, plan: &Plan) -> Result<(), StepFailed> {
        let failed = |e: &dyn std::error::Error| StepFailed::at_because(step, crate::error::sentence(e));
        // The runner's sockets carry its label: MCS keeps it from one with the jailer's.
        let label = self.label.as_ref();
        let (ours, theirs) = with_label(Attribute::Socket, label, || Channel::pair().map_err(|e| failed(&e)))?;
        self.runner = Some(ours);
        self.fds.insert(names::WARDEN.into(), theirs);
        let path = self.dir.path().join(CONTROL);
        let control = seqpacket::listen(&path, 16).map_err(|e| failed(&e))?;
        self.control = Some(control);
        if plan.fds.get(names::VSOCK).is_some() {
            let listener = with_label(Attribute::Socket, label, || {
                listen_stream(&self.dir.path().join(VSOCK)).map_err(|e| failed(&e))
            })?;
            self.fds.insert(names::VSOCK.into(), listener);
        }
        if let Some(json) = &self.guest_config {
            let fd = memfd::create(names::GUEST_CONFIG).map_err(|e| failed(&e))?;
            self.to_own_level(&fd)?;
            let fd = memfd::seal(names::GUEST_CONFIG, fd, json).map_err(|e| failed(&e))?;
            self.fds.insert(names::GUEST_CONFIG.into(), fd);
        }
        Ok(())
    }

    fn create_cgroup(&mut self, step: &Step, plan: &CgroupPlan) -> Result<(), StepFailed> {
        let mut intents = Vec::new();
        for path in cgroup::plan_paths(plan, self.name.as_str()) {
            // One that stands there already is not ours to remove: it is refused before it is written down.
            if path.exists() {
                let why = format!("{} exists already; `casemate repair`, or remove it", path.display());
                return Err(StepFailed::at_because(step, why));
            }
            intents.push(self.journal.intend(Intent::Cgroup { path }).map_err(|e| StepFailed::at(step, e))?);
        }
        self.cgroup = Some(Cgroup::create(plan, self.name.as_str()).map_err(|e| StepFailed::at(step, e))?);
        intents.into_iter().try_for_each(|n| self.journal.done(n)).map_err(|e| StepFailed::at(step, e))
    }

    /// Takes everything back. Returns what could not be.
    pub fn undo(mut self, keep_records: bool) -> Vec<String> {
        self.fds.clear();
        let mut left = undo_journal(&self.ledger, &self.relabeler, &mut self.journal);
        if !left.is_empty() {
            return left;
        }
        let result = if keep_records { Ok(()) } else { self.run.remove(self.dir, &self.name) };
        left.extend(result.err().map(|e| e.to_string()));
        left
    }

    /// Takes everything back after the runner is reaped, keeps the directory with records and logs.
    pub fn finish(&mut self) -> Vec<String> {
        self.fds.clear();
        undo_journal(&self.ledger, &self.relabeler, &mut self.journal)
    }
}

/// Undoes a journal; each failure as a sentence.
pub fn undo_journal(ledger: &Ledger, relabeler: &Relabeler, journal: &mut Journal) -> Vec<String> {
    match (Undoer { ledger, relabeler }).undo(journal) {
        Err(error) => vec![crate::error::sentence(&error)],
        Ok(reports) => reports
            .into_iter()
            .filter_map(|report| match report.outcome {
                UndoOutcome::Failed(why) | UndoOutcome::Waiting(why) => Some(format!("{}: {why}", report.what)),
                _ => None,
            })
            .collect(),
    }
}

/// Runs `make` with the label that new files, or new sockets, get; the attribute is cleared whatever happens.
pub(crate) fn with_label<T>(
    attribute: Attribute,
    label: Option<&Context>,
    make: impl FnOnce() -> Result<T, StepFailed>,
) -> Result<T, StepFailed> {
    let Some(label) = label else { return make() };
    let failed = |e| StepFailed::stage("label what is made", e);
    let proc = VerifiedProc::open_host().map_err(failed)?;
    let labelling = proc.labelling(attribute, label).map_err(failed)?;
    let made = make()?;
    labelling.end().map_err(failed)?;
    Ok(made)
}

fn listen_stream(path: &Path) -> std::io::Result<OwnedFd> {
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener.into())
}

/// A refusal that says what to do.
fn explain_open(error: &casemate_sys::Error, path: &str) -> String {
    use std::io::ErrorKind::{NotFound, PermissionDenied};
    match (error.errno(), error.kind()) {
        (Some(errno), _) if errno == rustix::io::Errno::LOOP.raw_os_error() => {
            format!("{path} is, or leads through, a symbolic link; give the real path")
        }
        (_, NotFound) => format!("{path} does not exist"),
        (_, PermissionDenied) => {
            let why = casemate_label::unopened(Path::new(path));
            let why = why.unwrap_or_else(|| "permissions, SELinux, or a read-only file system".into());
            format!("{path} may not be opened: {why}")
        }
        _ => error.report(),
    }
}

/// Is the opened object what the plan wants?
fn check_object(is: &Identity, kind: FdKind, access: FdAccess) -> Result<(), String> {
    let fits = match kind {
        FdKind::RegularFile => is.kind == FileType::RegularFile,
        FdKind::BlockDevice => is.kind == FileType::BlockDevice,
        FdKind::Image => matches!(is.kind, FileType::RegularFile | FileType::BlockDevice),
        FdKind::CharDevice => is.kind == FileType::CharacterDevice,
        FdKind::SealedMemfd | FdKind::SizedMemfd | FdKind::SeqpacketSocket | FdKind::StreamListener => false,
    };
    if !fits {
        return Err(format!("is a {}, not what is wanted here", kind_name(is.kind)));
    }
    if is.kind == FileType::RegularFile && access == FdAccess::ReadWrite && is.nlink != 1 {
        return Err(format!(
            "has {} names (hard links): another name could be somebody else's file; copy it",
            is.nlink
        ));
    }
    if is.kind == FileType::RegularFile && is.size == 0 {
        return Err("is empty".into());
    }
    Ok(())
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "regular file",
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::Fifo => "FIFO",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Unknown => "file of unknown kind",
    }
}
