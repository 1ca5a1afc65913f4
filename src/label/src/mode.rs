//! What SELinux on this host really separates, asked of the loaded policy.
//!
//! Trust: selinuxfs, verified to be one. Nothing is assumed from names, versions or
//! /proc/mounts: whether the runner's type is MCS-constrained is the kernel's own answer
//! to "may this context do that", for the same pair and for another one.
//! Called by the jailer, which puts the facts into `HostFacts` for the planner.
//!
//! `access` answers for contexts that no process has, so the questions cost nothing and
//! change nothing (kernel `security/selinux/selinuxfs.c`, `sel_write_access`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::context::{CategoryPair, Context, Level, Range};
use crate::exec_label::VerifiedProc;
use crate::profile::Profile;

const SELINUXFS: &str = "/sys/fs/selinux";
const SELINUX_MAGIC: u64 = 0xf97c_ff8c;
/// `SELINUX_AVD_FLAGS_PERMISSIVE`
const PERMISSIVE: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SelinuxMode {
    Disabled,
    Permissive,
    Enforcing,
}

/// One question put to the policy, and whether the answer is the one separation needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub wanted: bool,
    pub granted: bool,
}

impl Check {
    pub fn holds(&self) -> bool {
        self.wanted == self.granted
    }
}

/// The facts the posture is computed from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxFacts {
    pub mode: SelinuxMode,
    pub profile: String,
    /// The caller's own label; none when SELinux is off.
    pub own: Option<Context>,
    /// Types of the profile that the loaded policy does not know.
    pub missing_types: Vec<String>,
    /// The runner's domain is permissive although the host is enforcing.
    pub domain_permissive: bool,
    /// The runner's type is held back by categories. False when unknown.
    pub mcs_constrained: bool,
    /// The caller's domain may exec into the runner's domain with NNP set.
    pub nnp_transition: bool,
    /// Each question and its answer, for `doctor` and the evidence.
    pub checks: Vec<Check>,
    /// Counts policy loads; when it moves, the facts are stale.
    pub policy_seqno: u32,
    /// Why something could not be asked.
    pub problems: Vec<String>,
    /// Rules that a start needs and the policy does not grant, as CIL; asked for other managers' families only.
    pub missing_rules: Vec<String>,
    /// What one runner of the family may do to another's objects all the same.
    pub not_separated: Vec<String>,
    /// What was assumed because the policy's files do not say it.
    pub assumed: Vec<String>,
}

impl SelinuxFacts {
    fn off(profile: &Profile) -> Self {
        Self {
            mode: SelinuxMode::Disabled,
            profile: profile.name.clone(),
            own: None,
            missing_types: Vec::new(),
            domain_permissive: false,
            mcs_constrained: false,
            nnp_transition: false,
            checks: Vec::new(),
            policy_seqno: 0,
            problems: Vec::new(),
            missing_rules: Vec::new(),
            not_separated: Vec::new(),
            assumed: Vec::new(),
        }
    }

    /// The family is there, separates, and a start can use it; whether SELinux enforces it is another question.
    pub fn fits(&self) -> bool {
        self.missing_types.is_empty()
            && self.mcs_constrained
            && self.problems.is_empty()
            && self.missing_rules.is_empty()
    }

    /// What is in the way of `fits`, in few words.
    pub fn misfits(&self) -> Vec<String> {
        let mut all: Vec<String> = self.missing_types.iter().map(|t| format!("the policy lacks {t}")).collect();
        all.extend(self.problems.iter().cloned());
        if self.missing_types.is_empty() && self.problems.is_empty() && !self.mcs_constrained {
            let broken: Vec<&str> = self.checks.iter().filter(|c| !c.holds()).map(|c| c.name.as_str()).collect();
            all.push(format!("categories do not separate it ({})", broken.join(", ")));
        }
        if !self.missing_rules.is_empty() {
            all.push(format!("the policy does not grant {}", self.missing_rules.join(" ")));
        }
        all
    }

