//! Evidence of a jailed tiny guest: made here, verified in another directory by another user; forged, replayed, replaced.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use casemate_evidence::{Bundle, Chain, Evidence, PublicKey, canonical};
use casemate_tests::guest;
use casemate_tests::jail::{Host, Launch};
use casemate_tests::step::Steps;
use casemate_wire::control::Request;
use libtest_mimic::{Failed, Trial};

use crate::jailer::{check, name_of};

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(format!("evidence::{name}"), run);
    vec![
        trial("a_live_guests_evidence_verifies_elsewhere", elsewhere),
        trial("every_byte_of_a_real_bundle_counts", every_byte),
        trial("an_ended_guests_evidence_verifies", ended),
        trial("evidence_that_answers_another_question_fails", replayed),
        trial("a_replaced_kernel_is_noticed", replaced),
        trial("values_of_variables_stay_secret", secrets),
        trial("only_fresh_evidence_of_ours_is_sealed", refused),
        trial("sixteen_seals_at_once_make_one_chain", at_once),
        trial("a_seal_killed_after_any_system_call_leaves_a_whole_chain", killed),
    ]
}

/// A guest that spins, and a place far from its run directory.
struct Scene {
    host: Host,
    vm: Launch,
    name: String,
    away: tempfile::TempDir,
}

impl Scene {
    fn new() -> Result<Self, Failed> {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut serde_json::Value)) -> Result<Self, Failed> {
        let host = Host::new()?;
        let mut spec = host.bare("evidence", guest::pvh_elf(guest::spin))?;
        change(&mut spec);
        let name = name_of(&spec).to_owned();
        let mut vm = host.start(&spec)?;
        vm.started()?;
        let away = tempfile::tempdir()?;
        fs::set_permissions(away.path(), fs::Permissions::from_mode(0o755))?;
        Ok(Self { host, vm, name, away })
    }

    fn away(&self, file: &str) -> PathBuf {
        self.away.path().join(file)
    }

    /// `casemate evidence …` on the host.
    fn evidence(&self, args: &[&str]) -> Result<Output, Failed> {
        let mut command = Command::new(self.host.bin().join("casemate"));
        command.env("CASEMATE_RUN_DIR", self.host.run_dir()).env("CASEMATE_STATE_DIR", self.host.state_dir());
        Ok(command.arg("evidence").args(args).output()?)
    }

    /// The bundle, the key and the chain, all in the other place.
    fn make(&self, bundle: &str, options: &[&str]) -> Result<Vec<u8>, Failed> {
        let at = |file: &str| self.away(file).to_string_lossy().into_owned();
        done(self.evidence(&[&[self.name.as_str(), "-o", &at(bundle)], options].concat())?)?;
        for (verb, file) in [("key", "key.pem"), ("chain", "chain")] {
            let _ = fs::remove_file(self.away(file));
            done(self.evidence(&[verb, "-o", &at(file)])?)?;
            fs::set_permissions(self.away(file), fs::Permissions::from_mode(0o644))?;
        }
        fs::set_permissions(self.away(bundle), fs::Permissions::from_mode(0o644))?;
        Ok(fs::read(self.away(bundle))?)
    }

    /// As nobody, in the other place, with no run directory.
    fn verify(&self, args: &[&str]) -> Result<Output, Failed> {
        verify(self.host.bin(), self.away.path(), args)
    }

    fn end(mut self) -> Result<(), Failed> {
        self.vm.ask(&self.name, Request::Kill)?;
        self.vm.exited()?;
        self.host.clean()
    }
}

fn verify(bin: &Path, place: &Path, args: &[&str]) -> Result<Output, Failed> {
    // The programs may lie where nobody may look: a copy beside the bundle.
    let copy = place.join("casemate");
    if !copy.exists() {
        fs::copy(bin.join("casemate"), &copy)?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    }
    let mut command = Command::new(copy);
    command.env_clear().env("CASEMATE_RUN_DIR", "/nonexistent").current_dir(place).uid(65534).gid(65534);
    Ok(command.args(["evidence", "verify"]).args(args).output()?)
}

