//! SELinux contexts and the algebra of MCS category sets.
//!
//! Trust: parses text from the kernel, from xattrs and from configuration; none of it is
//! believed before it parsed. Called by every other file of this room.
//!
//! Levels are compared as *sets*, never as strings: `s0:c2,c1`, `s0:c1,c2` and the
//! `c5.c6` that a translation daemon may print for `c5,c6` are one value here.
//! Shape and limits: kernel `security/selinux/ss/mls.c`, `mls_context_to_sid`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Categories the policy languages of Debian and Fedora declare: c0 to c1023.
pub const CATEGORIES: u16 = 1024;
/// Longest context accepted; the kernel's own limit is a page.
const MAX_CONTEXT: usize = 4095;
const WORDS: usize = CATEGORIES as usize / 64;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    #[error("context {0:?} is not user:role:type[:range]")]
    Shape(String),
    #[error("context field {0:?} has a character outside A-Z a-z 0-9 _ . -")]
    Field(String),
    #[error("level {0:?} is not a sensitivity with categories, such as s0:c1,c5.c9")]
    Level(String),
    #[error("category {0:?} is not c0 to c1023")]
    Category(String),
    #[error("range {0:?} has a high level that does not dominate its low level")]
    Inverted(String),
    #[error("a pair needs two different categories, and both are c{0}")]
    SameCategory(u16),
}

/// One MCS category, c0 to c1023.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Category(u16);

impl Category {
    pub fn new(n: u16) -> Result<Self, ContextError> {
        if n < CATEGORIES { Ok(Self(n)) } else { Err(ContextError::Category(format!("c{n}"))) }
    }

    pub fn number(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for Category {
    type Error = ContextError;
    fn try_from(n: u16) -> Result<Self, ContextError> {
        Self::new(n)
    }
}

impl From<Category> for u16 {
    fn from(c: Category) -> u16 {
        c.0
    }
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}

impl FromStr for Category {
    type Err = ContextError;
    fn from_str(s: &str) -> Result<Self, ContextError> {
        let bad = || ContextError::Category(s.chars().take(32).collect());
        let digits = s.strip_prefix('c').ok_or_else(bad)?;
        if digits.is_empty() || digits.len() > 4 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        Self::new(digits.parse().map_err(|_| bad())?).map_err(|_| bad())
    }
}

/// Two different categories, the lower first by construction: what one sandbox owns.
/// A "pair" of one category would be dominated by every pair that holds it (CVE-2021-3631).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "(u16, u16)", into = "(u16, u16)")]
pub struct CategoryPair {
    low: Category,
    high: Category,
}

impl CategoryPair {
    pub fn new(a: Category, b: Category) -> Result<Self, ContextError> {
        if a == b {
            return Err(ContextError::SameCategory(a.0));
        }
        Ok(Self { low: a.min(b), high: a.max(b) })
    }

    pub fn low(self) -> Category {
        self.low
    }

    pub fn high(self) -> Category {
        self.high
    }

    pub fn set(self) -> CategorySet {
        [self.low, self.high].into_iter().collect()
    }

    /// The level of everything this pair's sandbox owns, `s0:cA,cB`.
    pub fn level(self) -> Level {
        Level { sensitivity: 0, categories: self.set() }
    }
}

impl TryFrom<(u16, u16)> for CategoryPair {
    type Error = ContextError;
    fn try_from((a, b): (u16, u16)) -> Result<Self, ContextError> {
        Self::new(Category::new(a)?, Category::new(b)?)
    }
}

impl From<CategoryPair> for (u16, u16) {
    fn from(p: CategoryPair) -> (u16, u16) {
        (p.low.0, p.high.0)
    }
}

impl fmt::Display for CategoryPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.low, self.high)
    }
}

/// A set of categories, exact.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CategorySet([u64; WORDS]);

impl CategorySet {
    pub const EMPTY: Self = Self([0; WORDS]);
    /// `c0.c1023`
    pub const ALL: Self = Self([u64::MAX; WORDS]);

    pub fn insert(&mut self, c: Category) {
        self.0[usize::from(c.0) / 64] |= 1 << (c.0 % 64);
    }

    pub fn remove(&mut self, c: Category) {
        self.0[usize::from(c.0) / 64] &= !(1 << (c.0 % 64));
    }

