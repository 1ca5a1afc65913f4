use casemate_plan::{HostConfig, KvmFacts, SelinuxFacts, SelinuxFamily, plan};
use casemate_spec::{SandboxSpec, parse};

use super::*;
use crate::profile::Profile;
use crate::report::Report;
use crate::rule::Verdict;
use crate::{Around, judge};

const AGENT: &str = "name = 'web'\ncommand = ['true']\nroot = { image = '/srv/root.erofs', fstype = 'erofs' }\n\
                     disks = [{ id = 'data', path = '/srv/data.img', format = 'raw' }]\n";

fn spec(text: &str) -> SandboxSpec {
    SandboxSpec::try_from(parse::toml(text).unwrap()).unwrap()
}

fn facts() -> HostFacts {
    let family = SelinuxFamily {
        name: "casemate".into(),
        runner: "casemate_runner_t".into(),
        image: "casemate_image_t".into(),
        content: "casemate_content_t".into(),
        own: true,
        asked: false,
        why: "own types".into(),
        misfits: Vec::new(),
        not_separated: Vec::new(),
    };
    HostFacts {
        kernel_release: "6.12".into(),
        kvm: KvmFacts::Usable,
        selinux: SelinuxFacts {
            mode: SelinuxMode::Enforcing,
            mls: true,
            module: true,
            mcs_constrained: true,
            family: Some(family),
            ..SelinuxFacts::DISABLED
        },
        landlock_abi: 6,
        seccomp: true,
        cgroup: CgroupFacts::V2 {
            mount: "/sys/fs/cgroup".into(),
            controllers: ["cpu", "memory", "pids"].map(String::from).to_vec(),
        },
        cpus: 2,
    }
}

fn made(text: &str, facts: &HostFacts) -> Plan {
    plan(&spec(text), facts, &HostConfig::default())
}

fn audited(plan: &Plan, facts: &HostFacts, profile: &str) -> Report {
    let beside = Beside { facts, allow_reduced: None, files: None, digests: false, separation: None };
    let profile = Profile::parse(profile, "org").unwrap();
    judge(vec![subject(plan, &beside)], &profile, &Around::default())
}

fn failed(report: &Report) -> Vec<&str> {
    let mut ids: Vec<&str> =
        report.findings.iter().filter(|f| f.check.verdict == Verdict::Fail).map(|f| f.rule.as_str()).collect();
    ids.dedup();
    ids
}

#[test]
fn a_real_plan_keeps_to_every_rule() {
    let facts = facts();
    let report = audited(&made(AGENT, &facts), &facts, "");
    assert_eq!(failed(&report), [""; 0], "{:#?}", report.findings.iter().find(|f| f.check.verdict == Verdict::Fail));
    assert_eq!((report.exit_status(), report.count(Verdict::Unknown)), (0, 0));
    assert!(report.count(Verdict::Pass) > 30);
}

/// A plan that lacks a step lacks a layer: each is named by the rule for it.
#[test]
fn a_step_that_is_missing_is_named() {
    type Is = fn(&Action) -> bool;
    let steps: [(&str, Is); 15] = [
        ("mounts.empty-root", |a| *a == Action::EmptyRoot),
        ("rlimits.no-core", |a| matches!(a, Action::SetRlimits { .. })),
        ("selinux.process-label", |a| *a == Action::SetExecLabel),
        ("selinux.two-categories", |a| *a == Action::LeaseMcs),
        ("landlock.present", |a| matches!(a, Action::RestrictLandlockFully { .. })),
        ("seccomp.both-filters", |a| *a == Action::InstallExecFilter),
        ("seccomp.ours", |a| *a == Action::InstallThreadFilters),
        ("capabilities.none", |a| *a == Action::DropBoundingSet),
        ("capabilities.none", |a| *a == Action::DropCapabilities),
        ("capabilities.no-new-privs", |a| *a == Action::SetNoNewPrivs),
        ("uid.no-groups", |a| *a == Action::DropGroups),
        ("uid.not-root", |a| *a == Action::SetUid),
        ("fds.as-planned", |a| *a == Action::ArrangeFds),
        ("cgroup.limited", |a| matches!(a, Action::CreateCgroup(_))),
        ("warden.filtered", |a| *a == Action::NarrowWarden),
    ];
    let facts = facts();
    for (rule, without) in steps {
        let mut plan = made(AGENT, &facts);
        let before = plan.steps.len();
        plan.steps.retain(|step| !without(&step.action));
        assert!(plan.steps.len() < before, "{rule}");
        let report = audited(&plan, &facts, "");
        assert!(failed(&report).contains(&rule), "{rule}: {:?}", failed(&report));
    }
}

