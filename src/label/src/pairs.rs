//! Which pairs of categories are out of reach of every level in use: exact, and without a search.
//!
//! Pure. A pair {a, b} collides with a set S when one contains the other:
//!
//! | S | pairs that collide |
//! |---|---|
//! | one category a | every pair with a in it: it holds what S may reach (CVE-2021-3631) |
//! | the pair itself | that pair |
//! | more than two | every pair within S |
//! | none | none: it reaches no private object |
//!
//! So all levels in use, however many, are one matrix of 1024 by 1024 bits (128 KiB), and the free pairs of a window
//! can be counted and numbered. Called by `ledger`.

use crate::context::{CATEGORIES, Category, CategoryPair, CategorySet};

/// The pairs that are in reach of a level in use.
#[derive(Clone)]
pub struct Occupied {
    /// Row a: every b for which {a, b} is taken. Symmetric; the diagonal means nothing.
    rows: Box<[CategorySet]>,
    /// Categories that are a level of their own.
    singles: CategorySet,
}

impl Default for Occupied {
    fn default() -> Self {
        Self { rows: vec![CategorySet::EMPTY; usize::from(CATEGORIES)].into_boxed_slice(), singles: CategorySet::EMPTY }
    }
}

impl Occupied {
    /// Counts a level's categories in.
    pub fn add(&mut self, set: &CategorySet) {
        let mut members = set.iter();
        match (members.next(), members.next(), members.next()) {
            (None, ..) => {}
            (Some(only), None, _) => self.singles.insert(only),
            (Some(a), Some(b), None) => {
                self.row(a).insert(b);
                self.row(b).insert(a);
            }
            _ => set.iter().for_each(|c| *self.row(c) = self.rows[usize::from(c.number())].union(set)),
        }
    }

    fn row(&mut self, c: Category) -> &mut CategorySet {
        &mut self.rows[usize::from(c.number())]
    }

    pub fn is_free(&self, pair: CategoryPair) -> bool {
        let (a, b) = (pair.low(), pair.high());
        !self.singles.contains(a) && !self.singles.contains(b) && !self.rows[usize::from(a.number())].contains(b)
    }

    /// For each category of the window that is no single, the higher ones with which it makes a free pair.
    fn free_rows<'a>(&'a self, window: &CategorySet) -> impl Iterator<Item = (Category, CategorySet)> + 'a {
        let mut higher = window.without(&self.singles);
        std::iter::from_fn(move || {
            let low = higher.first()?;
            higher.remove(low);
            Some((low, higher.without(&self.rows[usize::from(low.number())])))
        })
    }

    /// How many pairs of the window are free.
    pub fn free(&self, window: &CategorySet) -> usize {
        self.free_rows(window).map(|(_, partners)| partners.len()).sum()
    }

    /// The free pair number `n` of the window, from 0; `None` past the end.
    pub fn nth_free(&self, window: &CategorySet, mut n: usize) -> Option<CategoryPair> {
        for (low, partners) in self.free_rows(window) {
            let here = partners.len();
            if n < here {
                return CategoryPair::new(low, partners.iter().nth(n)?).ok();
            }
            n -= here;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(members: &[u16]) -> CategorySet {
        members.iter().map(|n| Category::new(*n).unwrap()).collect()
    }

    fn pair(a: u16, b: u16) -> CategoryPair {
        CategoryPair::try_from((a, b)).unwrap()
    }

    #[test]
    fn svirt_09_equal_subset_and_superset_are_taken_and_nothing_else_is() {
        let mut taken = Occupied::default();
        for level in [&[1, 2][..], &[7], &(100..=200).collect::<Vec<_>>(), &[]] {
            taken.add(&set(level));
        }
        for (a, b) in [(1, 2), (7, 500), (3, 7), (100, 200), (150, 151)] {
            assert!(!taken.is_free(pair(a, b)), "c{a},c{b}");
        }
        for (a, b) in [(1, 3), (2, 3), (99, 100), (200, 201), (0, 1)] {
            assert!(taken.is_free(pair(a, b)), "c{a},c{b}");
        }
    }

    proptest! {
        /// Against the definition, pair by pair.
        #[test]
        fn svirt_09_the_matrix_agrees_with_the_algebra(
            levels in prop::collection::vec(prop::collection::vec(0u16..24, 0..6), 0..20),
            window in prop::collection::btree_set(0u16..24, 0..24),
        ) {
            let levels: Vec<CategorySet> = levels.iter().map(|l| set(l)).collect();
            let mut taken = Occupied::default();
            levels.iter().for_each(|l| taken.add(l));
            let window: Vec<u16> = window.into_iter().collect();
            let mut free = Vec::new();
            for (i, a) in window.iter().enumerate() {
                for b in &window[i + 1..] {
                    let p = pair(*a, *b);
                    let clear = !levels.iter().any(|l| !l.is_empty() && l.comparable(&p.set()));
                    prop_assert_eq!(taken.is_free(p), clear, "{}", p);
                    if clear {
                        free.push(p);
                    }
                }
            }
            let window = set(&window);
            prop_assert_eq!(taken.free(&window), free.len());
            for (n, p) in free.iter().enumerate() {
                prop_assert_eq!(taken.nth_free(&window, n), Some(*p));
            }
            prop_assert_eq!(taken.nth_free(&window, free.len()), None);
        }
    }
}
