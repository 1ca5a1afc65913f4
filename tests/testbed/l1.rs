//! The emulated host, through testbed/testbed.

use libtest_mimic::Failed;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

pub fn repo() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The instance: one of the tier's own, or that which CASEMATE_TESTBED names, for work on the tests.
fn named() -> Option<std::ffi::OsString> {
    std::env::var_os("CASEMATE_TESTBED")
}

/// Two runs of the tier do not share an instance: the first to end would take it away.
fn own_name() -> String {
    format!("tests-{}", std::process::id())
}

/// Brings L1 up, builds it first if need be, with the module of this checkout. An instance of the tier's own ends with
/// this process.
pub fn up() -> Result<(), String> {
    if !Path::new("/proc/self/uid_map").exists() || !is_root() {
        return Err("not root, and the testbed's image is built as root".into());
    }
    let pid = std::process::id().to_string();
    let verbs: &[&[&str]] = match named() {
        Some(_) => &[&["up"], &["policy"]],
        // The image is made with the module, so there is nothing to load.
        None => &[&["up", "--parent", &pid]],
    };
    for verb in verbs {
        let output = testbed(verb.iter().copied()).map_err(|e| format!("testbed {}: {e}", verb[0]))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("testbed {}: {}", verb[0], said.lines().last().unwrap_or("failed")));
        }
    }
    Ok(())
}

/// Powers off the tier's own L1.
pub fn down() {
    if named().is_none() && OTHERS_ARE_UP.lock().is_ok_and(|up| *up) {
        BESIDE_OTHERS.store(true, Ordering::Relaxed);
        if let Err(error) = testbed(["down"]) {
            eprintln!("testbed down: {error}");
        }
        BESIDE_OTHERS.store(false, Ordering::Relaxed);
        let _ = std::fs::remove_dir_all(repo().join(".cache/testbed/inst").join(own_name() + "-n"));
    }
    if named().is_none()
        && let Err(error) = testbed(["down"])
    {
        eprintln!("testbed down: {error}");
    }
    if named().is_none() {
        // Nobody looks for the logs of an instance that is named after a process.
        let _ = std::fs::remove_dir_all(repo().join(".cache/testbed/inst").join(own_name()));
    }
}

/// The trials run one after another: which L1 they talk to now.
static BESIDE_OTHERS: AtomicBool = AtomicBool::new(false);
static OTHERS_ARE_UP: Mutex<bool> = Mutex::new(false);
/// The variant with libvirt and podman, in an instance of its own beside the plain L1.
const VARIANT: &str = "neighbours";

/// True inside [`beside_others`].
pub fn is_beside_others() -> bool {
    BESIDE_OTHERS.load(Ordering::Relaxed)
}

/// Runs a trial in the L1 that has other managers of labels too, which is brought up for the first of them.
pub fn beside_others(run: impl FnOnce() -> Result<(), Failed>) -> Result<(), Failed> {
    let up = || -> Result<(), String> {
        let mut up = OTHERS_ARE_UP.lock().map_err(|e| e.to_string())?;
        if !*up {
            let pid = std::process::id().to_string();
            let options: &[&str] = if named().is_some() { &[] } else { &["--parent", &pid] };
            let output = testbed(["up", "--variant", VARIANT].into_iter().chain(options.iter().copied()));
            let output = output.map_err(|e| e.to_string())?;
            if !output.status.success() {
                return Err(String::from_utf8_lossy(&output.stderr).into_owned());
            }
            *up = true;
        }
        Ok(())
    };
    BESIDE_OTHERS.store(true, Ordering::Relaxed);
    let result = up().map_err(Failed::from).and_then(|()| run());
    BESIDE_OTHERS.store(false, Ordering::Relaxed);
    result
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

fn testbed<'a>(args: impl IntoIterator<Item = &'a str>) -> std::io::Result<Output> {
    let mut name = named().unwrap_or_else(|| own_name().into());
    if is_beside_others() {
        name.push("-n");
    }
    Command::new(repo().join("testbed/testbed")).args(args).env("CASEMATE_TESTBED", name).stdin(Stdio::null()).output()
}

