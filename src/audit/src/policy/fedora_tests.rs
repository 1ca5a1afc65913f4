//! What Fedora's policy has and Debian's has not, each on the specimen with a few lines of our own.

use super::ask::{self, Entry};
use super::*;
use crate::policy::vm::Types;

/// The specimen with these lines added.
fn with(lines: &str) -> Policy {
    with_version("33", lines)
}

fn with_version(version: &str, lines: &str) -> Policy {
    const AFTER: &str = "(allow admin_t casemate_image_t (file (read)))";
    let image = compiled_as(version, &[], &[(AFTER, &format!("{AFTER}\n{lines}"))]);
    Policy::from_image(image, "the specimen".into()).unwrap()
}

/// unconfined_t of Fedora's has a user of its own, and a constraint compares users at a transition.
const USER: &str = "(user user_u) (role user_r) (userrole user_u user_r) (userlevel user_u (s0))
    (userrange user_u ((s0) (s0 (range c0 c5)))) (type user_t) (typeattributeset domain (user_t))
    (roletype user_r user_t) (roletype user_r casemate_runner_t)
    (allow user_t casemate_runner_t (process (transition)))
    (allow user_t casemate_runner_exec_t (file (execute)))
    (constrain (process (transition)) (eq u1 u2))";

#[test]
fn who_becomes_a_vm_keeps_its_user() {
    let policy = with(USER);
    let (family, a, _) = vms(&policy);
    let who = ask::who(&policy, &family, &a).unwrap();
    let found = who.iter().find(|row| row.domain == "user_t").expect("it may become a VM of its own user");
    assert_eq!((found.object, found.permissions.as_slice()), ("runner", ["transition".to_owned()].as_slice()));
    assert!(ask::entries(&policy, &a, &family).unwrap().iter().any(|entry| entry.from == "user_t"));
    // No process has the role of objects, though every type may: constraints compare the role that it really has.
    assert_eq!(vm::process(&policy, "user_t", "s0").unwrap(), "user_u:user_r:user_t:s0");
    let none = with(&USER.replace("(roletype user_r casemate_runner_t)", ""));
    let who = ask::who(&none, &family, &a).unwrap();
    assert!(!who.iter().any(|row| row.domain == "user_t"), "no role, no VM: {who:?}");
}

/// Groups of programs answer as each of them would alone.
#[test]
fn programs_are_asked_in_groups_that_nothing_tells_apart() {
    let policy = with(
        "(typeattribute programs) (typeattribute held)
        (type one_exec_t) (type two_exec_t) (type odd_exec_t) (type held_exec_t) (type hidden_exec_t)
        (typeattributeset programs (one_exec_t two_exec_t odd_exec_t held_exec_t hidden_exec_t admin_t))
        (typeattributeset held (held_exec_t))
        (roletype object_r one_exec_t) (roletype object_r two_exec_t) (roletype object_r odd_exec_t)
        (roletype object_r held_exec_t) (roletype object_r hidden_exec_t) (roletype object_r admin_t)
        (allow casemate_runner_t programs (file (entrypoint)))
        (allow admin_t casemate_runner_t (process (transition)))
        (allow admin_t one_exec_t (file (execute))) (allow admin_t two_exec_t (file (execute)))
        (allow admin_t held_exec_t (file (execute))) (allow admin_t self (file (execute)))
        (allow casemate_jailer_t programs (file (execute)))
        (constrain (file (execute)) (or (neq t2 held) (eq t1 casemate_jailer_t)))",
    );
    let (family, a, _) = vms(&policy);
    let programs = |from: &str| -> Vec<String> {
        let entries = ask::entries(&policy, &a, &family).unwrap();
        entries.into_iter().find(|entry: &Entry| entry.from == from).map(|entry| entry.programs).unwrap_or_default()
    };
    assert_eq!(programs("admin_t"), ["admin_t", "one_exec_t", "two_exec_t"]);
    let all = ["admin_t", "casemate_runner_exec_t", "held_exec_t", "hidden_exec_t", "odd_exec_t", "one_exec_t"];
    assert_eq!(programs("casemate_jailer_t")[..6], all);
    for from in ["admin_t", "casemate_jailer_t"] {
        let context = format!("system_u:system_r:{from}:s0");
        for type_ in &policy.facts().types {
            let file = format!("system_u:object_r:{type_}:s0");
            let Ok(allowed) = policy.allowed(&context, &file, "file") else { continue };
            let entry = policy.allowed(&a.runner, &file, "file").unwrap().contains(&"entrypoint");
            assert_eq!(programs(from).contains(type_), entry && allowed.contains(&"execute"), "{from} {type_}");
        }
    }
}

