//! Whose types a sandbox uses: Casemate's own module, libvirt's `svirt_t`, or the containers' `container_kvm_t`.
//!
//! ```text
//! asked for      -> that one, and all that is in its way
//! nothing asked  -> casemate if the policy has it, else the first other family that separates and lets us in
//! ```
//! Trust: type names come from the policy's own files (`contexts`), each is shown to the kernel first, and what the
//! family allows and separates is the loaded policy's answer (`compute_av`), for this caller and this runner program.
//! Changes nothing. Called by the jailer before it plans.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::context::{CategoryPair, Context, Level, Range};
use crate::contexts::{ContextFiles, Family};
use crate::mode::{SelinuxFacts, SelinuxFs, SelinuxMode, foresee, probe_profile, problem};
use crate::profile::Profile;

const SELINUXFS: &str = "/sys/fs/selinux";

/// The families that a specification can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProfileName {
    Casemate,
    Svirt,
    Container,
}

impl ProfileName {
    /// In the order in which they are tried.
    pub const ALL: [Self; 3] = [Self::Casemate, Self::Svirt, Self::Container];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Casemate => "casemate",
            Self::Svirt => "svirt",
            Self::Container => "container",
        }
    }
}

impl fmt::Display for ProfileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The family taken, what the policy says of it, and why it was taken.
#[derive(Debug, Clone)]
pub struct Chosen {
    pub profile: Profile,
    pub facts: SelinuxFacts,
    /// One sentence.
    pub why: String,
    /// It was asked for by name: if it does not fit, no other is taken.
    pub asked: bool,
}

/// What the planner wants to know of it.
impl From<&Chosen> for casemate_plan::SelinuxFacts {
    fn from(choice: &Chosen) -> Self {
        let Chosen { profile, facts, why, asked } = choice;
        let family = casemate_plan::SelinuxFamily {
            name: profile.name.clone(),
            runner: profile.runner.clone(),
            image: profile.image.clone(),
            content: profile.content.clone(),
            own: profile.own,
            asked: *asked,
            why: why.clone(),
            misfits: facts.misfits(),
            not_separated: facts.not_separated.clone(),
        };
        let mut told = Self { family: (facts.mode != SelinuxMode::Disabled).then_some(family), ..Self::from(facts) };
        if !asked && !facts.missing_types.is_empty() {
            told.shortcomings.iter_mut().filter(|s| s.code.starts_with("module-")).for_each(|s| {
                s.text.push_str("; ");
                s.text.push_str(why);
            });
        }
        told
    }
}

/// Chooses for this caller. `runner` is the runner's program, whose label must be an entry into the family's domain.
pub fn choose(asked: Option<ProfileName>, runner: Option<BorrowedFd<'_>>) -> Chosen {
    choose_with(asked, |name| probe(name, runner))
}

/// What the policy says of one family, for the jailer's program as it is labelled.
pub fn probe(name: ProfileName, runner: Option<BorrowedFd<'_>>) -> (Profile, SelinuxFacts) {
    let files = ContextFiles::of_host();
    let family = match name {
        ProfileName::Casemate => {
            let profile = Profile::casemate();
            let mut facts = probe_profile(&profile);
            if let Some(program) = runner {
                foresee(&mut facts, &profile, program);
            }
            return (profile, facts);
        }
        ProfileName::Svirt => files.virt(),
        ProfileName::Container => files.container(),
    };
    let mut profile = Profile::of_another(name);
    if !matches!(SelinuxFs::open(Path::new(SELINUXFS)), Ok(Some(_))) {
        return (profile.clone(), probe_profile(&profile));
    }
    let family = match family {
        Ok(family) => family,
        Err(e) => {
            let mut facts = probe_profile(&profile);
            facts.problems.push(unusable(e.to_string()));
            facts.mcs_constrained = false;
            return (profile, facts);
        }
    };
    profile.take(&family);
    let mut facts = probe_profile(&profile);
    if let Err(e) = examine(&mut profile, &family, runner, &mut facts) {
        facts.problems.push(unusable(format!("cannot ask the policy about profile {name}: {e}")));
    }
    if let Some(program) = runner {
        foresee(&mut facts, &profile, program);
    }
    (profile, facts)
}

