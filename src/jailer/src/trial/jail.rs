//! One probe in a runner's jail, or in a part of it.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use casemate_confine::cgroup::Cgroup;
use casemate_confine::trial::{self, Attempt, MAX_REPORT, Narrowing, Outcome, Report, Trial};
use casemate_confine::{capabilities, landlock, mounts, namespaces, rlimits, uid};
use casemate_label::{Context, VerifiedProc};
use casemate_plan::{Layer, Namespace, Rlimit};
use casemate_sys::exec::{FIRST_FD, Image, replace_process};
use casemate_sys::process::{Child, CloneOptions, Cloned, clone3, exit_now, wait_readable};
use casemate_sys::procfs::Proc;
use casemate_sys::{fds, memfd, seqpacket, signal};

use crate::child::{null_device, program};
use crate::error::StepFailed;

const STEP: &str = "try from inside a jail";
/// All attempts of one probe together.
const PATIENCE: Duration = Duration::from_secs(60);
const ALL: [Namespace; 6] =
    [Namespace::Mount, Namespace::Pid, Namespace::Net, Namespace::Ipc, Namespace::Uts, Namespace::Cgroup];
/// The number of the first descriptor that a caller of [`Jail::try_all`] hands in.
pub const FIRST_GIVEN: i32 = FIRST_FD + 2;
/// The filter that the attempts meet: the io thread's, which handles what the guest sends.
const THREAD: &str = "io";

/// Every layer that a probe can be put under; the fds layer is the exec itself.
pub const EVERY: &[Layer] = &[
    Layer::Namespaces,
    Layer::Mounts,
    Layer::Selinux,
    Layer::Landlock,
    Layer::Seccomp,
    Layer::Uid,
    Layer::Capabilities,
    Layer::Cgroup,
    Layer::Rlimits,
];

/// Whose confinement is taken.
pub struct Jail<'a> {
    pub uid: u32,
    /// `None` where the host has no SELinux.
    pub label: Option<Context>,
    pub landlock_abi: u32,
    pub cgroup: Option<&'a Cgroup>,
    pub rlimits: Vec<Rlimit>,
}

