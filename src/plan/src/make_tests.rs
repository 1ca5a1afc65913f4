//! Golden plans, and the order facts.

use casemate_spec::{DiskFormat, parse};

use super::*;
use crate::facts::{CgroupFacts, SelinuxFacts, SelinuxFamily};
use crate::step::{Action, LabelChoice, Step};
use crate::{FdAccess, ImageClass, explain, names};

fn spec(text: &str) -> SandboxSpec {
    SandboxSpec::try_from(parse::toml(text).unwrap()).unwrap()
}

const AGENT: &str = "name = 'web'\ncommand = ['true']\nroot = { image = '/srv/root.erofs', fstype = 'erofs' }\n\
                     disks = [{ id = 'data', path = '/srv/data.img', format = 'raw' }]\n";
const BARE: &str = "name = 'tiny'\nbare = true\nkernel = '/k'\nmemory = '4M'\n";

fn v2() -> CgroupFacts {
    CgroupFacts::V2 {
        mount: "/sys/fs/cgroup".into(),
        controllers: ["cpu", "memory", "pids"].map(String::from).to_vec(),
    }
}

fn casemate() -> SelinuxFamily {
    SelinuxFamily {
        name: "casemate".into(),
        runner: "casemate_runner_t".into(),
        image: "casemate_image_t".into(),
        content: "casemate_content_t".into(),
        own: true,
        asked: false,
        why: "the loaded policy has Casemate's own types".into(),
        misfits: Vec::new(),
        not_separated: Vec::new(),
    }
}

fn svirt() -> SelinuxFamily {
    SelinuxFamily {
        name: "svirt".into(),
        runner: "svirt_t".into(),
        image: "svirt_image_t".into(),
        content: "virt_content_t".into(),
        own: false,
        not_separated: vec!["another's runner: fd use".into()],
        ..casemate()
    }
}

fn with_family(family: SelinuxFamily) -> HostFacts {
    let facts = enforcing();
    let fits = family.misfits.is_empty();
    let selinux = SelinuxFacts { family: Some(family), module: fits, mcs_constrained: fits, ..facts.selinux };
    HostFacts { selinux, ..facts }
}

fn enforcing() -> HostFacts {
    HostFacts {
        kernel_release: "6.12".into(),
        kvm: KvmFacts::Usable,
        selinux: SelinuxFacts {
            mode: SelinuxMode::Enforcing,
            mls: true,
            module: true,
            domain_permissive: false,
            mcs_constrained: true,
            family: Some(casemate()),
            ..SelinuxFacts::DISABLED
        },
        landlock_abi: 6,
        seccomp: true,
        cgroup: v2(),
        cpus: 2,
    }
}

fn without_selinux() -> HostFacts {
    let controllers = ["cpu", "memory", "pids"].map(|c| (c.to_string(), format!("/sys/fs/cgroup/{c}").into()));
    HostFacts {
        selinux: SelinuxFacts::DISABLED,
        cgroup: CgroupFacts::V1 { controllers: controllers.into() },
        ..enforcing()
    }
}

fn made(spec_text: &str, facts: &HostFacts) -> Plan {
    plan(&spec(spec_text), facts, &HostConfig::default())
}

fn at(plan: &Plan, wanted: fn(&Action) -> bool) -> usize {
    plan.steps.iter().position(|s| wanted(&s.action)).expect("the step is in the plan")
}