fn unusable(text: String) -> casemate_plan::Shortcoming {
    problem("family", text, "`casemate policy install`, and leave --selinux-profile out")
}

/// The rule above, apart from where the facts come from.
fn choose_with(asked: Option<ProfileName>, probe: impl Fn(ProfileName) -> (Profile, SelinuxFacts)) -> Chosen {
    if let Some(name) = asked {
        let (profile, facts) = probe(name);
        return Chosen { profile, facts, why: "it was asked for".into(), asked: true };
    }
    let (profile, facts) = probe(ProfileName::Casemate);
    if facts.mode == SelinuxMode::Disabled {
        return Chosen { profile, facts, why: "SELinux is off".into(), asked: false };
    }
    if facts.missing_types.is_empty() {
        return Chosen { profile, facts, why: "the loaded policy has Casemate's own types".into(), asked: false };
    }
    let mut against = Vec::new();
    for name in [ProfileName::Svirt, ProfileName::Container] {
        let (other, found) = probe(name);
        if found.fits() {
            let mut why = format!("the loaded policy lacks {}; {} is there", facts.missing_types[0], other.runner);
            why.push_str(if against.is_empty() { ", separates and can be entered" } else { " and fits; " });
            why.push_str(&against.join("; "));
            return Chosen { profile: other, facts: found, why, asked: false };
        }
        against.push(format!("{name} does not fit: {}", found.misfits().join(", ")));
    }
    Chosen { profile, facts, why: format!("no other family fits: {}", against.join("; ")), asked: false }
}

/// Validates what the files name, then asks what the start will need and what the family leaves open.
fn examine(
    profile: &mut Profile,
    family: &Family,
    runner: Option<BorrowedFd<'_>>,
    facts: &mut SelinuxFacts,
) -> io::Result<()> {
    let Some(fs) = SelinuxFs::open(Path::new(SELINUXFS))? else { return Ok(()) };
    for context in family.named.iter().filter(|context| !fs.is_valid(context)) {
        facts.problems.push(unusable(format!("the policy's own files name {context}, which the kernel refuses")));
    }
    facts.assumed.extend(family.assumed.clone());
    let Some(own) = facts.own.clone().filter(|_| facts.missing_types.is_empty() && facts.problems.is_empty()) else {
        return Ok(());
    };
    let pair = |a, b| CategoryPair::try_from((a, b)).expect("two categories");
    let (label, other) = (profile.runner_label(&own, pair(1, 2)), profile.runner_label(&own, pair(3, 4)));
    let holds = |subject: &Context, object: &Context, class: &str, perm: &str| -> io::Result<bool> {
        Ok(fs.access(subject, object, class)?.allowed & fs.permission(class, perm)? != 0)
    };
    for need in needs(profile, &own, &label, runner)? {
        let mut missing = Vec::new();
        for perm in need.perms {
            if !holds(&need.subject, &need.object, need.class, perm)? {
                missing.push(*perm);
            }
        }
        if !missing.is_empty() {
            facts.missing_rules.push(need.rule(&missing));
        }
    }
    for (what, object, class, perm) in between(profile, &other) {
        // a class or permission that this policy does not have separates nothing and reaches nothing
        if holds(&label, &object, class, perm).unwrap_or(false) {
            facts.not_separated.push(format!("{what}: {class} {perm}"));
        }
    }
    let store = profile.object(&Profile::casemate().content, Range::single(Level::S0));
    if fs.is_valid(&store) && holds(&label, &store, "file", "read")? && !holds(&label, &store, "file", "write")? {
        profile.content_also.push(Profile::casemate().content);
    }
    Ok(())
}

/// One thing that the start does and the policy must allow.
struct Need {
    subject: Context,
    object: Context,
    class: &'static str,
    perms: &'static [&'static str],
}

