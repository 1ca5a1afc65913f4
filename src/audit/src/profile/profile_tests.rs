use super::*;

fn refused(text: &str) -> String {
    Profile::parse(text, "org").expect_err(text).to_string()
}

#[test]
fn what_is_not_known_is_refused_with_the_nearest() {
    for (text, told) in [
        ("[rules.\"uid.not-rot\"]\n", "did you mean uid.not-root?"),
        ("[rules.\"host.swap\"]\nacepted = []\n", "did you mean accepted?"),
        ("extend = \"none\"\n", "did you mean extends?"),
        ("extends = \"all\"\n", "neither"),
        ("[rules.\"host.swap\"]\naccepted = \"zram\"\n", "a list of strings"),
        ("[rules.\"host.swap\"]\naccepted = [1]\n", "a list of strings"),
        ("[rules.\"host.swap\"]\nseverity = \"bad\"\n", "none of info"),
        ("[rules.\"host.swap\"]\nenabled = \"no\"\n", "true or false"),
        ("[rules.\"host.swap\"]\nenabled = false\n", "needs a reason"),
        ("[rules.\"host.swap\"]\nenabled = false\nreason = \" \"\n", "needs a reason"),
        ("rules = 3\n", "a table"),
        ("[rules]\n\"host.swap\" = 3\n", "a table"),
        ("extends = \"none\"\n", "look at nothing"),
        ("[[policy.deny]]\nsource = \"a_t\"\n", "permission"),
        ("[policy]\ndeny = {}\n", "[[policy.deny]]"),
        ("[[policy.refuse]]\n", "no such key"),
        (
            "[[policy.deny]]\nsource = \"@runer\"\ntarget = \"x\"\nclass = \"file\"\npermission = \"read\"\nreason = \"r\"\n",
            "@runner",
        ),
        (
            "[[policy.deny]]\nsource = \"x\"\ntarget = \"x\"\nclass = \"file\"\npermission = []\nreason = \"r\"\n",
            "empty",
        ),
        ("[[policy.deny]]\nsource = \"x\"\ntarget = \"x\"\nclass = \"file\"\npermission = \"read\"\n", "reason"),
        ("[[seccomp.deny]]\ncall = \"openat\"\nrole = \"agent\"\nreason = \"r\"\n", "none of runner"),
        ("[[seccomp.deny]]\ncall = \"opennat\"\nreason = \"r\"\n", "did you mean openat?"),
        ("[plan]\nreason = \"r\"\nposture = \"strong\"\n", "none of enforced"),
        ("[plan]\nreason = \"r\"\nimage_directories = [\"images\"]\n", "absolute"),
        ("[plan]\nreason = \"r\"\nimage_directories = [\"/srv/../etc\"]\n", "absolute"),
        ("[plan]\nreason = \"r\"\nkernels = [\"sha256:12\"]\n", "64 hexadecimal"),
        ("[plan]\nreason = \"r\"\nmax_memory = \"lots\"\n", "size"),
        ("[plan]\nposture = \"enforced\"\n", "reason"),
        ("x = [", "no TOML"),
        ("\"a\u{1b}[31m\" = 1\n", "no TOML"),
        ("\"a\\u001b[31m\" = 1\n", "no such key"),
    ] {
        let error = refused(text);
        assert!(error.contains(told), "{text:?}: {error}");
        assert!(error.starts_with("the profile org"), "{error}");
    }
}

#[test]
fn every_rule_switched_off_is_refused() {
    let mut text = String::new();
    for rule in rules::all() {
        text.push_str(&format!("[rules.\"{}\"]\nenabled = false\nreason = \"x\"\n", rule.id));
    }
    assert!(refused(&text).contains("look at nothing"));
}

#[test]
fn a_profile_extends_selects_and_sets() {
    let all = Profile::parse("", "org").unwrap();
    assert_eq!(all.name(), "org");
    assert_eq!(all.rule("uid.not-root"), Profile::default().rule("uid.not-root"));
    let text =
        "name = \"acme\"\nextends = \"none\"\n[rules.\"host.swap\"]\nseverity = \"high\"\naccepted = [\"/dev/dm-0\"]\n";
    let few = Profile::parse(text, "org").unwrap();
    assert_eq!((few.name(), few.rule("uid.not-root")), ("acme", None));
    let swap = few.rule("host.swap").unwrap();
    assert_eq!(swap.severity, Severity::High);
    assert_eq!(swap.parameters["accepted"].as_array().unwrap().len(), 1);
    let off = Profile::parse("[rules.\"host.swap\"]\nenabled = false\nreason = \"zram\"\n", "org").unwrap();
    assert_eq!(off.rule("host.swap"), None);
    assert_eq!(off.waived(), [Waived { rule: "host.swap".into(), reason: "zram".into() }]);
}

/// The example of the documentation is one that works.
#[test]
fn the_examples_are_profiles() {
    let example =
        Profile::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../contrib/audit-profile.toml"))).unwrap();
    assert_eq!((example.name(), example.waived().len()), ("acme", 1));
    let page = include_str!("../rules/page-head.md");
    let (_, rest) = page.split_once("```toml\n").unwrap();
    let (text, _) = rest.split_once("```").unwrap();
    let text = text.replace("sha256:…64 digits…", &format!("sha256:{}", "0".repeat(64)));
    assert_eq!(Profile::parse(&text, "page").unwrap().waived()[0].reason, "one tenant per host");
}