#[test]
fn the_order_facts_that_bite() {
    for facts in [enforcing(), without_selinux()] {
        let plan = made(AGENT, &facts);
        let order: Vec<usize> = [
            (|a| matches!(a, Action::ReserveName { .. })) as fn(&Action) -> bool,
            |a| matches!(a, Action::LeaseUid { .. }),
            |a| matches!(a, Action::OpenFile { .. }),
            |a| matches!(a, Action::CreateCgroup(_)),
            |a| matches!(a, Action::CloneRunner { .. }),
            |a| matches!(a, Action::EmptyRoot),
            |a| matches!(a, Action::RestrictLandlock { .. }),
            |a| matches!(a, Action::InstallExecFilter),
            |a| matches!(a, Action::DropBoundingSet),
            |a| matches!(a, Action::DropGroups),
            |a| matches!(a, Action::SetGid),
            |a| matches!(a, Action::SetUid),
            |a| matches!(a, Action::DropCapabilities),
            |a| matches!(a, Action::ArrangeFds),
            |a| matches!(a, Action::ExecRunner),
            |a| matches!(a, Action::SetNoNewPrivs),
            |a| matches!(a, Action::InstallThreadFilters),
            |a| matches!(a, Action::AttestInside),
            |a| matches!(a, Action::AttestOutside),
            |a| matches!(a, Action::Go),
        ]
        .into_iter()
        .map(|wanted| at(&plan, wanted))
        .collect();
        assert!(order.is_sorted(), "{order:?}");
        assert!(matches!(plan.steps.last().unwrap().action, Action::Go));
    }
}

#[test]
fn the_exec_label_comes_before_landlock_and_labels_before_the_clone() {
    let plan = made(AGENT, &enforcing());
    let label = at(&plan, |a| matches!(a, Action::SetExecLabel));
    assert!(label < at(&plan, |a| matches!(a, Action::RestrictLandlock { .. })));
    assert!(label > at(&plan, |a| matches!(a, Action::EmptyRoot)));
    let last_relabel = plan.steps.iter().rposition(|s| matches!(s.action, Action::Relabel { .. })).unwrap();
    assert!(last_relabel < at(&plan, |a| matches!(a, Action::CloneRunner { .. })));
}

#[test]
fn every_opened_file_has_its_slot_and_numbers_have_no_gap() {
    let plan = made(AGENT, &enforcing());
    for step in &plan.steps {
        if let Action::OpenFile { fd, .. } = &step.action {
            assert!(plan.fds.get(fd).is_some(), "{fd}");
        }
    }
    for (at, slot) in plan.fds.iter().enumerate() {
        assert_eq!(slot.number, at as i32 + crate::fds::FIRST);
    }
    assert_eq!(plan.fds.get(names::PLAN).unwrap().number, 3);
}

#[test]
fn posture_is_never_called_better_than_it_is() {
    let weak = |change: fn(&mut HostFacts)| {
        let mut facts = enforcing();
        change(&mut facts);
        made(AGENT, &facts)
    };
    assert_eq!(made(AGENT, &enforcing()).posture, Posture::Enforced);
    assert_eq!(made(AGENT, &without_selinux()).posture, Posture::Hardened);
    for change in [
        (|f| f.selinux.mode = SelinuxMode::Permissive) as fn(&mut HostFacts),
        |f| f.selinux.domain_permissive = true,
        |f| f.selinux.mcs_constrained = false,
        |f| f.selinux.mls = false,
        |f| f.selinux.module = false,
        |f| f.landlock_abi = 0,
        |f| f.seccomp = false,
        |f| f.cgroup = CgroupFacts::None,
        |f| f.cgroup = CgroupFacts::V2 { mount: "/x".into(), controllers: vec!["cpu".into()] },
    ] {
        let plan = weak(change);
        assert_eq!(plan.posture, Posture::Reduced);
        let error = plan.check().unwrap_err().to_string();
        assert!(error.contains("--allow-reduced"), "{error}");
    }
}

#[test]
fn a_required_posture_beats_an_accepted_reduction() {
    let mut facts = enforcing();
    facts.selinux.mode = SelinuxMode::Permissive;
    let text = format!("require = 'enforced'\nallow_reduced = 'trial'\n{AGENT}");
    assert!(made(&text, &facts).check().is_err());
    assert!(made(&format!("allow_reduced = 'trial'\n{AGENT}"), &facts).check().is_ok());
    assert!(made(&format!("require = 'enforced'\n{AGENT}"), &without_selinux()).check().is_err());
}

