//! Labels that a user names, that are kept, and that cannot be set, on a store and a policy in memory.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use super::*;
use crate::context::CategoryPair;
use crate::judge::tests::MODULE;
use crate::owner::Owner;
use crate::relabel::tests::{Fixture, Memory, image, relabeler};

const RUNNER: &str = "system_u:system_r:casemate_runner_t:s0:c1,c2";
const HOME: &str = "u:object_r:user_home_t:s0";

fn ask(store: &Memory, f: &Fixture, class: LabelClass, choice: &Choice) -> Result<Held, RelabelError> {
    let ask = Ask { class, choice, level: CategoryPair::try_from((1, 2)).unwrap().level() };
    let owner = Owner::of_self("a").unwrap();
    relabeler(store).with_policy(MODULE, RUNNER).acquire_as(f.file.as_fd(), &f.path, &ask, &owner, &mut |_| Ok(()))
}

fn given(label: &str) -> Choice {
    Choice::Given { label: label.parse().unwrap(), field: "disks[3].label".into() }
}

fn keep() -> Choice {
    Choice::Keep { field: "disks[3].relabel".into() }
}

fn label(store: &Memory, f: &Fixture) -> String {
    relabeler(store).label_of(f.file.as_fd(), &f.path).unwrap().unwrap().to_string()
}

#[test]
fn svirt_21_a_given_label_is_set_remembered_and_given_back() {
    let store = Memory::default();
    let f = image(&store, Some(HOME));
    let wanted = "u:object_r:casemate_image_t:s0:c1";
    let held = ask(&store, &f, LabelClass::Exclusive, &given(wanted)).unwrap();
    assert_eq!(held.outcome, Outcome::Relabelled);
    assert_eq!(label(&store, &f), wanted);
    let r = relabeler(&store);
    r.release(f.file.as_fd(), &f.path, &Owner::of_self("a").unwrap()).unwrap();
    assert_eq!(label(&store, &f), HOME);
}

#[test]
fn svirt_21_a_foreign_pair_a_foreign_type_and_an_unknown_one_are_refused_with_field_and_remedy() {
    let store = Memory::default();
    for (wanted, class, word) in [
        ("u:object_r:casemate_image_t:s0:c1,c3", LabelClass::Exclusive, "level"),
        ("u:object_r:casemate_image_t:s0:c0.c1023", LabelClass::Exclusive, "level"),
        ("u:object_r:virt_image_t:s0:c1,c2", LabelClass::Exclusive, "type"),
        ("u:object_r:casemate_image_t:s0", LabelClass::Exclusive, "every other runner"),
        ("u:object_r:casemate_image_t:s0", LabelClass::Content, "every other runner may write"),
        ("u:object_r:no_such_t:s0:c1,c2", LabelClass::Exclusive, "does not know"),
    ] {
        let f = image(&store, Some(HOME));
        let said = ask(&store, &f, class, &given(wanted)).expect_err(wanted).to_string();
        assert!(said.contains("disks[3].label") && said.contains(word) && said.contains(wanted), "{said}");
        assert_eq!(label(&store, &f), HOME, "nothing was written");
    }
}

#[test]
fn svirt_21_a_given_label_that_cannot_be_set_fails_the_start() {
    let store = Memory::default();
    store.fail_label.store(nix::libc::EOPNOTSUPP, Ordering::Relaxed);
    let f = image(&store, Some("system_u:object_r:nfs_t:s0"));
    let refused = ask(&store, &f, LabelClass::SharedWritable, &given("u:object_r:casemate_image_t:s0"));
    assert!(matches!(refused, Err(RelabelError::Io { verb: "set", .. })), "{refused:?}");
}

