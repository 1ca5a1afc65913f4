//! What PID 1 does, in order. Every failure ends in a report, a line on the console, and power off.
use crate::boot::{self, BootError};
use crate::engine::Agent;
use crate::reaper::Reaper;
use crate::report::{Reporter, listen};
use crate::workload::{Ended, Workload};
use crate::{network, rootfs};
use casemate_agent_protocol::{AGENT_PORT, Attach, GuestConfig, Report, Stage};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use rustix::system::RebootCommand;
use rustix::termios::{OptionalActions, tcdrain, tcgetattr, tcsetattr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// This program, wherever the root is: the link leads to the running file, though its name is deleted.
const SELF: &str = "/proc/self/exe";
const DEFAULT_HOSTNAME: &str = "casemate";
const OUTPUT_CONSOLE: &str = "/dev/hvc0";

/// A stage that failed.
struct Failure {
    stage: Stage,
    code: i32,
    text: String,
}

impl Failure {
    fn at(stage: Stage) -> impl FnOnce(BootError) -> Failure {
        move |error| Failure { stage, code: error.errno(), text: error.to_string() }
    }

    fn io(stage: Stage, attempt: &str, error: &std::io::Error) -> Failure {
        Failure { stage, code: error.raw_os_error().unwrap_or(0), text: format!("{attempt} failed: {error}") }
    }
}

/// PID 1's whole life.
pub fn main() -> ! {
    let mut reporter = Reporter::default();
    let mut config = None;
    let last = match bring_up(&mut reporter, &mut config) {
        Ok(agent) => run(&agent, &mut reporter, config.as_ref()),
        Err(failure) => Report::Failed { stage: failure.stage, code: failure.code, text: failure.text },
    };
    end_processes();
    rootfs::leave(config.as_ref());
    reporter.finish(&last);
    power_off()
}

fn bring_up(reporter: &mut Reporter, kept: &mut Option<GuestConfig>) -> Result<Arc<Agent>, Failure> {
    boot::early_mounts().map_err(Failure::at(Stage::Mounts))?;
    let module_problems = boot::load_modules();
    // Early, so that the runner hears of what fails from here on; without a transport there is nobody to tell.
    let _ = reporter.connect();
    let config = boot::read_config().map_err(Failure::at(Stage::Config))?;
    let config = &*kept.insert(config);
    let time = Duration::from_millis(config.device_timeout_ms);
    let root = rootfs::mount_root(&config.root, time, &module_problems).map_err(|error| {
        let stage = if matches!(error, BootError::Device(_)) { Stage::Devices } else { Stage::RootFs };
        Failure::at(stage)(error)
    })?;
    rootfs::enter(&root).map_err(Failure::at(Stage::RootFs))?;
    rootfs::mount_rest(config, &module_problems).map_err(Failure::at(Stage::Disks))?;
    let name = config.hostname.as_deref().unwrap_or(DEFAULT_HOSTNAME);
    let set = rustix::system::sethostname(name.as_bytes());
    set.map_err(|e| Failure::io(Stage::Mounts, "setting the host name", &e.into()))?;
    if let Err(error) = network::loopback_up() {
        eprintln!("casemate-agent: bringing the loopback interface up failed: {error}");
    }
    let reaper = Arc::new(Reaper::default());
    reaper.start().map_err(|e| Failure::io(Stage::Agent, "starting the reaper", &e))?;
    let workload = Workload::new(config.clone(), PathBuf::from(SELF))
        .map_err(|e| Failure::io(Stage::Agent, "preparing the workload", &e))?;
    let agent = Agent::new(reaper, workload, PathBuf::from(SELF));
    start_listener(&agent, config, reporter, &module_problems)?;
    Ok(agent)
}

/// Without vsock a detached workload still runs; one that waits for a client never would.
fn start_listener(
    agent: &Arc<Agent>,
    config: &GuestConfig,
    reporter: &mut Reporter,
    module_problems: &[String],
) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_millis(config.device_timeout_ms);
    let must = matches!(config.attach, Attach::Wait { .. });
    let result = loop {
        // Listening works without a device too; only the connection to the host shows that there is one.
        match reporter.connect() {
            Ok(()) => break listen(AGENT_PORT),
            Err(error) if !must || Instant::now() >= deadline => break Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let listener = match result {
        Ok(listener) => listener,
        Err(error) if must => {
            let modules = module_problems.first().map_or_else(String::new, |p| format!(" ({p})"));
            let attempt = format!("reaching the host over virtio-vsock{modules}");
            return Err(Failure::io(Stage::Listen, &attempt, &error));
        }
        Err(error) => {
            eprintln!("casemate-agent: no vsock, so no sessions and no reports: {error}");
            return Ok(());
        }
    };
    let agent = Arc::clone(agent);
    let accept = move || {
        loop {
            match rustix::net::accept_with(&listener, rustix::net::SocketFlags::CLOEXEC) {
                Ok(connection) => agent.serve(connection),
                // Out of memory or descriptors: sessions end and give some back.
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    };
    let thread = std::thread::Builder::new().name("listener".into()).stack_size(64 * 1024).spawn(accept);
    thread.map(drop).map_err(|e| Failure::io(Stage::Listen, "starting the listener", &e))
}

fn run(agent: &Arc<Agent>, reporter: &mut Reporter, config: Option<&GuestConfig>) -> Report {
    reporter.send(&Report::Ready);
    let output = open_output();
    let ended = agent.run_workload(output.as_ref(), |pid| reporter.send(&Report::Started { pid }));
    if let Some(output) = &output {
        let _ = tcdrain(output);
    }
    match ended {
        Ended::Exited { status, cause } => Report::Exited { status, cause },
        Ended::NotStarted(error) => {
            Report::Failed { stage: Stage::Workload, code: i32::from(error.kind.exit_code()), text: error.message }
        }
        Ended::NeverAttached => {
            let wait = config.map_or(Attach::Detached, |c| c.attach);
            let text = match wait {
                Attach::Wait { timeout_ms } => format!("no client attached within {timeout_ms} ms, or it was stopped"),
                Attach::Detached => "it was stopped before it started".into(),
            };
            Report::Failed { stage: Stage::Attach, code: 0, text }
        }
    }
}

/// The virtio console, raw: what the workload writes arrives byte for byte. Without it, the boot console.
fn open_output() -> Option<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let hvc = rustix::fs::open(OUTPUT_CONSOLE, flags, Mode::empty()).ok();
    if let Some((hvc, mut settings)) = hvc.as_ref().and_then(|hvc| Some((hvc, tcgetattr(hvc).ok()?))) {
        settings.make_raw();
        let _ = tcsetattr(hvc, OptionalActions::Now, &settings);
    }
    hvc.or_else(|| rustix::fs::open("/dev/console", flags, Mode::empty()).ok())
}

/// Everybody else gets a moment to end, then none.
fn end_processes() {
    let others =
        || std::fs::read_dir("/proc").into_iter().flatten().flatten().any(|e| is_other_process(&e.file_name()));
    if !others() {
        return;
    }
    signal_others(Signal::TERM);
    let deadline = Instant::now() + Duration::from_millis(500);
    while others() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    if others() {
        signal_others(Signal::KILL);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A user process other than this one: kernel threads have an empty command line.
fn is_other_process(name: &std::ffi::OsStr) -> bool {
    let Some(pid) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else { return false };
    pid != 1 && std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

fn signal_others(signal: Signal) {
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        if is_other_process(&entry.file_name()) {
            let pid = entry.file_name().to_str().and_then(|n| n.parse().ok()).and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                let _ = rustix::process::kill_process(pid, signal);
            }
        }
    }
}

fn power_off() -> ! {
    for command in [RebootCommand::PowerOff, RebootCommand::Restart, RebootCommand::Halt] {
        let _ = rustix::system::reboot(command);
    }
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
