//! [`SandboxSpec`]: a specification whose every value is possible. Made only by `TryFrom<SpecFile>`.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::chain::{self, ImageLayer};
use crate::error::SpecError;
use crate::selinux::{self, DiskLabel, Selinux};
use crate::values::{
    ByteSize, CpuCount, DiskFormat, DiskId, GuestPath, HostPath, HugePageSize, Posture, SandboxId, parse_duration,
};
use crate::wire::{self, DiskFile, RebootFile, RootFile, SpecFile};

const MIB: u64 = 1 << 20;
/// Least and most guest memory, in bytes.
const MEMORY: std::ops::RangeInclusive<u64> = 4 * MIB..=1 << 40;
/// Kernel command lines are at most this long (x86 boot protocol, `cmdline_size` of current kernels).
const MAX_CMDLINE: usize = 2047;
const MAX_ARGUMENTS: usize = 4096;
const MAX_DISKS: usize = 16;

/// A checked specification.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxSpec {
    name: Option<SandboxId>,
    boot: Boot,
    cpus: CpuCount,
    memory: ByteSize,
    hugepages: Option<HugePageSize>,
    cmdline: String,
    disks: Vec<Disk>,
    vsock: bool,
    hostname: Option<SandboxId>,
    timeout: Option<Duration>,
    limits: Limits,
    on_reboot: RebootPolicy,
    selinux: Selinux,
    require: Option<Posture>,
    allow_reduced: Option<String>,
    file: SpecFile,
}

/// What runs in the guest.
#[derive(Debug, Clone, PartialEq)]
pub enum Boot {
    /// A Linux kernel, our agent as its first process, and a command.
    Agent { kernel: Option<String>, initrd: Option<HostPath>, root: Root, process: Box<Process> },
    /// A kernel alone.
    Bare { kernel: HostPath, initrd: Option<HostPath> },
}

/// The command, as the guest's agent starts it.
#[derive(Debug, Clone, PartialEq)]
pub struct Process {
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: String,
    pub user: Option<String>,
    pub tty: bool,
    pub interactive: bool,
    pub detach: bool,
}

/// The root file system of an agent guest.
#[derive(Debug, Clone, PartialEq)]
pub struct Root {
    pub source: RootSource,
    /// Written to directly; else read-only content under an overlay in guest memory.
    pub writable: bool,
    pub overlay: Option<ByteSize>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum RootSource {
    Dir(HostPath),
    Tar(HostPath),
    Image { path: HostPath, fstype: String, format: DiskFormat, backing: Vec<ImageLayer> },
}

#[derive(Debug, Clone, PartialEq)]
pub struct Disk {
    pub id: DiskId,
    pub path: HostPath,
    pub format: DiskFormat,
    /// The images below it, top to bottom; read-only.
    pub backing: Vec<ImageLayer>,
    pub read_only: bool,
    pub shared: bool,
    pub mount: Option<(GuestPath, String)>,
    pub label: DiskLabel,
}

/// Limits on the processes that serve the VM; `None` means not limited.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// In hundredths of a CPU.
    pub cpu_percent: Option<u32>,
    pub memory_overhead: ByteSize,
    pub pids: u32,
    /// Bytes kept of each log.
    pub log: ByteSize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RebootPolicy {
    Stop,
    Restart,
}

impl SandboxSpec {
    pub fn name(&self) -> Option<&SandboxId> {
        self.name.as_ref()
    }
    pub fn boot(&self) -> &Boot {
        &self.boot
    }
    pub fn cpus(&self) -> CpuCount {
        self.cpus
    }
    pub fn memory(&self) -> ByteSize {
        self.memory
    }
    /// Size of the pages behind the guest memory; `None` for the host's ordinary ones.
    pub fn hugepages(&self) -> Option<HugePageSize> {
        self.hugepages
    }
    /// The user's part of the kernel command line.
    pub fn cmdline(&self) -> &str {
        &self.cmdline
    }
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }
    pub fn vsock(&self) -> bool {
        self.vsock
    }
    pub fn hostname(&self) -> Option<&SandboxId> {
        self.hostname.as_ref()
    }
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }
    pub fn limits(&self) -> &Limits {
        &self.limits
    }
    pub fn on_reboot(&self) -> RebootPolicy {
        self.on_reboot
    }
    pub fn selinux(&self) -> &Selinux {
        &self.selinux
    }
    pub fn require(&self) -> Option<Posture> {
        self.require
    }
    pub fn allow_reduced(&self) -> Option<&str> {
        self.allow_reduced.as_deref()
    }
    /// The wire form this was made from.
    pub fn file(&self) -> &SpecFile {
        &self.file
    }
    pub fn detached(&self) -> bool {
        match &self.boot {
            Boot::Agent { process, .. } => process.detach,
            Boot::Bare { .. } => self.file.detach,
        }
    }
}