#[test]
fn a_weaker_host_or_a_weaker_wish_is_named() {
    let mut weak = facts();
    weak.selinux.mode = SelinuxMode::Permissive;
    let report = audited(&made(AGENT, &weak), &weak, "");
    for rule in ["posture.not-reduced", "posture.reasoned", "posture.no-blockers", "selinux.enforcing"] {
        assert!(failed(&report).contains(&rule), "{rule}: {:?}", failed(&report));
    }
    assert_eq!(report.exit_status(), 4);
    let mut none = facts();
    none.selinux = SelinuxFacts::DISABLED;
    none.landlock_abi = 0;
    none.cgroup = CgroupFacts::None;
    let report = audited(&made(AGENT, &none), &none, "");
    for rule in ["selinux.present", "landlock.present", "landlock.scopes", "cgroup.limited"] {
        assert!(failed(&report).contains(&rule), "{rule}: {:?}", failed(&report));
    }
    let pod = format!("{AGENT}selinux = {{ level = 's0:c5,c6', level_shared = true }}\n");
    let facts = facts();
    assert_eq!(failed(&audited(&made(&pod, &facts), &facts, "")), ["posture.no-warnings", "selinux.level-exclusive"]);
    let single = format!("{AGENT}selinux = {{ level = 's0:c5' }}\n");
    if let Ok(spec) = parse::toml(&single)
        .map_err(|e| e.to_string())
        .and_then(|s| SandboxSpec::try_from(s).map_err(|e| e.to_string()))
    {
        let plan = plan(&spec, &facts, &HostConfig::default());
        assert!(failed(&audited(&plan, &facts, "")).contains(&"selinux.two-categories"));
    }
}

#[test]
fn an_organisations_own_assertions_are_held() {
    let facts = facts();
    let plan = made(AGENT, &facts);
    let own = |text: &str| failed(&audited(&plan, &facts, text)).into_iter().map(str::to_owned).collect::<Vec<_>>();
    let head = "[plan]\nreason = 'org rule 7'\n";
    for (assertion, holds) in [
        ("posture = 'enforced'", true),
        ("image_directories = ['/srv']", true),
        ("image_directories = ['/srv2', '/var/lib']", false),
        ("image_directories = '/srv/root'", false),
        ("max_memory = '1G'", true),
        ("max_memory = '4M'", false),
        ("max_cpus = 0", false),
        ("max_cpus = 8", true),
        ("runner_types = ['casemate_runner_t']", true),
        ("runner_types = ['svirt_t']", false),
        ("exclusive_level = true", true),
        ("kernels = ['/boot/vmlinuz']", false),
        ("kernels = ['(the default kernel)']", false),
    ] {
        let text = format!("{head}{assertion}\n");
        let Ok(_) = Profile::parse(&text, "org") else {
            assert!(!holds, "{assertion}");
            continue;
        };
        let expected: &[&str] = if holds { &[] } else { &["profile.plan"] };
        assert_eq!(own(&text), expected, "{assertion}");
    }
    let call = |kind: &str, call: &str, thread: &str| {
        format!("[[seccomp.{kind}]]\ncall = '{call}'\nthread = '{thread}'\nreason = 'r'\n")
    };
    assert_eq!(own(&call("deny", "openat", "vcpu")), [""; 0]);
    assert_eq!(own(&call("deny", "ioctl", "vcpu")), ["profile.seccomp"]);
    assert_eq!(own(&call("allow", "ioctl", "vcpu")), [""; 0]);
    assert_eq!(own(&call("allow", "openat", "")), ["profile.seccomp"]);
    let nobody = audited(&plan, &facts, &call("deny", "openat", "gpu"));
    assert_eq!(nobody.count(Verdict::Unknown), 1, "an assertion that finds no thread does not hold");
}

#[test]
fn a_kernel_is_known_by_its_digest_and_a_writable_one_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("vmlinuz");
    std::fs::write(&kernel, "kernel").unwrap();
    let text = format!("name = 'tiny'\nbare = true\nkernel = '{}'\nmemory = '4M'\n", kernel.display());
    let facts = facts();
    let plan = made(&text, &facts);
    let observer = Observer::new().unwrap();
    let judged = |profile: &str| {
        let profile = Profile::parse(profile, "org").unwrap();
        let digests = profile.assertions().want_digests();
        let beside = Beside { facts: &facts, allow_reduced: None, files: Some(&observer), digests, separation: None };
        judge(vec![subject(&plan, &beside)], &profile, &Around::default())
    };
    let other = "00".repeat(32);
    let seen = judged(&format!("[plan]\nreason = 'r'\nkernels = ['sha256:{other}']\n"));
    let told = seen.findings.iter().find(|f| f.rule == "profile.plan").unwrap();
    let (_, hex) = told.check.seen.split_once("sha256:").unwrap();
    let right = judged(&format!("[plan]\nreason = 'r'\nkernels = ['sha256:{}']\n", hex.trim_end_matches(')')));
    assert!(failed(&seen).contains(&"profile.plan") && !failed(&right).contains(&"profile.plan"));
    std::fs::set_permissions(&kernel, std::fs::Permissions::from_mode(0o666)).unwrap();
    let report = judged("");
    let writable = report.findings.iter().find(|f| f.rule == "objects.protected" && f.check.what.contains("vmlinuz"));
    assert!(writable.unwrap().check.seen.contains("everybody may write it"));
}
