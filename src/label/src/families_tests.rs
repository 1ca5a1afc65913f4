use super::*;

/// A host that enforces, whose policy has the families in `fit`; every other lacks its first type.
fn host(fit: &[ProfileName]) -> impl Fn(ProfileName) -> (Profile, SelinuxFacts) {
    let fit = fit.to_vec();
    move |name| {
        let profile = Profile::of_another(name);
        let mut facts = probe_profile(&profile);
        facts.mode = SelinuxMode::Enforcing;
        facts.problems.clear();
        facts.missing_types.clear();
        facts.mcs_constrained = fit.contains(&name);
        if !facts.mcs_constrained {
            facts.missing_types.push(profile.runner.clone());
        }
        (profile, facts)
    }
}

#[test]
fn svirt_05_our_own_family_is_taken_first_then_one_that_separates() {
    use ProfileName::{Casemate, Container, Svirt};
    for (fit, taken) in [
        (&[Casemate, Svirt, Container][..], "casemate"),
        (&[Svirt, Container], "svirt"),
        (&[Container], "container"),
        (&[], "casemate"),
    ] {
        let choice = choose_with(None, host(fit));
        assert_eq!(choice.profile.name, taken, "{}", choice.why);
        assert_eq!(choice.facts.fits(), !fit.is_empty());
    }
    assert!(choose_with(None, host(&[Container])).why.contains("svirt does not fit: the policy lacks svirt_t"));
    assert!(choose_with(None, host(&[])).why.contains("container does not fit"));
}

#[test]
fn svirt_05_what_is_asked_for_is_taken_or_nothing() {
    let choice = choose_with(Some(ProfileName::Svirt), host(&[ProfileName::Casemate]));
    assert_eq!(choice.profile.name, "svirt");
    assert!(choice.asked && !choice.facts.fits());
    let told = casemate_plan::SelinuxFacts::from(&choice).family.unwrap();
    assert_eq!(told.misfits, ["the policy lacks svirt_t"]);
}

#[test]
fn svirt_05_a_family_that_lacks_a_rule_does_not_fit() {
    let lacking = |name| {
        let (profile, mut facts) = host(&[ProfileName::Svirt, ProfileName::Container])(name);
        if name == ProfileName::Svirt {
            facts.missing_rules.push("(allow a_t svirt_t (process (transition)))".into());
        }
        (profile, facts)
    };
    let choice = choose_with(None, lacking);
    assert_eq!(choice.profile.name, "container");
    assert!(choice.why.contains("does not grant (allow a_t svirt_t (process (transition)))"), "{}", choice.why);
    let (_, facts) = lacking(ProfileName::Svirt);
    assert!(!facts.separates() && facts.shortcomings().iter().any(|s| s.contains("does not grant")));
}

#[test]
fn svirt_05_a_missing_rule_reads_as_one_for_a_module() {
    let context = |type_: &str| format!("u:r:{type_}:s0").parse::<Context>().unwrap();
    let need = |object: &str| Need {
        subject: context("svirt_t"),
        object: context(object),
        class: "file",
        perms: &["read", "entrypoint"],
    };
    assert_eq!(need("bin_t").rule(&["entrypoint"]), "(allow svirt_t bin_t (file (entrypoint)))");
    assert_eq!(need("svirt_t").rule(&["read"]), "(allow svirt_t self (file (read)))");
}
