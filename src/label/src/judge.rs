//! What the loaded policy lets a runner do with an object, by the label that it carries or is to carry.
//!
//! Trust: asks the kernel (`compute_av`), never a list of names: on a file system without labels, under a `context=`
//! mount and for a label that a user names, only the policy knows what it is worth. Nothing is changed here.
//! Called by `relabel`, before a label is set that was asked for, and wherever a label is left as it is.

use std::io;

use crate::context::{CATEGORIES, Category, CategorySet, Context, Level};
use crate::mode::SelinuxFs;
use crate::relabel::LabelClass;

/// The questions, so that unit tests can answer them without SELinux.
pub trait Policy {
    /// Does the loaded policy have this user, role, type and level together?
    fn knows(&self, label: &Context) -> io::Result<bool>;
    /// Which of `perms` of `class` does `subject` have on `object`? In their order.
    fn granted(&self, subject: &Context, object: &Context, class: &str, perms: &[&str]) -> io::Result<Vec<bool>>;
}

/// The policy that the kernel has now.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadedPolicy;

impl LoadedPolicy {
    fn fs() -> io::Result<SelinuxFs> {
        SelinuxFs::here()?.ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "SELinux is off"))
    }
}

impl Policy for LoadedPolicy {
    fn knows(&self, label: &Context) -> io::Result<bool> {
        Ok(Self::fs()?.is_valid(label))
    }

    fn granted(&self, subject: &Context, object: &Context, class: &str, perms: &[&str]) -> io::Result<Vec<bool>> {
        let fs = Self::fs()?;
        let allowed = fs.access(subject, object, class)?.allowed;
        perms.iter().map(|perm| Ok(allowed & fs.permission(class, perm)? != 0)).collect()
    }
}

/// What an object is to the policy: its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    File,
    BlockDevice,
}

impl ObjectKind {
    fn class(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::BlockDevice => "blk_file",
        }
    }

    /// What the runner needs; the `write` comes last.
    fn needs(self) -> &'static [&'static str] {
        match self {
            Self::File => &["read", "getattr", "write"],
            // size and sector size of a device are ioctls
            Self::BlockDevice => &["read", "getattr", "ioctl", "write"],
        }
    }
}

/// The policy's answer for one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The runner may use it, and no runner may that should not.
    Fits,
    /// The runner may use it, and so may every other runner, who should not.
    Unseparated,
    /// The runner may not use it because of its level: with the same type and no category it might.
    ForeignLevel,
    /// The runner may not use this type, whatever the level.
    ForeignType,
}

/// Judges `object` for a runner with the label `runner` that uses it as `class` says.
pub fn judge(
    policy: &dyn Policy,
    runner: &Context,
    object: &Context,
    kind: ObjectKind,
    class: LabelClass,
) -> io::Result<Verdict> {
    let needs = kind.needs();
    let needs = if class == LabelClass::Content { &needs[..needs.len() - 1] } else { needs };
    let all = |object: &Context| -> io::Result<bool> {
        Ok(policy.granted(runner, object, kind.class(), needs)?.into_iter().all(|granted| granted))
    };
    if !all(object)? {
        let plain =
            object.range().map(|range| object.with_level(Level { categories: CategorySet::EMPTY, ..*range.low() }));
        return Ok(match plain {
            Some(plain) if all(&plain)? => Verdict::ForeignLevel,
            _ => Verdict::ForeignType,
        });
    }
    let forbidden: &[&str] = match class {
        LabelClass::Exclusive => &["read", "write"],
        // whoever shares an image on purpose shares it with every runner
        LabelClass::SharedWritable => return Ok(Verdict::Fits),
        LabelClass::Content => &["write"],
    };
    // nobody to ask for, or no categories at all: it cannot be shown that others are kept away
    let Some(twin) = twin(runner, object) else { return Ok(Verdict::Unseparated) };
    let reached = policy.granted(&twin, object, kind.class(), forbidden)?.into_iter().any(|granted| granted);
    Ok(if reached { Verdict::Unseparated } else { Verdict::Fits })
}

/// A runner as `runner`, whose two categories neither it nor the object has.
fn twin(runner: &Context, object: &Context) -> Option<Context> {
    let level = *runner.range()?.high();
    let taken: [Option<CategorySet>; 2] = [Some(level.categories), object.range().map(|range| range.high().categories)];
    let mut free = (0..CATEGORIES)
        .rev()
        .filter_map(|n| Category::new(n).ok())
        .filter(|c| taken.iter().flatten().all(|set| !set.contains(*c)));
    let categories: CategorySet = [free.next()?, free.next()?].into_iter().collect();
    Some(runner.with_level(Level { categories, ..level }))
}

#[cfg(test)]
#[path = "judge_tests.rs"]
pub(crate) mod tests;
