//! A host of its own for the jailer: a run directory in a temporary place, the built programs, and tiny guests.
//!
//! ```ignore
//! let host = Host::new()?;
//! let mut vm = host.start(&host.bare("name", guest::pvh_elf(guest::power_off))?)?;
//! let record = vm.started()?;
//! assert_eq!(vm.exited()?.cause, ExitCause::PowerOff);
//! host.clean()?;
//! ```
//! The jailer is the real program with root's rights: uid leases, cgroups and processes are this machine's. Each name
//! carries the test's pid, so that tests and people at work beside it do not meet.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use casemate_sys::rustix::event::{PollFd, PollFlags, Timespec, poll};
use casemate_sys::rustix::process::{Pid, Signal, kill_process};
use casemate_sys::{memfd, seqpacket};
use casemate_wire::Channel;
use casemate_wire::control::{Request, Response};
use casemate_wire::jailer::{Event, Failure};
use casemate_wire::record::{ExitReport, ProcessName, SandboxRecord};
use command_fds::{CommandFdExt, FdMapping};
use libtest_mimic::Failed;
use serde_json::{Value, json};

/// A start takes milliseconds; a machine under load is given more.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A run directory and everything started below it.
pub struct Host {
    dir: tempfile::TempDir,
    bin: PathBuf,
    names: Mutex<BTreeSet<String>>,
}

/// A jailer that was started, later the warden: the same process.
pub struct Launch {
    child: Child,
    channel: Option<Channel>,
    stderr: File,
    run: PathBuf,
}

impl Host {
    pub fn new() -> Result<Self, Failed> {
        let bin = match std::env::var_os("CASEMATE_TEST_BIN") {
            Some(dir) => PathBuf::from(dir),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/casemate"),
        };
        let bin = bin.canonicalize().map_err(|e| format!("{}: {e}; run scripts/build first", bin.display()))?;
        Self::with_programs(bin)
    }

    /// The same with the programs of another directory.
    pub fn with_programs(bin: PathBuf) -> Result<Self, Failed> {
        let dir = tempfile::tempdir()?;
        fs::DirBuilder::new().mode(0o700).create(dir.path().join("run"))?;
        Ok(Self { dir, bin, names: Mutex::default() })
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// What every verb of the jailer's is given.
    pub fn dirs(&self) -> [std::ffi::OsString; 4] {
        ["--run-dir".into(), self.run_dir().into(), "--state-dir".into(), self.state_dir().into()]
    }

    /// A place for files beside the run directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// A name that nobody else on this machine has.
    pub fn name(&self, hint: &str) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{}-{n}-{hint}", std::process::id());
        self.names.lock().expect("no test panics with it").insert(name.clone());
        name
    }

    /// The specification of a bare guest: one vCPU, 4 MiB, this kernel, no device but the serial port.
    pub fn bare(&self, hint: &str, kernel: Vec<u8>) -> Result<Value, Failed> {
        let name = self.name(hint);
        let path = self.file(&format!("{name}.elf"));
        fs::write(&path, kernel)?;
        Ok(json!({ "version": 1, "name": name, "bare": true, "memory": "4M", "vsock": false, "kernel": path }))
    }

    /// Starts the jailer with this specification.
    pub fn start(&self, spec: &Value) -> Result<Launch, Failed> {
        self.start_bytes(spec.to_string().as_bytes())
    }

    /// The same with bytes that need not be a specification.
    pub fn start_bytes(&self, spec: &[u8]) -> Result<Launch, Failed> {
        let mut command = Command::new(self.jailer());
        command.stdin(Stdio::null());
        self.start_with(memfd::sealed("spec", spec)?, command)
    }

    pub fn jailer(&self) -> PathBuf {
        self.bin.join("casemate-jailer")
    }

    /// Starts `command`, which is or becomes the jailer, with any descriptor as number 4.
    pub fn start_with(&self, spec: OwnedFd, mut command: Command) -> Result<Launch, Failed> {
        let (channel, theirs) = Channel::pair()?;
        let stderr = tempfile::tempfile()?;
        command.arg("run").args(self.dirs()).stdout(Stdio::null()).stderr(stderr.try_clone()?);
        let fds = [FdMapping { parent_fd: theirs, child_fd: 3 }, FdMapping { parent_fd: spec, child_fd: 4 }];
        let child = command.fd_mappings(fds.into())?.spawn()?;
        // The command still holds the child's end of the socket.
        drop(command);
        Ok(Launch { child, channel: Some(channel), stderr, run: self.run_dir() })
    }