#[test]
fn no_kvm_is_a_blocker_with_its_reason() {
    let facts = HostFacts { kvm: KvmFacts::Unusable("/dev/kvm does not exist".into()), ..enforcing() };
    assert!(made(BARE, &facts).check().unwrap_err().to_string().contains("/dev/kvm does not exist"));
}

const CHAIN: &str = "name = 'over'\nbare = true\nkernel = '/k'\n[[disks]]\nid = 'd'\npath = '/srv/top.qcow2'\n\
                     format = 'qcow2'\nbacking = [{ path = '/srv/mid.qcow2', format = 'qcow2' }, \
                     { path = '/srv/base.img', format = 'raw' }]\n";

#[test]
fn svirt_18_the_top_is_exclusive_and_every_lower_image_is_content() {
    let plan = made(CHAIN, &enforcing());
    let of = |fd: &str| {
        let class = plan.steps.iter().find_map(|s| match &s.action {
            Action::Relabel { fd: of, class, .. } if of == fd => Some(*class),
            _ => None,
        });
        let exclusive = plan.steps.iter().find_map(|s| match &s.action {
            Action::LockImage { fd: of, exclusive } if of == fd => Some(*exclusive),
            _ => None,
        });
        (class.unwrap(), exclusive.unwrap(), plan.fds.get(fd).unwrap().access)
    };
    assert_eq!(of("disk.d"), (ImageClass::Exclusive, true, FdAccess::ReadWrite));
    for fd in ["disk.d.1", "disk.d.2"] {
        assert_eq!(of(fd), (ImageClass::Content, false, FdAccess::ReadOnly));
    }
    let disk = &plan.vm.disks[0];
    let layers: Vec<_> = disk.backing.iter().map(|l| (l.fd.as_str(), l.format)).collect();
    assert_eq!(layers, [("disk.d.1", DiskFormat::Qcow2), ("disk.d.2", DiskFormat::Raw)]);
    // A read-only chain has no exclusive image at all.
    let plan =
        made(&CHAIN.replace("format = 'qcow2'\nbacking", "format = 'qcow2'\nread_only = true\nbacking"), &enforcing());
    assert!(!plan.steps.iter().any(|s| matches!(&s.action, Action::Relabel { class: ImageClass::Exclusive, .. })));
    assert!(!plan.steps.iter().any(|s| matches!(&s.action, Action::LockImage { exclusive: true, .. })));
}

#[test]
fn svirt_18_a_label_of_the_disks_own_is_the_tops_alone() {
    let labelled = CHAIN.replace("format = 'qcow2'\nbacking", "format = 'qcow2'\nlabel = 'u:r:t:s0'\nbacking");
    let kept = "selinux = { level = 's0:c1,c2' }\n".to_owned() + CHAIN;
    let kept = kept.replace("format = 'qcow2'\nbacking", "format = 'qcow2'\nrelabel = false\nbacking");
    let choices = |text: &str| -> Vec<bool> {
        let disks = |step: &Step| matches!(&step.action, Action::Relabel { fd, .. } if fd.starts_with("disk."));
        let plan = made(text, &enforcing());
        plan.steps
            .iter()
            .filter(|s| disks(s))
            .map(|s| matches!(&s.action, Action::Relabel { choice: crate::LabelChoice::OfClass, .. }))
            .collect()
    };
    assert_eq!(choices(CHAIN), [true, true, true]);
    assert_eq!(choices(&labelled), [false, true, true]);
    assert_eq!(choices(&kept), [false, false, false]);
}

#[test]
fn golden_plans() {
    insta::assert_snapshot!("svirt_18-chain-enforcing-v2", explain::text(&made(CHAIN, &enforcing())));
    insta::assert_snapshot!("agent-enforcing-v2", explain::text(&made(AGENT, &enforcing())));
    insta::assert_snapshot!("agent-hardened-v1", explain::text(&made(AGENT, &without_selinux())));
    insta::assert_snapshot!("bare-hardened-v1", explain::text(&made(BARE, &without_selinux())));
    let json = serde_json::to_string_pretty(&made(BARE, &enforcing())).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), made(BARE, &enforcing()));
    insta::assert_snapshot!("bare-enforcing-json", json);
}

