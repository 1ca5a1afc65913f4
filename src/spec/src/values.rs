//! Newtypes that cannot hold a bad value.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What must hold of the confinement (DESIGN rule 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Posture {
    /// Anything less; only with `--allow-reduced REASON`.
    Reduced,
    /// The host has no SELinux; every other layer holds.
    Hardened,
    /// Every layer holds, SELinux enforcing with an MCS-constrained type.
    Enforced,
}

impl fmt::Display for Posture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Posture::Reduced => "reduced",
            Posture::Hardened => "hardened",
            Posture::Enforced => "enforced",
        })
    }
}

impl std::str::FromStr for Posture {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "reduced" => Ok(Posture::Reduced),
            "hardened" => Ok(Posture::Hardened),
            "enforced" => Ok(Posture::Enforced),
            _ => Err(format!("'{text}' is not a posture; use enforced, hardened or reduced")),
        }
    }
}

/// Name of a sandbox: 1 to 63 of `a-z 0-9 . _ -`, first and last a letter or a digit, no `..`.
/// Safe as a file name, a cgroup name and a host name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SandboxId(String);

impl SandboxId {
    pub fn parse(text: &str) -> Result<Self, String> {
        let alnum = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let bytes = text.as_bytes();
        let fits = (1..=63).contains(&bytes.len())
            && bytes.iter().all(|&c| alnum(c) || matches!(c, b'.' | b'_' | b'-'))
            && alnum(bytes[0])
            && alnum(bytes[bytes.len() - 1])
            && !text.contains("..");
        if fits { Ok(SandboxId(text.to_owned())) } else { Err(format!("{text:?} is not a sandbox name")) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of a disk, also its virtio-blk serial: 1 to 20 of `a-z 0-9 _ -` (virtio 1.2, 5.2.6: 20 bytes).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskId(String);

impl DiskId {
    pub fn parse(text: &str) -> Result<Self, String> {
        let fits = (1..=20).contains(&text.len())
            && text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'_' | b'-'));
        if fits { Ok(DiskId(text.to_owned())) } else { Err(format!("{text:?} is not a disk name")) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A path on the host: absolute, without `..`, NUL or control characters. It is resolved without symlinks later.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPath(PathBuf);

impl HostPath {
    pub fn parse(text: &str) -> Result<Self, String> {
        let path = Path::new(text);
        if text.is_empty() || text.len() > 4095 {
            return Err("a path has 1 to 4095 bytes".into());
        }
        if text.chars().any(char::is_control) {
            return Err(format!("path {text:?} holds a control character"));
        }
        if !path.is_absolute() {
            return Err(format!("path {text:?} is not absolute"));
        }
        if path.components().any(|c| matches!(c, Component::ParentDir)) {
            return Err(format!("path {text:?} holds '..'"));
        }
        Ok(HostPath(path.to_path_buf()))
    }

    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for HostPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// A path in the guest: absolute, no `..`, no control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestPath(String);

impl GuestPath {
    pub fn parse(text: &str) -> Result<Self, String> {
        HostPath::parse(text).map(|_| GuestPath(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A size in bytes, written as `4096`, `64K`, `512M`, `2G` (powers of 1024; `KiB`, `MiB`, `GiB` also).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

impl ByteSize {
    pub const fn new(bytes: u64) -> Self {
        ByteSize(bytes)
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match &text[digits.len()..] {
            "" | "B" => 0,
            "K" | "k" | "KiB" => 10,
            "M" | "m" | "MiB" => 20,
            "G" | "g" | "GiB" => 30,
            "T" | "t" | "TiB" => 40,
            _ => return Err(format!("{text:?} is not a size")),
        };
        let number: u64 = digits.parse().map_err(|_| format!("{text:?} is not a size"))?;
        number.checked_mul(1 << shift).map(ByteSize).ok_or_else(|| format!("size {text:?} is too large"))
    }

    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{} {unit}", self.0 >> shift);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

/// Number of vCPUs, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuCount(u8);

impl CpuCount {
    pub const MAX: u32 = 64;

    pub fn new(count: u32) -> Result<Self, String> {
        match u8::try_from(count) {
            Ok(n) if n >= 1 && count <= Self::MAX => Ok(CpuCount(n)),
            _ => Err(format!("{count} vCPUs are not possible")),
        }
    }

    pub const fn get(self) -> u8 {
        self.0
    }
}

/// Format of a disk image. Always named by the user, never guessed from content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    Raw,
    /// With or without images below it (`backing`).
    Qcow2,
}

impl fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        })
    }
}

/// Size of the pages that guest memory is made of (x86-64: what hugetlbfs offers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum HugePageSize {
    #[serde(rename = "2M")]
    M2,
    #[serde(rename = "1G")]
    G1,
}

impl HugePageSize {
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "2M" => Ok(Self::M2),
            "1G" => Ok(Self::G1),
            other => Err(format!("{other:?} is not a size of huge pages")),
        }
    }

    pub fn bytes(self) -> u64 {
        match self {
            Self::M2 => 2 << 20,
            Self::G1 => 1 << 30,
        }
    }
}

impl fmt::Display for HugePageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::M2 => "2M",
            Self::G1 => "1G",
        })
    }
}