    /// What the jailer would do for this specification, as JSON.
    pub fn plan(&self, spec: &Value) -> Result<Value, Failed> {
        let (_channel, theirs) = Channel::pair()?;
        let spec = memfd::sealed("spec", spec.to_string().as_bytes())?;
        let fds = [FdMapping { parent_fd: theirs, child_fd: 3 }, FdMapping { parent_fd: spec, child_fd: 4 }];
        let output = Command::new(self.jailer()).arg("plan").args(self.dirs()).fd_mappings(fds.into())?.output()?;
        serde_json::from_slice(&output.stdout)
            .map_err(|e| format!("plan: {e}; {}", String::from_utf8_lossy(&output.stderr)).into())
    }

    /// Another verb of the jailer's.
    pub fn verb(&self, verb: &[&str]) -> Result<Output, Failed> {
        Ok(Command::new(self.jailer()).args(verb).args(self.dirs()).output()?)
    }

    /// A start that must be refused: the failure as the client hears it, and nothing left on the host.
    pub fn refused(&self, spec: &Value) -> Result<Failure, Failed> {
        self.start(spec)?.failure(self)
    }

    /// `repair`: what it says, as JSON.
    pub fn repair(&self, args: &[&str]) -> Result<Value, Failed> {
        let verb: Vec<&str> = ["repair"].iter().chain(args).copied().collect();
        let output = self.verb(&verb)?;
        if !output.status.success() {
            return Err(format!("repair: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Names of the leases in use.
    pub fn leases(&self) -> Vec<String> {
        let kinds = ["mcs", "uid", "static"];
        kinds.iter().flat_map(|kind| entries(&self.run_dir().join("leases").join(kind))).collect()
    }

    /// Files of a sandbox's directory; none if it is gone.
    pub fn files(&self, name: &str) -> Vec<String> {
        entries(&self.run_dir().join("vms").join(name))
    }

    /// Sandboxes that have a directory.
    pub fn sandboxes(&self) -> Vec<String> {
        entries(&self.run_dir().join("vms"))
    }

    /// cgroup directories of this host's sandboxes.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let names = self.names.lock().expect("no test panics with it");
        let mut roots: Vec<PathBuf> =
            entries(Path::new("/sys/fs/cgroup")).iter().map(|c| Path::new("/sys/fs/cgroup").join(c)).collect();
        roots.push("/sys/fs/cgroup".into());
        let below = |root: PathBuf| names.iter().map(move |name| root.join("casemate").join(name)).collect::<Vec<_>>();
        roots.into_iter().flat_map(below).filter(|path| path.exists()).collect()
    }

    /// Nothing is left of any sandbox but the records and logs of ended ones.
    pub fn clean(&self) -> Result<(), Failed> {
        let mut left = Vec::new();
        left.extend(self.leases().into_iter().map(|lease| format!("lease {lease}")));
        left.extend(self.cgroups().into_iter().map(|path| format!("cgroup {}", path.display())));
        for sandbox in self.sandboxes() {
            let kept = |file: &String| ["exit.json", "start.json"].contains(&file.as_str()) || file.contains("-log.");
            let files = self.files(&sandbox);
            left.extend(files.iter().filter(|file| !kept(file)).map(|file| format!("{sandbox}/{file}")));
            if !files.iter().any(|file| file == "exit.json") {
                left.push(format!("{sandbox} without exit.json"));
            }
        }
        left.extend(self.lasting().into_iter().map(|pid| format!("process {pid}")));
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let place = self.dir.path().to_string_lossy();
        left.extend(mounts.lines().filter(|line| line.contains(&*place)).map(|line| format!("mount {line}")));
        if left.is_empty() { Ok(()) } else { Err(format!("left: {}", left.join(", ")).into()) }
    }

    /// The same, and no record either.
    pub fn spotless(&self) -> Result<(), Failed> {
        self.clean()?;
        match self.sandboxes() {
            left if left.is_empty() => Ok(()),
            left => Err(format!("left: the directories of {}", left.join(", ")).into()),
        }
    }

    /// Wardens that do not end: one has a moment left after its last answer, which is to its clients.
    fn lasting(&self) -> Vec<String> {
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let living = self.processes();
            if living.is_empty() || Instant::now() > until {
                return living;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Wardens of this run directory that live.
    fn processes(&self) -> Vec<String> {
        let run = self.run_dir();
        let ours = |pid: &String| {
            let line = fs::read(Path::new("/proc").join(pid).join("cmdline")).unwrap_or_default();
            line.split(|b| *b == 0).any(|arg| arg == run.as_os_str().as_encoded_bytes())
        };
        entries(Path::new("/proc")).into_iter().filter(|p| p.parse::<u32>().is_ok()).filter(ours).collect()
    }
}

impl Launch {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next event.
    pub fn event(&mut self) -> Result<Event, Failed> {
        let channel = self.channel.as_ref().ok_or("the client has hung up")?;
        readable(channel, PATIENCE)?;
        channel.receive().map_err(|e| format!("{e}; the jailer said: {}", self.said()).into())
    }

    /// Waits for Started.
    pub fn started(&mut self) -> Result<SandboxRecord, Failed> {
        match self.event()? {
            Event::Started(record) => Ok(*record),
            other => Err(format!("instead of Started: {other:?}").into()),
        }
    }

    /// Waits for Exited, and for the warden's end.
    pub fn exited(&mut self) -> Result<ExitReport, Failed> {
        loop {
            match self.event()? {
                Event::Guest(_) => {}
                Event::Exited(report) => {
                    let status = self.wait()?;
                    let said = self.said();
                    if status.success() && said.is_empty() {
                        return Ok(report);
                    }
                    return Err(format!("{report:?}, but the warden ended with {status}: {said}").into());
                }
                other => return Err(format!("instead of Exited: {other:?}").into()),
            }
        }
    }

    /// Waits for Failed, and for a host without a trace of the start.
    pub fn failure(mut self, host: &Host) -> Result<Failure, Failed> {
        let failure = match self.event()? {
            Event::Failed(failure) => failure,
            other => return Err(format!("instead of Failed: {other:?}").into()),
        };
        self.wait()?;
        if !failure.left.is_empty() {
            return Err(format!("not undone: {failure:?}").into());
        }
        host.clean().map_err(|e| format!("{}; after {failure:?}", e.message().unwrap_or_default()))?;
        Ok(failure)
    }

    /// The end of the process, which must come by itself.
    pub fn wait(&mut self) -> Result<ExitStatus, Failed> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Err(format!("process {} lives on", self.pid()).into())
    }

    /// What it wrote on stderr.
    pub fn said(&mut self) -> String {
        let mut text = String::new();
        let read = self.stderr.seek(SeekFrom::Start(0)).and_then(|_| self.stderr.read_to_string(&mut text));
        read.map_or_else(|e| e.to_string(), |_| text)
    }

    /// The client goes away.
    pub fn hang_up(&mut self) {
        self.channel = None;
    }

    /// SIGKILL, and reaped.
    pub fn kill(&mut self) -> Result<(), Failed> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// The pipe to its stdin, where one was asked for.
    pub fn stdin(&mut self) -> Option<impl Write + use<>> {
        self.child.stdin.take()
    }

    /// A connection to the control socket.
    pub fn control(&self, name: &str) -> Result<Channel, Failed> {
        Ok(Channel::new(seqpacket::connect(&self.run.join("vms").join(name).join("control.sock"))?))
    }

    /// One request over a new connection.
    pub fn ask(&self, name: &str, request: Request) -> Result<Response, Failed> {
        ask(&self.control(name)?, request)
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        // Gone already in every passing test. A warden's death ends its runner.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request over a connection.
pub fn ask(control: &Channel, request: Request) -> Result<Response, Failed> {
    control.send(&request)?;
    readable(control, PATIENCE)?;
    Ok(control.receive()?)
}

fn readable(channel: &Channel, limit: Duration) -> Result<(), Failed> {
    let mut fds = [PollFd::new(channel, PollFlags::IN)];
    match poll(&mut fds, Some(&Timespec::try_from(limit)?))? {
        0 => Err(format!("nothing was said for {limit:?}").into()),
        _ => Ok(()),
    }
}

/// SIGKILL to a process that is not our child.
pub fn kill(process: ProcessName) -> Result<(), Failed> {
    signal(process, Signal::KILL)
}

/// A signal to a process that is not our child.
pub fn signal(process: ProcessName, signal: Signal) -> Result<(), Failed> {
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw).ok_or("no pid")?;
    Ok(kill_process(pid, signal)?)
}

/// Waits until the process is gone; a zombie is.
pub fn gone(pid: u32) -> Result<(), Failed> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
        if matches!(state, None | Some("Z" | "X")) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Err(format!("process {pid} lives on").into())
}

/// Waits for something that comes soon.
pub fn soon(what: &str, mut ready: impl FnMut() -> bool) -> Result<(), Failed> {
    let until = Instant::now() + PATIENCE;
    while !ready() {
        if Instant::now() > until {
            return Err(format!("waited in vain: {what}").into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn entries(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
