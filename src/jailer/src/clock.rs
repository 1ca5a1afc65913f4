//! Wall-clock seconds for records, and what each step takes; never for a decision.

use std::os::fd::OwnedFd;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use casemate_plan::{Action, Plan, Role};
use casemate_wire::record::Timing;
use rustix::pipe::{PipeFlags, pipe_with};

/// Seconds since the epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// One lap per step, each from the end of the one before.
pub struct Stopwatch {
    role: &'static str,
    last: Instant,
    laps: Vec<Timing>,
}

impl Stopwatch {
    pub fn start(role: &'static str) -> Self {
        Stopwatch { role, last: Instant::now(), laps: Vec::with_capacity(48) }
    }

    /// The step that ends now.
    pub fn lap(&mut self, step: &str) {
        let micros = self.since();
        self.laps.push(Timing { role: self.role.into(), step: step.into(), micros });
    }

    /// The same moment, in a process of its own.
    pub fn split(&self, role: &'static str) -> Self {
        Stopwatch { role, last: self.last, laps: Vec::with_capacity(32) }
    }

    /// Laps of others, in their place.
    pub fn append(&mut self, laps: impl IntoIterator<Item = Timing>) {
        self.laps.extend(laps);
    }

    /// From here on as another role.
    pub fn become_role(&mut self, role: &'static str) {
        self.role = role;
    }

    pub fn laps(&self) -> Vec<Timing> {
        self.laps.clone()
    }

    fn since(&mut self) -> u32 {
        let now = Instant::now();
        let micros = now.duration_since(self.last).as_micros();
        self.last = now;
        u32::try_from(micros).unwrap_or(u32::MAX)
    }
}

/// The child's laps on their way to the warden: a pipe that holds one number per step and goes with the exec.
pub struct ChildClock {
    ours: OwnedFd,
    childs: OwnedFd,
}

impl ChildClock {
    pub fn new() -> std::io::Result<Self> {
        let (ours, childs) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(ChildClock { ours, childs })
    }

    /// In the child, last before the exec. A figure that is lost is no reason to fail.
    pub fn tell(&self, watch: &Stopwatch) {
        let bytes: Vec<u8> = watch.laps.iter().flat_map(|lap| lap.micros.to_ne_bytes()).collect();
        let _lost = rustix::io::write(&self.childs, &bytes);
    }

    /// In the warden, when the runner has spoken: the child's laps, named as in the plan.
    pub fn read(self, plan: &Plan) -> Vec<Timing> {
        let mut bytes = [0; 4 * 64];
        let read = rustix::io::read(&self.ours, &mut bytes[..]).unwrap_or(0);
        let micros = bytes[..read].chunks_exact(4).filter_map(|c| c.try_into().ok()).map(u32::from_ne_bytes);
        let steps = plan.steps_of(Role::Child).filter(|step| step.action != Action::ExecRunner);
        let timing = |(what, micros): (&str, u32)| Timing { role: "child".into(), step: what.into(), micros };
        let born = std::iter::once("from clone to its first step");
        born.chain(steps.map(|step| step.what.as_str())).zip(micros).map(timing).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lap_has_its_role_and_order() {
        let mut watch = Stopwatch::start("jailer");
        watch.lap("a");
        watch.become_role("warden");
        watch.lap("b");
        let laps = watch.laps();
        let named: Vec<_> = laps.iter().map(|lap| (lap.role.as_str(), lap.step.as_str())).collect();
        assert_eq!(named, [("jailer", "a"), ("warden", "b")]);
    }
}
