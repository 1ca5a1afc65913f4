//! What the loaded policy answers for one runner's label: does it get its own, and nothing of another's?
//!
//! Trust: the kernel's answers, for the label as it is; nothing is assumed from names or versions. Asked at the
//! start with a made-up pair, and again with the actual label whenever the policy has changed.

use std::io;

use serde::{Deserialize, Serialize};

use crate::context::{CATEGORIES, Category, Context, Level, Range};
use crate::profile::Profile;
use crate::selinuxfs::SelinuxFs;

/// One question put to the policy, and whether the answer is the one separation needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub wanted: bool,
    pub granted: bool,
}

impl Check {
    pub fn holds(&self) -> bool {
        self.wanted == self.granted
    }
}

/// All answers for one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    pub checks: Vec<Check>,
    /// The runner's domain is permissive.
    pub permissive: bool,
    /// Counts policy loads since boot.
    pub seqno: u32,
}

/// Levels that other sandboxes may have, seen from `own`: one with none in common, and one that
/// shares a category. `None` for the second where `own` is empty, and for both where it is all there is.
fn strangers(own: &Level) -> Option<(Level, Option<Level>)> {
    let categories = own.categories;
    let all = || (0..CATEGORIES).filter_map(|n| Category::new(n).ok());
    let mut free = all().filter(|c| !categories.contains(*c));
    let (a, b) = (free.next()?, free.next()?);
    let level = |x, y| Level { sensitivity: own.sensitivity, categories: [x, y].into_iter().collect() };
    Some((level(a, b), categories.iter().next().map(|c| level(c, a))))
}

/// Puts the questions whose answers make up "MCS separates", for a runner with this very label.
pub fn ask(fs: &SelinuxFs, profile: &Profile, runner: &Context) -> io::Result<Answers> {
    let own = runner.range().map_or(Level::S0, |range| *range.high());
    let none_left = || io::Error::other(format!("the level {own} leaves no category for anybody else"));
    let (foreign, overlap) = strangers(&own).ok_or_else(none_left)?;
    let image = |level: Level| profile.object(&profile.image, Range::single(level));
    let other = runner.with_level(foreign);
    let content = profile.object(&profile.content, Range::single(Level::S0));

    let mut asking = Asking { fs, answers: Answers { checks: Vec::new(), permissive: false, seqno: 0 } };
    let rw = ["read", "write"];
    asking.put("own image", runner, &image(own), "file", &rw, true)?;
    asking.put("another's image", runner, &image(foreign), "file", &rw, false)?;
    if let Some(overlap) = overlap {
        asking.put("image of an overlapping pair", runner, &image(overlap), "file", &rw, false)?;
    }
    asking.put("another's block device", runner, &image(foreign), "blk_file", &rw, false)?;
    asking.put("content", runner, &content, "file", &["read"], true)?;
    asking.put("content", runner, &content, "file", &["write"], false)?;
    asking.put("another's runner", runner, &other, "process", &["signal", "sigkill", "ptrace"], false)?;
    asking.put("another's socket", runner, &other, "unix_stream_socket", &["connectto"], false)?;
    // A level without categories reaches nobody, but everybody reaches it.
    asking.put("own image, by another's runner", &other, &image(own), "file", &rw, false)?;
    Ok(asking.answers)
}

struct Asking<'a> {
    fs: &'a SelinuxFs,
    answers: Answers,
}

impl Asking<'_> {
    /// One decision answers for all permissions of a class.
    fn put(
        &mut self,
        what: &str,
        subject: &Context,
        target: &Context,
        class: &str,
        perms: &[&str],
        wanted: bool,
    ) -> io::Result<()> {
        let decision = self.fs.access(subject, target, class)?;
        self.answers.seqno = decision.seqno;
        self.answers.permissive |= decision.is_permissive();
        for perm in perms {
            let granted = decision.allowed & self.fs.permission(class, perm)? != 0;
            self.answers.checks.push(Check { name: format!("{what}: {perm}"), wanted, granted });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::CategorySet;

    #[test]
    fn strangers_share_nothing_or_one_category_and_are_never_comparable() {
        for text in ["s0:c1,c2", "s0:c0,c1", "s0:c1022,c1023", "s0:c0.c511", "s0:c7"] {
            let own: Level = text.parse().unwrap();
            let (foreign, overlap) = strangers(&own).unwrap();
            assert!(!own.categories.comparable(&foreign.categories), "{text}");
            assert!(foreign.categories.iter().all(|c| !own.categories.contains(c)), "{text}");
            let overlap = overlap.unwrap();
            assert!(overlap.categories.iter().any(|c| own.categories.contains(c)), "{text}");
            assert!(!overlap.categories.is_subset(&own.categories), "{text}");
        }
        assert!(strangers(&Level::S0).unwrap().1.is_none());
        assert!(strangers(&Level { sensitivity: 0, categories: CategorySet::ALL }).is_none(), "nobody else is left");
    }
}
