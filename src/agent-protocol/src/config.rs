//! The guest configuration: what the agent finds at [`crate::CONFIG_PATH`] in its initramfs.
//!
//! Trust: written by the host from a validated spec; the agent still checks versions and bounds, because a clear
//! message at boot beats a workload that starts half configured.
use crate::PROTOCOL_VERSION;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Largest configuration in bytes, as JSON.
pub const MAX_CONFIG: usize = 256 * 1024;
const MAX_LIST: usize = 4096;

/// Everything the agent needs to bring the guest up and start the workload.
///
/// `argv`, `env` and paths are UTF-8; a host with other bytes refuses them at its own door.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestConfig {
    pub version: u32,
    /// Program and arguments; a program without `/` is looked up in the workload's `PATH`.
    pub argv: Vec<String>,
    /// The whole environment, in order. Nothing is inherited; without `PATH` the agent adds the usual one, and `HOME`,
    /// `TERM` (tty only) and `HOSTNAME` if they are missing.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Absolute path in the guest.
    #[serde(default = "slash")]
    pub cwd: String,
    #[serde(default)]
    pub user: User,
    /// Supplementary groups by number. Without any, a user found in /etc/passwd gets those of /etc/group.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// Give the workload a pseudo-terminal as stdin, stdout and stderr.
    #[serde(default)]
    pub tty: bool,
    /// Keep the workload's stdin open for an attached client; else it reads /dev/null.
    #[serde(default)]
    pub stdin: bool,
    /// "casemate" if not given.
    #[serde(default)]
    pub hostname: Option<String>,
    pub root: RootFs,
    #[serde(default)]
    pub mounts: Vec<Mount>,
    #[serde(default)]
    pub rlimits: Vec<Rlimit>,
    #[serde(default)]
    pub attach: Attach,
    /// The workload is stopped (as by [`crate::ToAgent::Stop`]) when it has run for so long.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Signal number that asks the workload to end.
    #[serde(default = "sigterm")]
    pub stop_signal: i32,
    /// From the stop signal to SIGKILL.
    #[serde(default = "grace")]
    pub stop_grace_ms: u64,
    /// How long the agent waits for its devices (root disk, vsock) to appear.
    #[serde(default = "device_timeout")]
    pub device_timeout_ms: u64,
}

fn slash() -> String {
    "/".into()
}
fn sigterm() -> i32 {
    15
}
fn grace() -> u64 {
    10_000
}
fn device_timeout() -> u64 {
    10_000
}

/// Whose rights the workload gets, as in `podman run --user`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum User {
    /// By number; without `gid` the group of the /etc/passwd entry of that uid, else 0.
    Ids { uid: u32, gid: Option<u32> },
    /// By name in the guest's /etc/passwd (and /etc/group); `group` may be a number.
    Name { user: String, group: Option<String> },
}

impl Default for User {
    fn default() -> Self {
        User::Ids { uid: 0, gid: Some(0) }
    }
}

impl FromStr for User {
    type Err = ConfigError;

    /// `UID[:GID]` or `NAME[:GROUP]`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let plain = |s: &str| !s.is_empty() && s.len() <= 256 && !s.contains([':', '\n', '\0', '/']);
        if !plain(user) || group.is_some_and(|g| !plain(g)) {
            return Err(ConfigError::Invalid { field: "user", problem: "is not UID[:GID] or NAME[:GROUP]" });
        }
        Ok(match (user.parse::<u32>(), group.map(str::parse::<u32>)) {
            (Ok(uid), None) => User::Ids { uid, gid: None },
            (Ok(uid), Some(Ok(gid))) => User::Ids { uid, gid: Some(gid) },
            _ => User::Name { user: user.into(), group: group.map(Into::into) },
        })
    }
}

/// A block device of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceRef {
    /// By the serial number of its virtio-blk device (at most 20 bytes).
    Serial(String),
    /// By its name under /dev.
    Path(String),
}

/// File systems the agent mounts from a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FsType {
    Erofs,
    Ext4,
    Squashfs,
    Xfs,
    Btrfs,
}

impl FsType {
    /// The name the kernel knows.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FsType::Erofs => "erofs",
            FsType::Ext4 => "ext4",
            FsType::Squashfs => "squashfs",
            FsType::Xfs => "xfs",
            FsType::Btrfs => "btrfs",
        }
    }

    /// True where the file system can only be read.
    #[must_use]
    pub fn is_read_only(self) -> bool {
        matches!(self, FsType::Erofs | FsType::Squashfs)
    }
}

/// The root file system. With `overlay` it is mounted read-only below a tmpfs; without, directly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootFs {
    pub device: DeviceRef,
    pub fstype: FsType,
    #[serde(default)]
    pub read_only: bool,
    #[serde(default)]
    pub overlay: Option<Overlay>,
}

