//! The wire form of a specification, version 1: what a TOML or JSON file holds, and what the CLI hands the jailer.
//!
//! Unknown fields are refused. The JSON Schema in `docs/spec.schema.json` is generated from these types.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::values::{DiskFormat, HugePageSize, PolicyChange, Posture, SelinuxProfile};

/// The version of the wire form that this build writes and reads.
pub const VERSION: u32 = 1;

fn version() -> u32 {
    VERSION
}

/// A sandbox as asked for.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    /// Version of this form; 1.
    #[serde(default = "version")]
    pub version: u32,
    /// Name, 1 to 63 of `a-z 0-9 . _ -`. Made up when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Command and arguments, run in the guest. Absent only for a bare guest (a kernel without agent).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Environment of the command.
    #[serde(default, skip_serializing_if = "UniqueMap::is_empty")]
    pub env: UniqueMap,
    /// Working directory in the guest; `/` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// User in the guest: `name`, `uid`, or either with `:group`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Host name in the guest; the sandbox name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Give the command a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Keep the command's standard input open.
    #[serde(default)]
    pub interactive: bool,
    /// Do not wait for a client: output goes to the sandbox's log.
    #[serde(default)]
    pub detach: bool,
    /// Number of vCPUs, 1 to 64; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Guest memory, as `256M`; 256 MiB when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// Take the guest memory from the host's huge pages of this size: `2M` or `1G`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugepages: Option<HugePageSize>,
    /// Kernel: the name of an imported one, or an absolute path. The default imported kernel when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Initial RAM disk, an absolute path. Casemate's own (with the agent) when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// Appended to the kernel's command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Boot the kernel alone: no agent, no root file system, no command.
    #[serde(default)]
    pub bare: bool,
    /// Root file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<RootFile>,
    /// Further disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskFile>,
    /// virtio-vsock device (the agent needs it); on when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<bool>,
    /// End the sandbox after this time, as `30s`, `5m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// What the host grants the serving processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsFile>,
    /// What a reboot by the guest does: `stop` (default) or `restart`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_reboot: Option<RebootFile>,
    /// What is asked of SELinux.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selinux: Option<SelinuxFile>,
    /// Refuse to start below this posture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require: Option<Posture>,
    /// Accept a reduced posture, with the reason; it is recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_reduced: Option<String>,
}

/// Root file system: exactly one of `dir`, `tar`, `image`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RootFile {
    /// A directory on the host, made into a read-only image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
    /// A tar archive (plain, gzip, zstd or xz), made into a read-only image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tar: Option<String>,
    /// A file system image; its `fstype` must be named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// File system in `image`: `erofs`, `ext4` or `squashfs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fstype: Option<String>,
    /// Format of `image`; raw when absent, never guessed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// The images below a qcow2 `image`, as for a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing: Option<Vec<LayerFile>>,
    /// Write to `image` itself instead of an overlay in guest memory.
    #[serde(default)]
    pub writable: bool,
    /// Size of the overlay in guest memory, as `64M`; half of the memory when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<String>,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DiskFile {
    /// Name, 1 to 20 of `a-z 0-9 _ -`; the guest sees it as the disk's serial.
    pub id: String,
    /// Image or block device on the host, an absolute path.
    pub path: String,
    /// Format; never guessed.
    pub format: DiskFormat,
    /// The images below a qcow2 one, top to bottom. The client reads them from the images' headers when absent; the
    /// jailer opens what stands here and nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing: Option<Vec<LayerFile>>,
    #[serde(default)]
    pub read_only: bool,
    /// Several sandboxes may write to it at once.
    #[serde(default)]
    pub shared: bool,
    /// Where the agent mounts it, with its `fstype`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fstype: Option<String>,
    /// SELinux label to set instead of the one that follows from `read_only` and `shared`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// `false`: leave this disk's label alone, but check that it fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relabel: Option<bool>,
}

/// An image below another one, read-only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LayerFile {
    /// Image or block device on the host, an absolute path.
    pub path: String,
    /// Format; never guessed.
    pub format: DiskFormat,
}

/// What is asked of SELinux; every field has a default.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SelinuxFile {
    /// Whose types: `casemate`, `svirt` or `container`. The first of them that the policy has when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<SelinuxProfile>,
    /// A fixed level, as `s0:c5,c6`, instead of a leased pair. It is reserved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Other sandboxes may have the same fixed level (a pod).
    #[serde(default)]
    pub level_shared: bool,
    /// `false`: change no label; every object must carry a fitting one already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relabel: Option<bool>,
    /// When the loaded policy stops separating the sandbox: `stop`, `pause` or `warn`. `pause` where
    /// `require` is `enforced`, else `warn`, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_policy_change: Option<PolicyChange>,
}

/// Limits on the processes that serve the VM.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LimitsFile {
    /// CPU time, in hundredths of a CPU (150 is one and a half).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u32>,
    /// Memory besides the guest's, as `64M`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_overhead: Option<String>,
    /// Number of tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Bytes kept of the console and of the output, each, as `1M`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum RebootFile {
    Stop,
    Restart,
}

/// A map of strings that refuses a repeated key instead of keeping the last.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct UniqueMap(pub BTreeMap<String, String>);

impl UniqueMap {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> Deserialize<'de> for UniqueMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Unique;
        impl<'de> Visitor<'de> for Unique {
            type Value = UniqueMap;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<UniqueMap, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((key, value)) = access.next_entry::<String, String>()? {
                    if map.insert(key.clone(), value).is_some() {
                        return Err(serde::de::Error::custom(format!("'{key}' is given twice")));
                    }
                }
                Ok(UniqueMap(map))
            }
        }
        deserializer.deserialize_map(Unique)
    }
}