#[test]
fn svirt_55_16_a_fixed_level_is_a_step_and_a_shared_one_a_warning() {
    let fixed = format!("{BARE}[selinux]\nlevel = 's0:c7,c9'\n");
    let plan = made(&fixed, &enforcing());
    let level = |plan: &Plan| {
        plan.steps.iter().find_map(|s| match &s.action {
            Action::LeaseLevel { level, shared } => Some((level.clone(), *shared)),
            _ => None,
        })
    };
    assert_eq!(level(&plan), Some(("s0:c7,c9".into(), false)));
    assert!(!plan.steps.iter().any(|s| s.action == Action::LeaseMcs), "one or the other");
    assert!(plan.check().is_ok() && plan.warnings.is_empty(), "{:?}", plan.warnings);

    let shared = made(&format!("{fixed}level_shared = true\n"), &enforcing());
    assert_eq!(level(&shared), Some(("s0:c7,c9".into(), true)));
    assert!(shared.warnings.iter().any(|w| w.text.contains("is shared")), "{:?}", shared.warnings);

    let refused = made(&fixed, &without_selinux()).check().unwrap_err().to_string();
    assert!(refused.contains("selinux.level") && refused.contains("cannot be honoured"), "{refused}");
}

#[test]
fn svirt_21_a_disks_own_word_comes_before_the_sandboxs_and_that_before_the_class() {
    let disk = |extra: &str, selinux: &str| {
        let text = format!(
            "{BARE}[selinux]\nlevel = 's0:c7,c9'\n{selinux}\n[[disks]]\nid = 'd'\npath = '/d'\nformat = 'raw'\n{extra}\n"
        );
        let plan = made(&text, &enforcing());
        assert!(plan.check().is_ok(), "{extra} {selinux}: {:?}", plan.blockers);
        let choice = |wanted: &str| {
            let of = |s: &Step| match &s.action {
                Action::Relabel { fd, choice, .. } if fd == wanted => Some(choice.clone()),
                _ => None,
            };
            plan.steps.iter().find_map(of).expect("a step for each object")
        };
        (choice("disk.d"), choice(names::KERNEL))
    };
    let keep = |field: &str| LabelChoice::Keep { field: field.into() };
    let label = "u:object_r:t:s0:c7,c9".to_owned();
    let given = LabelChoice::Given { label: label.clone(), field: "disks[0].label".into() };
    let labelled = format!("label = '{label}'");
    let of_class = LabelChoice::OfClass;
    for (extra, selinux, of_disk, of_kernel) in [
        ("", "", of_class.clone(), of_class.clone()),
        ("relabel = false", "", keep("disks[0].relabel"), of_class.clone()),
        (&labelled, "", given.clone(), of_class.clone()),
        (&labelled, "relabel = false", given, keep("selinux.relabel")),
        ("relabel = true", "relabel = false", of_class, keep("selinux.relabel")),
        ("", "relabel = false", keep("selinux.relabel"), keep("selinux.relabel")),
    ] {
        assert_eq!(disk(extra, selinux), (of_disk, of_kernel), "{extra} {selinux}");
    }
}

#[test]
fn svirt_21_a_label_is_refused_where_none_can_be_set() {
    let text = format!("{BARE}[[disks]]\nid = 'd'\npath = '/d'\nformat = 'raw'\nlabel = 'u:object_r:t:s0'\n");
    let refused = made(&text, &without_selinux()).check().unwrap_err().to_string();
    assert!(refused.contains("disks[0].label") && refused.contains("cannot be honoured"), "{refused}");
}

