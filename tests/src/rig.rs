//! A runner without a jailer: the test plays the warden.
//!
//! ```ignore
//! let mut vm = Rig::new(guest::pvh_elf(|a| guest::power_off(a))).disk("d", &[0; 4096], false)?.start()?;
//! assert_eq!(vm.run_to_end()?.cause, ExitCause::PowerOff);
//! ```
//! The runner is the real program under its real filters and Landlock (see `bin/launch-runner.rs`).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use casemate_plan::{BoundFd, DiskPlan, FdAccess, FdKind, LayerPlan, RolePlan, VmPlan, names, role};
use casemate_spec::DiskFormat;
use casemate_sys::rustix::event::{PollFd, PollFlags, Timespec, poll};
use casemate_sys::{exec, memfd, path};
use casemate_wire::record::{ExitReport, Finding};
use casemate_wire::runner::{FromRunner, GuestNews, ToRunner};
use casemate_wire::{Channel, codec};
use command_fds::{CommandFdExt, FdMapping};
use libtest_mimic::Failed;
use nix::sched::{CloneFlags, setns, unshare};

/// The runner's uid in tests: nobody's.
const UID: u32 = 2_000_001;
/// A tiny guest needs far less.
const PATIENCE: Duration = Duration::from_secs(30);

/// A runner to be started.
pub struct Rig {
    vm: VmPlan,
    fds: Vec<(String, FdKind, OwnedFd)>,
    kernel: Vec<u8>,
    disks: Vec<File>,
    vsock: Option<(tempfile::TempDir, UnixListener)>,
    filters: bool,
}

/// A started runner.
pub struct Running {
    child: Child,
    warden: Channel,
    console: [File; 2],
    output: [File; 2],
    disks: Vec<File>,
    vsock: Option<tempfile::TempDir>,
    /// The inside attestation.
    pub findings: Vec<Finding>,
    /// What the agent of the guest said.
    pub news: Vec<GuestNews>,
}

impl Rig {
    /// A tiny guest: one vCPU, 4 MiB, serial port only.
    pub fn new(kernel: Vec<u8>) -> Self {
        let vm = VmPlan {
            cpus: 1,
            memory: 4 << 20,
            hugepage: None,
            cmdline: "tiny".into(),
            disks: Vec::new(),
            vsock_cid: None,
            console: false,
            rng: false,
            agent: false,
            boot_timeout_ms: 5_000,
            log_bytes: 64 << 10,
            restart_on_reboot: false,
        };
        Self { vm, fds: Vec::new(), kernel, disks: Vec::new(), vsock: None, filters: true }
    }

    /// Whether each thread puts on its own filter; the coarse one is there in any case.
    pub fn filters(mut self, filters: bool) -> Self {
        self.filters = filters;
        self
    }

    /// Anything else of the plan.
    pub fn with(mut self, change: impl FnOnce(&mut VmPlan)) -> Self {
        change(&mut self.vm);
        self
    }

    /// A raw disk; device number is the order of the calls.
    pub fn disk(mut self, id: &str, content: &[u8], read_only: bool) -> io::Result<Self> {
        let file = temp_file(content)?;
        self.disks.push(file.try_clone()?);
        self.fds.push((names::disk(id), FdKind::Image, file.into()));
        self.vm.disks.push(DiskPlan {
            fd: names::disk(id),
            serial: id.into(),
            read_only,
            format: DiskFormat::Raw,
            backing: Vec::new(),
        });
        Ok(self)
    }

    /// The same over a file that the test keeps.
    pub fn disk_file(mut self, id: &str, file: File, read_only: bool) -> Self {
        self.fds.push((names::disk(id), FdKind::Image, file.into()));
        self.vm.disks.push(DiskPlan {
            fd: names::disk(id),
            serial: id.into(),
            read_only,
            format: DiskFormat::Raw,
            backing: Vec::new(),
        });
        self
    }

    /// An initrd and the guest's configuration.
    pub fn initrd(mut self, content: &[u8], config: &[u8]) -> Result<Self, Failed> {
        self.fds.push((names::INITRD.into(), FdKind::RegularFile, temp_file(content)?.into()));
        self.fds.push((names::GUEST_CONFIG.into(), FdKind::SealedMemfd, memfd::sealed("config", config)?));
        Ok(self)
    }

    /// A disk made of the caller's images, top to bottom; the first is the plan's own, the others lie below it.
    pub fn chain(mut self, id: &str, images: Vec<(File, DiskFormat)>, read_only: bool) -> Self {
        let mut backing = Vec::new();
        let mut format = DiskFormat::Raw;
        for (depth, (file, of)) in images.into_iter().enumerate() {
            let fd = if depth == 0 { names::disk(id) } else { names::layer(id, depth) };
            match depth {
                0 => format = of,
                _ => backing.push(LayerPlan { fd: fd.clone(), format: of }),
            }
            self.fds.push((fd, FdKind::Image, file.into()));
        }
        self.vm.disks.push(DiskPlan { fd: names::disk(id), serial: id.into(), read_only, format, backing });
        self
    }

