//! Many VMs, drawn as few: VMs that nothing in the matrix tells apart are one group.
//!
//! Two VMs are alike if exchanging them leaves the matrix as it is. That is an equivalence (a product of exchanges of
//! alike VMs is such an exchange), so within a group and between two groups all pairs have the same answer, and the picture of the
//! groups says exactly what the whole matrix says.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::report::{self, Cell, Report};
use crate::rule::Verdict;

use super::tally::rank;

pub struct Matrix<'a> {
    pub vms: Vec<&'a str>,
    pub layers: Vec<&'a str>,
    of: &'a report::Matrix,
    /// Each pair's answers, as a number; 0 for a pair without an answer.
    answers: Vec<u32>,
}

/// A pair's standing over all layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Every layer holds.
    All,
    /// At least one layer holds, and each that was looked at.
    Unsure,
    /// At least one layer holds, at least one does not.
    Some,
    /// No layer is known to hold.
    None,
}

impl<'a> Matrix<'a> {
    /// Of at least two VMs; `None` where there is nothing to compare.
    pub fn new(report: &'a Report) -> Option<Self> {
        let of = &report.matrix;
        let n = of.vms.len();
        if n < 2 {
            return None;
        }
        let layers: BTreeSet<_> = of.cells.iter().flat_map(|cell| cell.layers.keys()).map(|l| rank(l)).collect();
        // Answers that differ in their reasons only are one to the picture.
        let mut numbers: BTreeMap<Vec<(&str, Verdict)>, u32> = BTreeMap::new();
        let mut alike: HashMap<*const Cell, u32> = HashMap::new();
        for cell in &of.cells {
            let key: Vec<_> = cell.layers.iter().map(|(layer, (verdict, _))| (layer.as_str(), *verdict)).collect();
            let next = numbers.len() as u32 + 1;
            alike.insert(std::ptr::from_ref(cell), *numbers.entry(key).or_insert(next));
        }
        let pairs = (0..n).flat_map(|from| (0..n).map(move |to| of.cell(from, to)));
        let answers =
            pairs.map(|cell| cell.and_then(|c| alike.get(&std::ptr::from_ref(c))).copied().unwrap_or(0)).collect();
        let vms = of.vms.iter().map(String::as_str).collect();
        Some(Self { vms, layers: layers.into_iter().map(|(_, layer)| layer).collect(), of, answers })
    }

    fn answer(&self, from: usize, to: usize) -> u32 {
        self.answers[from * self.vms.len() + to]
    }

    pub fn cell(&self, from: usize, to: usize) -> Option<&'a Cell> {
        self.of.cell(from, to)
    }

    /// What a layer says of a pair, with the reason.
    pub fn says(&self, from: usize, to: usize, layer: &str) -> (Verdict, &'a str) {
        match self.cell(from, to) {
            None => (Verdict::Unknown, "this pair was not looked at"),
            Some(cell) => match cell.layers.get(layer) {
                None => (Verdict::Unknown, "this layer was not looked at"),
                Some((verdict, why)) => (*verdict, why),
            },
        }
    }

    pub fn standing(&self, from: usize, to: usize) -> Standing {
        let verdicts = || self.layers.iter().map(|layer| self.says(from, to, layer).0);
        match (verdicts().any(|v| v == Verdict::Pass), verdicts().any(|v| v == Verdict::Fail)) {
            (false, _) => Standing::None,
            (true, true) => Standing::Some,
            (true, false) if verdicts().any(|v| v == Verdict::Unknown) => Standing::Unsure,
            (true, false) => Standing::All,
        }
    }

    fn alike(&self, a: usize, b: usize) -> bool {
        self.answer(a, b) == self.answer(b, a)
            && (0..self.vms.len()).filter(|other| *other != a && *other != b).all(|other| {
                self.answer(a, other) == self.answer(b, other) && self.answer(other, a) == self.answer(other, b)
            })
    }

    /// Indexes into `vms`, the group with the weakest pair first.
    pub fn groups(&self) -> Vec<Vec<usize>> {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for vm in 0..self.vms.len() {
            match groups.iter_mut().find(|group| self.alike(group[0], vm)) {
                Some(group) => group.push(vm),
                None => groups.push(vec![vm]),
            }
        }
        let weakest = |group: &Vec<usize>| {
            let vm = group[0];
            let others = (0..self.vms.len()).filter(|other| *other != vm);
            others.map(|other| self.standing(vm, other).max(self.standing(other, vm))).max()
        };
        groups.sort_by_key(|group| (std::cmp::Reverse(weakest(group)), group[0]));
        groups
    }

    /// How many ordered pairs have each standing.
    pub fn standings(&self) -> BTreeMap<Standing, usize> {
        let mut counts = BTreeMap::new();
        for (from, to) in self.pairs() {
            *counts.entry(self.standing(from, to)).or_default() += 1;
        }
        counts
    }

    pub fn pairs(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let all = 0..self.vms.len();
        all.clone().flat_map(move |from| all.clone().map(move |to| (from, to))).filter(|(from, to)| from != to)
    }
}