impl TryFrom<SpecFile> for SandboxSpec {
    type Error = SpecError;

    fn try_from(file: SpecFile) -> Result<Self, SpecError> {
        if file.version != wire::VERSION {
            let problem = format!("version {} is not known", file.version);
            return Err(SpecError::field("version", problem, format!("use {}", wire::VERSION)));
        }
        let name = file.name.as_deref().map(|n| sandbox_id("name", n)).transpose()?;
        let hostname = file.hostname.as_deref().map(|n| sandbox_id("hostname", n)).transpose()?;
        let memory = size("memory", file.memory.as_deref())?.unwrap_or(ByteSize::new(256 * MIB));
        check_memory(memory)?;
        check_pages(memory, file.hugepages)?;
        let cpus = CpuCount::new(file.cpus.unwrap_or(1))
            .map_err(|problem| SpecError::field("cpus", problem, format!("use 1 to {}", CpuCount::MAX)))?;
        let vsock = file.vsock.unwrap_or(!file.bare);
        let boot = if file.bare { bare(&file)? } else { agent(&file, memory, vsock)? };
        Ok(SandboxSpec {
            name,
            boot,
            cpus,
            memory,
            hugepages: file.hugepages,
            cmdline: cmdline(&file)?,
            disks: disks(&file)?,
            vsock,
            hostname,
            timeout: file.timeout.as_deref().map(duration).transpose()?,
            limits: limits(&file)?,
            on_reboot: match file.on_reboot {
                Some(RebootFile::Restart) => RebootPolicy::Restart,
                Some(RebootFile::Stop) | None => RebootPolicy::Stop,
            },
            selinux: selinux::selinux(&file)?,
            require: file.require,
            allow_reduced: reason(&file)?,
            file,
        })
    }
}

fn sandbox_id(field: &str, text: &str) -> Result<SandboxId, SpecError> {
    SandboxId::parse(text).map_err(|problem| {
        SpecError::field(field, problem, "use 1 to 63 of a-z 0-9 . _ -, first and last a letter or a digit")
    })
}

pub(crate) fn host_path(field: impl Into<String>, text: &str) -> Result<HostPath, SpecError> {
    HostPath::parse(text).map_err(|problem| SpecError::field(field, problem, "give an absolute path without '..'"))
}

fn size(field: &str, text: Option<&str>) -> Result<Option<ByteSize>, SpecError> {
    let parse = |t| ByteSize::parse(t).map_err(|p| SpecError::field(field, p, "write it as 64K, 512M or 2G"));
    text.map(parse).transpose()
}

fn duration(text: &str) -> Result<Duration, SpecError> {
    parse_duration(text).map_err(|p| SpecError::field("timeout", p, "write it as 500ms, 30s, 5m or 2h"))
}

fn check_memory(memory: ByteSize) -> Result<(), SpecError> {
    let bytes = memory.bytes();
    if !MEMORY.contains(&bytes) {
        return Err(SpecError::field("memory", format!("{memory} is not possible"), "use 4M to 1T"));
    }
    if !bytes.is_multiple_of(MIB) {
        return Err(SpecError::field("memory", format!("{memory} is not whole MiB"), "use a multiple of 1M"));
    }
    Ok(())
}