    /// A vsock device (after all disks), reachable by [`Running::connect`].
    pub fn vsock(mut self) -> io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let listener = UnixListener::bind(dir.path().join("vsock.sock"))?;
        self.fds.push((names::VSOCK.into(), FdKind::StreamListener, listener.try_clone()?.into()));
        (self.vm.vsock_cid, self.vsock) = (Some(3), Some((dir, listener)));
        Ok(self)
    }

    /// Starts the runner and waits for its attestation; no guest instruction runs yet.
    pub fn start(self) -> Result<Running, Failed> {
        let (warden, theirs) = Channel::pair()?;
        let logs = || -> io::Result<[File; 2]> { Ok([temp_file(&[])?, temp_file(&[])?]) };
        let (console, output) = (logs()?, logs()?);
        let mut fds = vec![
            (names::WARDEN.to_string(), FdKind::SeqpacketSocket, theirs),
            (names::KVM.into(), FdKind::CharDevice, File::options().read(true).write(true).open("/dev/kvm")?.into()),
            (names::KERNEL.into(), FdKind::RegularFile, temp_file(&self.kernel)?.into()),
        ];
        for (file, name) in console.iter().zip(names::CONSOLE_LOG).chain(output.iter().zip(names::OUTPUT_LOG)) {
            fds.push((name.into(), FdKind::RegularFile, file.try_clone()?.into()));
        }
        fds.extend(self.fds);
        let child = spawn(&self.vm, self.filters, fds)?;
        let (vsock, disks) = (self.vsock.map(|(dir, _listener)| dir), self.disks);
        let mut running =
            Running { child, warden, console, output, disks, vsock, findings: Vec::new(), news: Vec::new() };
        match running.next(PATIENCE)? {
            FromRunner::Attested(findings) => running.findings = findings,
            other => return Err(format!("instead of an attestation: {other:?}").into()),
        }
        Ok(running)
    }

    /// Starts a runner that must not get as far as attesting; returns what it said.
    pub fn start_failing(self) -> Result<String, Failed> {
        match self.start() {
            Ok(_) => Err("the runner attested although it should have failed".into()),
            Err(failed) => Ok(failed.message().unwrap_or_default().into()),
        }
    }
}

impl Running {
    /// Sends a word of the warden's.
    pub fn tell(&self, message: ToRunner) -> Result<(), Failed> {
        Ok(self.warden.send(&message)?)
    }

    /// The next message within `limit`; agent news are kept in [`Running::news`].
    pub fn next(&mut self, limit: Duration) -> Result<FromRunner, Failed> {
        let deadline = Instant::now() + limit;
        loop {
            let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now()))?;
            let mut fds = [PollFd::new(&self.warden, PollFlags::IN)];
            if poll(&mut fds, Some(&left))? == 0 {
                return Err(format!("the runner said nothing for {limit:?}").into());
            }
            match self.warden.receive::<FromRunner>() {
                Ok(FromRunner::Guest(news)) => self.news.push(news),
                Ok(FromRunner::Timed(_)) => {}
                Ok(message) => return Ok(message),
                Err(error) => return Err(format!("{error}; {:?}", self.child.wait()?).into()),
            }
        }
    }

    /// Go, and then the exit report.
    pub fn run_to_end(&mut self) -> Result<ExitReport, Failed> {
        self.tell(ToRunner::Go)?;
        self.end()
    }

    /// The exit report, and a process that is gone soon after.
    pub fn end(&mut self) -> Result<ExitReport, Failed> {
        self.end_within(PATIENCE)
    }

    /// The same for guests that need longer.
    pub fn end_within(&mut self, limit: Duration) -> Result<ExitReport, Failed> {
        match self.next(limit)? {
            FromRunner::Exited { cause, detail } => {
                let status = self.child.wait()?;
                if !status.success() {
                    return Err(format!("the runner reported {cause:?} and then ended with {status}").into());
                }
                Ok(ExitReport { cause, status: None, detail })
            }
            other => Err(format!("instead of the end: {other:?}").into()),
        }
    }

    /// Connects to the vsock socket, as a host client.
    pub fn connect(&self) -> Result<UnixStream, Failed> {
        let dir = self.vsock.as_ref().ok_or("the rig has no vsock")?;
        Ok(UnixStream::connect(dir.path().join("vsock.sock"))?)
    }

    /// The serial log (of a guest that wrote less than half of it).
    pub fn console(&mut self) -> io::Result<Vec<u8>> {
        content(&mut self.console)
    }

    /// The log of the virtio console.
    pub fn output(&mut self) -> io::Result<Vec<u8>> {
        content(&mut self.output)
    }

    /// What is on disk number `index` now.
    pub fn disk(&mut self, index: usize) -> io::Result<Vec<u8>> {
        let disk = self.disks.get_mut(index).ok_or(io::ErrorKind::NotFound)?;
        let mut bytes = Vec::new();
        disk.seek(SeekFrom::Start(0))?;
        disk.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Drops the warden's end and waits for the runner to notice.
    pub fn abandon(mut self, limit: Duration) -> Result<ExitStatus, Failed> {
        let (unused, _) = Channel::pair()?;
        drop(std::mem::replace(&mut self.warden, unused));
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(format!("the runner still lives {limit:?} after its warden is gone").into())
    }

    /// Process id of the runner.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone in every passing test.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn content(files: &mut [File; 2]) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    for file in files {
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut all)?;
    }
    Ok(all)
}

