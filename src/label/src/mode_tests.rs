use super::*;

fn good() -> SelinuxFacts {
    SelinuxFacts {
        mode: SelinuxMode::Enforcing,
        mls: true,
        mcs_constrained: true,
        own: Some("system_u:system_r:casemate_jailer_t:s0-s0:c0.c1023".parse().unwrap()),
        ..SelinuxFacts::off(&Profile::casemate())
    }
}

fn each_bad() -> Vec<(&'static str, SelinuxFacts)> {
    let all: Vec<String> = Profile::casemate().types().map(str::to_owned).collect();
    let check = Check { name: "another's image: read".into(), wanted: false, granted: true };
    vec![
        ("permissive", SelinuxFacts { mode: SelinuxMode::Permissive, ..good() }),
        ("disabled", SelinuxFacts { mode: SelinuxMode::Disabled, ..good() }),
        ("permissive-domain", SelinuxFacts { domain_permissive: true, ..good() }),
        ("not-constrained", SelinuxFacts { mcs_constrained: false, checks: vec![check], ..good() }),
        ("no-levels", SelinuxFacts { mls: false, mcs_constrained: false, ..good() }),
        (
            "module-partial",
            SelinuxFacts { missing_types: all[1..].to_vec(), partial: true, mcs_constrained: false, ..good() },
        ),
        ("module-missing", SelinuxFacts { missing_types: all, mcs_constrained: false, ..good() }),
        ("unreadable", SelinuxFacts { problems: vec![problem("unreadable", "x", "y")], ..good() }),
        ("no-policy", SelinuxFacts { problems: vec![problem("no-policy", "x", "y")], ..good() }),
    ]
}

#[test]
fn svirt_51_only_the_full_set_of_facts_separates() {
    let good = good();
    assert!(good.separates() && good.shortcomings().is_empty());
    for (code, bad) in each_bad() {
        assert!(!bad.separates(), "{code}");
        let found = bad.findings();
        assert!(found.iter().any(|f| f.code == code && !f.remedy.is_empty()), "{code}: {found:?}");
    }
}

#[test]
fn svirt_51_each_state_has_its_own_sentence() {
    let texts: std::collections::BTreeSet<String> = each_bad()
        .iter()
        .filter(|(code, _)| *code != "no-policy")
        .map(|(_, bad)| bad.shortcomings().join("; "))
        .collect();
    assert_eq!(texts.len(), each_bad().len() - 1);
}

#[test]
fn svirt_51_what_the_planner_hears_is_never_better_than_the_facts() {
    for (code, bad) in each_bad() {
        let told = casemate_plan::SelinuxFacts::from(&bad);
        let off = told.mode == casemate_plan::SelinuxMode::Disabled;
        assert!(off || !told.shortcomings.is_empty(), "{code}");
        assert!(off == (code == "disabled"), "{code}");
    }
    assert!(casemate_plan::SelinuxFacts::from(&good()).shortcomings.is_empty());
}

#[test]
fn svirt_51_a_kernel_that_cannot_be_asked_is_not_called_off() {
    let problems = vec![problem("unreadable", "x", "y")];
    let unreadable =
        SelinuxFacts { mode: SelinuxMode::Permissive, problems, ..SelinuxFacts::off(&Profile::casemate()) };
    let told = casemate_plan::SelinuxFacts::from(&unreadable);
    assert!(!told.module && !told.mcs_constrained && told.mode != casemate_plan::SelinuxMode::Disabled);
}