/// A tmpfs that takes all writes to the root file system.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overlay {
    /// Most bytes it may hold; half of the guest's memory if not given.
    #[serde(default)]
    pub size: Option<u64>,
}

/// A further file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Mount {
    Disk { device: DeviceRef, fstype: FsType, target: String, read_only: bool },
    Tmpfs { target: String, size: u64, mode: u32 },
}

impl Mount {
    /// Where it appears.
    #[must_use]
    pub fn target(&self) -> &str {
        match self {
            Mount::Disk { target, .. } | Mount::Tmpfs { target, .. } => target,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RlimitKind {
    As,
    Core,
    Cpu,
    Data,
    Fsize,
    Locks,
    Memlock,
    Msgqueue,
    Nice,
    Nofile,
    Nproc,
    Rss,
    Rtprio,
    Rttime,
    Sigpending,
    Stack,
}

/// One resource limit of the workload; `None` is "no limit".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rlimit {
    pub kind: RlimitKind,
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

/// When the workload starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Attach {
    /// At once; its output goes to the virtio console until a client attaches.
    #[default]
    Detached,
    /// When a client has sent [`crate::ToAgent::Attach`], so that no output is missed. No client within the time: the
    /// agent reports a failure and powers off.
    Wait { timeout_ms: u64 },
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the guest configuration has {0} bytes, more than {MAX_CONFIG}")]
    TooLarge(usize),
    #[error("the guest configuration does not parse")]
    Json(#[source] serde_json::Error),
    #[error("the guest configuration has version {0}, this agent speaks {PROTOCOL_VERSION}")]
    Version(u32),
    #[error("guest configuration: {field} {problem}")]
    Invalid { field: &'static str, problem: &'static str },
}

impl GuestConfig {
    /// A detached root workload on the EROFS disk [`crate::ROOT_SERIAL`] under a tmpfs overlay.
    #[must_use]
    pub fn new(argv: Vec<String>) -> Self {
        GuestConfig {
            version: PROTOCOL_VERSION,
            argv,
            env: Vec::new(),
            cwd: slash(),
            user: User::default(),
            groups: Vec::new(),
            tty: false,
            stdin: false,
            hostname: None,
            root: RootFs {
                device: DeviceRef::Serial(crate::ROOT_SERIAL.into()),
                fstype: FsType::Erofs,
                read_only: false,
                overlay: Some(Overlay::default()),
            },
            mounts: Vec::new(),
            rlimits: Vec::new(),
            attach: Attach::Detached,
            timeout_ms: None,
            stop_signal: sigterm(),
            stop_grace_ms: grace(),
            device_timeout_ms: device_timeout(),
        }
    }

    /// Checked JSON, for the initrd segment.
    pub fn to_json(&self) -> Result<Vec<u8>, ConfigError> {
        self.validate()?;
        let json = serde_json::to_vec(self).map_err(ConfigError::Json)?;
        if json.len() > MAX_CONFIG {
            return Err(ConfigError::TooLarge(json.len()));
        }
        Ok(json)
    }

    pub fn from_json(json: &[u8]) -> Result<Self, ConfigError> {
        if json.len() > MAX_CONFIG {
            return Err(ConfigError::TooLarge(json.len()));
        }
        // The version first: another version may well have other fields.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_slice(json).map_err(ConfigError::Json)?;
        if version != PROTOCOL_VERSION {
            return Err(ConfigError::Version(version));
        }
        let config: GuestConfig = serde_json::from_slice(json).map_err(ConfigError::Json)?;
        config.validate()?;
        Ok(config)
    }

    /// Bounds and forms; the first problem found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |field, problem| Err(ConfigError::Invalid { field, problem });
        if self.version != PROTOCOL_VERSION {
            return Err(ConfigError::Version(self.version));
        }
        check_command(&self.argv, &self.env, &self.cwd)?;
        for (field, len) in
            [("groups", self.groups.len()), ("mounts", self.mounts.len()), ("rlimits", self.rlimits.len())]
        {
            if len > 256 {
                return invalid(field, "has more than 256 entries");
            }
        }
        if self.hostname.as_ref().is_some_and(|h| !is_hostname(h)) {
            return invalid("hostname", "is not 1 to 64 letters, digits, '-' or '.'");
        }
        check_device("root.device", &self.root.device)?;
        for mount in &self.mounts {
            if !is_clean_absolute(mount.target()) || mount.target() == "/" {
                return invalid("mounts.target", "is not an absolute path without '.' and '..' below /");
            }
            if let Mount::Disk { device, .. } = mount {
                check_device("mounts.device", device)?;
            }
        }
        if !(1..=64).contains(&self.stop_signal) {
            return invalid("stop_signal", "is not between 1 and 64");
        }
        Ok(())
    }
}

/// The checks that a workload and an exec session share.
pub(crate) fn check_command(argv: &[String], env: &[(String, String)], cwd: &str) -> Result<(), ConfigError> {
    let invalid = |field, problem| Err(ConfigError::Invalid { field, problem });
    match argv.first() {
        None => return invalid("argv", "is empty"),
        Some(program) if program.is_empty() => return invalid("argv", "names no program"),
        Some(_) => {}
    }
    if argv.len() > MAX_LIST || env.len() > MAX_LIST {
        return invalid("argv or env", "has more than 4096 entries");
    }
    if argv.iter().any(|a| a.contains('\0')) {
        return invalid("argv", "contains a NUL");
    }
    if env.iter().any(|(k, v)| k.is_empty() || k.contains(['=', '\0']) || v.contains('\0')) {
        return invalid("env", "has an empty name, a name with '=', or a NUL");
    }
    if !cwd.starts_with('/') || cwd.len() > 4096 || cwd.contains('\0') {
        return invalid("cwd", "is not an absolute path");
    }
    Ok(())
}

fn check_device(field: &'static str, device: &DeviceRef) -> Result<(), ConfigError> {
    match device {
        DeviceRef::Serial(serial) if serial.is_empty() || serial.len() > 20 || !serial.is_ascii() => {
            Err(ConfigError::Invalid { field, problem: "is not a serial of 1 to 20 ASCII bytes" })
        }
        DeviceRef::Path(path) if !path.starts_with("/dev/") || !is_clean_absolute(path) => {
            Err(ConfigError::Invalid { field, problem: "is not a path below /dev" })
        }
        _ => Ok(()),
    }
}

fn is_clean_absolute(path: &str) -> bool {
    path.starts_with('/')
        && path.len() <= 4096
        && !path.contains('\0')
        && path.split('/').all(|part| part != ".." && part != ".")
}

fn is_hostname(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && !name.starts_with(['-', '.'])
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> GuestConfig {
        GuestConfig::new(vec!["/bin/true".into()])
    }

    #[test]
    fn round_trip_and_minimal_form() {
        let json = config().to_json().unwrap();
        assert_eq!(GuestConfig::from_json(&json).unwrap(), config());
        let minimal = br#"{"version":1,"argv":["true"],"root":{"device":{"serial":"root"},"fstype":"erofs"}}"#;
        let parsed = GuestConfig::from_json(minimal).unwrap();
        assert_eq!((parsed.cwd.as_str(), parsed.stop_signal), ("/", 15));
        assert!(parsed.root.overlay.is_none());
    }

    #[test]
    fn bad_configurations_are_refused() {
        type Spoil = fn(&mut GuestConfig);
        let bad: &[(&str, Spoil)] = &[
            ("argv", |c| c.argv.clear()),
            ("argv", |c| c.argv[0].clear()),
            ("argv", |c| c.argv.push("a\0b".into())),
            ("env", |c| c.env.push(("A=B".into(), String::new()))),
            ("cwd", |c| c.cwd = "tmp".into()),
            ("hostname", |c| c.hostname = Some("-x".into())),
            ("root.device", |c| c.root.device = DeviceRef::Path("/dev/../etc/shadow".into())),
            ("root.device", |c| c.root.device = DeviceRef::Serial("123456789012345678901".into())),
            ("mounts.target", |c| c.mounts.push(Mount::Tmpfs { target: "/".into(), size: 1, mode: 0o755 })),
            ("stop_signal", |c| c.stop_signal = 65),
        ];
        for (field, spoil) in bad {
            let mut c = config();
            spoil(&mut c);
            let message = c.to_json().unwrap_err().to_string();
            assert!(message.contains(field), "{field}: {message}");
        }
    }

    #[test]
    fn unknown_fields_other_versions_and_sizes_are_refused() {
        let other = br#"{"version":2,"new_field":true}"#;
        assert!(matches!(GuestConfig::from_json(other), Err(ConfigError::Version(2))));
        let unknown = br#"{"version":1,"argv":["a"],"root":{"device":{"serial":"r"},"fstype":"erofs"},"x":1}"#;
        assert!(matches!(GuestConfig::from_json(unknown), Err(ConfigError::Json(_))));
        assert!(matches!(GuestConfig::from_json(&vec![b' '; MAX_CONFIG + 1]), Err(ConfigError::TooLarge(_))));
    }

    #[test]
    fn users_parse_as_podman_does() {
        let name = |u: &str, g: Option<&str>| User::Name { user: u.into(), group: g.map(Into::into) };
        assert_eq!("0".parse::<User>().unwrap(), User::Ids { uid: 0, gid: None });
        assert_eq!("1000:100".parse::<User>().unwrap(), User::Ids { uid: 1000, gid: Some(100) });
        assert_eq!("daemon".parse::<User>().unwrap(), name("daemon", None));
        assert_eq!("1:mail".parse::<User>().unwrap(), name("1", Some("mail")));
        for bad in ["", ":", "a:", "a:b:c", "a\nb", "../x"] {
            assert!(bad.parse::<User>().is_err(), "{bad:?}");
        }
    }
}
