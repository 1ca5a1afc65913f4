//! Bad input to the jailer: each is refused with an error that names the object and what to do, and nothing is left.

use std::fs::{self, File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use casemate_sys::memfd;
use casemate_sys::rustix::fs::{CWD, FileType, Mode, mknodat};
use casemate_tests::guest;
use casemate_tests::jail::Host;
use casemate_wire::control::Request;
use casemate_wire::jailer::Failure;
use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};

use crate::jailer::{check, name_of};

type Test = fn() -> Result<(), Failed>;

pub fn tests() -> Vec<Trial> {
    let all: [(&str, Test); 17] = [
        ("specifications_that_are_none", specifications),
        ("fields_that_are_unknown_or_impossible", fields),
        ("a_specification_that_is_not_sealed", unsealed),
        ("a_specification_that_is_huge", huge),
        ("no_descriptors", no_descriptors),
        ("a_name_in_use", name_in_use),
        ("two_runs_with_one_name_at_once", race_for_a_name),
        ("images_that_are_none", images),
        ("an_image_behind_a_symlink", image_behind_symlink),
        ("an_image_with_two_names", hard_links),
        ("an_image_in_use", image_in_use),
        ("kernels_that_are_none", kernels),
        ("a_run_directory_open_to_others", open_run_dir),
        ("a_runner_that_others_can_write", writable_runner),
        ("no_runner", no_runner),
        ("a_host_without_dev_kvm", no_kvm),
        ("a_run_directory_that_is_full", full),
    ];
    let fallback = Path::new("/usr/libexec/casemate/casemate-runner").exists();
    if fallback {
        eprintln!("jailer_input::no_runner is skipped: an installed runner in /usr/libexec/casemate is found instead");
    }
    let trial = |(name, run): (&str, Test)| {
        Trial::test(format!("jailer_input::{name}"), run).with_ignored_flag(name == "no_runner" && fallback)
    };
    all.map(trial).into()
}

fn off(host: &Host) -> Result<Value, Failed> {
    host.bare("bad", guest::pvh_elf(guest::power_off))
}

/// The failure holds each of these words.
fn told(failure: &Failure, words: &[&str]) -> Result<(), Failed> {
    let text = format!("{}: {}", failure.step, failure.error);
    let missing: Vec<_> = words.iter().filter(|word| !text.contains(*word)).collect();
    check(missing.is_empty(), format!("{missing:?} are not in: {text}"))
}

fn specifications() -> Result<(), Failed> {
    let host = Host::new()?;
    let deep = "[".repeat(100_000);
    let nul = [0; 64];
    for bytes in [&b""[..], b"{", b"null", b"[]", b"\xff\xfe", b"{}", b"version = 1", deep.as_bytes(), &nul] {
        let failure = host.start_bytes(bytes)?.failure(&host)?;
        told(&failure, &["take the specification"])?;
        check(
            failure.error.len() > 20 && failure.error.len() < 2000,
            format!("{} bytes of error", failure.error.len()),
        )?;
    }
    host.spotless()
}

fn fields() -> Result<(), Failed> {
    let host = Host::new()?;
    let bad = |key: &str, value: Value, words: &[&str]| {
        let mut spec = off(&host)?;
        spec[key] = value;
        told(&host.refused(&spec)?, words).map_err(|e| format!("{key}: {}", e.message().unwrap_or_default()).into())
    };
    let disk = |path: &str| json!([{ "id": "d", "path": path, "format": "raw" }]);
    let all: Vec<Result<(), Failed>> = vec![
        bad("surprise", json!(1), &["surprise"]),
        bad("version", json!(2), &["version"]),
        bad("cpus", json!(0), &["cpus"]),
        bad("cpus", json!(10_000), &["cpus"]),
        bad("memory", json!("1"), &["memory"]),
        bad("memory", json!("1000000T"), &["memory"]),
        bad("name", json!("../../etc"), &["name"]),
        bad("name", json!("a".repeat(200)), &["name"]),
        bad("kernel", json!("relative/path"), &["kernel"]),
        bad("kernel", json!("/a/../../b"), &["kernel"]),
        bad("timeout", json!("yesterday"), &["timeout"]),
        bad("command", json!(["ls"]), &["command"]),
        bad("disks", disk("relative"), &["disks"]),
        bad("disks", json!([{ "id": "d", "path": "/d" }]), &["format"]),
        bad("require", json!("enforced"), &["enforced", "SELinux"]),
        bad("cmdline", json!("a\u{0}b"), &["cmdline"]),
    ];
    all.into_iter().collect::<Result<(), _>>()?;
    let repeated = br#"{"version":1,"bare":true,"bare":true,"kernel":"/k"}"#;
    told(&host.start_bytes(repeated)?.failure(&host)?, &["bare"])?;
    host.spotless()
}

