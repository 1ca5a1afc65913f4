//! `doctor`: what this host offers, layer by layer, and what to do about what is missing.

use std::fmt::Write;
use std::path::Path;

use casemate_client::{dirs, jailer::Jailer};
use casemate_plan::{CgroupFacts, HostConfig, HostFacts, KvmFacts, Layer, SelinuxMode, posture};
use serde::Serialize;

use crate::failure::{Failure, OWN, Result};
use crate::output::{Context, Tone, paint};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Weaker,
    Missing,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

#[derive(Serialize)]
struct Report<'a> {
    posture: String,
    can_run: bool,
    checks: &'a [Check],
    facts: &'a HostFacts,
}

fn check(name: &'static str, state: State, found: impl Into<String>, remedy: Option<&str>) -> Check {
    Check { name, state, found: found.into(), remedy: remedy.map(str::to_owned) }
}

pub fn doctor(context: &Context) -> Result<u8> {
    let mut checks = programs();
    let answer = Jailer::locate(&context.dirs)?.ask(&["facts"], None)?;
    let facts: HostFacts = serde_json::from_value(answer.json).map_err(|e| {
        Failure::new(format!("the jailer's facts are not those that this program knows: {e}"))
            .remedy("install all of Casemate's programs from one build")
    })?;
    checks.push(privilege());
    checks.push(kvm(&facts));
    checks.extend(layers(&facts));
    checks.push(image_tools());
    checks.push(kernels(context));
    let warnings = posture::warnings(&facts, &HostConfig::default());
    let posture = posture::posture(&facts, &warnings).to_string();
    let can_run = checks.iter().all(|c| c.state != State::Missing);
    if context.json() {
        context.print_json(&Report { posture, can_run, checks: &checks, facts: &facts })?;
    } else {
        context.print(&text(&checks, &posture, can_run, &facts))?;
    }
    Ok(if can_run { 0 } else { OWN })
}

fn programs() -> Vec<Check> {
    let absent = |name: &&str| dirs::program(name).is_err();
    let remedy = "`make build`, or install them beside `casemate` or in /usr/libexec/casemate";
    let needed: Vec<&str> =
        ["casemate-jailer", "casemate-runner", "casemate-agent"].into_iter().filter(absent).collect();
    vec![if !needed.is_empty() {
        check("programs", State::Missing, format!("not found: {}", needed.join(", ")), Some(remedy))
    } else if absent(&"casemate-probe") {
        let found = "jailer, runner, agent; not casemate-probe, which `selftest` and `attack` need";
        check("programs", State::Weaker, found, Some(remedy))
    } else {
        check("programs", State::Ok, "jailer, runner, agent, probe", None)
    }]
}

fn privilege() -> Check {
    if rustix::process::geteuid().is_root() {
        check("privilege", State::Ok, "root", None)
    } else {
        check(
            "privilege",
            State::Weaker,
            "not root: some of the answers below are incomplete",
            Some("sudo casemate doctor"),
        )
    }
}

fn kvm(facts: &HostFacts) -> Check {
    match &facts.kvm {
        KvmFacts::Usable => check("kvm", State::Ok, "/dev/kvm answers", None),
        KvmFacts::Unusable(why) => check(
            "kvm",
            State::Missing,
            why.clone(),
            Some(
                "enable virtualization in the firmware (or nested virtualization in the host of this VM), load kvm_intel or kvm_amd; \
                  or use the testbed: `make testbed`",
            ),
        ),
    }
}

/// Per layer what the planner warns of, one line each, or what it found.
fn layers(facts: &HostFacts) -> Vec<Check> {
    let warnings = posture::warnings(facts, &HostConfig::default());
    let lines = |name: &'static str, layer: Layer, found: String| -> Vec<Check> {
        let told: Vec<Check> = warnings
            .iter()
            .filter(|w| w.layer == layer)
            .map(|w| {
                let state = if w.missing { State::Missing } else { State::Weaker };
                check(name, state, w.text.clone(), Some(&w.remedy))
            })
            .collect();
        if told.is_empty() { vec![check(name, State::Ok, found, None)] } else { told }
    };
    let mut all = lines("selinux", Layer::Selinux, selinux(facts));
    all.extend(lines("landlock", Layer::Landlock, format!("ABI {}", facts.landlock_abi)));
    all.extend(lines("seccomp", Layer::Seccomp, "filters are taken".into()));
    all.extend(lines("cgroup", Layer::Cgroup, cgroup(&facts.cgroup)));
    all.push(namespaces());
    all
}

