//! `selftest`: each layer alone, in a real jail on this host, with a positive and a negative control. A layer that did
//! not deny what it must is never reported as present.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use casemate_confine::cgroup::{self, Cgroup};
use casemate_confine::controls::Ground;
use casemate_confine::trial::{Attempt, Outcome};
use casemate_label::{
    CategoryPair, CategorySet, InUse, LabelClass, Lease, Ledger, Owner, Profile, Sources, UidRange, VerifiedProc,
};
use casemate_plan::{CgroupFacts, CgroupPlan, HostConfig, HostFacts, Layer, Rlimit, SelinuxMode};
use casemate_sys::path::{self, OFlags};
use casemate_sys::process::errno::EACCES;

use super::jail::{FIRST_GIVEN, Jail};
use super::outside::Outside;
use super::proof::{Absent, Selftest, Tested, finish, plain};
use super::scratch::{self, Scratch};
use super::{Part, word};
use crate::error::StepFailed;
use crate::facts::{self, Gathered};
use crate::store::RunDir;

const STEP: &str = "test the layers";
const OWN: i32 = FIRST_GIVEN;
const FOREIGN: i32 = FIRST_GIVEN + 1;
/// The least number of the descriptor that the jailer leaves open.
const LEAKED: i32 = 200;

/// A control of the SELinux layer, whose objects need labels; the other layers' come from `confine`.
type Case = (&'static str, Attempt, Want);

/// What a case wants to see.
#[derive(Clone, Copy)]
enum Want {
    Allowed,
    Denied,
    /// The descriptor must be gone.
    Gone,
}

/// Layers whose controls `confine` knows.
const PLAIN: [Layer; 8] = [
    Layer::Landlock,
    Layer::Seccomp,
    Layer::Uid,
    Layer::Capabilities,
    Layer::Namespaces,
    Layer::Mounts,
    Layer::Rlimits,
    Layer::Cgroup,
];
/// More than the test's limits grant.
const TOO_MANY_TASKS: u32 = 40;
const TOO_MUCH_MEMORY: u64 = 160 << 20;
const TOO_MANY_DESCRIPTORS: u32 = 100;

/// Tests every layer that the host has.
pub fn selftest(config: &HostConfig, part: Part) -> Result<Selftest, StepFailed> {
    let Gathered { host: facts, choice } = facts::gather(None)?;
    let mut bench = Bench::set_up(config, &facts, choice.profile)?;
    let mut report = Selftest::default();
    let result = bench.run(&facts, config, part, &mut report);
    let cleaned = bench.clean_up();
    result.and(cleaned)?;
    finish(&mut report);
    Ok(report)
}

/// Leases, and two scratch images: the jail's own, and another's.
struct Bench {
    ledger: Ledger,
    owner: Owner,
    leases: Vec<Lease>,
    uid: u32,
    pair: Option<CategoryPair>,
    profile: Profile,
    scratch: Scratch,
}

impl Bench {
    fn set_up(config: &HostConfig, facts: &HostFacts, profile: Profile) -> Result<Self, StepFailed> {
        let _run = RunDir::open(&config.run_dir, true)?;
        let ledger = Ledger::open(&config.run_dir).map_err(|e| StepFailed::stage(STEP, e))?;
        let owner = Owner::of_self("<selftest>").map_err(|e| StepFailed::stage(STEP, e))?;
        let range = UidRange { first: config.uid_first, count: config.uid_last - config.uid_first + 1 };
        let (uid, lease) = ledger.lease_uid(&owner, range).map_err(|e| StepFailed::stage(STEP, e))?;
        scratch::clear_stale(&config.run_dir, Some(&cgroup_plan(facts, config)))?;
        let scratch = Scratch::make(&config.run_dir, "selftest")?;
        let mut bench = Bench { ledger, owner, leases: vec![lease], uid, pair: None, profile, scratch };
        if facts.selinux.mode != SelinuxMode::Disabled && facts.selinux.module {
            bench.pair = Some(bench.lease_pair()?);
        }
        Ok(bench)
    }

    fn lease_pair(&mut self) -> Result<CategoryPair, StepFailed> {
        let leased = self.ledger.lease_pair(&self.owner, &CategorySet::ALL, &InUse::survey(&Sources::host()));
        let (pair, lease) = leased.map_err(|e| StepFailed::stage(STEP, e))?;
        self.leases.push(lease);
        Ok(pair)
    }

    fn clean_up(self) -> Result<(), StepFailed> {
        for lease in &self.leases {
            self.ledger.release(&lease.key, &self.owner).map_err(|e| StepFailed::stage(STEP, e))?;
        }
        Ok(())
    }

    /// A scratch image, labelled for a pair where the host has SELinux.
    fn image(&self, name: &str, pair: Option<CategoryPair>) -> Result<OwnedFd, StepFailed> {
        let failed = |e: &dyn std::error::Error| StepFailed::because(STEP, crate::error::sentence(e));
        let path = self.scratch.dir.join(name);
        let label = pair.map(|pair| LabelClass::Exclusive.target(&self.profile, pair));
        let proc = label.as_ref().map(|_| VerifiedProc::open_host()).transpose().map_err(|e| failed(&e))?;
        if let Some(proc) = &proc {
            proc.set_create_label(label.as_ref()).map_err(|e| failed(&e))?;
        }
        let written = std::fs::write(&path, b"scratch");
        if let Some(proc) = &proc {
            proc.set_create_label(None).map_err(|e| failed(&e))?;
        }
        written.map_err(|e| failed(&e))?;
        path::open_no_symlinks(&path, OFlags::RDWR).map_err(|e| failed(&e))
    }

    fn jail(&self, facts: &HostFacts) -> Result<Jail<'_>, StepFailed> {
        let label = match self.pair {
            None => None,
            Some(pair) => {
                let own = VerifiedProc::open_host().and_then(|p| p.own_label());
                let own = own.map_err(|e| StepFailed::stage(STEP, e))?;
                Some(self.profile.runner_label(&own, pair))
            }
        };
        Ok(Jail { uid: self.uid, label, landlock_abi: facts.landlock_abi, cgroup: None, rlimits: Vec::new() })
    }

    fn run(
        &mut self,
        facts: &HostFacts,
        config: &HostConfig,
        part: Part,
        report: &mut Selftest,
    ) -> Result<(), StepFailed> {
        let place = (part != Part::Selinux).then(|| self.scratch.place(facts.landlock_abi)).transpose()?;
        let own = self.image("own.img", self.pair)?;
        let jail = self.jail(facts)?;
        if part != Part::Others {
            self.selinux(&jail, facts, &own, report)?;
        }
        if part == Part::Selinux {
            return Ok(());
        }
        let outside = Outside::listen();
        let ground = Ground {
            own_disk: OWN,
            landlock_abi: facts.landlock_abi,
            place,
            too_many_processes: Some(TOO_MANY_TASKS),
            too_much_memory: Some(TOO_MUCH_MEMORY),
            too_many_descriptors: Some(TOO_MANY_DESCRIPTORS),
            ..outside.ground()
        };
        for layer in PLAIN {
            match lacking(layer, facts) {
                Some(why) => absent(report, layer, why),
                None => self.plain(layer, &ground, (facts, config), &own, report)?,
            }
        }
        self.leak(&jail, &own, report)
    }

    /// One layer alone: its negative controls, and that what was inherited still works.
    fn plain(
        &self,
        layer: Layer,
        ground: &Ground,
        (facts, config): (&HostFacts, &HostConfig),
        own: &OwnedFd,
        report: &mut Selftest,
    ) -> Result<(), StepFailed> {
        let made = (layer == Layer::Cgroup).then(|| Cgroup::create(&cgroup_plan(facts, config), &self.scratch.id));
        let made = made.transpose().map_err(|e| StepFailed::stage(STEP, e))?;
        let nofile = Rlimit { name: "nofile".into(), value: 64 };
        let jail = Jail { cgroup: made.as_ref(), rlimits: vec![nofile], ..self.jail(facts)? };
        plain(layer, &jail, ground, own, report);
        match &made {
            Some(made) => cgroup::remove(&made.paths(), Duration::from_secs(5)).map_err(|e| StepFailed::stage(STEP, e)),
            None => Ok(()),
        }
    }

    /// The fds layer is the exec: what was not placed in the table is not there.
    fn leak(&self, jail: &Jail<'_>, own: &OwnedFd, report: &mut Selftest) -> Result<(), StepFailed> {
        let opened = std::fs::File::open(self.scratch.dir.join("own.img")).map_err(|e| StepFailed::stage(STEP, e))?;
        // Far from the numbers of the table, and without close-on-exec: a program that is just executed has it.
        let leaked = rustix::io::fcntl_dupfd_cloexec(&opened, LEAKED)
            .and_then(|fd| rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).map(|()| fd))
            .map_err(|e| StepFailed::stage(STEP, std::io::Error::from(e)))?;
        let number = std::os::fd::AsRawFd::as_raw_fd(&leaked);
        let cases: &[Case] = &[
            ("read a descriptor that is open in the jailer", Attempt::ReadFd { number }, Want::Gone),
            ("read the one that was passed", Attempt::ReadFd { number: OWN }, Want::Allowed),
        ];
        judge(report, Layer::Fds, cases, jail, &[], &[own])
    }

    fn selinux(
        &self,
        jail: &Jail<'_>,
        facts: &HostFacts,
        own: &OwnedFd,
        report: &mut Selftest,
    ) -> Result<(), StepFailed> {
        let enforcing = facts.selinux.mode == SelinuxMode::Enforcing;
        let (Some(_), true) = (self.pair, enforcing) else {
            absent(report, Layer::Selinux, "no enforcing SELinux whose policy knows casemate_runner_t");
            return Ok(());
        };
        // A pair that shares no category with ours, as another sandbox has.
        let other = self.other_pair()?;
        let foreign = self.image("foreign.img", Some(other))?;
        let cases: &[Case] = &[
            ("open its own image by path", open(&self.scratch.dir.join("own.img")), Want::Denied),
            ("use another pair's image, passed to it open", Attempt::ReadFd { number: FOREIGN }, Want::Gone),
            ("read /etc/shadow as root", open(Path::new("/etc/shadow")), Want::Denied),
            ("mount as root", call("mount"), Want::Denied),
            ("read its own image, passed to it open", Attempt::ReadFd { number: OWN }, Want::Allowed),
            ("write to it", Attempt::WriteFd { number: OWN }, Want::Allowed),
        ];
        judge(report, Layer::Selinux, cases, jail, &[Layer::Selinux], &[own, &foreign])
    }

    fn other_pair(&self) -> Result<CategoryPair, StepFailed> {
        let mut ours = self.pair.map_or([0, 0], |p| [p.low().number(), p.high().number()]);
        ours.sort_unstable();
        let mut free = (0..1024u16).filter(|c| !ours.contains(c));
        let two = free.next().zip(free.next()).ok_or_else(|| StepFailed::because(STEP, "no other pair"))?;
        CategoryPair::try_from(two).map_err(|e| StepFailed::stage(STEP, e))
    }
}

