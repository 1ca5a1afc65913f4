//! Options to specification: golden forms, and refusals that name option and remedy.

use super::*;
use clap::Parser;

use crate::args::{Cli, Command};

fn args(line: &[&str]) -> std::result::Result<SpecArgs, clap::Error> {
    let words = ["casemate", "plan"].iter().chain(line);
    match Cli::try_parse_from(words)?.command {
        Command::Plan(args) => Ok(args.spec),
        other => panic!("{other:?}"),
    }
}

fn spec(line: &[&str]) -> Result<SpecFile> {
    spec_file(&args(line).unwrap_or_else(|e| panic!("{e}")))
}

fn refused(line: &[&str]) -> Failure {
    match spec(line) {
        Ok(spec) => panic!("accepted: {spec:?}"),
        Err(failure) => failure,
    }
}

#[test]
fn every_option_reaches_its_field() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().canonicalize().unwrap();
    let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let root = format!("ext4:{},writable", at("root.img"));
    let disk = format!("id=data,path={},format=raw,shared,mount=/mnt,fstype=ext4", at("d.img"));
    let second = format!("id=ro,path={},format=raw,ro", at("e.img"));
    let line = [
        "--name",
        "web",
        "--root",
        &root,
        "--kernel",
        "6.12",
        "--initrd",
        &at("initrd"),
        "--cmdline",
        "debug",
        "--cpus",
        "2",
        "-m",
        "512M",
        "--disk",
        &disk,
        "--disk",
        &second,
        "--hostname",
        "h",
        "--on-reboot",
        "restart",
        "-e",
        "A=1=2",
        "-w",
        "/srv",
        "-u",
        "7:8",
        "-it",
        "--timeout",
        "5m",
        "--limit",
        "cpu=150%,pids=64",
        "--limit",
        "log=2M,memory-overhead=32M",
        "--require",
        "enforced",
        "--allow-reduced",
        "a test",
        "--",
        "sh",
        "-c",
        "echo --rm",
    ];
    let json = serde_json::to_string_pretty(&spec(&line).unwrap()).unwrap();
    insta::assert_snapshot!(json.replace(dir.to_str().unwrap(), "DIR"));
}

#[test]
fn options_override_a_specification_file() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("s.toml");
    std::fs::write(
        &file,
        "cpus = 4\nmemory = '128M'\ncommand = ['a']\nenv = { X = '1', Y = '2' }\nroot = { dir = '/' }",
    )
    .unwrap();
    let made = spec(&["--spec", file.to_str().unwrap(), "--cpus", "2", "-e", "Y=3", "b", "c"]).unwrap();
    assert_eq!((made.cpus, made.memory.as_deref()), (Some(2), Some("128M")));
    assert_eq!(made.command, ["b", "c"]);
    assert_eq!(made.env.0.into_iter().map(|(k, v)| k + &v).collect::<Vec<_>>(), ["X1", "Y3"]);
    let json = temp.path().join("s.json");
    std::fs::write(&json, r#"{"command":["x"],"root":{"dir":"/"}}"#).unwrap();
    assert_eq!(spec(&["--spec", json.to_str().unwrap()]).unwrap().command, ["x"]);
}

