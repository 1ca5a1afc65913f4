//! Crashes on a host that enforces, with real labels: SIGKILL after every line of the journal and along the system calls
//! of a whole life and of `repair`, and a reboot in between.
//!
//! The killer is `tests/src/bin/crash-driver.rs`, in L1, as an administrator; the jailer is the installed one in its
//! domain. Images lie on L1's disk, where both `security.selinux` and `trusted.casemate.owners` are kept.

use std::process::Command;
use std::sync::OnceLock;

use libtest_mimic::{Failed, Trial};

use crate::{cli, l1};

const DRIVER: &str = "/usr/local/bin/crash-driver";
/// System calls between two kills. With 1 in it (CASEMATE_EACH_CALL), every one: an hour.
const CALLS: usize = 409;
const REPAIR_CALLS: usize = 241;

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(name.to_owned(), run);
    vec![
        trial("svirt_12_34_37: SIGKILL after each odd line of the journal, of start and stop", || drive("lines 1")),
        trial("svirt_12_34_37: SIGKILL after each even line, detached", || drive("lines 2")),
        trial("svirt_34: SIGKILL along the system calls of start and stop", || drive(&calls("calls", CALLS))),
        trial("svirt_34: SIGKILL of repair, along its system calls", || drive(&calls("repair", REPAIR_CALLS))),
        trial("svirt_33_34: labels of a boot that is over are restored", || drive("reboot")),
    ]
}

fn calls(what: &str, stride: usize) -> String {
    let stride = if std::env::var_os("CASEMATE_EACH_CALL").is_some() { 1 } else { stride };
    format!("{what} {stride}")
}

fn installed() -> Result<(), Failed> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    let install = || {
        cli::script("true").map_err(|e| e.message().unwrap_or_default().to_owned())?;
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let build = ["build", "-q", "-p", "casemate-tests", "--bin", "crash-driver"];
        let output = Command::new(cargo).current_dir(l1::repo()).args(build).output().map_err(|e| e.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        l1::push(&[l1::repo().join("target/debug/crash-driver")], "/usr/local/bin/")
    };
    DONE.get_or_init(install).clone().map_err(Failed::from)
}

fn drive(what: &str) -> Result<(), Failed> {
    installed()?;
    let place = "/var/lib/casemate/crash";
    let script = format!(
        "mkdir -p {place}; restorecon -R {place}; \
         TMPDIR={place} CASEMATE_TEST_BIN=/usr/libexec/casemate {DRIVER} {what}; status=$?; rm -rf {place}; exit $status"
    );
    let output = l1::sh(None, &script)?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{}", told.trim_end());
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{told}{}", String::from_utf8_lossy(&output.stderr)).into())
    }
}
