//! selftest and probe: on a whole host every layer is there; a layer that was "applied" and is not, is not said to be.

use std::process::{Command, Output};

use casemate_tests::guest;
use casemate_tests::jail::Host;
use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};

use crate::jailer::{check, name_of};

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(format!("selftest::{name}"), run);
    vec![
        trial("every_layer_is_there_and_denies_by_itself", whole),
        trial("a_layer_that_is_only_said_to_be_applied_is_not_there", weakened),
        trial("a_killed_selftest_is_cleared_by_the_next", killed),
        trial("each_landlock_right_is_denied_in_a_domain_like_a_live_runners", probed),
    ]
}

const LAYERS: [&str; 8] = ["landlock", "seccomp", "uid", "capabilities", "namespaces", "mounts", "rlimits", "cgroup"];

fn report(out: &Output) -> Result<Value, Failed> {
    serde_json::from_slice(&out.stdout).map_err(|e| {
        format!("{e}: {}; {}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)).into()
    })
}

fn standing<'a>(report: &'a Value, layer: &str) -> Option<&'a Value> {
    report["layers"].as_array()?.iter().find(|row| row["layer"] == layer)
}

fn whole() -> Result<(), Failed> {
    let host = Host::new()?;
    let report = report(&host.verb(&["selftest"])?)?;
    for layer in LAYERS {
        let row = standing(&report, layer).ok_or_else(|| format!("{layer} was not tested: {report:#}"))?;
        check(row["present"] == true && row["ok"] == true, format!("{layer}: {report:#}"))?;
        check(row["proven"].as_u64().unwrap_or_default() > 0, format!("{row:#}"))?;
    }
    let tested = |layer: &str, attempt: &str| {
        let rows = report["controls"].as_array().into_iter().flatten();
        rows.clone().any(|row| row["layer"] == layer && row["attempt"].as_str().is_some_and(|a| a.contains(attempt)))
    };
    for call in ["io_uring_setup", "mmap-executable", "a system call of i386", "x32-getpid"] {
        let unproven = report["unproven"].as_array().into_iter().flatten().any(|row| row["attempt"] == call);
        check(tested("seccomp", call) || unproven, format!("{call} was not tried: {report:#}"))?;
    }
    check(tested("landlock", "use fs.make_fifo") && tested("fds", "open in the jailer"), format!("{report:#}"))?;
    host.spotless()
}

/// The jailer with a kernel that pretends: every call succeeds, and the layer is not there.
fn pretending(host: &Host, calls: &str) -> Result<Output, Failed> {
    let pretend = Command::new(env!("CARGO_BIN_EXE_pretend"))
        .arg(calls)
        .arg(host.jailer())
        .arg("selftest")
        .args(host.dirs())
        .output()?;
    check(!String::from_utf8_lossy(&pretend.stderr).contains("pretend:"), String::from_utf8_lossy(&pretend.stderr))?;
    Ok(pretend)
}

fn weakened() -> Result<(), Failed> {
    // landlock_restrict_self; seccomp; setresuid; capset; prlimit64 and setrlimit; pivot_root
    let cases = [
        ("446", "landlock"),
        ("317", "seccomp"),
        ("117", "uid"),
        ("126", "capabilities"),
        ("302,160", "rlimits"),
        ("155", "mounts"),
    ];
    for (calls, layer) in cases {
        let host = Host::new()?;
        let report = report(&pretending(&host, calls)?)?;
        let row = standing(&report, layer).ok_or_else(|| format!("{layer}: {report:#}"))?;
        check(row["present"] == false && row["ok"] == false, format!("{layer} is said to be there: {report:#}"))?;
        // The others are, so it is this layer that was found out.
        let other = if layer == "namespaces" { "cgroup" } else { "namespaces" };
        let row = standing(&report, other).ok_or_else(|| format!("{other}: {report:#}"))?;
        check(row["present"] == true, format!("{other} beside {layer}: {report:#}"))?;
        host.spotless()?;
    }
    // And the control of this test: a filter that pretends nothing of importance changes nothing (9999 is no call).
    let host = Host::new()?;
    let report = report(&pretending(&host, "9999")?)?;
    check(
        LAYERS.iter().all(|layer| standing(&report, layer).is_some_and(|row| row["ok"] == true)),
        format!("{report:#}"),
    )
}

fn killed() -> Result<(), Failed> {
    let host = Host::new()?;
    let mut child = Command::new(host.jailer()).arg("selftest").args(host.dirs()).spawn()?;
    let mine = format!("selftest-{}-", child.id());
    let dirs = || -> Vec<String> {
        let entries = std::fs::read_dir(host.run_dir()).into_iter().flatten().flatten();
        entries
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with("selftest-"))
            .collect()
    };
    let until = std::time::Instant::now() + casemate_tests::jail::PATIENCE;
    while !dirs().iter().any(|name| name.starts_with(&mine)) {
        check(std::time::Instant::now() < until && child.try_wait()?.is_none(), "it made no directory")?;
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill()?;
    child.wait()?;
    check(!dirs().is_empty(), "nothing was left: the kill came too late")?;
    let next = host.verb(&["selftest"])?;
    check(
        next.status.success() && dirs().is_empty(),
        format!("{:?}: {}", dirs(), String::from_utf8_lossy(&next.stderr)),
    )?;
    // Its leases are a dead owner's: repair takes them.
    host.repair(&[])?;
    host.spotless()
}

fn probed() -> Result<(), Failed> {
    let host = Host::new()?;
    let spec = host.bare("probed", guest::pvh_elf(crate::matrix::asleep))?;
    let mut vm = host.start(&spec)?;
    let record = vm.started()?;
    let out = host.verb(&["probe", name_of(&spec)])?;
    let report = report(&out)?;
    check(report["uid"] == json!(record.uid) && report["landlock_abi"] == json!(record.landlock_abi), &report)?;
    let rights = report["rights"].as_array().cloned().unwrap_or_default();
    let handled = casemate_plan::landlock::handled(record.landlock_abi);
    let tried: Vec<&str> = rights.iter().filter_map(|row| row["right"].as_str()).collect();
    check(tried == handled, format!("{tried:?}"))?;
    for row in &rights {
        check(row["ok"] == true, format!("{row:#}"))?;
        check(row["alone"] == "EACCES" || row["alone"] == "EPERM" || row["alone"] == "EXDEV", format!("{row:#}"))?;
    }
    for layer in ["landlock", "seccomp", "uid", "capabilities", "namespaces", "mounts"] {
        check(standing(&report, layer).is_some_and(|row| row["present"] == true), format!("{layer}: {report:#}"))?;
    }
    check(report["domain"].as_str().is_some_and(|text| text.contains("lets nobody join")), "it says what it is not")?;
    // The audit takes it over: `audit vm --probe`.
    let mut command = Command::new(host.bin().join("casemate"));
    command.env("CASEMATE_RUN_DIR", host.run_dir()).env("CASEMATE_STATE_DIR", host.state_dir());
    let out = command.args(["--format", "json", "audit", "vm", name_of(&spec), "--probe"]).output()?;
    let audited: Value =
        serde_json::from_slice(&out.stdout).map_err(|e| format!("{e}: {}", String::from_utf8_lossy(&out.stderr)))?;
    let told = audited.to_string();
    check(told.contains("use fs.make_fifo") && told.contains("(with all layers"), &told)?;
    let none = host.verb(&["probe", "nobody-here"])?;
    check(!none.status.success(), "a probe of nobody")?;
    vm.kill()?;
    host.repair(&[])?;
    host.clean()
}