/// What the test's cgroup allows.
fn cgroup_plan(facts: &HostFacts, config: &HostConfig) -> CgroupPlan {
    CgroupPlan {
        layout: facts.cgroup.clone(),
        parent: config.cgroup_parent.clone(),
        cpu_percent: None,
        memory: 64 << 20,
        pids: 16,
        hugetlb: Vec::new(),
    }
}

fn open(path: &Path) -> Attempt {
    Attempt::Open { path: path.display().to_string(), write: false }
}

fn call(name: &str) -> Attempt {
    Attempt::Call { name: name.into() }
}

/// Why a layer cannot be tested on this host.
fn lacking(layer: Layer, facts: &HostFacts) -> Option<&'static str> {
    match layer {
        Layer::Landlock if facts.landlock_abi == 0 => Some("the kernel has none, or lsm= leaves it out"),
        Layer::Seccomp if !facts.seccomp => Some("the kernel takes no filter"),
        Layer::Cgroup if matches!(facts.cgroup, CgroupFacts::None) => Some("no cgroup hierarchy is mounted"),
        _ => None,
    }
}

fn absent(report: &mut Selftest, layer: Layer, why: &str) {
    report.absent.push(Absent { layer: layer.to_string(), why: why.into() });
}

fn judge(
    report: &mut Selftest,
    layer: Layer,
    cases: &[Case],
    jail: &Jail<'_>,
    layers: &[Layer],
    given: &[&OwnedFd],
) -> Result<(), StepFailed> {
    let attempts: Vec<Attempt> = cases.iter().map(|(_, attempt, _)| attempt.clone()).collect();
    let outcomes = jail.try_all(layers, &attempts, given)?;
    for ((attempt, _, want), outcome) in cases.iter().zip(outcomes) {
        report.controls.push(Tested {
            layer: layer.to_string(),
            control: if matches!(want, Want::Allowed) { "positive" } else { "negative" },
            attempt: (*attempt).to_owned(),
            outcome: shown(*want, &outcome),
            ok: holds(*want, &outcome),
        });
    }
    Ok(())
}

fn holds(want: Want, outcome: &Outcome) -> bool {
    match want {
        Want::Allowed => *outcome == Outcome::Allowed,
        Want::Denied => outcome.is_denied(),
        Want::Gone => {
            matches!(outcome, Outcome::Unclear { why } if why.contains("not inherited"))
                || *outcome == Outcome::Denied { errno: EACCES }
        }
    }
}

fn shown(want: Want, outcome: &Outcome) -> String {
    match (want, outcome) {
        (Want::Gone, Outcome::Unclear { why }) if why.contains("not inherited") => "not there".into(),
        _ => word(outcome),
    }
}
