//! The attack matrix on a host without SELinux: every class of objects, denied by all layers, with what each does alone.

use std::fs;
use std::time::Duration;

use casemate_tests::guest;
use casemate_tests::jail::Host;
use casemate_wire::control::Request;
use iced_x86::code_asm::CodeAssembler;
use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};

use crate::jailer::{check, name_of};

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(format!("matrix::{name}"), run);
    vec![
        trial("svirt_13_every_class_of_object_is_out_of_reach_of_a_neighbour", matrix),
        trial("svirt_13_what_proves_nothing_is_refused", refused),
        trial("svirt_50_a_guest_that_writes_endlessly_fills_two_files_of_fixed_size", flood),
    ]
}

/// Waits for an interrupt that never comes: costs nothing.
pub fn asleep(a: &mut CodeAssembler) -> guest::Asm {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.hlt()?;
    a.jmp(again)
}

/// Classes that must not drop out of the matrix unseen: every host has them.
const CLASSES: [&str; 10] = [
    "regular file",
    "log",
    "directory",
    "FIFO",
    "Unix socket",
    "control channel",
    "memfd",
    "System V IPC",
    "process",
    "KVM, eventfd",
];

fn matrix() -> Result<(), Failed> {
    let host = Host::new()?;
    let mut running = Vec::new();
    for hint in ["mx-a", "mx-b"] {
        let mut spec = host.bare(hint, guest::pvh_elf(asleep))?;
        let disk = host.file(&format!("{hint}.raw"));
        fs::write(&disk, [7; 8192])?;
        spec["disks"] = json!([{ "id": "d", "path": disk, "format": "raw" }]);
        let mut vm = host.start(&spec)?;
        vm.started()?;
        running.push((name_of(&spec).to_owned(), vm));
    }
    let names: Vec<&str> = running.iter().map(|(name, _)| name.as_str()).collect();
    let out = host.verb(&["matrix", names[0], names[1]])?;
    check(out.status.success(), String::from_utf8_lossy(&out.stderr))?;
    let report: Value = serde_json::from_slice(&out.stdout)?;
    let rows = report["matrix"].as_array().cloned().unwrap_or_default();
    let bad: Vec<&Value> = rows.iter().filter(|row| row["ok"] != true).collect();
    check(bad.is_empty(), format!("{bad:#?}"))?;
    for class in CLASSES {
        check(rows.iter().any(|row| row["class"] == class), format!("nothing of {class} was tried: {report:#}"))?;
    }
    // The columns are apart: no single layer but seccomp holds all, and each holds something.
    for layer in ["landlock", "seccomp", "uid_and_caps", "namespaces"] {
        let denied = rows.iter().filter(|row| row["denied_by"].as_array().is_some_and(|by| by.contains(&json!(layer))));
        check(denied.count() > 5, format!("{layer} alone denies next to nothing"))?;
    }
    let alone = |layer: &str| rows.iter().any(|row| row[layer] == "allowed");
    check(alone("uid_and_caps") && alone("namespaces"), "a layer alone is said to hold everything")?;
    // The positive twins: without any layer each attempt works, but where the kernel itself forbids it.
    let open = rows.iter().filter(|row| row["open"] == "allowed").count();
    check(open + 2 >= rows.len(), format!("{open} of {} work without a layer", rows.len()))?;
    let inherited = report["skipped"].as_array().is_some_and(|all| {
        all.iter()
            .any(|row| row["why"].as_str().is_some_and(|why| why.contains("only SELinux looks at what is inherited")))
    });
    check(inherited || report["labels"].is_array(), "that nothing looks at inherited descriptors here is not said")?;
    check(fs::read(host.file("mx-b.raw"))? == [7; 8192], "the victim's disk was changed")?;
    for (name, vm) in &mut running {
        vm.ask(name, Request::Kill)?;
        vm.exited()?;
    }
    let left = fs::read_dir(host.run_dir())?.flatten().any(|e| e.file_name().to_string_lossy().starts_with("matrix-"));
    check(!left, "a scratch directory is left")?;
    host.clean()
}

fn refused() -> Result<(), Failed> {
    let host = Host::new()?;
    for (verb, why) in [
        (&["matrix", "nobody", "nobody"][..], "name two"),
        (&["matrix", "nobody", "no-one"], "nobody"),
        (&["selftest", "--twin", "x_t"], "--twin goes with matrix"),
        (&["try", "nobody"], "try from inside a sandbox"),
    ] {
        let out = host.verb(verb)?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        check(!out.status.success() && said.contains(why), format!("{verb:?}: {said}"))?;
    }
    host.clean()
}

/// Of a log of 64 KiB.
const HALF: u64 = 32 << 10;

fn flood() -> Result<(), Failed> {
    let host = Host::new()?;
    let mut spec = host.bare(
        "flood",
        guest::pvh_elf(|a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            guest::print(a, b"all work and no play makes jack a dull boy\n")?;
            a.jmp(again)
        }),
    )?;
    spec["limits"] = json!({ "log": "64K" });
    let name = name_of(&spec).to_owned();
    let mut vm = host.start(&spec)?;
    vm.started()?;
    let dir = host.run_dir().join("vms").join(&name);
    let sizes = || ["console-log.0", "console-log.1"].map(|file| fs::metadata(dir.join(file)).map_or(0, |m| m.len()));
    let mut most = [0, 0];
    for _ in 0..40 {
        std::thread::sleep(Duration::from_millis(100));
        let now = sizes();
        most = [most[0].max(now[0]), most[1].max(now[1])];
    }
    // Both were filled: it went round, and never over.
    check(most == [HALF, HALF], format!("{most:?} bytes, {HALF} each are allowed"))?;
    vm.ask(&name, Request::Kill)?;
    vm.exited()?;
    host.clean()
}