    /// All that the word "enforced" needs of SELinux.
    pub fn separates(&self) -> bool {
        self.mode == SelinuxMode::Enforcing
            && self.missing_types.is_empty()
            && !self.domain_permissive
            && self.mcs_constrained
            && self.problems.is_empty()
            && self.missing_rules.is_empty()
    }

    /// What is in the way of `separates`, one sentence each, with its remedy.
    pub fn shortcomings(&self) -> Vec<String> {
        let mut all = Vec::new();
        match self.mode {
            SelinuxMode::Disabled => all.push("SELinux is off: boot with security=selinux selinux=1".to_owned()),
            SelinuxMode::Permissive => all.push("SELinux is permissive: setenforce 1".to_owned()),
            SelinuxMode::Enforcing => {}
        }
        if self.mode == SelinuxMode::Disabled {
            return all;
        }
        if !self.missing_types.is_empty() {
            let types = self.missing_types.join(", ");
            all.push(format!("the loaded policy lacks {types}: install the {} module", self.profile));
        } else if !self.mcs_constrained {
            all.push(format!("the runner's type of profile {} is not MCS-constrained", self.profile));
        }
        if !self.missing_rules.is_empty() {
            let rules = self.missing_rules.join(" ");
            all.push(format!("profile {} cannot be used: the loaded policy does not grant {rules}", self.profile));
        }
        if self.domain_permissive {
            all.push("the runner's domain is permissive: semanage permissive -d it".to_owned());
        }
        all.extend(self.problems.iter().cloned());
        all
    }
}

/// What the planner wants to know of them.
impl From<&SelinuxFacts> for casemate_plan::SelinuxFacts {
    fn from(facts: &SelinuxFacts) -> Self {
        Self {
            mode: match facts.mode {
                SelinuxMode::Disabled => casemate_plan::SelinuxMode::Disabled,
                SelinuxMode::Permissive => casemate_plan::SelinuxMode::Permissive,
                SelinuxMode::Enforcing => casemate_plan::SelinuxMode::Enforcing,
            },
            mls: facts.own.as_ref().is_some_and(|own| own.range().is_some()),
            module: facts.mode != SelinuxMode::Disabled && facts.missing_types.is_empty(),
            domain_permissive: facts.domain_permissive,
            mcs_constrained: facts.mcs_constrained && facts.problems.is_empty(),
            family: None,
        }
    }
}

/// The facts of this host for Casemate's own types.
pub fn probe() -> SelinuxFacts {
    probe_profile(&Profile::casemate())
}

pub fn probe_profile(profile: &Profile) -> SelinuxFacts {
    let mut facts = SelinuxFacts::off(profile);
    let fs = match SelinuxFs::open(Path::new(SELINUXFS)) {
        Ok(Some(fs)) => fs,
        Ok(None) => return facts,
        Err(e) => {
            facts.problems.push(format!("cannot use {SELINUXFS}: {e}"));
            return facts;
        }
    };
    match fs.enforcing() {
        Ok(true) => facts.mode = SelinuxMode::Enforcing,
        Ok(false) => facts.mode = SelinuxMode::Permissive,
        Err(e) => facts.problems.push(format!("cannot read {SELINUXFS}/enforce: {e}")),
    }
    match VerifiedProc::open_host().and_then(|p| p.own_label()) {
        Ok(own) => facts.own = Some(own),
        Err(e) => facts.problems.push(e.to_string()),
    }
    let caller = facts.own.clone().unwrap_or_else(|| "system_u:system_r:init_t:s0".parse().expect("a context"));
    if facts.own.is_some() && caller.range().is_none() {
        facts
            .problems
            .push("the loaded policy has no levels, so nothing tells two guests apart: use an MCS policy".into());
        return facts;
    }
    facts.missing_types = missing_types(&fs, profile);
    if !facts.missing_types.is_empty() {
        return facts;
    }
    let runner = profile.runner_label(&caller, CategoryPair::try_from((1, 2)).expect("a pair"));
    if !fs.is_valid(&runner) {
        let (user, role) = (caller.user(), caller.role());
        facts
            .problems
            .push(format!("{user}:{role} may not have the type {}: start as a system service", profile.runner));
    } else if let Err(e) = ask(&fs, profile, &caller, &mut facts) {
        facts.mcs_constrained = false;
        facts.problems.push(format!("cannot compute access decisions: {e}"));
    }
    facts
}

