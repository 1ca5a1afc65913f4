//! The command line's grammar. The help texts are the reference manual.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::audit_args::AuditArgs;
use crate::evidence_args::EvidenceArgs;
use crate::run_args::{PlanArgs, RunArgs};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    #[default]
    Text,
    Json,
    /// Of an audit: a test case for each check.
    Junit,
    /// Of an audit: SARIF 2.1.0.
    Sarif,
    /// Of an audit: one self-contained page.
    Html,
}

/// Run untrusted code in a confined microVM, proven before its first instruction.
#[derive(Debug, Parser)]
#[command(
    name = "casemate",
    version,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Exit status: that of the workload (128+N for signal N, 124 for --timeout); 125 when Casemate itself fails, \
                  126 when the command cannot be executed, 127 when it is not found.\n\
                  Start with `casemate doctor`, then `casemate run --root DIR -- CMD`."
)]
pub struct Cli {
    /// How results and errors are printed.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORM")]
    pub format: Format,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command in a new sandbox.
    Run(Box<RunArgs>),
    /// List sandboxes.
    Ps(PsArgs),
    /// Show a sandbox: posture, each layer with what it allows, the proof.
    Inspect(InspectArgs),
    /// Print what a sandbox wrote while nobody was attached, or its kernel's console.
    Logs(LogsArgs),
    /// Run a further command in a running sandbox.
    Exec(ExecArgs),
    /// Copy files into or out of a running sandbox.
    Cp(CpArgs),
    /// Stop a sandbox's vCPUs.
    Pause(NamesArgs),
    /// Let a paused sandbox run on.
    Resume(ResumeArgs),
    /// Ask a workload to end; kill the sandbox if it does not.
    Stop(StopArgs),
    /// End a sandbox at once.
    Kill(NamesArgs),
    /// Remove the record and the logs of an ended sandbox.
    Rm(RmArgs),
    /// Print every step of a start with its reason; change nothing.
    Plan(Box<PlanArgs>),
    /// Say what this host offers, layer by layer, and what to do about what is missing.
    Doctor,
    /// Test each layer on this host: it denies what it must, and allows what it must.
    Selftest,
    /// Run code with one running sandbox's confinement against another, and tell which layer stops it.
    Attack(AttackArgs),
    /// Take back what dead sandboxes left on this host.
    Repair(RepairArgs),
    /// List who has which SELinux level, uid and label, on what, since when and why.
    Labels(LabelsArgs),
    /// Kernels for guests.
    #[command(subcommand)]
    Kernel(KernelCommand),
    /// Casemate's SELinux module.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Judge this host and every sandbox on it; or one sandbox, any process, a plan, a policy.
    ///
    /// Without a subcommand: all sandboxes that run, what keeps each from each other, collisions with libvirt's and
    /// podman's labels, stale labels and leases, and what dead sandboxes left.
    Audit(AuditArgs),
    /// Say what was denied to a sandbox, or to any process of Casemate's: by which layer and rule, whether it should be,
    /// and the narrowest change that would allow it.
    Why(WhyArgs),
    /// Sign what can be seen of a sandbox, for others to verify; verify what others signed.
    Evidence(Box<EvidenceArgs>),
    /// Print a shell's completion script.
    Completion {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory.
    Man { directory: PathBuf },
    /// Print the versions of the program and of its protocols.
    Version,
}

#[derive(Debug, Args)]
pub struct PsArgs {
    /// Also the sandboxes that have ended.
    #[arg(short, long)]
    pub all: bool,
    /// Only the names.
    #[arg(short, long)]
    pub quiet: bool,
    /// Show long commands whole.
    #[arg(long)]
    pub no_trunc: bool,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// Attest again now, instead of showing what was found before the start.
    #[arg(long)]
    pub attest: bool,
}

#[derive(Debug, Args)]
pub struct LogsArgs {
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Go on until the sandbox ends.
    #[arg(short, long)]
    pub follow: bool,
    /// The serial console of the guest's kernel instead of the workload's output.
    #[arg(long)]
    pub console: bool,
    /// Only the last lines.
    #[arg(short = 'n', long, value_name = "LINES")]
    pub tail: Option<usize>,
    /// Send control characters to the terminal as the guest wrote them.
    #[arg(long)]
    pub raw: bool,
}

#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Keep standard input open.
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal.
    #[arg(short, long)]
    pub tty: bool,
    /// Set a variable, or pass the caller's on.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Working directory in the guest.
    #[arg(short, long, value_name = "DIR", default_value = "/")]
    pub workdir: String,
    /// User in the guest: name or uid, also with `:group`.
    #[arg(short, long)]
    pub user: Option<String>,
    #[arg(value_name = "NAME")]
    pub name: String,
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "One of the two is NAME:PATH, with an absolute path in the guest; the other a path of this host, \
                        or `-` for a tar archive on standard input or output."
)]
pub struct CpArgs {
    pub source: String,
    pub destination: String,
    /// Refuse more than this from the guest.
    #[arg(long, value_name = "SIZE", default_value = "16G")]
    pub max_size: String,
}