    pub fn contains(&self, c: Category) -> bool {
        self.0[usize::from(c.0) / 64] & (1 << (c.0 % 64)) != 0
    }

    pub fn len(&self) -> usize {
        self.0.iter().map(|w| w.count_ones() as usize).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|w| *w == 0)
    }

    /// Every category of `self` is in `other`; true for equal sets.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a & !b == 0)
    }

    pub fn is_superset(&self, other: &Self) -> bool {
        other.is_subset(self)
    }

    /// True when a holder of one of the sets can reach objects of the other: equal,
    /// subset or superset. The empty set is in reach of everyone and separates nothing.
    pub fn comparable(&self, other: &Self) -> bool {
        self.is_subset(other) || other.is_subset(self)
    }

    /// In ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Category> + '_ {
        self.0.iter().enumerate().flat_map(|(at, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros() as u16;
                left &= left.wrapping_sub(1);
                (bit < 64).then(|| Category(at as u16 * 64 + bit))
            })
        })
    }

    pub fn union(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] | other.0[i]))
    }

    /// What is in `self` and not in `other`.
    pub fn without(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & !other.0[i]))
    }

    pub fn first(&self) -> Option<Category> {
        self.iter().next()
    }

    /// `cA` or `cA.cB`, comma-separated, as the kernel prints and reads them.
    fn parse(text: &str) -> Result<Self, ContextError> {
        let mut set = Self::EMPTY;
        for part in text.split(',') {
            let (from, to) = match part.split_once('.') {
                Some((a, b)) => (a.parse::<Category>()?, b.parse::<Category>()?),
                None => {
                    let c = part.parse::<Category>()?;
                    (c, c)
                }
            };
            if from > to {
                return Err(ContextError::Category(part.to_owned()));
            }
            (from.0..=to.0).for_each(|n| set.insert(Category(n)));
        }
        Ok(set)
    }
}

impl FromIterator<Category> for CategorySet {
    fn from_iter<I: IntoIterator<Item = Category>>(iter: I) -> Self {
        let mut set = Self::EMPTY;
        iter.into_iter().for_each(|c| set.insert(c));
        set
    }
}

impl fmt::Display for CategorySet {
    /// The kernel's own form: a run of three or more as `cA.cB`, of two as `cA,cB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        let mut n = 0;
        while n < CATEGORIES {
            if !self.contains(Category(n)) {
                n += 1;
                continue;
            }
            let start = n;
            while n < CATEGORIES && self.contains(Category(n)) {
                n += 1;
            }
            let end = n - 1;
            if !first {
                f.write_str(",")?;
            }
            first = false;
            match end - start {
                0 => write!(f, "c{start}")?,
                1 => write!(f, "c{start},c{end}")?,
                _ => write!(f, "c{start}.c{end}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for CategorySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

/// A sensitivity and its categories, `s0:c1,c2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Level {
    pub sensitivity: u16,
    pub categories: CategorySet,
}

impl From<CategoryPair> for Level {
    fn from(pair: CategoryPair) -> Level {
        pair.level()
    }
}

impl Level {
    /// `s0` with no category.
    pub const S0: Self = Self { sensitivity: 0, categories: CategorySet::EMPTY };

    /// The same sensitivity with no category: what everybody of that sensitivity shares.
    pub fn plain(&self) -> Self {
        Self { categories: CategorySet::EMPTY, ..*self }
    }

    pub fn dominates(&self, other: &Self) -> bool {
        self.sensitivity >= other.sensitivity && self.categories.is_superset(&other.categories)
    }
}

impl FromStr for Level {
    type Err = ContextError;
    fn from_str(s: &str) -> Result<Self, ContextError> {
        let (sens, cats) = match s.split_once(':') {
            Some((a, b)) => (a, CategorySet::parse(b)?),
            None => (s, CategorySet::EMPTY),
        };
        let bad = || ContextError::Level(s.chars().take(64).collect());
        let digits = sens.strip_prefix('s').ok_or_else(bad)?;
        if digits.is_empty() || digits.len() > 3 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        Ok(Self { sensitivity: digits.parse().map_err(|_| bad())?, categories: cats })
    }
}

impl TryFrom<String> for Level {
    type Error = ContextError;
    fn try_from(s: String) -> Result<Self, ContextError> {
        s.parse()
    }
}

impl From<Level> for String {
    fn from(level: Level) -> String {
        level.to_string()
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.sensitivity)?;
        if self.categories.is_empty() { Ok(()) } else { write!(f, ":{}", self.categories) }
    }
}

/// `low[-high]`; low == high is printed once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Range {
    low: Level,
    high: Level,
}

impl Range {
    pub fn new(low: Level, high: Level) -> Result<Self, ContextError> {
        if high.dominates(&low) { Ok(Self { low, high }) } else { Err(ContextError::Inverted(format!("{low}-{high}"))) }
    }

