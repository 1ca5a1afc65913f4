//! The first steps of PID 1 in the initramfs: pseudo file systems, kernel modules, configuration, devices.
use casemate_agent_protocol::{
    CONFIG_PATH, ConfigError, DeviceRef, GuestConfig, MAX_CONFIG, MODULES_DIR, MODULES_LIST_PATH,
};
use rustix::fs::{Mode, mkdir, symlink};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// One sentence: the attempt, its object, the reason.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("mounting {what} on {target} failed: {errno}")]
    Mount { what: String, target: String, errno: Errno },
    #[error("reading {CONFIG_PATH} failed: {0}")]
    ConfigRead(std::io::Error),
    #[error("{0}{detail}", detail = source_of(.0))]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Device(String),
    #[error("{attempt} {object} failed: {errno}")]
    System { attempt: &'static str, object: String, errno: Errno },
}

fn source_of(error: &ConfigError) -> String {
    std::error::Error::source(error).map_or_else(String::new, |s| format!(": {s}"))
}

impl BootError {
    pub fn errno(&self) -> i32 {
        match self {
            BootError::Mount { errno, .. } | BootError::System { errno, .. } => errno.raw_os_error(),
            BootError::ConfigRead(error) => error.raw_os_error().unwrap_or(0),
            BootError::Config(_) => Errno::INVAL.raw_os_error(),
            BootError::Device(_) => Errno::NODEV.raw_os_error(),
        }
    }

    pub fn mount(what: &str, target: &Path, errno: Errno) -> Self {
        BootError::Mount { what: what.into(), target: target.display().to_string(), errno }
    }
}

/// Makes the directory if it is missing (mode 0755), and mounts.
pub fn mount_at(
    what: &str,
    target: &Path,
    fstype: &str,
    flags: MountFlags,
    data: Option<&CStr>,
) -> Result<(), BootError> {
    match mkdir(target, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        // A read-only root: the mount below says what is missing.
        Err(Errno::ROFS) => {}
        Err(errno) => {
            return Err(BootError::System { attempt: "making", object: target.display().to_string(), errno });
        }
    }
    mount(what, target, fstype, flags, data).map_err(|errno| BootError::mount(what, target, errno))
}

/// The pseudo file systems that the agent itself needs. They move into the new root later.
pub fn early_mounts() -> Result<(), BootError> {
    let plain = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    let steps = [
        ("proc", "/proc", "proc", plain, None),
        ("sysfs", "/sys", "sysfs", plain, None),
        ("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, Some(c"mode=0755")),
        ("tmpfs", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755")),
    ];
    for (what, target, fstype, flags, data) in steps {
        mount_at(what, Path::new(target), fstype, flags, data)?;
    }
    let devpts = c"mode=0620,gid=5,ptmxmode=0666";
    mount_at("devpts", Path::new("/dev/pts"), "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, Some(devpts))?;
    mount_at("tmpfs", Path::new("/dev/shm"), "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=1777"))?;
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        // Convenience for programs; a guest without them still works.
        let _ = symlink(target, link);
    }
    // Kernels without cgroup2 exist; a workload that needs it will say so.
    let _ = mount_at("cgroup2", Path::new("/sys/fs/cgroup"), "cgroup2", plain, None);
    Ok(())
}

/// Loads what the initramfs builder listed, in its order. Returns a sentence for each that failed: whether a module
/// mattered shows when the devices are looked for.
pub fn load_modules() -> Vec<String> {
    let list = std::fs::read_to_string(MODULES_LIST_PATH).unwrap_or_default();
    let mut problems = Vec::new();
    for name in list.lines().filter(|l| !l.is_empty() && !l.contains('/')) {
        let path = Path::new(MODULES_DIR).join(name);
        let loaded = match File::open(&path) {
            Ok(file) => rustix::system::finit_module(&file, c"", 0),
            Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        };
        match loaded {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => problems.push(format!("module {name}: {errno}")),
        }
    }
    problems
}

pub fn read_config() -> Result<GuestConfig, BootError> {
    let mut json = Vec::new();
    let file = File::open(CONFIG_PATH).map_err(BootError::ConfigRead)?;
    file.take(MAX_CONFIG as u64 + 1).read_to_end(&mut json).map_err(BootError::ConfigRead)?;
    Ok(GuestConfig::from_json(&json)?)
}

/// Waits until the block device is there and returns its node.
pub fn find_device(device: &DeviceRef, time: Duration, module_problems: &[String]) -> Result<PathBuf, BootError> {
    let deadline = Instant::now() + time;
    let mut pause = Duration::from_millis(1);
    loop {
        let found = match device {
            DeviceRef::Path(path) => Path::new(path).exists().then(|| PathBuf::from(path)),
            DeviceRef::Serial(serial) => by_serial(serial),
        };
        if let Some(node) = found {
            return Ok(node);
        }
        if Instant::now() >= deadline {
            return Err(BootError::Device(missing_device(device, time, module_problems)));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn by_serial(serial: &str) -> Option<PathBuf> {
    block_devices().into_iter().find_map(|name| {
        let text = std::fs::read_to_string(format!("/sys/block/{name}/serial")).ok()?;
        let node = Path::new("/dev").join(&name);
        (text.trim_end_matches(['\n', '\0']) == serial && node.exists()).then_some(node)
    })
}

fn entries(directory: &str) -> Vec<String> {
    let read = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = read.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn block_devices() -> Vec<String> {
    entries("/sys/block")
}

/// The most useful sentence about a device that did not come.
fn missing_device(device: &DeviceRef, time: Duration, module_problems: &[String]) -> String {
    let wanted = match device {
        DeviceRef::Serial(serial) => format!("the disk with serial '{serial}'"),
        DeviceRef::Path(path) => format!("the disk {path}"),
    };
    let why = if !Path::new("/sys/bus/virtio").exists() {
        "this kernel has no virtio driver (CONFIG_VIRTIO, CONFIG_VIRTIO_MMIO)".to_owned()
    } else if entries("/sys/bus/virtio/devices").is_empty() {
        "no virtio device was found (CONFIG_VIRTIO_MMIO with ACPI missing?)".to_owned()
    } else if block_devices().iter().all(|b| !b.starts_with("vd")) {
        "virtio devices are there, but no virtio disk (CONFIG_VIRTIO_BLK missing?)".to_owned()
    } else {
        format!("disks found: {}", block_devices().join(", "))
    };
    let modules = module_problems.first().map_or_else(String::new, |p| format!("; {p}"));
    format!("{wanted} did not appear within {} s: {why}{modules}", time.as_secs_f32())
}