/// Ends without a word on the socket: there is no client to trust before the specification is taken. Says why on stderr.
fn ends_with(host: &Host, spec: OwnedFd, words: &[&str]) -> Result<(), Failed> {
    let mut command = Command::new(host.jailer());
    command.stdin(Stdio::null());
    let mut launch = host.start_with(spec, command)?;
    let status = launch.wait()?;
    let said = launch.said();
    check(status.code() == Some(1), format!("{status}: {said}"))?;
    check(words.iter().all(|word| said.contains(word)), said)?;
    host.spotless()
}

fn unsealed() -> Result<(), Failed> {
    let host = Host::new()?;
    let text = off(&host)?.to_string();
    let fd = memfd::create("spec")?;
    casemate_sys::rustix::io::write(&fd, text.as_bytes())?;
    ends_with(&host, fd, &["not sealed"])?;
    let path = host.file("spec.json");
    fs::write(&path, text)?;
    ends_with(&host, File::open(&path)?.into(), &["specification"])?;
    let (reader, _writer) = std::io::pipe()?;
    ends_with(&host, reader.into(), &["specification"])
}

fn huge() -> Result<(), Failed> {
    let host = Host::new()?;
    ends_with(&host, memfd::sealed("spec", &vec![b' '; (1 << 20) + 1])?, &["1048577", "1048576"])
}

