//! The guest's root: mounted, completed with the pseudo file systems, entered.
//!
//! With an overlay: `/.casemate/lower` (the image, read-only), `/.casemate/writable` (tmpfs), merged on `/.casemate/root`.
//! The initramfs cannot be left by pivot_root (it is the kernel's own root): its content is deleted, to free the memory,
//! and the new root moved over it.
use crate::boot::{BootError, find_device, mount_at};
use casemate_agent_protocol::{GuestConfig, Mount, RootFs};
use rustix::fs::{Mode, mkdir};
use rustix::mount::{MountFlags, UnmountFlags, mount_move, mount_remount};
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::time::Duration;

const BASE: &str = "/.casemate";

fn system(attempt: &'static str, object: &Path) -> impl FnOnce(rustix::io::Errno) -> BootError {
    let object = object.display().to_string();
    move |errno| BootError::System { attempt, object, errno }
}

fn make_dir(path: &Path) -> Result<(), BootError> {
    match mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(errno) => Err(system("making", path)(errno)),
    }
}

/// Mounts the root file system and returns where.
pub fn mount_root(root: &RootFs, time: Duration, module_problems: &[String]) -> Result<PathBuf, BootError> {
    let node = find_device(&root.device, time, module_problems)?;
    let device = node.display().to_string();
    let base = Path::new(BASE);
    make_dir(base)?;
    let target = base.join("root");
    let Some(overlay) = &root.overlay else {
        let read_only = root.read_only || root.fstype.is_read_only();
        let flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        mount_at(&device, &target, root.fstype.name(), flags, None)?;
        return Ok(target);
    };
    let (lower, writable) = (base.join("lower"), base.join("writable"));
    mount_at(&device, &lower, root.fstype.name(), MountFlags::RDONLY, None)?;
    let size = overlay.size.map_or_else(|| "size=50%".to_owned(), |bytes| format!("size={bytes}"));
    let options = c_string(&format!("{size},mode=0755"))?;
    mount_at("tmpfs", &writable, "tmpfs", MountFlags::empty(), Some(options.as_c_str()))?;
    make_dir(&writable.join("upper"))?;
    make_dir(&writable.join("work"))?;
    let options =
        c_string(&format!("lowerdir={BASE}/lower,upperdir={BASE}/writable/upper,workdir={BASE}/writable/work"))?;
    mount_at("overlay", &target, "overlay", MountFlags::empty(), Some(options.as_c_str()))?;
    Ok(target)
}

fn c_string(text: &str) -> Result<CString, BootError> {
    CString::new(text).map_err(|_| BootError::Device("a mount option contains a NUL".into()))
}

/// Carries the pseudo file systems over, deletes the initramfs, makes `root` the root.
pub fn enter(root: &Path) -> Result<(), BootError> {
    for name in ["proc", "sys", "dev", "run"] {
        let target = root.join(name);
        if !target.is_dir() {
            make_dir(&target)?;
        }
        mount_move(Path::new("/").join(name), &target).map_err(|errno| BootError::mount(name, &target, errno))?;
    }
    // All that lies on the initramfs itself; mounts below BASE are not files of it and stay.
    let _ = std::fs::remove_dir_all("/casemate");
    let _ = std::fs::remove_file("/init");
    std::env::set_current_dir(root)
        .map_err(|e| system("entering", root)(rustix::io::Errno::from_io_error(&e).unwrap_or(rustix::io::Errno::IO)))?;
    mount_move(".", "/").map_err(|errno| BootError::mount("the new root", Path::new("/"), errno))?;
    rustix::process::chroot(".").map_err(system("changing the root to", root))?;
    let _ = std::env::set_current_dir("/");
    Ok(())
}

/// /tmp and the further mounts of the configuration, inside the new root.
pub fn mount_rest(config: &GuestConfig, module_problems: &[String]) -> Result<(), BootError> {
    let writable_root = config.root.overlay.is_some() || !(config.root.read_only || config.root.fstype.is_read_only());
    if !writable_root && Path::new("/tmp").is_dir() {
        mount_at("tmpfs", Path::new("/tmp"), "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=1777"))?;
    }
    let time = Duration::from_millis(config.device_timeout_ms);
    for wanted in &config.mounts {
        let target = Path::new(wanted.target());
        if !target.is_dir() {
            std::fs::create_dir_all(target).map_err(|e| {
                system("making", target)(rustix::io::Errno::from_io_error(&e).unwrap_or(rustix::io::Errno::IO))
            })?;
        }
        match wanted {
            Mount::Disk { device, fstype, read_only, .. } => {
                let node = find_device(device, time, module_problems)?;
                let read_only = *read_only || fstype.is_read_only();
                let flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
                mount_at(&node.display().to_string(), target, fstype.name(), flags, None)?;
            }
            Mount::Tmpfs { size, mode, .. } => {
                let options = c_string(&format!("size={size},mode={:o}", mode & 0o7777))?;
                mount_at("tmpfs", target, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(options.as_c_str()))?;
            }
        }
    }
    Ok(())
}

/// Before the power goes: further mounts off, the root read-only, everything on disk.
pub fn leave(config: Option<&GuestConfig>) {
    rustix::fs::sync();
    let Some(config) = config else { return };
    for mount in config.mounts.iter().rev() {
        let _ = rustix::mount::unmount(mount.target(), UnmountFlags::DETACH);
    }
    let on_disk = config.root.overlay.is_none() && !config.root.read_only && !config.root.fstype.is_read_only();
    if on_disk && let Err(errno) = mount_remount("/", MountFlags::RDONLY, c"") {
        eprintln!("casemate-agent: making the root read-only failed: {errno}");
    }
    rustix::fs::sync();
}