/// What holds, and what an administrator may want to know of the policy beside it.
fn selinux(facts: &HostFacts) -> String {
    let facts = &facts.selinux;
    let mut found = match facts.mode {
        SelinuxMode::Disabled => return "disabled".into(),
        SelinuxMode::Permissive => "permissive".to_owned(),
        SelinuxMode::Enforcing => {
            let why = facts.family.as_ref().map_or("", |family| &family.why);
            let (profile, runner) = (facts.profile(), facts.runner());
            format!("enforcing, and {runner} is constrained by category; profile {profile}: {why}")
        }
    };
    if !facts.deny_unknown {
        found.push_str(
            "; the policy allows what it does not know (deny_unknown is 0): a newer kernel's new classes are open",
        );
    }
    for (name, on) in &facts.booleans {
        found.push_str(&format!("; {name} is {}", if *on { "on" } else { "off" }));
    }
    found
}

fn namespaces() -> Check {
    let absent = |kind: &&str| !Path::new("/proc/self/ns").join(kind).exists();
    let missing: Vec<&str> = ["mnt", "pid", "net", "ipc", "uts", "cgroup"].into_iter().filter(absent).collect();
    if missing.is_empty() {
        return check("namespaces", State::Ok, "mount, pid, net, ipc, uts, cgroup", None);
    }
    let found = format!("the kernel lacks: {}", missing.join(", "));
    check("namespaces", State::Missing, found, Some("boot a kernel with these namespaces"))
}

fn cgroup(facts: &CgroupFacts) -> String {
    match facts {
        CgroupFacts::V2 { mount, controllers } => format!("v2 at {}: {}", mount.display(), controllers.join(" ")),
        CgroupFacts::V1 { controllers } => {
            let names: Vec<&str> = controllers.keys().map(String::as_str).collect();
            format!("v1: {}", names.join(" "))
        }
        CgroupFacts::None => "none".into(),
    }
}

fn image_tools() -> Check {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<std::path::PathBuf> = std::env::split_paths(&path).collect();
    places.extend(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(Into::into));
    match places.iter().map(|dir| dir.join("mkfs.erofs")).find(|p| p.is_file()) {
        Some(found) => check("mkfs.erofs", State::Ok, found.display().to_string(), None),
        None => check(
            "mkfs.erofs",
            State::Weaker,
            "not installed: directories and archives cannot become root images",
            Some("apt-get install erofs-utils"),
        ),
    }
}

fn kernels(context: &Context) -> Check {
    let remedy = "`casemate kernel import PACKAGE.deb`, or `casemate kernel import --host`";
    // Looked at only: a doctor makes no directories.
    let directory: &Path = &context.dirs.state.join("kernels");
    if !directory.is_dir() {
        return check("guest kernel", State::Weaker, format!("none in {}", context.dirs.state.display()), Some(remedy));
    }
    match crate::resolve::open(context).and_then(|store| Ok(store.kernel(None)?)) {
        Ok(kernel) => check("guest kernel", State::Ok, format!("{} is the default", kernel.name()), None),
        Err(failure) => check("guest kernel", State::Weaker, failure.sentence(), Some(remedy)),
    }
}

/// What a reduced posture can do without.
fn is_layer(name: &str) -> bool {
    matches!(name, "selinux" | "landlock" | "seccomp" | "cgroup")
}

fn text(checks: &[Check], posture: &str, can_run: bool, facts: &HostFacts) -> String {
    let mut out = format!("host: Linux {}, {} CPUs\n\n", facts.kernel_release, facts.cpus);
    for Check { name, state, found, remedy } in checks {
        let (word, tone) = match state {
            State::Ok => ("ok", Tone::Good),
            State::Weaker => ("weaker", Tone::Weak),
            State::Missing => ("missing", Tone::Bad),
        };
        // Padded before it is painted: an escape sequence has no width.
        let _ = writeln!(out, "{name:<13} {} {found}", paint(&format!("{word:<8}"), tone));
        if let Some(remedy) = remedy {
            let _ = writeln!(out, "{:22} what to do: {remedy}", "");
        }
    }
    let verdict = if can_run {
        format!("a sandbox started here has the posture '{posture}'")
    } else if checks.iter().all(|c| c.state != State::Missing || is_layer(c.name)) {
        format!("the posture would be '{posture}': `casemate run` needs --allow-reduced REASON, or the above mended")
    } else {
        "no sandbox can be started here until what is missing is there".into()
    };
    let _ = writeln!(out, "\n{verdict}");
    out
}
