//! What can be leased, and the file name that is the lease.
//!
//! Pure. Called by `ledger`, and written into journals.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::context::{CategoryPair, CategorySet, Level};

/// What is leased.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseKey {
    Pair(CategoryPair),
    Uid(u32),
    /// A level that the user fixed; named by sandbox too, because a group shares one on request.
    Static {
        sandbox: String,
        level: Level,
        #[serde(default)]
        shared: bool,
    },
}

impl LeaseKey {
    pub(crate) fn file(&self) -> String {
        match self {
            Self::Pair(p) => format!("mcs/{p}"),
            Self::Uid(u) => format!("uid/{u}"),
            Self::Static { sandbox, level, shared } => {
                format!("static/{sandbox}={level}{}", if *shared { "+shared" } else { "" })
            }
        }
    }

    pub(crate) fn parse(kind: &str, name: &str) -> Option<Self> {
        match kind {
            "mcs" => {
                let (a, b) = name.split_once(',')?;
                CategoryPair::new(a.parse().ok()?, b.parse().ok()?).ok().map(Self::Pair)
            }
            "uid" => name.parse().ok().map(Self::Uid),
            _ => {
                let (sandbox, level) = name.split_once('=')?;
                let alone = level.strip_suffix("+shared");
                let (level, shared) = (alone.unwrap_or(level).parse().ok()?, alone.is_some());
                Some(Self::Static { sandbox: sandbox.into(), level, shared })
            }
        }
    }

    /// The categories that it holds; none for a uid.
    pub fn categories(&self) -> Option<CategorySet> {
        match self {
            Self::Pair(pair) => Some(pair.set()),
            Self::Static { level, .. } => Some(level.categories),
            Self::Uid(_) => None,
        }
    }

    /// May both be held at once by different sandboxes?
    pub fn compatible(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Uid(a), Self::Uid(b)) => a != b,
            (Self::Static { level: a, shared: true, .. }, Self::Static { level: b, shared: true, .. }) => {
                a == b || !a.categories.comparable(&b.categories)
            }
            _ => match (self.categories(), other.categories()) {
                (Some(a), Some(b)) => !a.comparable(&b),
                _ => true,
            },
        }
    }
}

impl fmt::Display for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file())
    }
}