#[test]
fn svirt_05_another_family_is_used_and_said_aloud() {
    for asked in ["", "[selinux]\nprofile = 'svirt'\n"] {
        let plan = made(&format!("{AGENT}{asked}"), &with_family(svirt()));
        assert_eq!((plan.blockers.len(), plan.posture), (0, Posture::Enforced), "{:?}", plan.blockers);
        let text = explain::text(&plan);
        for said in
            ["SELinux profile svirt", "runner svirt_t", "svirt_image_t with the pair", "virt_content_t:s0", "fd use"]
        {
            assert!(text.contains(said), "{said} is not in {text}");
        }
    }
}

#[test]
fn svirt_05_54_a_family_that_does_not_fit_is_refused_with_reason_and_remedy() {
    let misfits = vec!["the policy does not grant (allow initrc_t svirt_t (process (transition)))".to_owned()];
    let facts = with_family(SelinuxFamily { misfits, asked: true, ..svirt() });
    // neither --allow-reduced nor a weaker family takes the place of what was asked for
    let asked = "allow_reduced = 'test'\n[selinux]\nprofile = 'svirt'\n";
    for spec in [format!("{AGENT}{asked}"), format!("{AGENT}[selinux]\nprofile = 'svirt'\n")] {
        let plan = made(&spec, &facts);
        assert_eq!(plan.posture, Posture::Reduced);
        let told = plan.blockers.join(" ");
        assert!(told.contains("(allow initrc_t svirt_t (process (transition)))"), "{told}");
        assert!(told.contains("casemate policy install"), "{told}");
    }
    let none = made(&format!("{AGENT}[selinux]\nprofile = 'container'\n"), &without_selinux());
    assert!(none.blockers.join(" ").contains("SELinux is off"), "{:?}", none.blockers);
}

fn found(code: &str) -> crate::facts::Shortcoming {
    crate::facts::Shortcoming { code: code.into(), text: format!("{code} is so"), remedy: format!("mend {code}") }
}

#[test]
fn svirt_51_what_the_policy_answered_is_told_and_never_enforced() {
    let mut facts = enforcing();
    facts.selinux.shortcomings = vec![found("no-levels"), found("selinuxtype")];
    let warnings = posture::warnings(&facts, &HostConfig::default());
    let told: Vec<&str> = warnings.iter().filter(|w| w.missing).map(|w| w.text.as_str()).collect();
    assert_eq!(told, ["no-levels is so", "selinuxtype is so"]);
    assert_eq!(posture::posture(&facts, &warnings), Posture::Reduced);
}

#[test]
fn svirt_40_a_transition_that_cannot_be_blocks_where_selinux_enforces_and_warns_where_not() {
    let spec = spec(AGENT);
    let mut facts = enforcing();
    facts.selinux.transition = vec![found("entrypoint")];
    let blocked = plan(&spec, &facts, &HostConfig::default()).blockers.join("; ");
    assert!(blocked.contains("entrypoint is so (mend entrypoint)"), "{blocked}");
    facts.selinux.mode = SelinuxMode::Permissive;
    let plan = plan(&spec, &facts, &HostConfig::default());
    assert!(!plan.blockers.iter().any(|b| b.starts_with("SELinux:")), "{:?}", plan.blockers);
    assert!(plan.warnings.iter().any(|w| w.text == "entrypoint is so"));
}

#[test]
fn svirt_51_a_host_disk_needs_its_boolean_by_name() {
    let mut facts = enforcing();
    let blockers = |path: &str, facts: &HostFacts| {
        let text =
            format!("bare = true\nvsock = false\nkernel = '/k'\n[[disks]]\nid = 'd'\npath = '{path}'\nformat = 'raw'");
        made(&text, facts).blockers.join("; ")
    };
    facts.selinux.booleans.insert("casemate_use_host_disks".into(), false);
    let told = blockers("/dev/sdb", &facts);
    assert!(told.contains("casemate_use_host_disks is off") && told.contains("setsebool"), "{told}");
    assert_eq!(blockers("/srv/d.img", &facts), "");
    facts.selinux.booleans.insert("casemate_use_host_disks".into(), true);
    assert_eq!(blockers("/dev/sdb", &facts), "");
}