/// Runs `script` in L1's shell, in `domain` if one is named. Output and status; an error if the tool itself failed.
pub fn sh(domain: Option<&str>, script: &str) -> Result<Output, String> {
    let mut args = vec!["exec", "--timeout", "300"];
    if let Some(d) = domain {
        args.extend(["-d", d]);
    }
    args.extend(["--", "sh", "-c", script]);
    testbed(args).map_err(|e| e.to_string())
}

/// Copies files of this machine to a directory of L1; labels come from L1's policy.
pub fn push(files: &[PathBuf], dir: &str) -> Result<(), String> {
    let names: Vec<&str> = files.iter().filter_map(|f| f.to_str()).collect();
    let output = testbed(["push"].into_iter().chain(names).chain([dir])).map_err(|e| e.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// Loads the module of this checkout, and these files beside it; without any, L1 is as `up` left it.
pub fn policy(beside: &[PathBuf]) -> Result<(), String> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(repo().join("policies"))
        .map_err(|e| e.to_string())?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "cil"))
        .collect();
    files.sort();
    files.extend_from_slice(beside);
    let names = files.iter().filter_map(|file| file.to_str());
    let output = testbed(["policy"].into_iter().chain(names)).map_err(|e| e.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// Compiles another policy here and puts it into L1's /root/policies: our modules and a rule, or the distribution's alone.
pub fn push_policy(name: &str, rule: Option<&str>) -> Result<(), String> {
    let dir = repo().join("target/testbed-policies");
    std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
    let extra = dir.join("casemate_trial.cil");
    std::fs::write(&extra, rule.unwrap_or("(type casemate_trial_t)\n")).map_err(|e| e.to_string())?;
    let mut files = vec![extra];
    if rule.is_some() {
        let ours = std::fs::read_dir(repo().join("policies")).map_err(|e| e.to_string())?;
        let ours = ours.filter_map(|entry| entry.ok().map(|e| e.path()));
        files.extend(ours.filter(|path| path.extension().is_some_and(|e| e == "cil")));
    }
    let names = files.iter().filter_map(|f| f.to_str());
    let output = testbed(["policy", "--check"].into_iter().chain(names)).map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let compiled = said.lines().find_map(|l| l.split_once("compiles: ")).map(|(_, path)| PathBuf::from(path.trim()));
    let Some(compiled) = compiled.filter(|_| output.status.success()) else { return Err(said) };
    let named = dir.join(name);
    std::fs::copy(&compiled, &named).map_err(|e| format!("{}: {e}", compiled.display()))?;
    push(&[named], "/root/policies/")
}

/// Copies a file of L1 to this machine.
pub fn pull(from: &str, to: &Path) -> Result<(), String> {
    let to = to.to_str().ok_or("a path that is not UTF-8")?;
    let output = testbed(["pull", from, to]).map_err(|e| e.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// What a trial that failed half-way has left.
const SWEEP: &str = "setenforce 1; casemate repair >/dev/null 2>&1
for name in $(casemate ps -aq | grep -E '^(cli|mj|mo)-'); do casemate rm -f $name; done; true";

/// What the client says of a guest that stood still before its agent spoke, or that died. A guest's triple fault is the
/// end of its kernel, never a denial that is missing.
const NO_BOOT: [&str; 2] = ["agent did not answer", "the guest's CPU shut down (triple fault)"];

/// Runs a trial, and once more if a guest of it did not boot, and for no other reason: about one guest in a hundred dies
/// early in its boot on the emulated CPU (README, known limits). It is printed. A second time is the trial's failure, and
/// so is every other failure, a missing denial above all.
pub fn patiently(run: fn() -> Result<(), Failed>) -> Result<(), Failed> {
    run().or_else(|first| {
        let why = first.message().unwrap_or_default().to_owned();
        if !NO_BOOT.iter().any(|said| why.contains(said)) {
            return Err(first);
        }
        eprintln!("a guest did not boot, tried again: {why}");
        sh(None, SWEEP)?;
        run()
    })
}
