//! Is the policy still what the sandbox was started under? The warden's side of `label::watch`.
//!
//! ```text
//! Quiet --message--> Due(at) --at--> asks the policy about this VM's own label --> Verdict --> Quiet
//! ```
//! A storm of messages costs one round of questions in [`GAP`]; the first is answered at once. What is asked and the
//! status page must agree before and after, or it is asked again: a policy that is being replaced has no answer.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use casemate_label::selinuxfs::SelinuxFs;
use casemate_label::watch::{KernelStatus, PolicyWatch};
use casemate_label::{Context, Profile, VerifiedProc, mode};

use crate::error::StepFailed;

const STAGE: &str = "watch the policy";
/// Between two rounds of questions.
const GAP: Duration = Duration::from_millis(250);
/// Rounds until the answers of one policy are had.
const ROUNDS: usize = 5;

/// What the policy says of one running sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub separates: bool,
    pub why: Vec<String>,
    /// Loads of a policy and changes of booleans since boot.
    pub seqno: u32,
}

pub struct PolicyGuard {
    watch: PolicyWatch,
    ask: Box<dyn Fn() -> Vec<String>>,
    /// The page as it was when the policy was last asked.
    seen: Option<KernelStatus>,
    asked_at: Option<Instant>,
    due: Option<Instant>,
}

impl PolicyGuard {
    /// Opens all that is needed, for a warden that may open nothing of the kind later. `None` where SELinux is off.
    pub fn open(profile: &Profile, runner: &Context) -> Result<Option<Self>, StepFailed> {
        let failed = |e: &dyn std::error::Error| StepFailed::because(STAGE, crate::error::sentence(e));
        let Some(fs) = SelinuxFs::here().map_err(|e| failed(&e))? else { return Ok(None) };
        let watch = PolicyWatch::open(&fs).map_err(|e| failed(&e))?;
        let own = VerifiedProc::open_host().and_then(|proc| proc.own_label()).map_err(|e| failed(&e))?;
        let (profile, runner) = (profile.clone(), runner.clone());
        let ask = Box::new(move || mode::verify(&fs, &profile, &own, &runner).shortcomings());
        Ok(Some(Self { watch, ask, seen: None, asked_at: None, due: None }))
    }

    /// Readable when there may be news.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_fd()
    }

    /// When [`PolicyGuard::verdict`] wants to be called, messages or not.
    pub fn deadline(&self) -> Option<Instant> {
        let tick = self.watch.interval().zip(self.asked_at).map(|(every, at)| at + every);
        [self.due, tick].into_iter().flatten().min()
    }

    /// Takes the messages; what they are about is asked when it is due.
    pub fn hear(&mut self) {
        self.watch.drain();
        let now = Instant::now();
        let soonest = self.asked_at.map_or(now, |at| (at + GAP).max(now));
        self.due.get_or_insert(soonest);
    }

    /// Asks if it is time to; `None` if not, or if nothing has changed.
    pub fn verdict(&mut self) -> Option<Verdict> {
        let now = Instant::now();
        if self.deadline().is_none_or(|at| at > now) {
            return None;
        }
        if self.due.is_none() && self.seen.is_some() && self.watch.status().ok() == self.seen {
            self.asked_at = Some(now);
            return None;
        }
        Some(self.ask())
    }

    /// Asks now. A policy that does not come to rest, or cannot be asked, does not separate.
    pub fn ask(&mut self) -> Verdict {
        self.due = None;
        let mut why = vec!["the policy changes faster than it can be asked".to_owned()];
        for _ in 0..ROUNDS {
            let before = self.watch.status().ok();
            let found = (self.ask)();
            let after = self.watch.status().ok();
            if before.is_some() && before == after {
                (why, self.seen) = (found, after);
                break;
            }
            self.seen = None;
        }
        let now = Instant::now();
        self.asked_at = Some(now);
        if self.seen.is_none() {
            self.due = Some(now + GAP);
        }
        let seqno = self.watch.status().map_or(0, |status| status.policyload);
        Verdict { separates: why.is_empty(), why, seqno }
    }
}
