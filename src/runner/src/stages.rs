//! What each stage of the start takes, for the record: told once, at the end, when nobody waits any more.

use std::time::Instant;

use casemate_wire::record::Timing;

/// One lap per stage, each from the end of the one before.
pub struct Stages {
    last: Instant,
    laps: Vec<Timing>,
}

impl Stages {
    pub fn start() -> Self {
        Self { last: Instant::now(), laps: Vec::with_capacity(16) }
    }

    /// The stage that ends now.
    pub fn lap(&mut self, step: &str) {
        let now = Instant::now();
        let micros = u32::try_from(now.duration_since(self.last).as_micros()).unwrap_or(u32::MAX);
        self.last = now;
        self.laps.push(Timing { role: "runner".into(), step: step.into(), micros });
    }

    pub fn laps(&mut self) -> Vec<Timing> {
        std::mem::take(&mut self.laps)
    }
}
