//! Which categories may be leased for a caller, and at which sensitivity.
//!
//! Pure. The caller's range is its clearance: what it starts gets a pair within it, and its low sensitivity (the only
//! one, s0, on a policy with MCS alone). As in libvirt a range without categories means all of them; other than in
//! libvirt a range may be any set of categories, `s0-s0:c1,c5.c90`. Called by the jailer.

use crate::context::{Category, CategoryPair, CategorySet, Context, Level};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub categories: CategorySet,
    pub sensitivity: u16,
}

impl Window {
    /// Of a caller without any limit.
    pub const ALL: Self = Self { categories: CategorySet::ALL, sensitivity: 0 };

    /// The window of whoever has this label.
    pub fn of_caller(caller: &Context) -> Self {
        let Some(range) = caller.range() else {
            return Self::ALL;
        };
        let all = range.high().categories;
        let categories = if all.is_empty() { CategorySet::ALL } else { all };
        Self { categories, sensitivity: range.low().sensitivity }
    }

    /// The level of a pair of this window.
    pub fn level(&self, pair: CategoryPair) -> Level {
        Level { sensitivity: self.sensitivity, categories: pair.set() }
    }

    /// Without the categories that the loaded policy does not declare: policies declare c0 to some highest one, most
    /// c1023. One question where the highest is known, ten otherwise.
    pub fn declared(self, accepts: impl Fn(Level) -> bool) -> Self {
        let members: Vec<Category> = self.categories.iter().collect();
        let level = |c: &Category| Level { sensitivity: self.sensitivity, categories: [*c].into_iter().collect() };
        if members.last().is_none_or(|last| accepts(level(last))) {
            return self;
        }
        let known = members.partition_point(|c| accepts(level(c)));
        Self { categories: members[..known].iter().copied().collect(), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(range: &str) -> (String, u16) {
        let label = if range.is_empty() { "u:r:t".to_owned() } else { format!("u:r:t:{range}") };
        let Window { categories, sensitivity } = Window::of_caller(&label.parse().unwrap());
        (categories.to_string(), sensitivity)
    }

    #[test]
    fn svirt_02_every_form_of_a_callers_range_makes_a_window() {
        let all = "c0.c1023";
        for (range, want) in [
            ("", all),
            ("s0", all),
            ("s0-s0", all),
            ("s0-s0:c0.c1023", all),
            ("s0:c0.c511", "c0.c511"),
            ("s0-s0:c1,c5.c9", "c1,c5.c9"),
            ("s0-s0:c9,c7,c5.c8,c1", "c1,c5.c9"),
            ("s0:c3", "c3"),
        ] {
            assert_eq!(window(range), (want.to_owned(), 0), "{range}");
        }
    }

    #[test]
    fn svirt_53_the_sensitivity_is_the_callers_low_one() {
        for (range, want) in [("s0-s15:c0.c1023", 0), ("s3", 3), ("s3:c0.c20-s15:c0.c1023", 3), ("s15:c0.c1023", 15)] {
            assert_eq!(window(range).1, want, "{range}");
        }
        let caller = "u:r:t:s3-s15:c0.c1023".parse().unwrap();
        let pair = CategoryPair::try_from((7, 4)).unwrap();
        assert_eq!(Window::of_caller(&caller).level(pair).to_string(), "s3:c4,c7");
    }

    #[test]
    fn svirt_08_categories_that_the_policy_lacks_are_left_out() {
        let all = Window::of_caller(&"u:r:t:s0".parse().unwrap());
        let up_to = |top: u16| move |level: Level| level.categories.iter().all(|c| c.number() <= top);
        assert_eq!(all.declared(up_to(1023)), all);
        assert_eq!(all.declared(up_to(255)).categories.to_string(), "c0.c255");
        assert!(all.declared(|_| false).categories.is_empty());
    }
}
