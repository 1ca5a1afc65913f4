//! What an audit answers: subjects, findings, who is kept from whom by what.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::rule::{Finding, Verdict};
use crate::subject::Subject;

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
    pub findings: Vec<Finding>,
    /// Without VMs unless several were looked at.
    pub matrix: Matrix,
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
