//! What the loaded policy answers for a live VM beside another.

use casemate_wire::record::SandboxRecord;

use super::Observer;
use crate::Policy;
use crate::crowd::level_of;
use crate::policy::constraint::Level;
use crate::policy::separation::separation;
use crate::policy::vm::Family;
use crate::subject::{Known, Separation};

/// Two levels that stand for any two VMs: MCS compares sets and knows no number.
pub const OTHERS: [&str; 2] = ["s0:c1,c2", "s0:c3,c4"];

impl Observer {
    /// The loaded policy's answer, asked once per family: levels that are not within reach of one another are answered
    /// alike, and those that are show up in the matrix and among the neighbours.
    pub(super) fn separation_of(&self, record: &SandboxRecord) -> Known<Separation> {
        if !self.selinux {
            return Known::unseen("this host has no SELinux");
        }
        let Some(label) = &record.label else { return Known::unseen("it was started without a label") };
        let family = record.profile.clone().unwrap_or_else(|| "casemate".into());
        let mut answers = self.separations.borrow_mut();
        let answer = answers.entry(family.clone()).or_insert_with(|| self.asked(&family)).clone();
        answer.map(|mut answer| {
            answer.runner = label.clone();
            let head = answer.image.strip_suffix(OTHERS[0]).map(str::to_owned);
            if let (Some(head), Some(level)) = (head, level_of(label)) {
                answer.image = head + level;
            }
            answer
        })
    }

    fn asked(&self, family: &str) -> Known<Separation> {
        let policy = match self.policy.get_or_init(|| Policy::live().into()) {
            Known::Seen(policy) => policy,
            Known::Unseen(why) => return Known::Unseen(why.clone()),
        };
        let enforcing = self.host_facts().selinux == "enforcing";
        let found = Family::find(policy, Some(family));
        found.and_then(|family| separation(policy, &family, OTHERS, Some(enforcing))).into()
    }
}

/// The upper level of a range: what a process at it may touch, as far as MCS goes. `None` for what is no level.
pub(super) fn high(range: &str) -> Option<Level> {
    Level::parse(range.split_once('-').map_or(range, |(_, high)| high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_dominate_by_their_sets() {
        let dominates = |a: &str, b: &str| Some(high(a)?.dominates(&high(b)?));
        assert_eq!(dominates("s0:c1,c2", "s0:c1,c2"), Some(true));
        assert_eq!(dominates("s0:c1,c2", "s0:c1,c3"), Some(false));
        assert_eq!(dominates("s0-s0:c0.c1023", "s0:c1,c3"), Some(true));
        assert_eq!(dominates("s0", "s0:c1"), Some(false));
        assert_eq!(dominates("evil", "s0:c1"), None);
    }
}