#[test]
fn svirt_55_a_kept_label_must_fit_and_nothing_is_written() {
    let store = Memory::default();
    store.fail_label.store(nix::libc::EIO, Ordering::Relaxed);
    for (carried, class, fits) in [
        ("u:object_r:casemate_image_t:s0:c1,c2", LabelClass::Exclusive, true),
        ("u:object_r:casemate_image_t:s0", LabelClass::SharedWritable, true),
        ("u:object_r:casemate_content_t:s0", LabelClass::Content, true),
        ("u:object_r:casemate_image_t:s0:c3,c4", LabelClass::Exclusive, false),
        ("u:object_r:casemate_image_t:s0", LabelClass::Exclusive, false),
        ("u:object_r:casemate_image_t:s0", LabelClass::Content, false),
        ("u:object_r:casemate_content_t:s0", LabelClass::Exclusive, false),
        (HOME, LabelClass::Content, false),
    ] {
        let f = image(&store, Some(carried));
        match ask(&store, &f, class, &keep()) {
            Ok(held) => {
                assert!(fits, "{carried} as {class:?}");
                assert_eq!((held.outcome, held.label.to_string()), (Outcome::Kept, carried.to_owned()));
            }
            Err(e) => {
                assert!(!fits, "{carried} as {class:?}: {e}");
                let (said, chcon) =
                    (e.to_string(), format!("chcon {}", class.target(relabeler(&store).profile(), level())));
                assert!(said.contains("disks[3].relabel") && said.contains(&chcon), "{said}");
            }
        }
        assert!(relabeler(&store).record_of(f.file.as_fd(), &f.path).unwrap().is_none());
        assert_eq!(label(&store, &f), carried);
    }
    // a store of its own: the inode numbers of files that are gone come again
    let store = Memory::default();
    let bare = image(&store, None);
    assert!(matches!(ask(&store, &bare, LabelClass::Content, &keep()), Err(RelabelError::Labelless { .. })));
}

fn level() -> Level {
    CategoryPair::try_from((1, 2)).unwrap().level()
}

#[test]
fn svirt_23_a_file_system_without_labels_is_judged_by_what_the_policy_allows() {
    let store = Memory::default();
    for errno in [nix::libc::EOPNOTSUPP, nix::libc::EROFS] {
        store.fail_label.store(errno, Ordering::Relaxed);
        for (carried, class, want) in [
            // allowed for every runner: used, and said
            ("system_u:object_r:nfs_t:s0", LabelClass::Exclusive, Some(true)),
            ("system_u:object_r:nfs_t:s0", LabelClass::Content, Some(true)),
            // shared on purpose anyway
            ("system_u:object_r:nfs_t:s0", LabelClass::SharedWritable, Some(false)),
            // a mount with context=
            ("system_u:object_r:casemate_content_t:s0", LabelClass::Content, Some(false)),
            ("system_u:object_r:casemate_image_t:s0:c1,c2", LabelClass::Exclusive, Some(false)),
            ("system_u:object_r:casemate_image_t:s0:c3,c4", LabelClass::Exclusive, None),
            // not allowed
            ("system_u:object_r:dosfs_t:s0", LabelClass::Content, None),
        ] {
            let f = image(&store, Some(carried));
            let came = ask(&store, &f, class, &Choice::Class);
            let r = relabeler(&store);
            assert!(r.record_of(f.file.as_fd(), &f.path).unwrap().is_none(), "no record of a label that was not set");
            match (want, came) {
                (Some(unseparated), Ok(held)) => {
                    assert_eq!(matches!(held.outcome, Outcome::NoSeparation(_)), unseparated, "{carried} {class:?}");
                    assert_eq!(held.label.to_string(), carried, "the label that it really has");
                }
                (None, Err(e @ RelabelError::Labelless { .. })) => {
                    let said = e.to_string();
                    assert!(
                        said.contains("copy it") && said.contains("context=\"system_u:object_r:casemate_"),
                        "{said}"
                    );
                }
                (want, came) => panic!("{carried} as {class:?}: {came:?}, wanted {want:?}"),
            }
        }
    }
}

#[test]
fn svirt_23_without_a_policy_to_ask_nothing_is_assumed() {
    let store = Memory::default();
    store.fail_label.store(nix::libc::EOPNOTSUPP, Ordering::Relaxed);
    let f = image(&store, Some("system_u:object_r:nfs_t:s0"));
    let ask = Ask { class: LabelClass::Content, choice: &Choice::Class, level: level() };
    let owner = Owner::of_self("a").unwrap();
    let refused = relabeler(&store).acquire_as(f.file.as_fd(), &f.path, &ask, &owner, &mut |_| Ok(()));
    assert!(matches!(refused, Err(RelabelError::NoJudge { .. })), "{refused:?}");
}

#[test]
fn svirt_55_a_remedy_is_one_word_for_the_shell() {
    assert_eq!(quoted(Path::new("/srv/a b'c")), r"'/srv/a b'\''c'");
    assert_eq!(quoted(Path::new("/srv/a-b.img")), "/srv/a-b.img");
}