#[test]
fn a_root_is_named_or_cannot_be_mistaken() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().canonicalize().unwrap();
    for name in ["r.tar.zst", "r.img", "a,b"] {
        std::fs::write(dir.join(name), "").unwrap();
    }
    let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    assert_eq!(root(dir.to_str().unwrap()).unwrap().dir, Some(dir.to_str().unwrap().into()));
    assert_eq!(root(&at("r.tar.zst")).unwrap().tar, Some(at("r.tar.zst")));
    assert_eq!(root(&format!("tar:{}", at("r.img"))).unwrap().tar, Some(at("r.img")));
    for form in [format!("erofs:{}", at("r.img")), format!("{}:erofs", at("r.img"))] {
        let root = root(&form).unwrap();
        assert_eq!((root.image, root.fstype.as_deref()), (Some(at("r.img")), Some("erofs")), "{form}");
    }
    let overlay = root(&format!("dir:{},overlay=64M", at(""))).unwrap();
    assert_eq!(overlay.overlay.as_deref(), Some("64M"));
    assert_eq!(root(&format!("erofs:{}", at("a,b"))).unwrap().image, Some(at("a,b")));
    let guessed = root(&at("r.img")).unwrap_err();
    assert!(guessed.message.contains("not guessed") && guessed.remedy.unwrap().contains("erofs:"));
    for bad in ["", "dir:", ",writable", "/does/not/exist", "tar:/does/not/exist/x"] {
        assert!(root(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn the_last_part_of_a_path_stays_a_symlink() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().canonicalize().unwrap();
    std::fs::create_dir(dir.join("real")).unwrap();
    std::os::unix::fs::symlink("real", dir.join("way")).unwrap();
    std::os::unix::fs::symlink("x", dir.join("real/image")).unwrap();
    let path = dir.join("way/image");
    let resolved = absolute("--disk", path.to_str().unwrap()).unwrap();
    assert_eq!(Path::new(&resolved), dir.join("real/image"));
}

#[test]
fn refusals_name_the_option_and_the_remedy() {
    let root = ["--root", "dir:/"];
    for (line, said, remedy) in [
        (&["--disk", "id=a,path=/x"][..], "'format' is missing", "format=raw"),
        (&["--disk", "id=a,path=/x,format=vmdk"], "never guessed", "format=raw"),
        (&["--disk", "id=a,id=b,path=/x,format=raw"], "'id' is given twice", "write --disk"),
        (&["--disk", "id=a,path=/x,format=raw,wo"], "'wo' is not known", "write --disk"),
        (&["--disk", "id=,path=/x,format=raw"], "'id' needs a value", "write --disk"),
        (&["--disk", "id=a,path=/x,format=raw,ro=yes"], "'ro' takes no value", "write --disk"),
        (&["--disk", "id=a,path=/no/such/dir/x,format=raw"], "/no/such/dir", "exists"),
        (&["--limit", "cpu=1.5"], "per cent", "cpu=150%"),
        (&["--limit", "snacks=1"], "'snacks' is not known", "pids=64"),
        (&["--limit", "pids"], "KEY=VALUE", "pids=64"),
        (&["-e", "CASEMATE_TEST_UNSET"], "not set", "CASEMATE_TEST_UNSET=VALUE"),
        (&["--memory", "5X"], "'memory'", "512M"),
        (&["--cpus", "0"], "'cpus'", "1 to 64"),
        (&["--name", "A"], "'name'", "a-z"),
        (&["--timeout", "soon"], "'timeout'", "30s"),
        (&["--workdir", "x"], "'cwd'", "absolute"),
        (&["--allow-reduced", " "], "'allow_reduced'", "why"),
        (&["-d", "-i"], "'detach'", "interactive"),
        (&["--kernel", "/no/such/dir/k"], "/no/such/dir", "exists"),
        (&["--bare"], "'command'", "bare"),
    ] {
        let line: Vec<&str> = root.iter().chain(line).chain(&["--", "true"]).copied().collect();
        let failure = refused(&line);
        assert!(failure.sentence().contains(said), "{line:?}: {}", failure.sentence());
        assert!(failure.remedy.as_deref().unwrap_or_default().contains(remedy), "{line:?}: {:?}", failure.remedy);
    }
    assert!(refused(&["--root", "dir:/"]).message.contains("'command'"));
    assert!(refused(&["--", "true"]).remedy.unwrap().contains("--root"));
    assert!(refused(&["--spec", "/no/such/file"]).message.contains("/no/such/file"));
}

#[test]
fn unknown_options_and_postures_are_refused_by_the_grammar() {
    for line in [&["--requires", "x"][..], &["--require", "perfect"], &["--cpus", "many"], &["--on-reboot", "dance"]] {
        assert!(args(line).is_err(), "{line:?}");
    }
}

#[test]
fn the_grammar_holds() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn options_of_the_command_are_its_own() {
    for line in [&["--root", "dir:/", "ls", "--rm", "-it"][..], &["--root", "dir:/", "--", "ls", "--rm", "-it"]] {
        assert_eq!(spec(line).unwrap().command, ["ls", "--rm", "-it"]);
    }
}

#[test]
fn what_is_asked_of_selinux_reaches_its_field() {
    let disk =
        "id=d,path=/tmp/d.img,format=raw,label=system_u:object_r:casemate_image_t:s0:c5,c7.c9,mount=/m,fstype=ext4";
    let line = [
        "--bare",
        "--kernel",
        "/tmp/k",
        "--disk",
        disk,
        "--selinux-level",
        "s0:c5,c7.c9",
        "--selinux-level-shared",
        "--no-relabel",
    ];
    let mut line = line.to_vec();
    line.extend([
        "--selinux-profile",
        "svirt",
        "--on-policy-change",
        "stop",
        "--disk",
        "id=e,path=/tmp/e,format=raw,relabel=no",
    ]);
    let spec = spec(&line).unwrap();
    assert_eq!(spec.disks[0].label.as_deref(), Some("system_u:object_r:casemate_image_t:s0:c5,c7.c9"));
    assert_eq!(spec.disks[0].mount.as_deref(), Some("/m"));
    assert_eq!(spec.disks[1].relabel, Some(false));
    let selinux = spec.selinux.unwrap();
    assert_eq!(selinux.level.as_deref(), Some("s0:c5,c7.c9"));
    assert_eq!(selinux.profile, Some(SelinuxProfile::Svirt));
    assert_eq!(selinux.on_policy_change, Some(PolicyChange::Stop));
    assert!(selinux.level_shared && selinux.relabel == Some(false));
    let refusal = refused(&["--disk", "id=d,path=/tmp/d.img,format=raw,relabel=maybe"]);
    let said = format!("{refusal:?}");
    assert!(said.contains("relabel is yes or no"), "{said}");
    assert!(args(&["--selinux-level-shared"]).is_err() && args(&["--selinux-profile", "own"]).is_err());
}

#[test]
fn svirt_18_a_chain_is_given_or_left_to_be_found() {
    let disk = |text: &str| disk(text);
    let backing = |text: &str| disk(&format!("id=d,path=/x,format=qcow2{text}")).map(|d| d.backing);
    assert_eq!(backing("").unwrap(), None);
    assert_eq!(backing(",backing=auto").unwrap(), None);
    assert_eq!(backing(",backing=none").unwrap(), Some(vec![]));
    let layers = backing(",backing=/a.qcow2:qcow2,ro,backing=/b.img:raw").unwrap().unwrap();
    let layers: Vec<_> = layers.iter().map(|l| (l.path.as_str(), l.format)).collect();
    assert_eq!(layers, [("/a.qcow2", DiskFormat::Qcow2), ("/b.img", DiskFormat::Raw)]);
    for bad in [",backing=", ",backing=/a.img", ",backing=/a.img:vmdk"] {
        assert!(backing(bad).is_err(), "{bad}");
    }
    let root = root("ext4:/x,format=qcow2,backing=/a:qcow2,backing=/b:raw,writable").unwrap();
    assert_eq!((root.format, root.writable), (Some(DiskFormat::Qcow2), true));
    assert_eq!(root.backing.unwrap().iter().map(|l| l.path.as_str()).collect::<Vec<_>>(), ["/a", "/b"]);
}
