use super::*;

struct Host(tempfile::TempDir);

impl Host {
    fn new(files: &[(&str, &str)]) -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        for (path, text) in files {
            let path = host.0.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        host
    }

    fn files(&self) -> ContextFiles {
        ContextFiles::below(self.0.path())
    }
}

const CONFIG: (&str, &str) = ("etc/selinux/config", "# x\nSELINUX=enforcing\nSELINUXTYPE=default \n");
const DOMAIN: &str = "etc/selinux/default/contexts/virtual_domain_context";
const IMAGE: &str = "etc/selinux/default/contexts/virtual_image_context";
const LXC: &str = "etc/selinux/default/contexts/lxc_contexts";
const IMAGES: (&str, &str) = (IMAGE, "system_u:object_r:svirt_image_t:s0\nsystem_u:object_r:virt_content_t:s0\n");

#[test]
fn svirt_05_types_come_from_the_policys_own_lines() {
    let two = "system_u:system_r:svirt_t:s0\nsystem_u:system_r:svirt_tcg_t:s0\n";
    for (domain, named) in [("# libvirt\n\nsystem_u:system_r:svirt_t:s0", 3), (two, 4)] {
        let family = Host::new(&[CONFIG, IMAGES, (DOMAIN, domain)]).files().virt().unwrap();
        assert_eq!(family.process.type_(), "svirt_t");
        assert_eq!((family.image.type_(), family.content.type_()), ("svirt_image_t", "virt_content_t"));
        assert_eq!(family.named.len(), named, "the second line of an MLS policy's domain file is absent");
    }
    // another policy, other names: nothing is hard-wired
    let other = Host::new(&[
        ("etc/selinux/config", "SELINUXTYPE=mine\n"),
        ("etc/selinux/mine/contexts/virtual_domain_context", "u:r:mine_t:s0\n"),
        ("etc/selinux/mine/contexts/virtual_image_context", "u:object_r:disk_t:s0\nu:object_r:iso_t:s0\n"),
    ]);
    assert_eq!(other.files().virt().unwrap().process.type_(), "mine_t");
}

#[test]
fn svirt_01_contexts_with_three_and_with_four_fields_are_read() {
    let images = (IMAGE, "system_u:object_r:svirt_image_t\nsystem_u:object_r:virt_content_t\n");
    let family = Host::new(&[CONFIG, images, (DOMAIN, "system_u:system_r:svirt_t\n")]).files().virt().unwrap();
    assert!(family.process.range().is_none() && family.process.type_() == "svirt_t");
    let range = Host::new(&[CONFIG, IMAGES, (DOMAIN, "system_u:system_r:svirt_t:s0-s0:c0.c1023\n")]);
    assert!(range.files().virt().unwrap().process.range().is_some(), "colons and commas of the range are its own");
}

#[test]
fn svirt_04_06_what_is_not_a_context_is_an_error_with_its_line() {
    let long = format!("system_u:system_r:{}:s0", "a".repeat(5000));
    for (domain, line) in [
        ("svirt_t\n", ":1:"),
        ("\n\nsystem_u:system_r:svirt_t:s0 # x\n", ":3:"),
        ("system_u:system_r:svirt_t:SystemLow\n", ":1:"),
        ("system_u:system_r:svirt_t:s0\0\n", ":1:"),
        ("system_u:system_r:svirt_t:s0\nsystem_u:system_r:a_t:s0\nsystem_u:system_r:b_t:s0\n", ":3:"),
        (&long, ":1:"),
    ] {
        let error = Host::new(&[CONFIG, IMAGES, (DOMAIN, domain)]).files().virt().expect_err(domain).to_string();
        assert!(error.contains(line) && error.contains("virtual_domain_context"), "{error}");
    }
    let large = "#".repeat(usize::try_from(MAX_FILE).unwrap() + 1);
    let error = Host::new(&[CONFIG, IMAGES, (DOMAIN, &large)]).files().virt().unwrap_err();
    assert!(matches!(error, ContextsError::Large { .. }), "{error}");
}

#[test]
fn svirt_05_missing_files_and_lines_are_named() {
    for (files, wants) in [
        (&[][..], "etc/selinux/config does not exist"),
        (&[CONFIG], "virtual_domain_context does not exist"),
        (&[CONFIG, (DOMAIN, "u:r:svirt_t:s0")], "virtual_image_context does not exist"),
        (&[CONFIG, (DOMAIN, "# none\n"), IMAGES], "has no line"),
        (&[CONFIG, (DOMAIN, "u:r:svirt_t:s0"), (IMAGE, "u:object_r:svirt_image_t:s0\n")], "has no two lines"),
    ] {
        let error = Host::new(files).files().virt().expect_err(wants).to_string();
        assert!(error.contains(wants), "{error}");
    }
    for name in ["../../tmp", "", ".hidden", "a/b", "a b"] {
        let config = format!("SELINUXTYPE={name}\n");
        let error = Host::new(&[("etc/selinux/config", &config)]).files().directory().expect_err(name).to_string();
        assert!(error.contains("not the name of a policy"), "{error}");
    }
}

#[test]
fn svirt_05_container_types_come_from_their_keys() {
    let plain = "process = \"system_u:system_r:container_t:s0\"\ncontent = \"system_u:object_r:virt_var_lib_t:s0\"\n\
                 file = \"system_u:object_r:container_file_t:s0\"\nro_file=\"system_u:object_r:container_ro_file_t:s0\"\n";
    let family = Host::new(&[CONFIG, (LXC, plain)]).files().container().unwrap();
    assert_eq!(family.process.type_(), "container_kvm_t");
    assert!(family.assumed.unwrap().contains("names no kvm_process"));
    let full = format!("{plain}kvm_process = \"system_u:system_r:my_kvm_t:s0\"\n");
    let family = Host::new(&[CONFIG, (LXC, &full)]).files().container().unwrap();
    assert_eq!((family.process.type_(), family.assumed), ("my_kvm_t", None));
    assert_eq!((family.image.type_(), family.content.type_()), ("container_file_t", "container_ro_file_t"));
    // container-selinux' own file is what go-selinux reads first
    let theirs = full.replace("my_kvm_t", "their_kvm_t");
    let both = Host::new(&[CONFIG, (LXC, &full), ("usr/share/containers/selinux/contexts", &theirs)]);
    assert_eq!(both.files().container().unwrap().process.type_(), "their_kvm_t");
}

#[test]
fn svirt_04_05_bad_keys_are_refused() {
    for (text, wants) in [
        ("process system_u:system_r:container_t:s0\n", "not of the form"),
        ("Process = \"system_u:system_r:container_t:s0\"\n", "character outside"),
        ("process = \"system_u:system_r:container_t:s0\n", "open quote"),
        ("process = \"container_t\"\n", "not user:role:type"),
        ("file = \"u:object_r:a_t:s0\"\nfile = \"u:object_r:b_t:s0\"\n", "given before"),
        ("file = \"u:object_r:a_t:s0\"\n", "'ro_file'"),
        ("file = \"u:object_r:a_t:s0\"\nro_file = \"u:object_r:b_t:s0\"\n", "'kvm_process'"),
    ] {
        let error = Host::new(&[CONFIG, (LXC, text)]).files().container().expect_err(text).to_string();
        assert!(error.contains(wants), "{error}");
    }
}