fn done(output: Output) -> Result<String, Failed> {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(said),
        false => Err(format!("{}\n{said}\n{}", output.status, String::from_utf8_lossy(&output.stderr)).into()),
    }
}

fn fails(output: Output, code: i32, why: &str) -> Result<(), Failed> {
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    check(
        output.status.code() == Some(code) && said.contains(why),
        format!("{}, not {code} with '{why}':\n{said}", output.status),
    )
}

fn elsewhere() -> Result<(), Failed> {
    let scene = Scene::new()?;
    scene.make("bundle", &["--nonce", "7f3a"])?;
    let kernel = scene.host.file(&format!("{}.elf", scene.name));
    fs::copy(kernel, scene.away("kernel"))?;
    let asked = [
        "bundle",
        "--key",
        "key.pem",
        "--chain",
        "chain",
        "--sandbox",
        &scene.name,
        "--nonce",
        "7f3a",
        "--kernel",
        "kernel",
    ];
    let said = done(scene.verify(&asked)?)?;
    for told in [
        "signed by the given key",
        "ok          the plan is what the planner makes",
        "ok          the bound descriptors are the plan's",
        "ok          each vCPU has a thread with its own filter",
        "ok          the runner has the planned descriptors, and nothing else",
        "ok          the rules find the same",
        "ok          kernel is kernel",
        "ok          its records are all there",
        "not checked that the host told the truth",
        "not checked the SELinux policy, which the bundle lacks",
    ] {
        check(
            said.contains(told) || casemate_sys::facts::selinux::selinux().is_some(),
            format!("'{told}' is not in\n{said}"),
        )?;
    }
    check(said.contains("answer every input as seccomp-filters say"), &said)?;
    // Without the key the bundle vouches for itself, which is no success.
    fails(scene.verify(&["bundle"])?, 5, "SELF-ASSERTED")?;
    fails(scene.verify(&["bundle", "--key", "key.pem", "--kernel", "chain"])?, 1, "FAILS       kernel is chain")?;
    // Nothing is overwritten.
    let again = scene.away("bundle").to_string_lossy().into_owned();
    fails(scene.evidence(&[&scene.name, "-o", &again])?, 125, "exists already")?;
    scene.end()
}

fn every_byte() -> Result<(), Failed> {
    let scene = Scene::new()?;
    let bundle = scene.make("bundle", &[])?;
    let key = PublicKey::from_pem(&fs::read_to_string(scene.away("key.pem"))?)?;
    Bundle::open(&bundle, Some(key))?;
    let tail = bundle.len() - 300;
    // The envelope's own bytes, each; of the payload, which is one signed text, a share.
    let payload = (16..tail).step_by((tail / 250).max(1));
    for at in (0..16).chain(payload).chain(tail..bundle.len()) {
        let mut forged = bundle.clone();
        forged[at] ^= 1 << (at % 8);
        check(Bundle::open(&forged, Some(key)).is_err(), format!("byte {at} of {} does not count", bundle.len()))?;
    }
    for at in [0, bundle.len() / 3, bundle.len() / 2, bundle.len() - 120, bundle.len() - 1] {
        let mut forged = bundle.clone();
        forged[at] ^= 1;
        fs::write(scene.away("forged"), &forged)?;
        fails(scene.verify(&["forged", "--key", "key.pem"])?, 1, "FAIL")?;
    }
    for (name, forged) in [("shorter", &bundle[..bundle.len() - 1]), ("longer", &[&bundle[..], b"\n"].concat())] {
        fs::write(scene.away(name), forged)?;
        fails(scene.verify(&[name, "--key", "key.pem"])?, 1, "FAIL")?;
    }
    scene.end()
}

