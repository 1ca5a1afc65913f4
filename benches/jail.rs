//! One start through the whole jail, as a client sees it, and its peers' starts, timed the same way.
//!
//! The clock starts before posix_spawn. First output: inotify's IN_MODIFY on the console log, read by this program.
//! Gone: the `Exited` event is read *and* the process is reaped. CPU: getrusage(RUSAGE_CHILDREN), which holds the
//! jailer and the runner that it reaped.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use casemate_spec::wire::SpecFile;
use casemate_sys::{memfd, rustix, seqpacket};
use casemate_wire::Channel;
use casemate_wire::control::{Request, Response};
use casemate_wire::jailer::Event;
use casemate_wire::record::{ExitCause, SandboxRecord};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;

pub type AnyError = Box<dyn std::error::Error>;

/// Programs, the directory for state, the guest.
pub struct Bench {
    pub programs: PathBuf,
    pub run_dir: PathBuf,
    pub kernel: PathBuf,
    slots: [OwnedFd; 2],
    null: File,
    count: u32,
}

/// What one start took.
#[derive(Debug, Clone, Copy)]
pub struct Took {
    pub output: Option<Duration>,
    pub gone: Duration,
    pub cpu: Duration,
}

/// A jailer at work.
pub struct Launch {
    pub name: String,
    pub child: Child,
    pub channel: Channel,
}

impl Bench {
    /// Must be called before anything else is opened: descriptors 3 and 4 become the jailer's two.
    pub fn new(programs: PathBuf, dir: &Path) -> Result<Self, AnyError> {
        use std::os::fd::AsRawFd;
        let slots = [OwnedFd::from(File::open("/dev/null")?), OwnedFd::from(File::open("/dev/null")?)];
        if slots.each_ref().map(AsRawFd::as_raw_fd) != [3, 4] {
            return Err("descriptors 3 and 4 must be closed when this program starts".into());
        }
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let kernel = dir.join("kernel");
        Ok(Self { programs, run_dir: dir.join("run"), kernel, slots, null, count: 0 })
    }

    /// posix_spawn: std takes it when nothing is to be done between fork and exec, so 3 and 4 are put in place here.
    fn spawn(&mut self, command: &mut Command, fds: Option<(OwnedFd, OwnedFd)>) -> Result<Child, AnyError> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        if let Some((events, spec)) = &fds {
            rustix::io::dup2(events, &mut self.slots[0])?;
            rustix::io::dup2(spec, &mut self.slots[1])?;
        }
        let child = command.spawn();
        if fds.is_some() {
            // Held open here, they would hide the other side's end.
            for slot in &mut self.slots {
                rustix::io::dup3(&self.null, slot, rustix::io::DupFlags::CLOEXEC)?;
            }
        }
        Ok(child?)
    }

    /// Starts the jailer with a bare guest.
    pub fn launch(&mut self, kernel: &Path) -> Result<Launch, AnyError> {
        self.count += 1;
        let name = format!("bench-{}-{}", std::process::id(), self.count);
        let spec = SpecFile {
            version: casemate_spec::wire::VERSION,
            name: Some(name.clone()),
            bare: true,
            kernel: Some(kernel.display().to_string()),
            memory: Some("128M".into()),
            ..SpecFile::default()
        };
        let spec = memfd::sealed("spec", &serde_json::to_vec(&spec)?)?;
        let (channel, theirs) = Channel::pair()?;
        let mut command = Command::new(self.programs.join("casemate-jailer"));
        command.arg("run").arg("--run-dir").arg(&self.run_dir).arg("--state-dir").arg(&self.run_dir);
        let child = self.spawn(&mut command, Some((theirs, spec)))?;
        Ok(Launch { name, child, channel })
    }

    /// One whole life of the tiny guest.
    pub fn jailed(&mut self) -> Result<(Took, SandboxRecord), AnyError> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let vms = self.run_dir.join("vms");
        inotify::add_watch(&watch, &vms, inotify::WatchFlags::CREATE)?;
        let (cpu, kernel) = (children_cpu()?, self.kernel.clone());
        let begin = Instant::now();
        let mut launch = self.launch(&kernel)?;
        let log = vms.join(&launch.name).join("console-log.0");
        let output = first_output(&watch, &launch.channel, &log, begin)?;
        launch.end()?;
        let gone = begin.elapsed();
        let cpu = children_cpu()? - cpu;
        let record = self.record(&launch.name)?;
        self.forget(&launch.name)?;
        Ok((Took { output, gone, cpu }, record))
    }

    fn record(&self, name: &str) -> Result<SandboxRecord, AnyError> {
        Ok(serde_json::from_slice(&std::fs::read(self.run_dir.join("vms").join(name).join("exit.json"))?)?)
    }

    /// Holds a guest by its control socket.
    pub fn pause(&self, name: &str) -> Result<(), AnyError> {
        let control = seqpacket::connect(&self.run_dir.join("vms").join(name).join("control.sock"))?;
        let control = Channel::new(control);
        control.send(&Request::Pause)?;
        match control.receive()? {
            Response::Done => Ok(()),
            other => Err(format!("instead of a pause: {other:?}").into()),
        }
    }

    pub fn forget(&self, name: &str) -> Result<(), AnyError> {
        Ok(std::fs::remove_dir_all(self.run_dir.join("vms").join(name))?)
    }

    /// A program that ends by itself; with `log`, the first write to that file is its output.
    pub fn plain(&mut self, mut command: Command, log: Option<&Path>) -> Result<Took, AnyError> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        if let Some(log) = log {
            File::create(log)?;
            inotify::add_watch(&watch, log, inotify::WatchFlags::MODIFY)?;
        }
        let cpu = children_cpu()?;
        let begin = Instant::now();
        let mut child = self.spawn(&mut command, None)?;
        let output = match log {
            Some(_) => next_events(&watch).map(|_| Some(begin.elapsed()))?,
            None => None,
        };
        let status = child.wait()?;
        let gone = begin.elapsed();
        if !status.success() {
            return Err(format!("{command:?} ended with {status}").into());
        }
        Ok(Took { output, gone, cpu: children_cpu()? - cpu })
    }
}

