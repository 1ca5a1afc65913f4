//! What an audit answers: subjects, findings, who is kept from whom by what. A file per form of output.

pub mod html;
pub mod junit;
pub mod sarif;

use std::collections::BTreeMap;

pub use casemate_visible as visible;
use serde::{Deserialize, Serialize};

use crate::rule::{Finding, Severity, Verdict};
use crate::subject::{Kind, Subject};

pub const VERSION: u32 = 1;

/// The whole answer; every form of output is made from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub version: u32,
    /// Seconds since the epoch.
    pub time: u64,
    pub host: String,
    /// Name of the profile.
    pub profile: String,
    pub subjects: Vec<Subject>,
    /// Of every rule that was asked, passed ones too.
    pub findings: Vec<Finding>,
    /// Rules that the profile switches off: said in every form of output.
    pub waived: Vec<Waived>,
    /// Without VMs unless several were looked at.
    pub matrix: Matrix,
}

/// A rule that was not asked, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waived {
    pub rule: String,
    pub reason: String,
}

/// What keeps each VM from each other, layer by layer. Pairs that have the same answer share it: of 200 VMs on one host
/// nearly all 39,800 do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Matrix {
    /// Names of the VMs; pairs count in it.
    pub vms: Vec<String>,
    /// The answers that there are.
    pub cells: Vec<Cell>,
    /// Which of them holds for every pair that `pairs` does not name.
    pub common: usize,
    /// In order of (`from`, `to`).
    pub pairs: Vec<Pair>,
}

/// One answer for a pair: layer to whether it alone keeps the one from the other, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cell {
    pub layers: BTreeMap<String, (Verdict, String)>,
}

/// A pair whose answer is not the common one: who acts, who is acted on (in `vms`), and the answer (in `cells`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    pub from: usize,
    pub to: usize,
    pub cell: usize,
}

impl Matrix {
    /// What keeps VM `from` from VM `to`; `None` for one and the same, and for numbers that are none of its VMs.
    pub fn cell(&self, from: usize, to: usize) -> Option<&Cell> {
        if from == to || from >= self.vms.len() || to >= self.vms.len() {
            return None;
        }
        let own = self.pairs.binary_search_by_key(&(from, to), |pair| (pair.from, pair.to)).ok();
        self.cells.get(own.and_then(|at| self.pairs.get(at)).map_or(self.common, |pair| pair.cell))
    }
}

impl Report {
    pub fn count(&self, verdict: Verdict) -> usize {
        self.findings.iter().filter(|finding| finding.check.verdict == verdict).count()
    }

    /// The worst of what failed.
    pub fn worst(&self) -> Option<Severity> {
        let failed = self.findings.iter().filter(|finding| finding.check.verdict == Verdict::Fail);
        failed.map(|finding| finding.severity).max()
    }

    /// 0: nothing failed (or for information only); 1: something of low or medium severity did; 3: high; 4: critical;
    /// 5: nothing failed but something could not be looked at, or nothing was looked at. (2 is another's: a wrong command line.)
    pub fn exit_status(&self) -> u8 {
        match self.worst() {
            Some(Severity::Critical) => 4,
            Some(Severity::High) => 3,
            Some(Severity::Medium | Severity::Low) => 1,
            Some(Severity::Info) | None => {
                let blind = self.count(Verdict::Unknown) > 0 || self.count(Verdict::Pass) == 0;
                if blind { 5 } else { 0 }
            }
        }
    }

    /// One sentence, for people.
    pub fn verdict(&self) -> String {
        let [passed, unknown] = [Verdict::Pass, Verdict::Unknown].map(|v| self.count(v));
        let noted = self.findings.iter().filter(|finding| finding.is_note()).count();
        let failed = self.count(Verdict::Fail) - noted;
        let mut text = format!("{passed} passed, {failed} failed, {unknown} unknown");
        if noted > 0 {
            text.push_str(&format!(", {noted} noted for information"));
        }
        match self.worst() {
            Some(worst) if worst > Severity::Info => text.push_str(&format!("; the worst is {}", worst.word())),
            _ if passed == 0 => text.push_str("; nothing was looked at"),
            _ if unknown > 0 => text.push_str("; nothing that was looked at failed"),
            Some(_) => text.push_str("; nothing failed"),
            None => text.push_str("; everything holds"),
        }
        if !self.waived.is_empty() {
            text.push_str(&format!("; {} rules switched off by the profile {}", self.waived.len(), self.profile));
        }
        text
    }
}

/// The word for a kind of subject, in every form of output.
pub fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Plan => "plan",
        Kind::Policy => "policy",
        Kind::Vm => "vm",
        Kind::Process => "process",
        Kind::Host => "host",
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
pub(crate) mod tests;
