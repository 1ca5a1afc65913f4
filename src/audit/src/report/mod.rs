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
    /// Empty unless several VMs were looked at.
    pub matrix: Vec<Cell>,
}

/// What keeps one VM from another, layer by layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    pub from: String,
    pub to: String,
    /// Layer to whether it alone holds, with the reason.
    pub layers: BTreeMap<String, (Verdict, String)>,
}