impl Launch {
    /// Waits for the clean end of the guest and of the jailer.
    pub fn end(&mut self) -> Result<(), AnyError> {
        loop {
            match self.channel.receive::<Event>()? {
                Event::Exited(report) if report.cause == ExitCause::PowerOff => break,
                Event::Started(_) | Event::Guest(_) => {}
                other => return Err(format!("instead of a power-off: {other:?}").into()),
            }
        }
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the jailer ended with {status}").into()) }
    }

    /// Waits until the guest runs.
    pub fn started(&mut self) -> Result<SandboxRecord, AnyError> {
        match self.channel.receive::<Event>()? {
            Event::Started(record) => Ok(*record),
            other => Err(format!("instead of a start: {other:?}").into()),
        }
    }
}

/// Follows the sandbox's directory until the log is there, then the log until it grows.
fn first_output(watch: &OwnedFd, channel: &Channel, log: &Path, begin: Instant) -> Result<Option<Duration>, AnyError> {
    let sandbox = log.parent().ok_or("a log has a directory")?;
    let (mut in_sandbox, mut on_log) = (false, false);
    loop {
        let mut fds = [PollFd::new(watch, PollFlags::IN), PollFd::new(channel, PollFlags::RDHUP)];
        poll(&mut fds, None)?;
        if fds[0].revents().is_empty() {
            // Its failure is the next message.
            return Ok(None);
        }
        if next_events(watch)? && on_log {
            return Ok(Some(begin.elapsed()));
        }
        if !in_sandbox {
            in_sandbox = inotify::add_watch(watch, sandbox, inotify::WatchFlags::CREATE).is_ok();
        }
        if !on_log {
            on_log = inotify::add_watch(watch, log, inotify::WatchFlags::MODIFY).is_ok();
        }
    }
}

/// Reads what waits; true if a file was written to.
fn next_events(watch: &OwnedFd) -> Result<bool, AnyError> {
    let mut space = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(watch, &mut space);
    let mut written = false;
    loop {
        match reader.next() {
            Ok(event) => written |= event.events().contains(inotify::ReadFlags::MODIFY),
            Err(rustix::io::Errno::AGAIN) => return Ok(written),
            Err(error) => return Err(error.into()),
        }
        if reader.is_buffer_empty() {
            return Ok(written);
        }
    }
}

/// User and system time of all children that were waited for, theirs included.
pub fn children_cpu() -> Result<Duration, AnyError> {
    use nix::sys::resource::{UsageWho, getrusage};
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let time = |t: nix::sys::time::TimeVal| {
        Duration::from_secs(t.tv_sec().unsigned_abs()) + Duration::from_micros(t.tv_usec().unsigned_abs())
    };
    Ok(time(usage.user_time()) + time(usage.system_time()))
}