fn missing_types(fs: &SelinuxFs, profile: &Profile) -> Vec<String> {
    // with the role of objects every type makes a valid context, if the policy has it
    let known = |type_: &str| fs.is_valid(&profile.object(type_, Range::single(Level::S0)));
    profile.types().filter(|t| !known(t)).map(str::to_owned).collect()
}

/// Puts the questions whose answers make up "MCS separates".
fn ask(fs: &SelinuxFs, profile: &Profile, caller: &Context, facts: &mut SelinuxFacts) -> io::Result<()> {
    let pair = |a, b| CategoryPair::try_from((a, b)).expect("two categories");
    let (a, b, overlap) = (pair(1, 2), pair(3, 4), pair(1, 3));
    let runner = profile.runner_label(caller, a);
    let image = |p: CategoryPair| profile.object(&profile.image, Range::single(p.level()));
    let other = profile.runner_label(caller, b);

    let mut checks = Vec::new();
    let mut permissive = false;
    // one decision answers for all permissions of a class
    let mut ask = |what: &str, target: &Context, class: &str, perms: &[&str], wanted: bool| -> io::Result<()> {
        let decision = fs.access(&runner, target, class)?;
        facts.policy_seqno = decision.seqno;
        permissive |= decision.flags & PERMISSIVE != 0;
        for perm in perms {
            let granted = decision.allowed & fs.permission(class, perm)? != 0;
            checks.push(Check { name: format!("{what}: {perm}"), wanted, granted });
        }
        Ok(())
    };
    let rw = ["read", "write"];
    ask("own image", &image(a), "file", &rw, true)?;
    ask("another's image", &image(b), "file", &rw, false)?;
    ask("image of an overlapping pair", &image(overlap), "file", &rw, false)?;
    ask("another's block device", &image(b), "blk_file", &rw, false)?;
    let content = profile.object(&profile.content, Range::single(Level::S0));
    ask("content", &content, "file", &["read"], true)?;
    ask("content", &content, "file", &["write"], false)?;
    ask("another's runner", &other, "process", &["signal", "sigkill", "ptrace"], false)?;
    ask("another's socket", &other, "unix_stream_socket", &["connectto"], false)?;

    facts.mcs_constrained = checks.iter().all(Check::holds);
    facts.checks = checks;
    facts.domain_permissive = permissive;
    facts.nnp_transition = fs
        .access(caller, &runner, "process2")
        .is_ok_and(|d| fs.permission("process2", "nnp_transition").is_ok_and(|bit| d.allowed & bit != 0));
    Ok(())
}

/// The kernel's answer for one (subject, object, class).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    pub allowed: u32,
    pub seqno: u32,
    pub flags: u32,
}

/// A mounted selinuxfs.
#[derive(Debug)]
pub struct SelinuxFs(PathBuf);

impl SelinuxFs {
    /// The one at its usual place. `None` when SELinux is off.
    pub fn here() -> io::Result<Option<Self>> {
        Self::open(Path::new(SELINUXFS))
    }