fn ended() -> Result<(), Failed> {
    let mut scene = Scene::new()?;
    scene.vm.ask(&scene.name, Request::Kill)?;
    scene.vm.exited()?;
    scene.make("bundle", &[])?;
    let said = done(scene.verify(&["bundle", "--key", "key.pem", "--chain", "chain"])?)?;
    check(said.contains("ok          it has ended, and says how"), &said)?;
    check(said.contains("the plan is what the planner makes"), &said)?;
    scene.host.clean()?;
    let rm = scene.host.verb(&["rm", &scene.name])?;
    check(rm.status.success(), "rm failed")?;
    scene.host.spotless()
}

/// Old evidence for a new question: other name, nonce, boot, time, number; and the same bundle twice.
fn replayed() -> Result<(), Failed> {
    let scene = Scene::new()?;
    scene.make("one", &["--nonce", "first"])?;
    scene.make("two", &["--nonce", "second"])?;
    for (options, why) in [
        (&["--sandbox", "other"][..], "of the sandbox that was asked for"),
        (&["--nonce", "second"], "the nonce that was asked for"),
        (&["--boot-id", "another"], "the boot that was asked for"),
        (&["--not-before", "99999999999"], "sealed late enough"),
        (&["--after", "1"], "its number is later"),
    ] {
        fails(
            scene.verify(&[&["one", "--key", "key.pem"], options].concat())?,
            1,
            &format!("FAILS       {}", found(why)),
        )?;
    }
    done(scene.verify(&["two", "one", "--key", "key.pem"])?)?;
    fs::copy(scene.away("one"), scene.away("again"))?;
    fails(scene.verify(&["one", "again", "--key", "key.pem"])?, 1, "record 1 is given twice")?;
    scene.make("three", &[])?;
    fails(scene.verify(&["one", "three", "--key", "key.pem"])?, 1, "record 2 is missing")?;
    // A record that was taken out of the chain; and a chain of another host.
    let chain = fs::read_to_string(scene.away("chain"))?;
    let cut: Vec<&str> = chain.split_inclusive('\n').enumerate().filter(|(at, _)| *at != 2).map(|(_, l)| l).collect();
    fs::write(scene.away("cut"), cut.concat())?;
    fails(scene.verify(&["one", "--key", "key.pem", "--chain", "cut"])?, 1, "record 2 is missing")?;
    let other = Scene::new()?;
    other.make("theirs", &[])?;
    for file in ["theirs", "chain"] {
        fs::copy(other.away(file), scene.away(&format!("other-{file}")))?;
    }
    fails(scene.verify(&["one", "--key", "key.pem", "--chain", "other-chain"])?, 1, "it is signed by key")?;
    fails(scene.verify(&["other-theirs", "--key", "key.pem"])?, 1, "it is signed by key")?;
    other.end()?;
    scene.end()
}

/// The end of a check's name is enough to find it.
fn found(why: &str) -> String {
    let names = [
        "it is of the sandbox that was asked for",
        "it holds the nonce that was asked for",
        "it was sealed at the boot that was asked for",
        "it was sealed late enough",
        "its number is later",
    ];
    names.iter().find(|name| name.ends_with(why)).map_or_else(|| why.to_owned(), ToString::to_string)
}

/// The kernel is closed once it is loaded, the disk stays open: that one is digested as it is used, whatever has its name.
fn replaced() -> Result<(), Failed> {
    let disk = tempfile::NamedTempFile::new()?;
    fs::write(disk.path(), [7; 4096])?;
    let path = disk.path().to_owned();
    let scene = Scene::with(|spec| {
        spec["disks"] = serde_json::json!([{ "id": "data", "path": path, "format": "raw", "read_only": true }]);
    })?;
    scene.make("before", &[])?;
    let kernel = scene.host.file(&format!("{}.elf", scene.name));
    for (file, copy) in [(&kernel, "kernel"), (&path, "disk")] {
        fs::copy(file, scene.away(copy))?;
        fs::set_permissions(scene.away(copy), fs::Permissions::from_mode(0o644))?;
    }
    let ours = ["--key", "key.pem", "--kernel", "kernel", "--image", "disk.data=disk"];
    done(scene.verify(&[&["before"], &ours[..]].concat())?)?;
    for file in [&kernel, &path] {
        let new = file.with_extension("new");
        fs::write(&new, [8; 4096])?;
        fs::rename(new, file)?;
    }
    scene.make("bundle", &[])?;
    let verified = scene.verify(&[&["bundle"], &ours[..]].concat())?;
    let said = String::from_utf8_lossy(&verified.stdout).into_owned();
    check(said.contains("ok          disk.data is disk"), &said)?;
    check(said.contains("leads to another object than the one that the sandbox had open"), &said)?;
    fails(verified, 1, "leads to another file than the sandbox uses")?;
    scene.end()
}

