//! The grammar of `casemate evidence`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "A bundle is an in-toto statement in a DSSE envelope, signed with the host's key and a link in its chain; \
                  docs/evidence.md describes it. A sandbox named like one of the commands goes after `--`."
)]
pub struct EvidenceArgs {
    #[command(subcommand)]
    pub command: Option<EvidenceCommand>,
    #[command(flatten)]
    pub make: MakeArgs,
}

#[derive(Debug, Args)]
pub struct MakeArgs {
    /// The sandbox, running or ended.
    #[arg(value_name = "NAME", required = true)]
    pub name: Option<String>,
    /// Where the bundle goes: a new file, or - for standard output.
    #[arg(short, long, value_name = "FILE", required = true)]
    pub output: Option<PathBuf>,
    /// A word of the asker's, which an older bundle cannot hold.
    #[arg(long, value_name = "TEXT")]
    pub nonce: Option<String>,
    /// Values of environment variables in the specification: a salted digest in their place, nothing, or as they are.
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub env: Redact,
    /// Put the loaded SELinux policy into the bundle (some megabytes), so that its answers can be computed again.
    #[arg(long)]
    pub with_policy: bool,
    /// Judge by this profile instead of the built-in one.
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Redact {
    /// Whoever knows a value can confirm it; a value that can be guessed can be confirmed by guessing.
    #[default]
    Digest,
    /// Nothing of the values, and no digest of the specification.
    Hide,
    Show,
}

#[derive(Debug, Subcommand)]
pub enum EvidenceCommand {
    /// Print the host's public key, and its fingerprint; made at the first use.
    Key {
        /// Write the key there (PEM).
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Write the chain of all that this host sealed.
    Chain {
        /// A new file, or - for standard output.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Verify bundles, on any machine and offline: say what was checked, what was not, and why.
    ///
    /// Exit status: 0 every check that was made holds and the signature is of the key that was given; 1 something does not
    /// hold; 5 everything holds but no key was given: the bundle vouches for itself.
    Verify(Box<VerifyArgs>),
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Bundles, as `casemate evidence NAME -o FILE` has written them.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The host's public key (PEM), got on another way than the bundle.
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// The host's chain, as `casemate evidence chain` wrote it.
    #[arg(long, value_name = "FILE")]
    pub chain: Option<PathBuf>,
    /// It must be of this sandbox.
    #[arg(long, value_name = "NAME", help_heading = "What was asked for")]
    pub sandbox: Option<String>,
    /// It must hold this nonce.
    #[arg(long, value_name = "TEXT", help_heading = "What was asked for")]
    pub nonce: Option<String>,
    /// It must be sealed at this boot of the host (/proc/sys/kernel/random/boot_id).
    #[arg(long, value_name = "ID", help_heading = "What was asked for")]
    pub boot_id: Option<String>,
    /// It must be sealed at this time or later, in seconds since the epoch.
    #[arg(long, value_name = "SECONDS", help_heading = "What was asked for")]
    pub not_before: Option<u64>,
    /// Its number in the chain must be greater.
    #[arg(long, value_name = "NUMBER", help_heading = "What was asked for")]
    pub after: Option<u64>,
    /// The specification that was asked for (JSON as the jailer got it, or TOML for its plan).
    #[arg(long, value_name = "FILE", help_heading = "Originals")]
    pub spec: Option<PathBuf>,
    /// The SELinux policy that was loaded.
    #[arg(long, value_name = "FILE", help_heading = "Originals")]
    pub policy: Option<PathBuf>,
    /// The kernel.
    #[arg(long, value_name = "FILE", help_heading = "Originals")]
    pub kernel: Option<PathBuf>,
    /// Any file or program by its name in the bundle, as disk.root=FILE or runner=FILE.
    #[arg(long, value_name = "NAME=FILE", help_heading = "Originals")]
    pub image: Vec<String>,
    /// The profile by which it was judged, if that was not the built-in one.
    #[arg(long, value_name = "FILE", help_heading = "Originals")]
    pub profile: Option<PathBuf>,
}