impl Jail<'_> {
    /// Makes every attempt under these layers; one outcome each. `given` appear from [`FIRST_GIVEN`] on.
    pub fn try_all(
        &self,
        layers: &[Layer],
        attempts: &[Attempt],
        given: &[&OwnedFd],
    ) -> Result<Vec<Outcome>, StepFailed> {
        self.try_with_post(layers, attempts, given, 0)
    }

    /// The same, where `post` is the number of the given socket on which objects are handed over.
    pub fn try_with_post(
        &self,
        layers: &[Layer],
        attempts: &[Attempt],
        given: &[&OwnedFd],
        post: i32,
    ) -> Result<Vec<Outcome>, StepFailed> {
        let trial = Trial { narrowing: self.narrowing(layers), attempts: attempts.to_vec(), post, hold: None };
        let (child, socket) = self.spawn(layers, &trial, given)?;
        collect(&child, &socket, attempts.len())
    }

    fn narrowing(&self, layers: &[Layer]) -> Narrowing {
        Narrowing {
            no_new_privs: has(layers, Layer::Capabilities),
            // The runner denies everything a second time; alone, the first ruleset has to hold.
            landlock_abi: if layers == EVERY { self.landlock_abi } else { 0 },
            coarse: has(layers, Layer::Seccomp),
            thread: has(layers, Layer::Seccomp).then(|| THREAD.into()),
        }
    }

    /// Starts the probe. Returns it, and our end of its socket.
    pub fn spawn(&self, layers: &[Layer], trial: &Trial, given: &[&OwnedFd]) -> Result<(Child, OwnedFd), StepFailed> {
        let failed = |e: &dyn std::error::Error| StepFailed::because(STEP, crate::error::sentence(e));
        let trial = trial::encode(trial);
        let (ours, theirs) = self.sockets(layers)?;
        let mut table = vec![memfd::sealed("trial", &trial).map_err(|e| failed(&e))?, theirs];
        for fd in given {
            table.push(fd.try_clone().map_err(|e| failed(&e))?);
        }
        let image = Image {
            program: program("casemate-probe")?,
            argv: vec![CString::from(c"casemate-probe")],
            env: Vec::new(),
            fds: table,
        };
        let null = null_device()?;
        let options = CloneOptions {
            namespaces: namespaces::flags(wanted_namespaces(layers)),
            cgroup: self.cgroup.filter(|_| has(layers, Layer::Cgroup)).and_then(Cgroup::birthplace),
        };
        match clone3(&options).map_err(|e| failed(&e))? {
            Cloned::Child => {
                drop(ours);
                self.become_probe(layers, image, &null)
            }
            Cloned::Parent(child) => Ok((child, ours)),
        }
    }

    fn sockets(&self, layers: &[Layer]) -> Result<(OwnedFd, OwnedFd), StepFailed> {
        let failed = |e: &dyn std::error::Error| StepFailed::because(STEP, crate::error::sentence(e));
        let Some(label) = self.label.as_ref().filter(|_| has(layers, Layer::Selinux)) else {
            return seqpacket::pair().map_err(|e| failed(&e));
        };
        let proc = VerifiedProc::open_host().map_err(|e| failed(&e))?;
        proc.set_socket_label(Some(label)).map_err(|e| failed(&e))?;
        let pair = seqpacket::pair();
        proc.set_socket_label(None).map_err(|e| failed(&e))?;
        pair.map_err(|e| failed(&e))
    }

    /// The child's steps, those of the chosen layers, in the order of the plan. A failure is reported as the outcome of
    /// no attempt, so that the parent sees why there are no others.
    fn become_probe(&self, layers: &[Layer], image: Image, null: &[OwnedFd; 2]) -> ! {
        // After a failed exec only the table is open, at new numbers.
        let (why, table) = match self.confine(layers, &image, null) {
            Ok(()) => {
                let failed = replace_process(image);
                (failed.error.report(), failed.fds)
            }
            Err(failed) => (failed.to_string(), image.fds),
        };
        if let Some(socket) = table.get(1) {
            let report = Report { index: u32::MAX, outcome: Outcome::Unclear { why } };
            let _told = seqpacket::send(socket, &trial::encode(&report), &[]);
        }
        exit_now(1)
    }

    fn confine(&self, layers: &[Layer], image: &Image, null: &[OwnedFd; 2]) -> Result<(), StepFailed> {
        let confined = |e: casemate_confine::Error| StepFailed::because(STEP, crate::error::sentence(&e));
        let failed = |e: casemate_sys::Error| StepFailed::stage(STEP, e);
        if let Some(cgroup) = self.cgroup.filter(|_| has(layers, Layer::Cgroup)) {
            let proc = Proc::host().map_err(failed)?;
            cgroup.join(&proc).map(drop).map_err(confined)?;
        }
        if has(layers, Layer::Mounts) {
            mounts::apply().map(drop).map_err(confined)?;
        }
        if has(layers, Layer::Rlimits) {
            rlimits::apply(&self.rlimits).map(drop).map_err(confined)?;
        }
        if let Some(label) = self.label.as_ref().filter(|_| has(layers, Layer::Selinux)) {
            let proc = VerifiedProc::mount_private();
            proc.and_then(|p| p.set_exec_label(label)).map_err(|e| StepFailed::stage(STEP, e))?;
        }
        if has(layers, Layer::Landlock) {
            landlock::apply(self.landlock_abi, image.program.as_fd()).map(drop).map_err(confined)?;
        }
        if has(layers, Layer::Capabilities) {
            capabilities::drop_bounding().map_err(confined)?;
        }
        if has(layers, Layer::Uid) {
            uid::drop_groups().map_err(confined)?;
            uid::set_gid(self.uid).map_err(confined)?;
            uid::set_uid(self.uid, self.uid).map(drop).map_err(confined)?;
        }
        if has(layers, Layer::Capabilities) {
            capabilities::drop_all().map(drop).map_err(confined)?;
        }
        for (number, null) in [(0, &null[0]), (1, &null[1]), (2, &null[1])] {
            fds::redirect_stdio(null, number).map_err(failed)?;
        }
        signal::reset_for_exec().map_err(failed)
    }
}

fn has(layers: &[Layer], layer: Layer) -> bool {
    layers.contains(&layer)
}

/// The empty root needs a mount namespace, whatever else is left out.
fn wanted_namespaces(layers: &[Layer]) -> &'static [Namespace] {
    match (has(layers, Layer::Namespaces), has(layers, Layer::Mounts)) {
        (true, _) => &ALL,
        (false, true) => &ALL[..1],
        (false, false) => &[],
    }
}

/// Reads reports until the probe has ended, then reaps it.
fn collect(child: &Child, socket: &OwnedFd, count: usize) -> Result<Vec<Outcome>, StepFailed> {
    let none = Outcome::Unclear { why: "the probe said nothing of it".into() };
    let mut outcomes = vec![none; count];
    let result = receive(socket, &mut outcomes);
    let _ended = child.kill();
    child.wait().map_err(|e| StepFailed::stage(STEP, e))?;
    result.map(|()| outcomes)
}

fn receive(socket: &OwnedFd, outcomes: &mut [Outcome]) -> Result<(), StepFailed> {
    let until = Instant::now() + PATIENCE;
    let mut buffer = [0; MAX_REPORT];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if !wait_readable(socket.as_fd(), Some(left)).map_err(|e| StepFailed::stage(STEP, e))? {
            return Err(StepFailed::because(STEP, "the probe did not end in time"));
        }
        let length = match rustix::net::recv(socket, &mut buffer[..], rustix::net::RecvFlags::empty()) {
            Ok((_, 0)) => return Ok(()),
            Ok((length, _)) => length,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(StepFailed::stage(STEP, std::io::Error::from(error))),
        };
        let Some(report) = trial::decode::<Report>(&buffer[..length]) else { continue };
        if report.index == u32::MAX {
            let Outcome::Unclear { why } = report.outcome else { continue };
            return Err(StepFailed::because("confine the probe", why));
        }
        if let Some(slot) = outcomes.get_mut(report.index as usize) {
            *slot = report.outcome;
        }
    }
}
