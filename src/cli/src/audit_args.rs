//! The grammar of `casemate audit`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// Without a subcommand: everything on this host.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = format!("{EXAMPLES}\n\n{STATUS}"))]
pub struct AuditArgs {
    #[command(subcommand)]
    pub command: Option<AuditCommand>,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Judge running sandboxes: every thread of their roles, their files, labels and limits, from outside.
    Vm(AuditVmArgs),
    /// Judge any process, as another VMM: what it may do, thread by thread.
    Process(AuditProcessArgs),
    /// Ask a SELinux policy what a VM may do and who may touch it.
    ///
    /// Decisions are computed with every constraint, for concrete labels: of a policy file, on any machine, or of the
    /// policy that is loaded here.
    Policy(AuditPolicyArgs),
    /// Judge what a specification would start, before it starts, on any machine.
    Plan(AuditPlanArgs),
    /// Tell a report that was kept as JSON in another form, on any machine.
    Report(AuditReportArgs),
}

#[derive(Debug, Args)]
#[command(after_help = STATUS)]
pub struct AuditReportArgs {
    /// What `casemate audit … --format json -o FILE` has written.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Write it to this file instead of standard output, whole or not at all.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = STATUS)]
pub struct AuditVmArgs {
    /// Names of sandboxes, as `casemate ps` lists them.
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// Print what the seccomp filters of each thread allow, call by call, with conditions and reasons (text only).
    #[arg(long)]
    pub calls: bool,
    /// Also try each of Landlock's rights, as a probe with the sandbox's confinement, in a domain made as its runner's was;
    /// the kernel lets nobody look into one that exists.
    #[arg(long)]
    pub probe: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(after_help = STATUS)]
pub struct AuditProcessArgs {
    /// Process ids, not those of single threads.
    #[arg(required = true, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pub pids: Vec<u32>,
    /// Print what the seccomp filters of each thread allow, call by call, with conditions and reasons (text only).
    #[arg(long)]
    pub calls: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// How every audit is judged and told.
#[derive(Debug, Clone, Default, Args)]
pub struct OutputArgs {
    /// Rules, parameters and assertions of an organisation's own, in TOML (docs/audit-rules.md); all rules if not given.
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// Write the report to this file instead of standard output, whole or not at all.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples, as root where they look at what runs:
  casemate audit                                        this host and all on it
  casemate audit vm web --probe                         one sandbox, Landlock tried as well
  casemate audit process $(pidof qemu-system-x86_64)    another VMM
  casemate audit plan spec.toml --facts facts.json --format junit -o audit.xml
  casemate audit policy who --file policy.33            who may touch a VM by this policy
  casemate audit --format html -o audit.html            a page for a browser";

/// For the end of every audit's help.
pub const STATUS: &str = "Exit status: 0 nothing failed (or for information only); 1 something of low or medium severity did, 3 of high, 4 of \
    critical; 5 nothing failed, but something could not be looked at; 125 when the audit itself fails.";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Question {
    /// What is worth knowing of each of the others.
    #[default]
    Summary,
    /// What may one VM do to another VM's objects, class by class?
    Reach,
    /// Everything that a VM may do.
    Rights,
    /// Who may read, write, relabel, trace, signal or become a VM?
    Who,
    /// Which domains can become the VM's, and by which programs?
    Entries,
    /// What do categories hold back, and what not, whatever rules allow?
    Constrained,
    /// Through which objects can one VM tell another something?
    Flows,
    /// Which booleans widen or narrow it?
    Booleans,
    /// Judge it by the rules (--profile, --output; exit status by severity).
    Check,
}

#[derive(Debug, Args)]
#[command(after_help = format!("With `check`: {STATUS}"))]
pub struct AuditPolicyArgs {
    #[arg(value_enum, default_value_t)]
    pub question: Question,
    /// A binary policy, as /etc/selinux/default/policy/policy.33; the loaded one if not given.
    #[arg(long, value_name = "FILE", conflicts_with = "diff")]
    pub file: Option<PathBuf>,
    /// Name what a policy update opens or closes for VMs; fails if it opens something.
    #[arg(long, num_args = 2, value_names = ["OLD", "NEW"], conflicts_with = "question")]
    pub diff: Option<Vec<PathBuf>>,
    /// Whose VMs: casemate, svirt or container; the first that the policy has, if not given.
    #[arg(long, value_parser = ["casemate", "svirt", "container"], value_name = "FAMILY")]
    pub family: Option<String>,
    /// Another domain than the family's, as svirt_tcg_t or container_t.
    #[arg(long, value_name = "TYPE")]
    pub runner: Option<String>,
    /// Another type of what one VM writes.
    #[arg(long, value_name = "TYPE")]
    pub image: Option<String>,
    /// Another type of what every VM reads.
    #[arg(long, value_name = "TYPE")]
    pub content: Option<String>,
    /// Level of the VM that acts.
    #[arg(long, default_value = "s0:c1,c2", value_name = "LEVEL")]
    pub from: String,
    /// Level of the VM that is acted on.
    #[arg(long, default_value = "s0:c3,c4", value_name = "LEVEL")]
    pub to: String,
    /// Only this class, as file or process.
    #[arg(long, value_name = "CLASS")]
    pub class: Option<String>,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(after_help = STATUS)]
pub struct AuditPlanArgs {
    /// A specification in TOML (or JSON, by its suffix), as `casemate run --spec` takes it.
    #[arg(value_name = "SPEC")]
    pub spec: PathBuf,
    /// Facts of the host that is to run it (`casemate-jailer facts > FILE` there) instead of this one's: needs neither KVM
    /// nor SELinux here. That host's /etc/casemate/casemate.toml is not known; its defaults are taken.
    #[arg(long, value_name = "FILE")]
    pub facts: Option<PathBuf>,
    /// A binary policy that the rules and the profile ask; the loaded one if not given, where the plan is for this host.
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
}