fn no_descriptors() -> Result<(), Failed> {
    let host = Host::new()?;
    let output = host.verb(&["run"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    check(output.status.code() == Some(1) && said.contains("casemate-jailer: "), said)?;
    host.spotless()
}

fn name_in_use() -> Result<(), Failed> {
    let host = Host::new()?;
    let spec = host.bare("used", guest::pvh_elf(guest::spin))?;
    let name = name_of(&spec);
    let mut vm = host.start(&spec)?;
    vm.started()?;
    let again = host.start(&spec)?;
    let mut again = again;
    let event = format!("{:?}", again.event()?);
    check(event.starts_with("Failed") && event.contains(name) && event.contains("in use"), event)?;
    again.wait()?;
    vm.ask(name, Request::Kill)?;
    vm.exited()?;
    // The record of the ended one still holds the name, and the remedy is told.
    told(&host.refused(&spec)?, &[name, "in use", "casemate rm"])?;
    check(host.files(name).contains(&"exit.json".into()), "a refused start took the record with it")?;
    host.verb(&["rm", name])?;
    host.spotless()
}

fn race_for_a_name() -> Result<(), Failed> {
    let host = Host::new()?;
    for _ in 0..10 {
        let spec = host.bare("race", guest::pvh_elf(guest::spin))?;
        let mut both = [host.start(&spec)?, host.start(&spec)?];
        let mut told = both.iter_mut().map(|vm| vm.event().map(|e| format!("{e:?}"))).collect::<Result<Vec<_>, _>>()?;
        told.sort();
        check(told[0].starts_with("Failed") && told[0].contains("in use"), format!("{told:?}"))?;
        check(told[1].starts_with("Started"), format!("{told:?}"))?;
        both[0].ask(name_of(&spec), Request::Kill)?;
        for vm in &mut both {
            vm.wait()?;
        }
        host.clean()?;
    }
    Ok(())
}

/// Refused with the image's path and these words.
fn bad_image(host: &Host, path: &Path, read_only: bool, words: &[&str]) -> Result<(), Failed> {
    let mut spec = off(host)?;
    spec["disks"] = json!([{ "id": "d", "path": path, "format": "raw", "read_only": read_only }]);
    let failure = host.refused(&spec)?;
    let path = path.display().to_string();
    told(&failure, &[&[path.as_str()][..], words].concat())
}

fn images() -> Result<(), Failed> {
    let host = Host::new()?;
    let make = |name: &str, kind: FileType| -> Result<PathBuf, Failed> {
        let path = host.file(name);
        mknodat(CWD, &path, kind, Mode::from_raw_mode(0o600), 0)?;
        Ok(path)
    };
    let empty = host.file("empty");
    File::create(&empty)?;
    let odd = host.file("odd");
    fs::write(&odd, [0; 1000])?;
    let directory = host.file("directory");
    fs::create_dir(&directory)?;
    let (fifo, socket) = (make("fifo", FileType::Fifo)?, make("socket", FileType::Socket)?);
    for read_only in [false, true] {
        bad_image(&host, &host.file("missing"), read_only, &["does not exist"])?;
        bad_image(&host, &host.file("missing/below"), read_only, &["does not exist"])?;
        bad_image(&host, &fifo, read_only, &["FIFO"])?;
        bad_image(&host, &socket, read_only, &[])?;
        bad_image(&host, &directory, read_only, &["directory"])?;
        bad_image(&host, &empty, read_only, &["empty"])?;
        bad_image(&host, Path::new("/dev/null"), read_only, &["character device"])?;
        bad_image(&host, Path::new("/proc/self/mem"), read_only, &[])?;
    }
    let mut spec = off(&host)?;
    spec["disks"] = json!([{ "id": "d", "path": odd, "format": "raw" }]);
    told(&host.refused(&spec)?, &["512", "pad it"])?;
    host.spotless()
}

fn image_behind_symlink() -> Result<(), Failed> {
    let host = Host::new()?;
    let place = host.file("place");
    fs::create_dir(&place)?;
    fs::write(place.join("image"), [0; 4096])?;
    symlink(place.join("image"), host.file("link"))?;
    symlink(&place, host.file("via"))?;
    for path in ["link", "via/image"] {
        bad_image(&host, &host.file(path), false, &["symbolic link", "real path"])?;
        let mut spec = off(&host)?;
        spec["kernel"] = json!(host.file(path));
        told(&host.refused(&spec)?, &[path, "symbolic link", "real path"])?;
    }
    host.spotless()
}

fn hard_links() -> Result<(), Failed> {
    let host = Host::new()?;
    let path = host.file("image");
    fs::write(&path, [0; 4096])?;
    fs::hard_link(&path, host.file("other"))?;
    bad_image(&host, &path, false, &["2 names", "copy it"])?;
    // Read-only, another name harms nobody.
    let mut spec = off(&host)?;
    spec["disks"] = json!([{ "id": "d", "path": path, "format": "raw", "read_only": true }]);
    let mut vm = host.start(&spec)?;
    vm.started()?;
    vm.exited()?;
    host.clean()
}

fn image_in_use() -> Result<(), Failed> {
    let host = Host::new()?;
    let path = host.file("image");
    fs::write(&path, [0; 4096])?;
    let with = |read_only: bool| -> Result<Value, Failed> {
        let mut spec = host.bare("image", guest::pvh_elf(guest::spin))?;
        spec["disks"] = json!([{ "id": "d", "path": path, "format": "raw", "read_only": read_only }]);
        Ok(spec)
    };
    // Two writers, a reader beside a writer, a writer beside a reader: refused. Two readers: both run.
    for (first, second, together) in
        [(false, false, false), (false, true, false), (true, false, false), (true, true, true)]
    {
        let (one, two) = (with(first)?, with(second)?);
        let mut vm = host.start(&one)?;
        vm.started()?;
        let mut other = host.start(&two)?;
        let event = format!("{:?}", other.event()?);
        let refused =
            event.starts_with("Failed") && event.contains("in use by another VM") && event.contains("/image:");
        check(refused != together, format!("read-only {first} beside {second}: {event:.300}"))?;
        if together {
            other.ask(name_of(&two), Request::Kill)?;
        }
        other.wait()?;
        vm.ask(name_of(&one), Request::Kill)?;
        vm.exited()?;
        host.clean()?;
    }
    Ok(())
}

fn kernels() -> Result<(), Failed> {
    let host = Host::new()?;
    let good = guest::pvh_elf(guest::power_off);
    let mut vast = good.clone();
    vast[64 + 32..64 + 48].fill(0x7f); // p_filesz and p_memsz of the first segment
    let mut far = good.clone();
    far[64 + 8..64 + 16].fill(0xff); // p_offset
    let mut many = good.clone();
    many[56..58].fill(0xff); // e_phnum
    let mut nowhere = good.clone();
    nowhere[64 + 24..64 + 32].fill(0xff); // p_paddr
    let mut bzimage = vec![0; 4096];
    bzimage[0x1fe..0x206].copy_from_slice(b"\x55\xaaHd\x20\x0cHd");
    bzimage[0x202..0x206].copy_from_slice(b"HdrS");
    let garbage: Vec<u8> = (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let all: [(&str, &[u8]); 10] = [
        ("empty", b""),
        ("garbage", &garbage),
        ("one byte", b"\x7f"),
        ("half a header", &good[..40]),
        ("truncated", &good[..good.len() - 1]),
        ("vast", &vast),
        ("far", &far),
        ("many", &many),
        ("nowhere", &nowhere),
        ("bzimage", &bzimage),
    ];
    for (what, bytes) in all {
        let failure = host.refused(&host.bare("kernel", bytes.to_vec())?)?;
        let text = format!("{}: {}", failure.step, failure.error);
        let clear = ["kernel", "give ", "empty"].iter().any(|word| text.contains(word)) && !text.contains("panic");
        check(clear && !text.contains("SIGSYS"), format!("{what}: {text}"))?;
    }
    let spec = off(&host)?;
    fs::remove_file(spec["kernel"].as_str().unwrap_or_default())?;
    told(&host.refused(&spec)?, &["does not exist"])?;
    host.spotless()
}

fn open_run_dir() -> Result<(), Failed> {
    let host = Host::new()?;
    for mode in [0o777, 0o750, 0o701] {
        fs::set_permissions(host.run_dir(), Permissions::from_mode(mode))?;
        let mut launch = host.start(&off(&host)?)?;
        let event = format!("{:?}", launch.event()?);
        launch.wait()?;
        // One that is root's own is tightened; what others could have written is refused.
        let now = fs::metadata(host.run_dir())?.permissions().mode() & 0o777;
        let refused = event.starts_with("Failed") && event.contains("0700");
        check(refused || now == 0o700, format!("mode {mode:o}, now {now:o}: {event:.300}"))?;
    }
    fs::remove_dir_all(host.run_dir())?;
    fs::write(host.run_dir(), "a file")?;
    let mut launch = host.start(&off(&host)?)?;
    let event = format!("{:?}", launch.event()?);
    check(event.starts_with("Failed") && event.contains("run"), event)?;
    launch.wait().map(drop)
}

/// A copy of the programs, so that one can be spoiled.
pub fn copied_programs() -> Result<tempfile::TempDir, Failed> {
    let (copy, host) = (tempfile::tempdir()?, Host::new()?);
    for name in ["casemate-jailer", "casemate-runner", "casemate-probe"] {
        fs::copy(host.bin().join(name), copy.path().join(name))?;
    }
    Ok(copy)
}

fn writable_runner() -> Result<(), Failed> {
    let bin = copied_programs()?;
    let runner = bin.path().join("casemate-runner");
    let host = Host::with_programs(bin.path().into())?;
    for mode in [0o775, 0o757, 0o777] {
        fs::set_permissions(&runner, Permissions::from_mode(mode))?;
        told(&host.refused(&off(&host)?)?, &["casemate-runner", "only root can write"])?;
    }
    fs::set_permissions(&runner, Permissions::from_mode(0o755))?;
    std::os::unix::fs::chown(&runner, Some(12345), None)?;
    told(&host.refused(&off(&host)?)?, &["casemate-runner", "file of root's"])?;
    fs::remove_file(&runner)?;
    symlink(host.jailer(), &runner)?;
    told(&host.refused(&off(&host)?)?, &["casemate-runner"])?;
    host.spotless()
}

fn no_runner() -> Result<(), Failed> {
    let bin = copied_programs()?;
    fs::remove_file(bin.path().join("casemate-runner"))?;
    let host = Host::with_programs(bin.path().into())?;
    told(&host.refused(&off(&host)?)?, &["casemate-runner", "/usr/libexec/casemate", "install"])?;
    host.spotless()
}

/// The jailer in a mount namespace whose /dev holds the null device only.
fn no_kvm() -> Result<(), Failed> {
    let host = Host::new()?;
    let script = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(host.jailer()).stdin(Stdio::null());
    let spec = off(&host)?;
    let launch = host.start_with(memfd::sealed("spec", spec.to_string().as_bytes())?, command)?;
    told(&launch.failure(&host)?, &["/dev/kvm", "kvm_intel"])?;
    host.spotless()
}

/// The run directory on file systems that hold less and less; each start ends or is refused with the reason.
fn full() -> Result<(), Failed> {
    let host = Host::new()?;
    let mut refused = 0;
    for inodes in 2..24 {
        let mount = format!("mount -t tmpfs -o mode=700,nr_inodes={inodes} none {}", host.run_dir().display());
        let mut command = Command::new("unshare");
        let script = format!("{mount} && exec \"$0\" \"$@\"");
        command.args(["--mount", "sh", "-c", &script]).arg(host.jailer()).stdin(Stdio::null());
        let spec = off(&host)?;
        let mut launch = host.start_with(memfd::sealed("spec", spec.to_string().as_bytes())?, command)?;
        let event = format!("{:?}", launch.event()?);
        check(
            event.starts_with("Started") || event.contains("No space left"),
            format!("{inodes} inodes: {event:.400}"),
        )?;
        refused += usize::from(event.starts_with("Failed"));
        launch.wait()?;
        check(host.cgroups().is_empty(), format!("{inodes} inodes: {:?} are left", host.cgroups()))?;
    }
    check(refused > 8 && refused < 22, format!("{refused} of 22 were refused"))
}