fn secrets() -> Result<(), Failed> {
    let scene = Scene::new()?;
    let spec = scene.host.run_dir().join("vms").join(&scene.name).join("start.json");
    // A bare guest takes no environment: it is put where the jailer would have kept it.
    let mut kept: serde_json::Value = serde_json::from_slice(&fs::read(&spec)?)?;
    let text =
        kept["spec"].as_str().ok_or("no specification")?.replacen('{', r#"{"env":{"TOKEN":"hunter2-hunter2"},"#, 1);
    kept["spec"] = text.clone().into();
    fs::write(&spec, kept.to_string())?;
    for (how, digests) in [("digest", true), ("hide", false)] {
        let bundle = scene.make(how, &["--env", how])?;
        let evidence = Bundle::open(&bundle, None)?.statement.predicate.evidence;
        let told = serde_json::to_string(&evidence)?;
        check(!told.contains("hunter2"), "a secret is told")?;
        let spec = evidence.spec.taken().ok_or("no specification")?;
        check(spec.hidden.contains_key("TOKEN") && spec.digest.is_some() == digests, format!("{spec:?}"))?;
    }
    let shown = scene.make("show", &["--env", "show"])?;
    let shown = Bundle::open(&shown, None)?.statement.predicate.evidence;
    check(serde_json::to_string(&shown)?.contains("hunter2-hunter2"), "it was to be shown")?;
    fs::write(scene.away("spec.json"), &text)?;
    let told = scene.verify(&["digest", "--key", "key.pem", "--spec", "spec.json"])?;
    let said = String::from_utf8_lossy(&told.stdout).into_owned();
    check(said.contains("spec.json is what the jailer got, byte for byte"), &said)?;
    fs::write(scene.away("other.json"), text.replace("hunter2-", "hunter3-"))?;
    fails(scene.verify(&["digest", "--key", "key.pem", "--spec", "other.json"])?, 1, "TOKEN has another value")?;
    scene.end()
}

/// The evidence in a bundle, as it is handed to `seal`.
fn gathered(scene: &Scene) -> Result<Evidence, Failed> {
    let bundle = scene.make("gathered", &[])?;
    Ok(Bundle::open(&bundle, None)?.statement.predicate.evidence)
}

/// `casemate-jailer seal` with this file as its input.
fn seal(host: &Host, input: &Path) -> Result<Command, Failed> {
    let mut command = Command::new(host.jailer());
    command.arg("seal").args(host.dirs()).stdin(fs::File::open(input)?).stdout(Stdio::null()).stderr(Stdio::piped());
    Ok(command)
}

fn refused() -> Result<(), Failed> {
    let scene = Scene::new()?;
    let good = gathered(&scene)?;
    let input = scene.away("input");
    let try_it = |bytes: &[u8]| -> Result<Output, Failed> {
        fs::write(&input, bytes)?;
        Ok(seal(&scene.host, &input)?.output()?)
    };
    let with = |change: &dyn Fn(&mut Evidence)| -> Result<Vec<u8>, Failed> {
        let mut evidence = good.clone();
        change(&mut evidence);
        Ok(canonical::bytes("x", &evidence)?)
    };
    let text = String::from_utf8(with(&|_| ())?)?;
    check(try_it(text.as_bytes())?.status.success(), "good evidence is refused")?;
    for (bytes, why) in [
        (b"{}".to_vec(), "not of its form"),
        (Vec::new(), "not of its form"),
        (vec![b' '; casemate_evidence::MAX_EVIDENCE + 1], "larger than"),
        (text.replacen('{', "{ ", 1).into_bytes(), "one spelling"),
        (text.replacen('{', "{\"aaa\":1,", 1).into_bytes(), "unknown field"),
        (with(&|e| e.version = 2)?, "version"),
        (with(&|e| e.time -= 3600)?, "gather it anew"),
        (with(&|e| e.time += 3600)?, "gather it anew"),
        (with(&|e| e.sandbox = "other".into())?, "another sandbox"),
        (with(&|e| (e.sandbox, e.record.name) = ("../x".into(), "../x".into()))?, "sandbox"),
        (with(&|e| e.record.boot_id = "earlier".into())?, "another boot"),
    ] {
        fails(try_it(&bytes)?, 1, why)?;
    }
    let chain = Chain::parse(&exported(&scene)?, None)?;
    check(chain.problems().is_empty() && chain.records.len() == 2, "a refused one stands in the chain")?;
    scene.end()
}

fn exported(scene: &Scene) -> Result<Vec<u8>, Failed> {
    let output = scene.host.verb(&["chain"])?;
    let json: serde_json::Value = serde_json::from_str(&done(output)?)?;
    Ok(json["chain"].as_str().ok_or("no chain")?.as_bytes().to_vec())
}

fn at_once() -> Result<(), Failed> {
    let scene = Scene::new()?;
    let input = scene.away("input");
    let evidence = gathered(&scene)?;
    fs::write(&input, canonical::bytes("x", &evidence)?)?;
    let all = (0..16).map(|_| Ok(seal(&scene.host, &input)?.spawn()?)).collect::<Result<Vec<_>, Failed>>()?;
    for child in all {
        done(child.wait_with_output()?)?;
    }
    let chain = Chain::parse(&exported(&scene)?, None)?;
    check(chain.problems().is_empty() && chain.records.len() == 17, format!("{:?}", chain.problems()))?;
    scene.end()
}

fn killed() -> Result<(), Failed> {
    let scene = Scene::new()?;
    let input = scene.away("input");
    let evidence = gathered(&scene)?;
    fs::write(&input, canonical::bytes("x", &evidence)?)?;
    let (mut records, mut calls, mut whole, mut made) = (1, 0, 0, 0);
    // How many calls there are differs from one to the next: on until five came to their end, and kills were late enough for
    // three records to be made all the same.
    for _ in 0..1500 {
        let before = records;
        match killed_after(&scene, &input, calls, &mut records)? {
            true => whole += 1,
            false => made += records - before,
        }
        calls += 1;
        match (whole >= 5, made >= 3) {
            (true, true) => break,
            (true, false) => (whole, calls) = (0, calls.saturating_sub(30)),
            _ => {}
        }
    }
    check(whole >= 5 && made >= 3, format!("{made} records of killed seals, {calls} calls"))?;
    check(calls > 40, format!("{calls} calls are too few"))?;
    scene.end()
}

/// True if it came to its end before that.
fn killed_after(scene: &Scene, input: &Path, calls: u32, records: &mut usize) -> Result<bool, Failed> {
    let mut command = Command::new("sh");
    let script = "read go; input=$1; shift; exec \"$0\" \"$@\" <\"$input\"";
    command.args(["-c", script]).arg(scene.host.jailer()).arg(input).arg("seal").args(scene.host.dirs());
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let mut steps = Steps::follow(child.id(), child.stdin.take())?;
    let mut whole = false;
    for _ in 0..calls {
        if !steps.advance()? {
            whole = true;
            break;
        }
    }
    steps.let_die()?;
    child.kill()?;
    child.wait()?;
    let chain = Chain::parse(&exported(scene)?, None).map_err(|e| format!("after {calls} calls: {e}"))?;
    let now = chain.records.len();
    check(chain.problems().is_empty(), format!("after {calls} calls: {:?}", chain.problems()))?;
    check(now == *records || now == *records + 1, format!("after {calls} calls: {records} records, then {now}"))?;
    *records = now;
    Ok(whole)
}