    /// `None` when SELinux is off: nothing is mounted there, or no policy is loaded.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        let fs = match rustix::fs::statfs(path) {
            Ok(fs) => fs,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        // /sys/fs/selinux is an empty directory of sysfs when the mount is missing
        if fs.f_type as u64 & 0xffff_ffff != SELINUX_MAGIC {
            return Ok(None);
        }
        Ok(Some(Self(path.to_owned())))
    }

    pub fn enforcing(&self) -> io::Result<bool> {
        Ok(fs::read_to_string(self.0.join("enforce"))?.trim_end() == "1")
    }

    /// True when the loaded policy accepts the context. Needs `security check_context`.
    pub fn is_valid(&self, context: &Context) -> bool {
        let mut raw = context.to_string().into_bytes();
        raw.push(0);
        OpenOptions::new().write(true).open(self.0.join("context")).and_then(|mut f| f.write_all(&raw)).is_ok()
    }

    /// Needs `security compute_av`.
    pub fn access(&self, subject: &Context, object: &Context, class: &str) -> io::Result<Decision> {
        let index = self.read_number(&format!("class/{class}/index"))?;
        let mut file = OpenOptions::new().read(true).write(true).open(self.0.join("access"))?;
        file.write_all(format!("{subject} {object} {index}\0").as_bytes())?;
        let mut answer = [0; 256];
        let n = read_from_start(&mut file, &mut answer)?;
        parse_decision(&answer[..n]).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The bit of a permission in its class. Numbers differ between policies.
    pub fn permission(&self, class: &str, perm: &str) -> io::Result<u32> {
        let bit = self.read_number(&format!("class/{class}/perms/{perm}"))?;
        if (1..=32).contains(&bit) { Ok(1 << (bit - 1)) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    fn read_number(&self, file: &str) -> io::Result<u32> {
        let path = self.0.join(file);
        let with_path = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        let text = fs::read_to_string(&path).map_err(with_path)?;
        text.trim_end().parse().map_err(|_| io::ErrorKind::InvalidData.into())
    }
}

/// selinuxfs answers a write on the same open file, from offset 0 of the reading side.
fn read_from_start(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    use std::io::Seek;
    file.seek(io::SeekFrom::Start(0))?;
    file.read(buffer)
}

/// `allowed decided auditallow auditdeny seqno flags`: four in hex, one decimal, one hex.
fn parse_decision(raw: &[u8]) -> Option<Decision> {
    let text = std::str::from_utf8(raw).ok()?;
    let mut fields = text.trim_end_matches(['\0', '\n']).split(' ');
    let allowed = u32::from_str_radix(fields.next()?, 16).ok()?;
    let seqno = fields.nth(3)?.parse().ok()?;
    let flags = fields.next().map_or(Some(0), |f| u32::from_str_radix(f, 16).ok())?;
    Some(Decision { allowed, seqno, flags })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_parsed_as_the_kernel_prints_them() {
        let d = parse_decision(b"2fff ffffffff 0 fffffffa 7 1").unwrap();
        assert_eq!(d, Decision { allowed: 0x2fff, seqno: 7, flags: 1 });
        assert!(parse_decision(b"").is_none());
        assert!(parse_decision(b"zz ffffffff 0 0 1 0").is_none());
        assert!(parse_decision(b"1 2 3").is_none());
    }

    #[test]
    fn a_directory_that_is_not_selinuxfs_means_off() {
        let dir = tempfile::tempdir().unwrap();
        assert!(SelinuxFs::open(dir.path()).unwrap().is_none());
        assert!(SelinuxFs::open(Path::new("/nonexistent/selinux")).unwrap().is_none());
    }

    #[test]
    fn only_the_full_set_of_facts_separates() {
        let good = SelinuxFacts {
            mode: SelinuxMode::Enforcing,
            mcs_constrained: true,
            ..SelinuxFacts::off(&Profile::casemate())
        };
        assert!(good.separates() && good.shortcomings().is_empty());
        for bad in [
            SelinuxFacts { mode: SelinuxMode::Permissive, ..good.clone() },
            SelinuxFacts { mode: SelinuxMode::Disabled, ..good.clone() },
            SelinuxFacts { domain_permissive: true, ..good.clone() },
            SelinuxFacts { mcs_constrained: false, ..good.clone() },
            SelinuxFacts { missing_types: vec!["casemate_runner_t".into()], ..good.clone() },
            SelinuxFacts { problems: vec!["x".into()], ..good.clone() },
        ] {
            assert!(!bad.separates());
            assert!(!bad.shortcomings().is_empty(), "{bad:?}");
        }
    }
}