#[derive(Debug, Args)]
pub struct NamesArgs {
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ResumeArgs {
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// Resume although SELinux does not separate the sandbox any more; the reason is recorded
    #[arg(long, value_name = "REASON")]
    pub allow_reduced: Option<String>,
}

#[derive(Debug, Args)]
pub struct StopArgs {
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// How long the workload may take, from the signal to SIGKILL.
    #[arg(short, long, value_name = "TIME", default_value = "10s")]
    pub time: String,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// Kill it first if it runs; no error if it does not exist.
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct AttackArgs {
    /// The sandbox whose confinement the attacker gets.
    #[arg(value_name = "A")]
    pub attacker: String,
    /// The sandbox that is attacked.
    #[arg(value_name = "B")]
    pub victim: String,
    /// Try every class of object that B owns, beside what the loaded SELinux policy says of it.
    #[arg(long)]
    pub matrix: bool,
    /// A domain, loaded for the purpose, whose types may do to each other all that is tried: shows what categories alone
    /// hold back.
    #[arg(long, value_name = "TYPE", requires = "matrix")]
    pub twin: Option<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "One line for each: when, who, what | layer: outcome | rule | expected or not, and why | what would allow it. \
                        Read are auditd's log, the journal and the kernel's log; what they cannot tell is said below. \
                        docs/why.md says what has to be on for each layer's denials to be recorded."
)]
pub struct WhyArgs {
    /// Only this sandbox's, which may have ended.
    pub name: Option<String>,
    /// From then on: 10m, 2h or 3d (ago), 2026-11-23T04:00:00Z, @SECONDS, or boot.
    #[arg(long, value_name = "TIME", default_value = "1d")]
    pub since: String,
    /// Until then; now, if not given.
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Go on after that: tell each denial as it happens, until ^C.
    #[arg(short, long, conflicts_with = "until")]
    pub follow: bool,
    /// Also what tests (selftest, attack) and each start's own controls provoked.
    #[arg(long)]
    pub all: bool,
    /// Decide SELinux's denials by this binary policy instead of the loaded one.
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct RepairArgs {
    /// Of this sandbox only.
    pub name: Option<String>,
    /// Say what would be done; change nothing.
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Give up labels that wait for a file system which will not come back.
    #[arg(long, requires = "name")]
    pub forget: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Of the host without FILE: leases, labels on objects, running processes, what libvirt and the container \
                        tools gave out, labels at rest. A level that nobody but its sandbox has is how SELinux keeps guests apart."
)]
pub struct LabelsArgs {
    /// Fail if two are within reach of each other or something was left behind, and say what to do.
    #[arg(long)]
    pub check: bool,
    /// Show only these files: label, owners, what they get back.
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum KernelCommand {
    /// Take over a kernel: a Debian linux-image package, a bzImage or an ELF vmlinux, or the host's own.
    Import(KernelImportArgs),
    /// Show the kernels.
    List,
    /// Remove a kernel.
    Remove {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Use this kernel where none is named.
    Default {
        #[arg(value_name = "NAME")]
        name: String,
    },
}

#[derive(Debug, Args)]
pub struct KernelImportArgs {
    #[arg(value_name = "FILE", required_unless_present = "host", conflicts_with = "host")]
    pub file: Option<PathBuf>,
    /// Modules that belong to a bzImage or vmlinux: a directory as /lib/modules/RELEASE.
    #[arg(long, value_name = "DIR", conflicts_with = "host")]
    pub modules: Option<PathBuf>,
    /// The kernel that this host runs.
    #[arg(long)]
    pub host: bool,
    /// Name in the store; made from the version when left out.
    #[arg(long)]
    pub name: Option<String>,
    /// Use it where none is named.
    #[arg(long)]
    pub default: bool,
}

#[derive(Debug, Clone, Subcommand)]
pub enum PolicyCommand {
    /// Write the module as one file, or as a set of files into a directory; compile it with a base policy if one is named.
    Build {
        #[command(flatten)]
        module: ModuleArgs,
        /// Directory with a base policy's CIL files to compile with, neverallow rules included; needs secilc, not SELinux.
        #[arg(long, value_name = "DIR")]
        base: Option<PathBuf>,
        /// Directory, or a file named casemate_module.cil.
        #[arg(short, long, value_name = "PATH", default_value = "casemate_module.cil")]
        output: PathBuf,
    },
    /// Fail unless the loaded policy keeps two guests apart; with --base, unless the files compile with that policy.
    Check {
        #[command(flatten)]
        module: ModuleArgs,
        /// Directory with a base policy's CIL files.
        #[arg(long, value_name = "DIR")]
        base: Option<PathBuf>,
    },
    /// Install the module in the place of any other version, and restore the labels of Casemate's files.
    Install {
        #[command(flatten)]
        module: ModuleArgs,
    },
    /// Take the module out of the policy again; refused while sandboxes run.
    Remove,
    /// Say what the loaded policy answers.
    Status,
}

#[derive(Debug, Clone, Args)]
pub struct ModuleArgs {
    /// Directory with the module's CIL files instead of the installed one.
    #[arg(long, value_name = "DIR")]
    pub from: Option<PathBuf>,
    /// Leave the deny rules out, for hosts whose libsepol is older than 3.6: the runner may then do what every domain may.
    #[arg(long)]
    pub without_deny: bool,
}
