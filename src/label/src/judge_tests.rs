//! The judgement on a policy in memory that works as MCS does: type rules, then dominance.

use super::*;

/// Types that a runner may read, those that it may write too, and what exists at all.
pub(crate) struct Rules {
    pub(crate) read: &'static [&'static str],
    pub(crate) write: &'static [&'static str],
    pub(crate) unknown: &'static [&'static str],
}

/// Casemate's module, and a boolean that gives runners all of NFS.
pub(crate) const MODULE: Rules =
    Rules { read: &["casemate_content_t"], write: &["casemate_image_t", "nfs_t"], unknown: &["no_such_t"] };

impl Policy for Rules {
    fn knows(&self, label: &Context) -> io::Result<bool> {
        Ok(!self.unknown.contains(&label.type_()))
    }

    fn granted(&self, subject: &Context, object: &Context, _: &str, perms: &[&str]) -> io::Result<Vec<bool>> {
        let dominates = match (subject.range(), object.range()) {
            (Some(s), Some(o)) => s.high().dominates(o.high()),
            _ => true,
        };
        let write = self.write.contains(&object.type_());
        let read = write || self.read.contains(&object.type_());
        Ok(perms.iter().map(|perm| dominates && if *perm == "write" { write } else { read }).collect())
    }
}

fn verdict(object: &str, class: LabelClass) -> Verdict {
    let runner = "system_u:system_r:casemate_runner_t:s0:c1,c2".parse().unwrap();
    judge(&MODULE, &runner, &object.parse().unwrap(), ObjectKind::File, class).unwrap()
}

#[test]
fn svirt_21_a_label_is_judged_by_what_the_policy_grants() {
    use LabelClass::*;
    use Verdict::*;
    for (object, class, want) in [
        ("u:object_r:casemate_image_t:s0:c1,c2", Exclusive, Fits),
        ("u:object_r:casemate_image_t:s0:c1", Exclusive, Fits),
        ("u:object_r:casemate_image_t:s0:c1,c3", Exclusive, ForeignLevel),
        ("u:object_r:casemate_image_t:s0:c1.c3", Exclusive, ForeignLevel),
        ("u:object_r:casemate_image_t:s0:c0.c1023", Exclusive, ForeignLevel),
        ("u:object_r:casemate_image_t:s0", Exclusive, Unseparated),
        ("u:object_r:casemate_image_t:s0", SharedWritable, Fits),
        ("u:object_r:casemate_image_t:s0:c7", SharedWritable, ForeignLevel),
        ("u:object_r:casemate_content_t:s0", Content, Fits),
        ("u:object_r:casemate_content_t:s0:c1,c2", Content, Fits),
        ("u:object_r:casemate_content_t:s0", Exclusive, ForeignType),
        ("u:object_r:casemate_image_t:s0", Content, Unseparated),
        ("u:object_r:casemate_image_t:s0:c1,c2", Content, Fits),
        ("u:object_r:etc_t:s0", Content, ForeignType),
        ("u:object_r:virt_image_t:s0:c1,c2", Exclusive, ForeignType),
    ] {
        assert_eq!(verdict(object, class), want, "{object} as {class:?}");
    }
}

#[test]
fn svirt_23_a_label_that_all_runners_reach_separates_nothing() {
    assert_eq!(verdict("u:object_r:nfs_t:s0", LabelClass::Exclusive), Verdict::Unseparated);
    assert_eq!(verdict("u:object_r:nfs_t:s0", LabelClass::Content), Verdict::Unseparated);
    assert_eq!(verdict("u:object_r:nfs_t:s0", LabelClass::SharedWritable), Verdict::Fits);
    assert_eq!(verdict("u:object_r:dosfs_t:s0", LabelClass::Content), Verdict::ForeignType);
    // a mount with context=…:s0:c1,c2 separates although it keeps no labels
    assert_eq!(verdict("u:object_r:casemate_image_t:s0:c1,c2", LabelClass::Exclusive), Verdict::Fits);
}

#[test]
fn svirt_23_without_categories_nothing_is_called_separated() {
    let runner = "system_u:system_r:casemate_runner_t".parse().unwrap();
    let object = "system_u:object_r:casemate_image_t".parse().unwrap();
    let verdict = judge(&MODULE, &runner, &object, ObjectKind::File, LabelClass::Exclusive).unwrap();
    assert_eq!(verdict, Verdict::Unseparated);
}