fn check_pages(memory: ByteSize, pages: Option<HugePageSize>) -> Result<(), SpecError> {
    match pages.filter(|page| !memory.bytes().is_multiple_of(page.bytes())) {
        None => Ok(()),
        Some(page) => {
            let problem = format!("a memory of {memory} is no multiple of {page}");
            Err(SpecError::field("hugepages", problem, format!("use a memory of whole {page} pages, or smaller pages")))
        }
    }
}

fn bare(file: &SpecFile) -> Result<Boot, SpecError> {
    let refused = [
        ("command", !file.command.is_empty()),
        ("root", file.root.is_some()),
        ("env", !file.env.is_empty()),
        ("cwd", file.cwd.is_some()),
        ("user", file.user.is_some()),
        ("tty", file.tty),
    ];
    if let Some((field, _)) = refused.iter().find(|(_, given)| *given) {
        return Err(SpecError::field(*field, "a bare guest has no agent", "leave it out, or leave out 'bare'"));
    }
    let kernel = file.kernel.as_deref();
    let kernel =
        kernel.ok_or_else(|| SpecError::field("kernel", "a bare guest needs one", "give its absolute path"))?;
    Ok(Boot::Bare { kernel: host_path("kernel", kernel)?, initrd: initrd(file)? })
}

fn initrd(file: &SpecFile) -> Result<Option<HostPath>, SpecError> {
    file.initrd.as_deref().map(|path| host_path("initrd", path)).transpose()
}

fn agent(file: &SpecFile, memory: ByteSize, vsock: bool) -> Result<Boot, SpecError> {
    if memory.bytes() < 64 * MIB {
        let problem = format!("{memory} do not hold a Linux guest");
        return Err(SpecError::field("memory", problem, "use 64M or more (128M for a distribution kernel)"));
    }
    if !vsock {
        return Err(SpecError::field("vsock", "the agent is reached through it", "leave it on, or run a bare guest"));
    }
    if let Some(kernel) = file.kernel.as_deref().filter(|k| k.starts_with('/')) {
        host_path("kernel", kernel)?;
    } else if let Some(kernel) = file.kernel.as_deref() {
        SandboxId::parse(&kernel.to_ascii_lowercase().replace(['+', '~'], "_")).map_err(|_| {
            SpecError::field("kernel", format!("{kernel:?} is no name"), "`casemate kernel list` shows the names")
        })?;
    }
    let root = file.root.as_ref();
    let root = root
        .ok_or_else(|| SpecError::field("root", "missing", "give a directory, a tar archive or an image (--root)"))?;
    Ok(Boot::Agent {
        kernel: file.kernel.clone(),
        initrd: initrd(file)?,
        root: self::root(root, memory)?,
        process: Box::new(process(file)?),
    })
}

fn root(root: &RootFile, memory: ByteSize) -> Result<Root, SpecError> {
    let source = match (&root.dir, &root.tar, &root.image) {
        (Some(path), None, None) => RootSource::Dir(host_path("root.dir", path)?),
        (None, Some(path), None) => RootSource::Tar(host_path("root.tar", path)?),
        (None, None, Some(path)) => {
            let fstype = file_system("root.fstype", root.fstype.as_deref())?;
            let format = root.format.unwrap_or(DiskFormat::Raw);
            let backing = chain::backing("root", format, root.backing.as_deref())?;
            RootSource::Image { path: host_path("root.image", path)?, fstype, format, backing }
        }
        _ => return Err(SpecError::field("root", "names no source, or several", "give one of dir, tar, image")),
    };
    let image = matches!(source, RootSource::Image { .. });
    if root.fstype.is_some() && !image {
        return Err(SpecError::field("root.fstype", "goes with 'image' only", "leave it out"));
    }
    if (root.format.is_some() || root.backing.is_some()) && !image {
        return Err(SpecError::field("root.format", "goes with 'image' only", "leave out 'format' and 'backing'"));
    }
    if root.writable && !(image && root.fstype.as_deref() == Some("ext4")) {
        return Err(SpecError::field("root.writable", "goes with an ext4 'image' only", "leave it out for an overlay"));
    }
    let overlay = size("root.overlay", root.overlay.as_deref())?;
    if overlay.is_some_and(|o| o > memory) {
        return Err(SpecError::field(
            "root.overlay",
            "larger than the memory",
            "make it smaller, or the memory larger",
        ));
    }
    Ok(Root { source, writable: root.writable, overlay })
}

