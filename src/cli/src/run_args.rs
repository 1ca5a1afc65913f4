//! Options of `run` and `plan`: what a specification can say, as options.

use std::path::PathBuf;

use clap::Args;

/// What the sandbox is. Options override what `--spec` says.
#[derive(Debug, Args, Default, Clone)]
pub struct SpecArgs {
    /// A specification in TOML (or JSON, by its suffix).
    #[arg(long, value_name = "FILE")]
    pub spec: Option<PathBuf>,
    /// Name of the sandbox: 1 to 63 of a-z 0-9 . _ -; made up when left out.
    #[arg(long)]
    pub name: Option<String>,
    /// Root file system: a directory, a *.tar* archive, or dir:PATH, tar:PATH, erofs:PATH, ext4:PATH, squashfs:PATH;
    /// then `,writable` (ext4) and `,overlay=SIZE`.
    #[arg(long, value_name = "ROOT", help_heading = "Guest")]
    pub root: Option<String>,
    /// Kernel: an imported one's name, or a path.
    #[arg(long, value_name = "NAME|PATH", help_heading = "Guest")]
    pub kernel: Option<String>,
    /// Initial RAM disk instead of Casemate's own.
    #[arg(long, value_name = "PATH", help_heading = "Guest")]
    pub initrd: Option<String>,
    /// Appended to the kernel's command line.
    #[arg(long, value_name = "TEXT", help_heading = "Guest")]
    pub cmdline: Option<String>,
    /// Boot the kernel alone: no agent, no root file system, no command.
    #[arg(long, help_heading = "Guest")]
    pub bare: bool,
    /// Number of vCPUs.
    #[arg(long, value_name = "N", help_heading = "Guest")]
    pub cpus: Option<u32>,
    /// Guest memory, as 256M.
    #[arg(short, long, value_name = "SIZE", help_heading = "Guest")]
    pub memory: Option<String>,
    /// Take the guest memory from the host's huge pages: 2M or 1G.
    #[arg(long, value_name = "SIZE", help_heading = "Guest")]
    pub hugepages: Option<String>,
    /// A further disk: id=ID,path=PATH,format=raw|qcow2[,backing=auto|none|PATH:FORMAT][,ro][,shared][,mount=DIR,fstype=TYPE].
    #[arg(long, value_name = "DISK", help_heading = "Guest")]
    pub disk: Vec<String>,
    /// Host name in the guest.
    #[arg(long, value_name = "NAME", help_heading = "Guest")]
    pub hostname: Option<String>,
    /// What a reboot by the guest does.
    #[arg(long, value_name = "WHAT", value_parser = ["stop", "restart"], help_heading = "Guest")]
    pub on_reboot: Option<String>,
    /// Set a variable, or pass the caller's on.
    #[arg(short, long, value_name = "NAME[=VALUE]", help_heading = "Command")]
    pub env: Vec<String>,
    /// Working directory in the guest.
    #[arg(short, long, value_name = "DIR", help_heading = "Command")]
    pub workdir: Option<String>,
    /// User in the guest: name or uid, also with `:group`.
    #[arg(short, long, help_heading = "Command")]
    pub user: Option<String>,
    /// Keep the command's standard input open.
    #[arg(short, long, help_heading = "Command")]
    pub interactive: bool,
    /// Give the command a terminal (Ctrl-] three times leaves it).
    #[arg(short, long, help_heading = "Command")]
    pub tty: bool,
    /// Start, print the name, and let it run on its own.
    #[arg(short, long, help_heading = "Command")]
    pub detach: bool,
    /// End the sandbox after this time, as 30s or 5m.
    #[arg(long, value_name = "TIME", help_heading = "Confinement")]
    pub timeout: Option<String>,
    /// Limits on the serving processes: cpu=150%, memory-overhead=64M, pids=64, log=1M; several with commas.
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Confinement")]
    pub limit: Vec<String>,
    /// Refuse to start below this posture.
    #[arg(long, value_name = "POSTURE", value_parser = ["enforced", "hardened", "reduced"], help_heading = "Confinement")]
    pub require: Option<String>,
    /// Accept a reduced posture; the reason is recorded.
    #[arg(long, value_name = "REASON", help_heading = "Confinement")]
    pub allow_reduced: Option<String>,
    /// Whose SELinux types: Casemate's, libvirt's, or container-selinux' (the first that the policy has, if not given).
    #[arg(long, value_name = "PROFILE", value_parser = ["casemate", "svirt", "container"], help_heading = "SELinux")]
    pub selinux_profile: Option<String>,
    /// A fixed level, as s0:c5,c6, instead of a leased pair; it is reserved.
    #[arg(long, value_name = "LEVEL", help_heading = "SELinux")]
    pub selinux_level: Option<String>,
    /// Other sandboxes may have the same fixed level (a pod).
    #[arg(long, requires = "selinux_level", help_heading = "SELinux")]
    pub selinux_level_shared: bool,
    /// Change no label: every image must carry a fitting one already.
    #[arg(long, help_heading = "SELinux")]
    pub no_relabel: bool,
    /// When the loaded policy stops separating the sandbox.
    #[arg(long, value_name = "ACTION", value_parser = ["stop", "pause", "warn"], help_heading = "SELinux")]
    pub on_policy_change: Option<String>,
    /// The command to run in the guest, and its arguments.
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    pub command: Vec<String>,
}

#[derive(Debug, Args, Clone)]
pub struct RunArgs {
    #[command(flatten)]
    pub spec: SpecArgs,
    /// Remove record and logs when it has ended.
    #[arg(long, conflicts_with = "detach")]
    pub rm: bool,
    /// Do not state the posture.
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args, Clone)]
pub struct PlanArgs {
    #[command(flatten)]
    pub spec: SpecArgs,
}
