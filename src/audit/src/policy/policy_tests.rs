//! The auditor against a policy of our own, sound and with one hole at a time. Compiled by secilc, as any policy is.

use std::process::Command;

use super::vm::{Family, Vm};
use super::*;

/// The specimen with the named holes, and with text replaced.
fn compiled(holes: &[&str], replace: &[(&str, &str)]) -> Vec<u8> {
    compiled_as("33", holes, replace)
}

fn compiled_as(version: &str, holes: &[&str], replace: &[(&str, &str)]) -> Vec<u8> {
    let mut text = include_str!("specimen.cil").to_owned();
    for hole in holes {
        assert!(text.contains(&format!(";@{hole} ")), "{hole}");
        text = text.replace(&format!(";@{hole} "), "");
    }
    for (from, to) in replace {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("p.cil"), text).unwrap();
    let mut secilc = Command::new("secilc");
    secilc.args(["-c", version, "-o"]).arg(at("p")).arg("-f").arg(at("fc")).arg(at("p.cil"));
    let output = secilc.output().expect("secilc (testbed/install-packages installs it)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(at("p")).unwrap()
}

#[path = "fedora_tests.rs"]
mod fedora;
#[path = "hostile_tests.rs"]
mod hostile;

pub(crate) fn policy(holes: &[&str]) -> Policy {
    Policy::from_image(compiled(holes, &[]), "the specimen".into()).unwrap()
}

fn vms(policy: &Policy) -> (Family, Vm, Vm) {
    let family = Family::find(policy, None).unwrap();
    let (a, b) = (family.at(policy, "s0:c1,c2").unwrap(), family.at(policy, "s0:c3,c4").unwrap());
    (family, a, b)
}

#[test]
fn a_pair_reaches_its_own_and_not_the_others() {
    let policy = policy(&[]);
    let (_, a, b) = vms(&policy);
    let own = policy.access(&a.runner, &a.image, "file").unwrap();
    assert_eq!(own.allowed, ["read", "write", "getattr"]);
    let other = policy.access(&a.runner, &b.image, "file").unwrap();
    assert_eq!(other.allowed, ["getattr"]);
    let refused =
        |access: &Access, permission: &str| access.refused.iter().find(|(p, _)| p == permission).map(|(_, why)| *why);
    assert_eq!(refused(&other, "write"), Some(Refusal::Constraint));
    assert_eq!(refused(&other, "open"), Some(Refusal::TypeEnforcement));
    let words = policy.explain(&a.runner, &b.image, "file", "write").unwrap().unwrap();
    assert!(words.contains("mlsconstrain") && words.contains("h1 dom h2"), "{words}");
    // A pair that shares one category is another pair; a level within the own one is not.
    assert!(!policy.access(&a.runner, &a.image.replace("c1,c2", "c1,c3"), "file").unwrap().allows("read"));
    assert!(policy.access(&a.runner, &a.image.replace("c1,c2", "c1"), "file").unwrap().allows("read"));
}

#[test]
fn reach_shows_what_another_vm_leaves_open() {
    let sound = policy(&[]);
    let (_, a, b) = vms(&sound);
    let others = |rows: Vec<ask::Reach>| -> Vec<(String, Vec<String>)> {
        let open = rows.into_iter().filter(|r| r.object != "content" && !r.to_other.is_empty());
        open.map(|r| (format!("{} {}", r.object, r.class), r.to_other)).collect()
    };
    let open = others(ask::reach(&sound, &a, &b).unwrap());
    assert!(open.contains(&("image file".into(), vec!["getattr".into()])), "{open:?}");
    assert!(!open.iter().any(|(what, p)| what == "runner process" && p.contains(&"sigstop".to_owned())), "{open:?}");
    let holed = policy(&["signal"]);
    let open = others(ask::reach(&holed, &a, &b).unwrap());
    assert!(open.iter().any(|(what, p)| what == "runner process" && p.contains(&"sigstop".to_owned())), "{open:?}");
}

#[test]
fn those_who_may_touch_a_vm_are_named() {
    let sound = policy(&[]);
    let (family, a, _) = vms(&sound);
    let named = |policy: &Policy| -> Vec<String> {
        ask::who(policy, &family, &a)
            .unwrap()
            .into_iter()
            .map(|w| format!("{} {:?}", w.domain, w.permissions))
            .collect()
    };
    let rows = named(&sound);
    assert!(rows.contains(&r#"admin_t ["read"]"#.to_owned()), "{rows:?}");
    assert!(rows.contains(&r#"casemate_jailer_t ["transition", "sigkill", "ptrace"]"#.to_owned()), "{rows:?}");
    assert!(!rows.iter().any(|row| row.starts_with("init_t")), "{rows:?}");
    let rows = named(&policy(&["thief"]));
    assert!(rows.contains(&r#"init_t ["write", "relabelto"]"#.to_owned()), "{rows:?}");
}

#[test]
fn ways_into_the_domain_are_found() {
    let sound = policy(&[]);
    let (family, a, _) = vms(&sound);
    let entries = ask::entries(&sound, &a, &family).unwrap();
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!((entries[0].from.as_str(), entries[0].default), ("casemate_jailer_t", false));
    assert!(entries[0].from_nosuid && !entries[0].under_no_new_privs);
    assert_eq!(entries[0].programs, ["casemate_runner_exec_t"]);
    let entries = ask::entries(&policy(&["door"]), &a, &family).unwrap();
    assert!(entries.iter().any(|e| e.from == "admin_t" && e.default), "{entries:?}");
}

#[test]
fn what_categories_hold_back_is_computed_without_rules() {
    let sound = policy(&[]);
    let (_, a, b) = vms(&sound);
    let rows = ask::constrained(&sound, &a, &b).unwrap();
    let row = |class: &str| rows.iter().find(|r| r.class == class).unwrap();
    assert_eq!(row("file").open, ["getattr", "entrypoint", "map"]);
    assert!(row("file").held.contains(&"open".to_owned()));
    assert_eq!(row("unix_stream_socket").held, [""; 0]);
    // What is held is refused by libsepol too where a rule allows it.
    for (class, object) in [("file", &b.image), ("blk_file", &b.image), ("process", &b.runner)] {
        let allowed = sound.allowed(&a.runner, object, class).unwrap();
        assert!(allowed.iter().all(|p| row(class).open.contains(&(*p).to_owned())), "{class}: {allowed:?}");
    }
    // A type that is not constrained is held back by nothing.
    let free = compiled(
        &[],
        &[(
            "(typeattributeset mcs_constrained_type (casemate_runner_t))",
            "(typeattributeset mcs_constrained_type (admin_t))",
        )],
    );
    let free = Policy::from_image(free, "free".into()).unwrap();
    assert!(ask::constrained(&free, &a, &b).unwrap().iter().all(|row| row.held.is_empty()));
    assert!(free.access(&a.runner, &b.image, "file").unwrap().allows("write"));
}

#[test]
fn flows_in_two_steps_are_found() {
    let sound = policy(&[]);
    let (family, a, b) = vms(&sound);
    let through = |policy: &Policy| -> BTreeSetOfText {
        ask::flows(policy, &family, &a, &b)
            .unwrap()
            .into_iter()
            .map(|f| format!("{}:{} at {}", f.type_, f.class, f.level))
            .collect()
    };
    // An image without categories is everybody's.
    assert!(through(&sound).contains("casemate_image_t:file at s0"), "{:?}", through(&sound));
    assert!(!through(&sound).iter().any(|t| t.starts_with("shared_t")), "{:?}", through(&sound));
    // Of a private image the other VM learns what getattr tells, and nothing else.
    let private =
        ask::flows(&sound, &family, &a, &b).unwrap().into_iter().find(|f| f.class == "file" && f.level == "s0:c1,c2");
    assert_eq!(private.unwrap().read_by, ["getattr"]);
    assert!(through(&policy(&["flow"])).contains("shared_t:file at s0"));
}

type BTreeSetOfText = std::collections::BTreeSet<String>;

#[test]
fn booleans_that_widen_are_set_and_compared() {
    let sound = policy(&[]);
    let (family, a, _) = vms(&sound);
    let rows = ask::booleans(&sound, &family, &a).unwrap();
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!((rows[0].boolean.as_str(), rows[0].now), ("vm_use_shared", false));
    assert_eq!(rows[0].adds, ["casemate_runner_t shared_t:file read", "casemate_runner_t shared_t:file write"]);
    let on = sound.with_boolean("vm_use_shared", true).unwrap();
    assert!(on.facts().booleans["vm_use_shared"]);
    assert!(on.access(&a.runner, "system_u:object_r:shared_t:s0", "file").unwrap().allows("write"));
    assert!(!sound.access(&a.runner, "system_u:object_r:shared_t:s0", "file").unwrap().allows("write"));
    assert!(matches!(sound.with_boolean("none_such", true), Err(PolicyError::Unknown(_))));
}

#[test]
fn an_update_is_told_by_what_it_opens_and_closes() {
    let (old, new) = (policy(&[]), policy(&["thief", "permissive"]));
    let (family, _, _) = vms(&old);
    let levels = ["s0:c1,c2", "s0:c3,c4"];
    let told = diff::diff(&old, &new, &family, levels).unwrap();
    assert!(told.closed.is_empty(), "{told:?}");
    for line in ["init_t may write a VM's image (file)", "casemate_runner_t is permissive: nothing is refused"] {
        assert!(told.opened.iter().any(|l| l == line), "{told:?}");
    }
    let back = diff::diff(&new, &old, &family, levels).unwrap();
    assert_eq!((back.opened, back.closed), (told.closed, told.opened));
    let same = diff::diff(&old, &old, &family, levels).unwrap();
    assert!(same.opened.is_empty() && same.closed.is_empty());
}

#[test]
fn what_is_no_policy_is_refused_with_the_reason() {
    let image = compiled(&[], &[]);
    let said = |bytes: &[u8]| Policy::from_image(bytes.to_vec(), "x".into()).unwrap_err().to_string();
    assert!(said(b"").contains("empty"));
    assert!(said(b"(allow a b (file (read)))").contains("CIL source"));
    assert!(said(b"hello world, this is no policy").contains("magic"));
    assert!(said(&0xf97c_ff8d_u32.to_le_bytes()).contains("module"));
    let mut future = image.clone();
    future[16..20].copy_from_slice(&99u32.to_le_bytes());
    assert!(said(&future).contains("version 99"), "{}", said(&future));
    // Every truncation is an error and none is a crash.
    for end in (0..image.len()).step_by(image.len() / 97 + 1) {
        assert!(Policy::from_image(image[..end].to_vec(), "x".into()).is_err(), "{end} of {}", image.len());
    }
    let plain = compiled(&[], &[("(mls true)", "(mls false)")]);
    let plain = Policy::from_image(plain, "plain".into()).unwrap();
    let family = Family::find(&plain, Some("casemate")).unwrap();
    assert!(matches!(family.at(&plain, "s0:c1,c2"), Err(PolicyError::NoMls(_))));
    assert!(matches!(Family::find(&plain, Some("svirt")), Err(PolicyError::Unknown(_))));
    assert!(matches!(Policy::read(Path::new("/nonexistent")), Err(PolicyError::Read { .. })));
}

#[test]
fn unknown_classes_and_contexts_are_told() {
    let policy = policy(&[]);
    let (_, a, _) = vms(&policy);
    let refused =
        |source: &str, target: &str, class: &str| policy.access(source, target, class).unwrap_err().to_string();
    assert!(refused(&a.runner, &a.image, "no_such_class").contains("no_such_class"));
    assert!(refused("system_u:system_r:no_such_t:s0", &a.image, "file").contains("no_such_t"));
    assert!(refused(&a.runner, "system_u:object_r:casemate_image_t:s0:c9", "file").contains("c9"));
    assert!(refused(&a.runner, "a\0b", "file").contains("does not accept"));
}

/// Rules and an organisation's own assertions over whole policies, sound and with one hole each.
#[test]
fn a_hole_in_a_policy_is_named_by_its_rule() {
    use crate::profile::Profile;
    use crate::rule::Verdict;
    use crate::{Around, judge};

    let failed = |policy: &Policy, profile: &str| -> Vec<String> {
        let family = Family::find(policy, None).unwrap();
        let subject = separation::subject(policy, &family, ["s0:c1,c2", "s0:c3,c4"]).unwrap();
        let profile = Profile::parse(profile, "org").unwrap();
        let report = judge(vec![subject], &profile, &Around { policy: Some(policy), ..Around::default() });
        assert_eq!(report.count(Verdict::Unknown), 0);
        let bad = report.findings.into_iter().filter(|f| f.check.verdict == Verdict::Fail);
        let mut ids: Vec<String> = bad.map(|f| f.rule).collect();
        ids.dedup();
        ids
    };
    // The specimen leaves its sockets to type enforcement, which is a hole of its own.
    const PROCESS: &str = "(mlsconstrain (process (signal";
    let sockets =
        "(mlsconstrain (unix_stream_socket (read write connectto)) (or (dom h1 h2) (neq t1 mcs_constrained_type)))\n";
    let closed = format!("{sockets}{PROCESS}");
    let with = |holes: &[&str], more: &[(&str, &str)]| {
        let replace = [&[(PROCESS, closed.as_str())], more].concat();
        Policy::from_image(compiled(holes, &replace), "the specimen".into()).unwrap()
    };
    let sound = with(&[], &[]);
    // Left open on purpose: getattr, and the images that a VM writes are seen (getattr) by another.
    let before = failed(&sound, "");
    assert_eq!(before, ["selinux.no-rest", "selinux.no-flows"]);
    let free = [(
        "(typeattributeset mcs_constrained_type (casemate_runner_t))",
        "(typeattributeset mcs_constrained_type (admin_t))",
    )];
    for (hole, policy) in [
        ("selinux.domain-enforced", with(&["permissive"], &[])),
        ("selinux.no-reach", with(&["signal"], &[])),
        ("selinux.no-reach", policy(&[])),
        ("selinux.no-reach", with(&[], &free)),
        ("selinux.mcs-covers", with(&[], &free)),
        ("selinux.entries", with(&["door"], &[])),
        ("selinux.booleans", with(&[], &[("(boolean vm_use_shared false)", "(boolean vm_use_shared true)")])),
    ] {
        let now = failed(&policy, "");
        assert!(now.contains(&hole.to_owned()), "{hole}: {now:?}");
    }
    let strict = "[rules.'selinux.others']\nallowed = ['casemate_jailer_t']\n";
    assert!(!failed(&sound, strict).contains(&"selinux.others".to_owned()));
    assert!(failed(&with(&["thief"], &[]), strict).contains(&"selinux.others".to_owned()));

    let own = |kind: &str, target: &str, permission: &str| {
        format!(
            "extends = 'none'\n[[policy.{kind}]]\nsource = '@runner'\ntarget = '{target}'\nclass = 'file'\n\
             permission = ['{permission}']\nreason = 'r'\n"
        )
    };
    assert_eq!(failed(&sound, &own("deny", "@other-image", "write")), [""; 0]);
    assert_eq!(failed(&sound, &own("deny", "@other-image", "getattr")), ["profile.policy"]);
    assert_eq!(failed(&sound, &own("allow", "@image", "write")), [""; 0]);
    assert_eq!(failed(&sound, &own("allow", "@other-image", "write")), ["profile.policy"]);
    for (target, permission, told) in [("nobody_t", "read", "nobody_t"), ("@image", "raed", "raed")] {
        let family = Family::find(&sound, None).unwrap();
        let subject = separation::subject(&sound, &family, ["s0:c1,c2", "s0:c3,c4"]).unwrap();
        let profile = Profile::parse(&own("deny", target, permission), "org").unwrap();
        let report = judge(vec![subject], &profile, &Around { policy: Some(&sound), ..Around::default() });
        assert_eq!((report.exit_status(), report.findings.len()), (5, 1), "a misspelt denial does not hold");
        assert!(report.findings[0].check.seen.contains(told), "{:?}", report.findings[0].check);
    }
}