fn file_system(field: &str, fstype: Option<&str>) -> Result<String, SpecError> {
    match fstype {
        Some(known @ ("erofs" | "ext4" | "squashfs")) => Ok(known.to_owned()),
        Some(other) => Err(SpecError::field(field, format!("{other:?} is not known"), "use erofs, ext4 or squashfs")),
        None => Err(SpecError::field(field, "missing; it is never guessed", "use erofs, ext4 or squashfs")),
    }
}

fn process(file: &SpecFile) -> Result<Process, SpecError> {
    if file.command.is_empty() {
        return Err(SpecError::field("command", "missing", "give it after `--`"));
    }
    if file.command.len() > MAX_ARGUMENTS || file.command[0].is_empty() {
        return Err(SpecError::field("command", "empty, or too many arguments", format!("use 1 to {MAX_ARGUMENTS}")));
    }
    for (at, text) in file.command.iter().enumerate() {
        no_nul(format!("command[{at}]"), text)?;
    }
    for (key, value) in &file.env.0 {
        if key.is_empty() || key.contains('=') {
            return Err(SpecError::field(format!("env.{key}"), "not a variable's name", "use a name without '='"));
        }
        no_nul(format!("env.{key}"), key)?;
        no_nul(format!("env.{key}"), value)?;
    }
    let cwd = file.cwd.as_deref().unwrap_or("/");
    GuestPath::parse(cwd).map_err(|p| SpecError::field("cwd", p, "give an absolute path without '..'"))?;
    if let Some(user) = &file.user {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':');
        if user.is_empty() || user.len() > 65 || !user.chars().all(plain) || user.matches(':').count() > 1 {
            return Err(SpecError::field(
                "user",
                format!("{user:?} is not a user"),
                "use NAME, UID or either with :GROUP",
            ));
        }
    }
    if file.detach && (file.tty || file.interactive) {
        return Err(SpecError::field(
            "detach",
            "excludes a terminal and standard input",
            "leave out tty and interactive",
        ));
    }
    Ok(Process {
        argv: file.command.clone(),
        env: file.env.0.clone().into_iter().collect(),
        cwd: cwd.to_owned(),
        user: file.user.clone(),
        tty: file.tty,
        interactive: file.interactive,
        detach: file.detach,
    })
}

fn no_nul(field: String, text: &str) -> Result<(), SpecError> {
    if text.contains('\0') {
        return Err(SpecError::field(field, "holds a NUL", "remove it; Linux cannot pass one"));
    }
    if text.len() > 128 << 10 {
        return Err(SpecError::field(field, "longer than 128 KiB", "pass it in a file"));
    }
    Ok(())
}

fn cmdline(file: &SpecFile) -> Result<String, SpecError> {
    let text = file.cmdline.clone().unwrap_or_default();
    if text.len() > MAX_CMDLINE - 512 {
        return Err(SpecError::field("cmdline", "too long", format!("use at most {} bytes", MAX_CMDLINE - 512)));
    }
    if !text.bytes().all(|c| (0x20..0x7f).contains(&c)) {
        return Err(SpecError::field("cmdline", "not printable ASCII", "remove the other characters"));
    }
    Ok(text)
}

