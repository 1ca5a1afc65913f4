//! The label room and the SELinux module, on a host that enforces: facts from the loaded policy, leases, labels,
//! transitions, what a runner reaches and what not, and everything back as it was.
//!
//! The program that goes through it is `src/label/examples/enforcing.rs`; it is executed as the jailer, so that it is
//! in casemate_jailer_t, and starts `payload/runner.rs` in casemate_runner_t.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use libtest_mimic::{Failed, Trial};

use crate::l1;

/// Apart from /usr/libexec/casemate, where the real programs are.
const PLACE: &str = "/usr/local/libexec/casemate";

pub fn tests() -> Vec<Trial> {
    vec![
        Trial::test("label: module, leases, labels, transition and separation, for an administrator", || {
            acceptance(None)
        }),
        Trial::test("label: the same for a system service", || acceptance(Some("initrc_t"))),
        Trial::test("label: a permissive host never separates", permissive),
    ]
}

/// Builds both programs and puts them into L1, once.
fn installed() -> Result<(), Failed> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    DONE.get_or_init(|| {
        let target = l1::repo().join("target");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        run(Command::new(cargo).current_dir(l1::repo()).args([
            "build",
            "-q",
            "-p",
            "casemate-label",
            "--example",
            "enforcing",
        ]))?;
        let out = target.join("label-acceptance");
        std::fs::create_dir_all(&out).map_err(|e| e.to_string())?;
        let (jailer, runner) = (out.join("casemate-jailer"), out.join("casemate-runner"));
        std::fs::copy(target.join("debug/examples/enforcing"), &jailer).map_err(|e| e.to_string())?;
        // static: in casemate_runner_t not even the C library can be opened
        run(Command::new("rustc")
            .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols", "-o"])
            .arg(&runner)
            .arg(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testbed/payload/runner.rs")))?;
        l1::sh(None, &format!("mkdir -p {PLACE}"))?;
        l1::push(&[jailer, runner], &format!("{PLACE}/"))
    })
    .clone()
    .map_err(Failed::from)
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
    }
}

fn acceptance(domain: Option<&str>) -> Result<(), Failed> {
    installed()?;
    let prepare = "rm -rf /var/lib/acceptance; mkdir -p /var/lib/acceptance /run/casemate; cd /var/lib/acceptance; \
                   for f in a.raw b.raw kernel; do head -c 4096 /dev/zero > $f; done";
    l1::sh(None, prepare)?;
    let output = l1::sh(domain, &format!("exec {PLACE}/casemate-jailer {PLACE}/casemate-runner /var/lib/acceptance"))?;
    let told = String::from_utf8_lossy(&output.stdout);
    let passed = told.lines().filter(|l| l.starts_with("ok ")).count();
    if output.status.success() && passed >= 40 {
        return Ok(());
    }
    Err(format!("{passed} checks held\n{told}{}", String::from_utf8_lossy(&output.stderr)).into())
}

fn permissive() -> Result<(), Failed> {
    installed()?;
    // for a moment only, whatever happens: others may be working in this L1
    let script =
        format!("trap 'setenforce 1' EXIT; setenforce 0; {PLACE}/casemate-jailer {PLACE}/casemate-runner /nonexistent");
    let output = l1::sh(None, &script)?;
    let told = String::from_utf8_lossy(&output.stdout);
    let said = [r#""mode":"permissive""#, "FAILED facts: separates"].iter().all(|want| told.contains(want));
    if said { Ok(()) } else { Err(told.into_owned().into()) }
}
