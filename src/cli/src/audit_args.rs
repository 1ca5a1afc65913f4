//! The grammar of `casemate audit`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Ask a SELinux policy what a VM may do and who may touch it.
    ///
    /// Decisions are computed with every constraint, for concrete labels: of a policy file, on any machine, or of the
    /// policy that is loaded here.
    Policy(AuditPolicyArgs),
}

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
}

#[derive(Debug, Args)]
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
    /// Level of the VM that acts.
    #[arg(long, default_value = "s0:c1,c2", value_name = "LEVEL")]
    pub from: String,
    /// Level of the VM that is acted on.
    #[arg(long, default_value = "s0:c3,c4", value_name = "LEVEL")]
    pub to: String,
    /// Only this class, as file or process.
    #[arg(long, value_name = "CLASS")]
    pub class: Option<String>,
}