fn disks(file: &SpecFile) -> Result<Vec<Disk>, SpecError> {
    if file.disks.len() > MAX_DISKS {
        return Err(SpecError::field("disks", "too many", format!("use at most {MAX_DISKS}")));
    }
    let mut ids = BTreeSet::new();
    let mut paths = BTreeSet::new();
    let mut disks = Vec::with_capacity(file.disks.len());
    for (at, asked) in file.disks.iter().enumerate() {
        let disk = disk(&format!("disks[{at}]"), asked)?;
        if disk.id.as_str() == "root" || !ids.insert(disk.id.clone()) {
            return Err(SpecError::field(
                format!("disks[{at}].id"),
                format!("'{}' is taken", disk.id.as_str()),
                "use another name",
            ));
        }
        if !paths.insert(disk.path.clone()) {
            return Err(SpecError::field(format!("disks[{at}].path"), "given twice", "give each image once"));
        }
        disks.push(disk);
    }
    chain::across(file, &disks)?;
    Ok(disks)
}

fn disk(field: &str, asked: &DiskFile) -> Result<Disk, SpecError> {
    let id = DiskId::parse(&asked.id)
        .map_err(|p| SpecError::field(format!("{field}.id"), p, "use 1 to 20 of a-z 0-9 _ -"))?;
    if asked.shared && asked.read_only {
        return Err(SpecError::field(format!("{field}.shared"), "a read-only disk is shared as it is", "leave it out"));
    }
    if asked.shared && asked.format == DiskFormat::Qcow2 {
        let problem = "two writers destroy a qcow2 image's tables";
        return Err(SpecError::field(format!("{field}.shared"), problem, "give each sandbox an overlay of its own"));
    }
    let mount = match (&asked.mount, &asked.fstype) {
        (Some(path), fstype) => {
            let at = GuestPath::parse(path)
                .map_err(|p| SpecError::field(format!("{field}.mount"), p, "give an absolute path without '..'"))?;
            Some((at, file_system(&format!("{field}.fstype"), fstype.as_deref())?))
        }
        (None, None) => None,
        (None, Some(_)) => {
            return Err(SpecError::field(format!("{field}.fstype"), "without 'mount'", "give both or none"));
        }
    };
    Ok(Disk {
        id,
        path: host_path(format!("{field}.path"), &asked.path)?,
        format: asked.format,
        backing: chain::backing(field, asked.format, asked.backing.as_deref())?,
        read_only: asked.read_only,
        shared: asked.shared,
        mount,
        label: selinux::disk_label(field, asked)?,
    })
}

fn limits(file: &SpecFile) -> Result<Limits, SpecError> {
    let asked = file.limits.clone().unwrap_or_default();
    let range = |field: &str, value: u64, min: u64, max: u64| {
        if (min..=max).contains(&value) {
            return Ok(());
        }
        Err(SpecError::field(
            format!("limits.{field}"),
            format!("{value} is not possible"),
            format!("use {min} to {max}"),
        ))
    };
    let memory_overhead =
        size("limits.memory_overhead", asked.memory_overhead.as_deref())?.unwrap_or(ByteSize::new(64 * MIB));
    let log = size("limits.log", asked.log.as_deref())?.unwrap_or(ByteSize::new(MIB));
    // KVM adds a kernel thread of its own (kvm-nx-lpage-recovery), hence room above the vCPUs.
    let pids = asked.pids.unwrap_or(u32::from(file.cpus.unwrap_or(1) as u16) + 16);
    range("cpu_percent", u64::from(asked.cpu_percent.unwrap_or(100)), 1, 6400)?;
    range("memory_overhead", memory_overhead.bytes(), 16 * MIB, 1 << 40)?;
    range("pids", u64::from(pids), 8, 4096)?;
    range("log", log.bytes(), 4096, 1 << 30)?;
    Ok(Limits { cpu_percent: asked.cpu_percent, memory_overhead, pids, log })
}

fn reason(file: &SpecFile) -> Result<Option<String>, SpecError> {
    match file.allow_reduced.as_deref().map(str::trim) {
        None => Ok(None),
        Some(text) if !text.is_empty() && text.len() <= 200 && !text.chars().any(char::is_control) => {
            Ok(Some(text.to_owned()))
        }
        Some(_) => {
            Err(SpecError::field("allow_reduced", "not a reason", "say in 1 to 200 characters why; it is recorded"))
        }
    }
}

#[cfg(test)]
#[path = "sandbox_tests.rs"]
mod tests;
