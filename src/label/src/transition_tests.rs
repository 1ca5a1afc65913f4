use super::*;

/// Everything is allowed and valid but what is listed.
#[derive(Default)]
struct Fake {
    denied: Vec<&'static str>,
    invalid: Vec<&'static str>,
    no_capability: bool,
}

impl Policy for Fake {
    fn is_valid(&self, context: &Context) -> bool {
        let text = context.to_string();
        !self.invalid.iter().any(|part| text.contains(part))
    }
    fn allows(&self, _: &Context, _: &Context, _: &str, perm: &str) -> io::Result<bool> {
        Ok(!self.denied.contains(&perm))
    }
    fn capability(&self, _: &str) -> bool {
        !self.no_capability
    }
}

fn context(text: &str) -> Context {
    text.parse().unwrap()
}

fn good() -> Situation {
    Situation {
        own: context("unconfined_u:unconfined_r:casemate_jailer_t:s0-s0:c0.c1023"),
        jailer_file: Some((context("system_u:object_r:casemate_jailer_exec_t:s0"), "/x/casemate-jailer".into())),
        jailer_nosuid: false,
        program: Some(context("system_u:object_r:casemate_runner_exec_t:s0")),
        noexec: false,
        no_new_privs: false,
    }
}

fn codes(policy: &Fake, now: &Situation) -> Vec<String> {
    judge(policy, &Profile::casemate(), now).into_iter().map(|s| s.code).collect()
}

fn denying(perm: &'static str) -> Fake {
    Fake { denied: vec![perm], ..Fake::default() }
}

#[test]
fn svirt_40_a_start_that_can_work_has_no_obstacle() {
    assert_eq!(codes(&Fake::default(), &good()), Vec::<String>::new());
}

#[test]
fn svirt_40_each_missing_rule_is_named() {
    for (perm, code) in [
        ("setexec", "setexec"),
        ("transition", "transition"),
        ("entrypoint", "entrypoint"),
        ("execute", "execute"),
        ("use", "fd-use"),
    ] {
        assert_eq!(codes(&denying(perm), &good()), [code], "{perm}");
    }
}

#[test]
fn svirt_40_a_runner_that_was_copied_is_told_with_its_label() {
    let copied = Situation { program: Some(context("unconfined_u:object_r:bin_t:s0")), ..good() };
    let found = judge(&denying("entrypoint"), &Profile::casemate(), &copied);
    assert!(found[0].text.contains("bin_t") && found[0].remedy.contains("restorecon"), "{found:?}");
    assert_eq!(codes(&Fake::default(), &Situation { program: None, ..good() }), ["program-label"]);
}

#[test]
fn svirt_40_roles_and_users_are_told_apart() {
    let role = Fake { invalid: vec!["unconfined_r:casemate_runner_t"], ..Fake::default() };
    let found = judge(&role, &Profile::casemate(), &good());
    assert_eq!(found[0].code, "role");
    assert!(found[0].text.contains("unconfined_r") && found[0].remedy.contains("roletype"), "{found:?}");
    let range = Fake { invalid: vec!["s0:c1,c2"], ..Fake::default() };
    let found = judge(&range, &Profile::casemate(), &good());
    assert_eq!(found[0].code, "user-range");
    assert!(found[0].remedy.contains("semanage user"), "{found:?}");
}

#[test]
fn svirt_40_a_jailer_in_the_wrong_domain_is_told_why() {
    let wrong = Situation { own: context("user_u:user_r:user_t:s0"), ..good() };
    let cases = [
        (wrong.clone(), "caller", "casemate_caller (user_t)"),
        (Situation { no_new_privs: true, ..wrong.clone() }, "jailer-nnp", "NoNewPrivileges"),
        (Situation { jailer_nosuid: true, ..wrong.clone() }, "jailer-nosuid", "nosuid"),
        (
            Situation { jailer_file: Some((context("u:object_r:bin_t:s0"), "/x".into())), ..wrong },
            "jailer-file",
            "restorecon",
        ),
    ];
    for (now, code, remedy) in cases {
        let found = judge(&Fake::default(), &Profile::casemate(), &now);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].code == code && found[0].remedy.contains(remedy), "{found:?}");
    }
}

#[test]
fn svirt_41_nosuid_and_no_new_privs_are_told_apart() {
    let nnp = Situation { no_new_privs: true, ..good() };
    assert_eq!(codes(&denying("nosuid_transition"), &good()), ["nosuid"]);
    assert_eq!(codes(&denying("nnp_transition"), &good()), Vec::<String>::new(), "it is not set");
    assert_eq!(codes(&denying("nnp_transition"), &nnp), ["no_new_privs"]);
    assert_eq!(codes(&Fake { no_capability: true, ..Fake::default() }, &nnp), ["nosuid", "no_new_privs"]);
    assert_eq!(codes(&Fake::default(), &Situation { noexec: true, ..good() }), ["noexec"]);
}

#[test]
fn svirt_40_41_every_obstacle_has_its_own_sentence_and_a_remedy() {
    let all = Fake {
        denied: vec!["setexec", "transition", "entrypoint", "nosuid_transition", "nnp_transition", "use"],
        ..Fake::default()
    };
    let found = judge(&all, &Profile::casemate(), &Situation { noexec: true, no_new_privs: true, ..good() });
    let texts: std::collections::BTreeSet<&str> = found.iter().map(|s| s.text.as_str()).collect();
    assert_eq!((texts.len(), found.len()), (7, 7), "{found:?}");
    assert!(found.iter().all(|s| !s.remedy.is_empty()));
}