/// Whose SELinux types a sandbox uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum SelinuxProfile {
    /// The module in `policies/`.
    Casemate,
    /// libvirt's family: the types of `virtual_domain_context` and `virtual_image_context`.
    Svirt,
    /// container-selinux' family: the types of `container_contexts`.
    Container,
}

impl fmt::Display for SelinuxProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Casemate => "casemate",
            Self::Svirt => "svirt",
            Self::Container => "container",
        })
    }
}

/// What happens to a running sandbox when the loaded policy stops separating it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum PolicyChange {
    Stop,
    Pause,
    Warn,
}

/// A single SELinux level in any spelling, as `s0:c5,c6`. Its meaning is the label engine's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LevelText(String);

impl LevelText {
    pub fn parse(text: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, ':' | ',' | '.');
        let good = text.starts_with('s') && (2..=256).contains(&text.len()) && text.chars().all(plain);
        if good { Ok(LevelText(text.to_owned())) } else { Err(format!("{text:?} is not a level")) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A whole SELinux label, as `system_u:object_r:casemate_image_t:s0:c5,c6`. Its meaning is the label engine's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label(String);

impl Label {
    pub fn parse(text: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | ',' | '.' | '_' | '-');
        let whole = text.splitn(4, ':').filter(|field| !field.is_empty()).count() >= 3;
        let good = whole && text.len() <= 1024 && text.chars().all(plain);
        if good { Ok(Label(text.to_owned())) } else { Err(format!("{text:?} is not a label")) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Parses a duration: `90`, `90s`, `500ms`, `5m`, `2h`.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let bad = || format!("{text:?} is not a duration");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| bad())?;
    let millis = match &text[digits.len()..] {
        "ms" => Some(number),
        "" | "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => return Err(bad()),
    };
    match millis {
        Some(ms @ 1..=2_592_000_000) => Ok(std::time::Duration::from_millis(ms)),
        _ => Err(format!("duration {text:?} is not between 1 ms and 30 days")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sandbox_names_refuse_what_a_path_or_a_terminal_could_misread() {
        let long = "a".repeat(64);
        for bad in ["", ".", "..", "a..b", "-a", "a-", "a/b", "a\0", "a\nb", "A", "ä", "a b", long.as_str()] {
            assert!(SandboxId::parse(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "web-1", "x.y_z", "0", &long[..63]] {
            assert!(SandboxId::parse(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn sizes_overflow_to_an_error() {
        assert_eq!(ByteSize::parse("2G").unwrap().bytes(), 2 << 30);
        assert_eq!(ByteSize::parse("16777216T"), Err("size \"16777216T\" is too large".into()));
        for bad in ["", "M", "-1M", "1.5G", "1X", "99999999999999999999", "1é"] {
            assert!(ByteSize::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn paths_refuse_relative_parent_and_control() {
        for bad in ["", "a", "/a/../b", "/a\nb", "/a\0b", "/\u{1b}[31m"] {
            assert!(HostPath::parse(bad).is_err(), "{bad:?}");
        }
        assert!(HostPath::parse("/var/lib/x.img").is_ok());
    }

    #[test]
    fn durations_are_bounded() {
        assert_eq!(parse_duration("5m").unwrap().as_secs(), 300);
        for bad in ["0", "31d", "721h", "x", "", "-1s", "1.5s"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = (SandboxId::parse(&text), DiskId::parse(&text), HostPath::parse(&text));
            let _ = (ByteSize::parse(&text), parse_duration(&text));
        }
    }
}