fn temp_file(content: &[u8]) -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    file.write_all(content)?;
    Ok(file)
}

fn spawn(vm: &VmPlan, filters: bool, fds: Vec<(String, FdKind, OwnedFd)>) -> Result<Child, Failed> {
    let mut plan = RolePlan {
        version: role::VERSION,
        sandbox: "rig".into(),
        fds: Vec::new(),
        uid: UID,
        gid: UID,
        // No transition happens in the rig: the runner has the test's own label, where there are labels.
        label: casemate_sys::seqpacket::own_label()?,
        landlock_abi: casemate_confine::landlock::probe(),
        seccomp: filters,
        rlimits: Vec::new(),
        vm: vm.clone(),
    };
    for (index, (name, kind, fd)) in fds.iter().enumerate() {
        plan.fds.push(bound(exec::FIRST_FD + 1 + index as i32, name, *kind, fd)?);
    }
    let plan_fd = sealed_plan(&mut plan)?;
    let mut mappings = vec![FdMapping { parent_fd: plan_fd, child_fd: exec::FIRST_FD }];
    for (index, (_, _, fd)) in fds.into_iter().enumerate() {
        mappings.push(FdMapping { parent_fd: fd, child_fd: exec::FIRST_FD + 1 + index as i32 });
    }
    let mut command = Command::new(program("launch-runner")?);
    command.arg(program("casemate-runner")?).arg(UID.to_string()).env_clear().stdin(Stdio::null());
    let command = command.fd_mappings(mappings)?;
    in_new_pid_namespace(|| command.spawn())
}

/// Starts one program as process 1 of a pid namespace, as in a jail: the runner's filters let it signal process 1 and
/// nobody else. Not from a thread of its own, as the runner dies with the thread that started it.
fn in_new_pid_namespace(spawn: impl FnOnce() -> io::Result<Child>) -> Result<Child, Failed> {
    let own = File::open("/proc/self/ns/pid")?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    let child = spawn();
    // What this thread starts next is in its own namespace again.
    setns(own, CloneFlags::CLONE_NEWPID)?;
    Ok(child?)
}

fn bound(number: i32, name: &str, kind: FdKind, fd: &OwnedFd) -> Result<BoundFd, Failed> {
    let id = path::identity(fd)?;
    Ok(BoundFd { number, name: name.into(), kind, access: FdAccess::ReadWrite, dev: id.dev, ino: id.ino })
}

/// The plan names its own descriptor, so that is made first and filled last.
fn sealed_plan(plan: &mut RolePlan) -> Result<OwnedFd, Failed> {
    let fd = memfd::create(names::PLAN)?;
    plan.fds.insert(0, bound(exec::FIRST_FD, names::PLAN, FdKind::SealedMemfd, &fd)?);
    Ok(memfd::seal(names::PLAN, fd, &codec::encode(plan)?)?)
}

/// A program of this workspace, as built last; or from CASEMATE_TEST_BIN, where there is no workspace (testbed).
pub fn program(name: &str) -> Result<PathBuf, Failed> {
    if let Some(dir) = std::env::var_os("CASEMATE_TEST_BIN") {
        return Ok(PathBuf::from(dir).join(name));
    }
    let target = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target");
    // The runner must be the static one: a dynamic one needs executable mappings, which its filters deny.
    let places = match name {
        "casemate-runner" | "casemate-probe" => {
            &["x86_64-unknown-linux-gnu/dist", "x86_64-unknown-linux-gnu/debug"][..]
        }
        _ => &["dist", "debug"],
    };
    places
        .iter()
        .map(|place| target.join(place).join(name))
        .filter(|path| path.is_file())
        .max_by_key(|path| path.metadata().and_then(|meta| meta.modified()).ok())
        .ok_or_else(|| format!("{name} is not built: cargo build -p {name}").into())
}