impl Need {
    /// As it would stand in a module, so that it can be pasted into one.
    fn rule(&self, perms: &[&str]) -> String {
        let (subject, object) = (self.subject.type_(), self.object.type_());
        let object = if subject == object { "self" } else { object };
        format!("(allow {subject} {object} ({} ({})))", self.class, perms.join(" "))
    }
}

fn needs(profile: &Profile, own: &Context, label: &Context, runner: Option<BorrowedFd<'_>>) -> io::Result<Vec<Need>> {
    let pair = CategoryPair::try_from((1, 2)).expect("two categories");
    let image = profile.object(&profile.image, Range::single(pair.level()));
    let content = profile.object(&profile.content, Range::single(Level::S0));
    let mut all = Vec::new();
    let mut need = |subject: &Context, object: &Context, class, perms| {
        all.push(Need { subject: subject.clone(), object: object.clone(), class, perms });
    };
    need(own, own, "process", &["setexec", "setsockcreate", "setfscreate"]);
    need(own, label, "process", &["transition", "getattr", "sigkill"]);
    need(label, own, "fd", &["use"]);
    need(own, label, "unix_stream_socket", &["create", "bind", "listen", "read", "write"]);
    need(label, label, "unix_stream_socket", &["create", "read", "write", "accept"]);
    need(label, label, "process", &["fork", "signal", "getcap"]);
    need(own, &image, "file", &["create", "relabelfrom", "relabelto"]);
    need(own, &content, "file", &["relabelto", "relabelfrom"]);
    if let Some(program) = runner.map(label_of).transpose()?.flatten() {
        need(own, &program, "file", &["read", "execute"]);
        need(label, &program, "file", &["entrypoint", "execute", "read", "map"]);
    }
    if let Ok(kvm) = open("/dev/kvm")
        && let Some(kvm) = label_of(kvm.as_fd())?
    {
        need(label, &kvm, "chr_file", &["read", "write", "getattr", "ioctl"]);
    }
    // the sealed plan: a memfd has the label that its maker's domain gives to tmpfs files
    let memfd = rustix::fs::memfd_create("casemate-label", rustix::fs::MemfdFlags::CLOEXEC)?;
    if let Some(plan) = label_of(memfd.as_fd())? {
        need(label, &plan, "file", &["read", "getattr"]);
    }
    Ok(all)
}

/// What a runner could try on another one of its family, beside what must be refused anyway (`mode`).
fn between(profile: &Profile, other: &Context) -> Vec<(&'static str, Context, &'static str, &'static str)> {
    let pair = CategoryPair::try_from((3, 4)).expect("two categories");
    let image = profile.object(&profile.image, Range::single(pair.level()));
    let process = [
        ("fd", "use"),
        ("unix_stream_socket", "write"),
        ("unix_dgram_socket", "sendto"),
        ("fifo_file", "write"),
        ("file", "read"),
        ("key", "read"),
        ("shm", "read"),
        ("sem", "read"),
        ("msgq", "read"),
        ("process", "getattr"),
        ("process", "signull"),
    ];
    let object = [
        ("file", "getattr"),
        ("file", "open"),
        ("dir", "read"),
        ("fifo_file", "write"),
        ("sock_file", "write"),
        ("chr_file", "write"),
    ];
    let of = |what, target: &Context, list: &[(&'static str, &'static str)]| {
        list.iter().map(|(class, perm)| (what, target.clone(), *class, *perm)).collect::<Vec<_>>()
    };
    [of("another's runner", other, &process), of("another's object", &image, &object)].concat()
}

/// The label of an open object; none where its file system keeps none.
fn label_of(fd: BorrowedFd<'_>) -> io::Result<Option<Context>> {
    let mut buffer = [0u8; 4096];
    match rustix::fs::fgetxattr(fd, "security.selinux", &mut buffer[..]) {
        Ok(n) => Context::from_bytes(&buffer[..n]).map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e)),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn open(path: &str) -> io::Result<std::fs::File> {
    std::fs::File::open(path)
}

#[cfg(test)]
#[path = "families_tests.rs"]
mod tests;
