use super::*;
use crate::SandboxSpec;

fn with(selinux: &str, disk: &str) -> Result<SandboxSpec, SpecError> {
    let text = format!(
        "bare = true\nkernel = '/k'\n[selinux]\n{selinux}\n[[disks]]\nid = 'd'\npath = '/d'\nformat = 'raw'\n{disk}\n"
    );
    SandboxSpec::try_from(toml::from_str::<SpecFile>(&text).unwrap())
}

#[test]
fn what_cannot_be_is_refused_with_its_field() {
    for (selinux, disk, field) in [
        ("level = ''", "", "selinux.level"),
        ("level = 's0:c1\\nx'", "", "selinux.level"),
        ("level = 'c1,c2'", "", "selinux.level"),
        ("level_shared = true", "", "selinux.level_shared"),
        ("relabel = false", "", "selinux.relabel"),
        ("", "relabel = false", "disks[0].relabel"),
        ("", "label = 'svirt_image_t'", "disks[0].label"),
        ("", "label = 'u:object_r:t:s0 x'", "disks[0].label"),
        ("", "label = 'u:object_r:t:s0'\nrelabel = false", "disks[0].label"),
    ] {
        let selinux = selinux.replace("\\n", " ");
        let error = with(&selinux, disk).expect_err(&selinux);
        assert_eq!(error.field_path(), field, "{selinux} {disk}: {error}");
    }
}

#[test]
fn a_demanded_posture_pauses_on_a_changed_policy() {
    let plain = with("", "").unwrap();
    assert_eq!(plain.selinux().on_policy_change, PolicyChange::Warn);
    let text = "bare = true\nkernel = '/k'\nrequire = 'enforced'\n";
    let spec = SandboxSpec::try_from(toml::from_str::<SpecFile>(text).unwrap()).unwrap();
    assert_eq!(spec.selinux().on_policy_change, PolicyChange::Pause);
    let said = with("on_policy_change = 'stop'\nlevel = 's0:c5,c6'\nrelabel = false\nprofile = 'svirt'", "").unwrap();
    assert_eq!(said.selinux().on_policy_change, PolicyChange::Stop);
    assert_eq!(said.selinux().profile, Some(SelinuxProfile::Svirt));
    assert!(!said.selinux().relabel);
}

#[test]
fn svirt_21_55_a_label_may_be_kept_where_it_can_fit() {
    for (selinux, disk) in [
        ("relabel = false", "read_only = true"),
        ("relabel = false", "shared = true"),
        ("relabel = false", "relabel = true"),
        ("relabel = false", "label = 'u:object_r:t:s0'"),
        ("relabel = false\nlevel = 's0:c5,c6'", ""),
        ("", "relabel = false\nread_only = true"),
        ("level = 's0:c5,c6'", "relabel = false"),
    ] {
        assert!(with(selinux, disk).is_ok(), "{selinux} {disk}");
    }
    let root = "command = ['true']\nroot = { image = '/r', fstype = 'ext4', writable = true }\n";
    let kept = format!("{root}[selinux]\nrelabel = false\n");
    let error = SandboxSpec::try_from(toml::from_str::<SpecFile>(&kept).unwrap()).expect_err("a leased pair");
    assert_eq!(error.field_path(), "selinux.relabel");
}