    pub fn single(level: Level) -> Self {
        Self { low: level, high: level }
    }

    pub fn low(&self) -> &Level {
        &self.low
    }

    pub fn high(&self) -> &Level {
        &self.high
    }
}

impl FromStr for Range {
    type Err = ContextError;
    fn from_str(s: &str) -> Result<Self, ContextError> {
        match s.split_once('-') {
            Some((a, b)) => Self::new(a.parse()?, b.parse()?),
            None => Ok(Self::single(s.parse()?)),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.low == self.high { write!(f, "{}", self.low) } else { write!(f, "{}-{}", self.low, self.high) }
    }
}

/// `user:role:type[:range]`. Equal contexts are equal as sets, whatever their spelling.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Context {
    user: String,
    role: String,
    type_: String,
    /// Two bit sets of 128 bytes: boxed, so that a context is cheap to move.
    range: Option<Box<Range>>,
}

impl Context {
    pub fn new(user: &str, role: &str, type_: &str, range: Option<Range>) -> Result<Self, ContextError> {
        for field in [user, role, type_] {
            let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
            if field.is_empty() || !field.bytes().all(word) {
                return Err(ContextError::Field(field.chars().take(64).collect()));
            }
        }
        Ok(Self { user: user.to_owned(), role: role.to_owned(), type_: type_.to_owned(), range: range.map(Box::new) })
    }

    /// Parses what the kernel returns: one trailing NUL or newline is allowed.
    pub fn from_bytes(raw: &[u8]) -> Result<Self, ContextError> {
        let trimmed = raw.strip_suffix(b"\0").unwrap_or(raw);
        let trimmed = trimmed.strip_suffix(b"\n").unwrap_or(trimmed);
        std::str::from_utf8(trimmed)
            .map_err(|_| ContextError::Shape(String::from_utf8_lossy(trimmed).chars().take(64).collect()))?
            .parse()
    }

    pub fn user(&self) -> &str {
        &self.user
    }

    pub fn role(&self) -> &str {
        &self.role
    }

    pub fn type_(&self) -> &str {
        &self.type_
    }

    pub fn range(&self) -> Option<&Range> {
        self.range.as_deref()
    }

    pub fn with_type(&self, type_: &str) -> Result<Self, ContextError> {
        Self::new(&self.user, &self.role, type_, self.range().copied())
    }

    /// As on a host whose policy has no levels.
    pub fn without_range(&self) -> Self {
        Self { range: None, ..self.clone() }
    }

    pub fn with_level(&self, level: Level) -> Self {
        Self { range: Some(Box::new(Range::single(level))), ..self.clone() }
    }
}

impl FromStr for Context {
    type Err = ContextError;
    fn from_str(s: &str) -> Result<Self, ContextError> {
        let shape = || ContextError::Shape(s.chars().take(64).collect());
        if s.len() > MAX_CONTEXT {
            return Err(shape());
        }
        let mut fields = s.splitn(4, ':');
        let (Some(user), Some(role), Some(type_)) = (fields.next(), fields.next(), fields.next()) else {
            return Err(shape());
        };
        Self::new(user, role, type_, fields.next().map(str::parse).transpose()?)
    }
}

impl TryFrom<String> for Context {
    type Error = ContextError;
    fn try_from(s: String) -> Result<Self, ContextError> {
        s.parse()
    }
}

impl From<Context> for String {
    fn from(c: Context) -> String {
        c.to_string()
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.type_)?;
        match &self.range {
            Some(r) => write!(f, ":{r}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
#[path = "context_tests.rs"]
mod tests;