#[test]
fn any_domain_is_asked_about_by_its_type() {
    let policy = with(
        "(type tcg_t) (typeattributeset domain (tcg_t)) (roletype system_r tcg_t)
        (allow tcg_t casemate_image_t (file (read write open)))",
    );
    let family = |runner, image| {
        let types = Types { runner: Some(runner), image, content: None };
        Family::find(&policy, None).unwrap().with(&policy, &types)
    };
    let tcg = family("tcg_t", None).unwrap();
    assert_eq!((tcg.name.as_str(), tcg.image.as_str()), ("tcg_t", "casemate_image_t"));
    let (a, b) = (tcg.at(&policy, "s0:c1,c2").unwrap(), tcg.at(&policy, "s0:c3,c4").unwrap());
    let reach = ask::reach(&policy, &a, &b).unwrap();
    assert!(reach.iter().any(|row| row.to_other == ["read", "write", "open"]), "it is not constrained: {reach:?}");
    assert!(ask::constrained(&policy, &a, &b).unwrap().iter().all(|row| row.held.is_empty()));
    for (runner, image, told) in [
        ("none_t", None, "the type none_t"),
        ("tcg_t", Some("none_t"), "the type none_t"),
        ("shared_t", None, "a role"),
    ] {
        let error = family(runner, image).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
    let other = Policy::from_image(compiled(&[], &[("casemate_image_t", "svirt_image_t")]), "x".into()).unwrap();
    assert!(Family::common(&[&policy, &policy]).is_ok());
    assert!(matches!(Family::common(&[&policy, &other]), Err(PolicyError::Unknown(_))));
}

#[test]
fn capabilities_are_nobody_elses() {
    let classes = [
        ("(class fd (use))", "(class fd (use)) (class capability (mknod))"),
        ("process2 fd unix", "process2 fd capability unix"),
        (
            "(allow admin_t casemate_image_t",
            "(allow casemate_runner_t self (capability (mknod)))\n(allow admin_t casemate_image_t",
        ),
    ];
    let policy = Policy::from_image(compiled(&[], &classes), "x".into()).unwrap();
    let (_, a, b) = vms(&policy);
    let reach = ask::reach(&policy, &a, &b).unwrap();
    let row = reach.iter().find(|row| row.class == "capability").unwrap();
    assert_eq!((row.to_own.as_slice(), row.to_other.len()), (["mknod".to_owned()].as_slice(), 0));
}

/// Statements that other versions and distributions have: each is read over, and the answers stay.
const UNUSUAL: &str = r#"
    (type label_t) (roletype object_r label_t) (type child_t) (roletype system_r child_t)
    (context label (system_u object_r label_t ((s0) (s0))))
    (allow admin_t label_t (file (read open)))
    (allow admin_t child_t (process (getattr)))
    (typebounds admin_t child_t)
    (typetransition admin_t shared_t file "a (name) ; here" label_t)
    (typetransition admin_t shared_t file label_t)
    (rangetransition admin_t casemate_runner_exec_t process ((s0) (s0 (range c0 c5))))
    (genfscon proc "/net (x)" label) (genfscon sysfs "/" label)
    (fsuse xattr ext4 label) (fsuse trans tmpfs label)
    (portcon tcp (1 1024) label) (netifcon lo label label)
    (nodecon (::1) (ffff::) label) (nodecon (127.0.0.1) (255.0.0.0) label)
    (ibpkeycon fe80:: (0 0x10) label) (ibendportcon mlx5_0 1 label)
    (auditallow admin_t label_t (file (open))) (dontaudit admin_t label_t (file (write)))
    (defaultrange file target low)
"#;

#[test]
fn versions_and_statements_of_other_policies_change_no_answer() {
    let plain = policy(&[]);
    let (family, a, b) = vms(&plain);
    let answers = |policy: &Policy| {
        let reach = ask::reach(policy, &a, &b).unwrap();
        (reach, ask::rights(policy, &family, &a).unwrap(), ask::entries(policy, &a, &family).unwrap())
    };
    let expected = answers(&plain);
    for version in ["24", "29", "30", "31", "32", "33"] {
        let unusual = with_version(version, UNUSUAL);
        assert_eq!(unusual.version().to_string(), version);
        assert_eq!(answers(&unusual), expected, "version {version}");
        assert_eq!(unusual.facts().bounded.iter().collect::<Vec<_>>(), ["child_t"]);
        assert_eq!(unusual.facts().transitions.len(), 0, "none of a process");
    }
    // Extended permissions came with version 30: they narrow ioctl, of which the rule itself still tells.
    let ioctl = [
        ("(class blk_file (read ", "(class blk_file (ioctl read "),
        (
            "(allow admin_t casemate_image_t (file (read)))",
            "(allow casemate_runner_t casemate_image_t (blk_file (ioctl)))
             (allowx casemate_runner_t casemate_image_t (ioctl blk_file (range 0x1200 0x12ff)))
             (dontauditx casemate_runner_t casemate_image_t (ioctl blk_file (0x5401)))",
        ),
    ];
    let extended = Policy::from_image(compiled(&[], &ioctl), "x".into()).unwrap();
    assert!(extended.access(&a.runner, &a.image, "blk_file").unwrap().allows("ioctl"));
}
