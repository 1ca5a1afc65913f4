//! `inspect`: one sandbox; each layer with what it allows, and what the attestations found of it.

use casemate_client::control::Control;
use casemate_client::sanitize;
use casemate_client::store::{self, Entry};
use casemate_plan::Layer;
use casemate_wire::record::{Finding, PolicyState, SandboxRecord};
use serde::Serialize;
use std::fmt::Write;

use crate::args::InspectArgs;
use crate::failure::{Failure, Result};
use crate::output::{Context, Tone, paint, seconds_since, size, span};
use crate::verbs::findings::{self, Line};
use crate::verbs::ps;

const LAYERS: [Layer; 10] = [
    Layer::Selinux,
    Layer::Landlock,
    Layer::Seccomp,
    Layer::Capabilities,
    Layer::Namespaces,
    Layer::Mounts,
    Layer::Uid,
    Layer::Cgroup,
    Layer::Rlimits,
    Layer::Fds,
];

#[derive(Serialize)]
struct Json<'a> {
    status: store::Status,
    attested_now: bool,
    /// In the kernel's log; null where it cannot be read.
    denials: Option<casemate_client::avc::Denials>,
    #[serde(flatten)]
    record: &'a SandboxRecord,
}

pub fn inspect(context: &Context, args: &InspectArgs) -> Result<()> {
    let mut failed = false;
    let mut told = Vec::new();
    for name in &args.names {
        let dir = store::open(&context.dirs, name)?;
        let mut entry = dir.entry()?;
        if args.attest {
            let findings = Control::connect(&dir)?.attest()?;
            failed |= findings.iter().any(|f| !f.ok);
            entry.record.findings = findings;
        }
        told.push(entry);
    }
    if context.json() {
        let rows: Vec<Json<'_>> = told
            .iter()
            .map(|e| Json {
                status: e.status,
                attested_now: args.attest,
                denials: ps::denials(&e.record),
                record: &e.record,
            })
            .collect();
        match rows.as_slice() {
            [one] => context.print_json(one)?,
            many => context.print_json(&many)?,
        }
    } else {
        let texts: Vec<String> = told.iter().map(|entry| text(entry, args.attest)).collect();
        context.print(&texts.join("\n"))?;
    }
    if failed {
        let remedy = "treat the sandbox as broken out: `casemate kill`, and keep its record";
        return Err(Failure::new("the attestation does not agree with the plan any more").remedy(remedy));
    }
    Ok(())
}

fn text(entry: &Entry, now: bool) -> String {
    let record = &entry.record;
    let mut out = String::new();
    let _ = writeln!(out, "{}", paint(&record.name, Tone::Head));
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(out, "  {key:<10} {value}");
    };
    let age = format!("started {} ago", span(seconds_since(record.created)));
    line("status", &format!("{}, {age}", paint(&ps::status_text(entry), ps::status_tone(entry.status))));
    if let Some(detail) = record.exit.as_ref().and_then(|report| report.detail.as_deref()) {
        line("", &sanitize::line(detail, 400));
    }
    line("posture", &paint(&ps::posture_text(record), ps::posture_tone(record.posture)));
    for text in record.selinux.iter().flat_map(policy) {
        line("policy", &text);
    }
    if let Some(reason) = &record.allow_reduced {
        line("accepted", &sanitize::line(reason, 200));
    }
    for warning in &record.warnings {
        line("warning", &paint(&sanitize::line(warning, 400), Tone::Weak));
    }
    if let Some(found) = ps::denials(record) {
        let let_through = match found.would_be_denied {
            0 => String::new(),
            n => paint(&format!(", {n} would be denied and were let through"), Tone::Bad),
        };
        line("denials", &format!("{} in the kernel's log{let_through}", found.denied));
    }
    line("command", &ps::command(record, 400));
    let cpus = if record.cpus == 1 { "1 vCPU".into() } else { format!("{} vCPUs", record.cpus) };
    line("machine", &format!("{cpus}, {} of memory", size(record.memory)));
    line("processes", &processes(entry));
    if let Some(label) = &record.label {
        line("label", &sanitize::line(label, 300));
    }
    for object in &record.labels {
        line("", &object_label(object));
    }
    layers(&mut out, record, now);
    out
}

/// The loaded policy: what it does now, what it did, what a change leads to.
fn policy(state: &PolicyState) -> Vec<String> {
    let ago = span(seconds_since(state.since));
    let mut lines = vec![if state.separates {
        let asked = format!("separates it, for {ago}; load {} ({} at its start)", state.seqno, state.seqno_at_start);
        format!("{asked}, on a change: {}", format!("{:?}", state.on_change).to_lowercase())
    } else {
        let text = format!("does not separate it, since {ago}: {}", sanitize::line(&state.why.join("; "), 600));
        paint(&text, Tone::Bad)
    }];
    if state.held {
        lines.push(
            "it is held: resumed when it separates again, or with `casemate resume --allow-reduced REASON`".into(),
        );
    }
    if let Some(reason) = &state.accepted {
        lines.push(format!("accepted: {}", sanitize::line(reason, 200)));
    }
    lines.extend(
        state.history.iter().map(|n| format!("{} ago: {}", span(seconds_since(n.at)), sanitize::line(&n.text, 600))),
    );
    lines
}

fn processes(entry: &Entry) -> String {
    let record = &entry.record;
    match record.runner {
        _ if !entry.status.is_alive() => format!("none any more; the runner had uid {}", record.uid),
        Some(runner) => format!("warden pid {}, runner pid {} with uid {}", record.warden.pid, runner.pid, record.uid),
        None => format!("warden pid {}", record.warden.pid),
    }
}

fn object_label(object: &casemate_wire::record::ObjectLabel) -> String {
    let shown = |label: &Option<String>| sanitize::line(label.as_deref().unwrap_or("-"), 200);
    let mut text = format!("{} {}: {}", object.fd, sanitize::line(&object.path, 200), shown(&object.before));
    if object.during != object.before {
        text.push_str(&format!(" -> {}", shown(&object.during)));
    }
    if object.after.is_some() && object.after != object.during {
        text.push_str(&format!(" -> {}", shown(&object.after)));
    }
    text
}

fn layers(out: &mut String, record: &SandboxRecord, now: bool) {
    let when = if now { "attested now" } else { "attested before the first guest instruction" };
    let _ = writeln!(out, "\n{} ({when})", paint("layers: what each allows", Tone::Head));
    for layer in LAYERS {
        let findings: Vec<&Finding> = record.findings.iter().filter(|f| f.layer == layer.to_string()).collect();
        let holds = findings.iter().all(|f| f.ok);
        let state = match (findings.is_empty(), holds) {
            _ if is_absent(layer, record) => paint("absent", Tone::Weak),
            (true, _) => paint("not attested", Tone::Weak),
            (false, true) => paint("holds", Tone::Good),
            (false, false) => paint("BROKEN", Tone::Bad),
        };
        let _ = writeln!(out, "  {:<13} {state}; allows {}", layer.to_string(), allows(layer, record));
        findings::lines(&findings).iter().for_each(|line| finding(out, line));
    }
    let named: Vec<String> = LAYERS.iter().map(ToString::to_string).collect();
    let others: Vec<&Finding> = record.findings.iter().filter(|f| !named.contains(&f.layer)).collect();
    if !others.is_empty() {
        let _ = writeln!(out, "  further");
        findings::lines(&others).iter().for_each(|line| finding(out, line));
    }
}

fn finding(out: &mut String, line: &Line<'_>) {
    let what = sanitize::line(&line.what(), 400);
    let seen = match sanitize::line(line.seen, 200) {
        seen if seen.is_empty() => "none".to_owned(),
        seen => seen,
    };
    let _ = if line.ok {
        writeln!(out, "      {} {what}: {seen}", paint("ok", Tone::Good))
    } else {
        let expected = sanitize::line(line.expected, 200);
        writeln!(out, "      {} {what}: {seen}, where the plan says {expected}", paint("NO", Tone::Bad))
    };
}

/// A layer that the host does not have; what was "found" of it is that.
fn is_absent(layer: Layer, record: &SandboxRecord) -> bool {
    match layer {
        Layer::Selinux => record.label.is_none(),
        Layer::Landlock => record.landlock_abi == 0,
        Layer::Cgroup => record.cgroups.is_empty(),
        _ => false,
    }
}

/// What code in the runner could still do, if this layer alone stood.
fn allows(layer: Layer, record: &SandboxRecord) -> String {
    match layer {
        Layer::Selinux => match (&record.label, &record.categories) {
            (Some(_), Some(pair)) if record.profile.as_deref().is_some_and(|p| p != "casemate") => {
                let profile = record.profile.as_deref().unwrap_or_default();
                format!(
                    "what the policy's own domain of profile {profile} may; of private images those of the pair {pair}"
                )
            }
            (Some(_), Some(pair)) => {
                format!("KVM and the inherited files; writes only to images of the pair {pair}, reads shared content")
            }
            _ => "everything: the host has no SELinux".into(),
        },
        Layer::Landlock if record.landlock_abi == 0 => "everything: the kernel has no Landlock".into(),
        Layer::Landlock => format!("no path at all{}", landlock_scope(record.landlock_abi)),
        Layer::Seccomp => "the system calls of the thread's list, with the arguments listed; any other kills".into(),
        Layer::Capabilities => "no privileged operation: all five sets are empty and locked".into(),
        Layer::Namespaces => {
            "the sight of its own processes only: no network, mount, IPC object or name of the host's".into()
        }
        Layer::Mounts => "an empty, read-only root".into(),
        Layer::Uid => format!("what uid {} may, which owns nothing and is nobody else's", record.uid),
        Layer::Cgroup => match record.cgroups.first() {
            Some(path) => format!("the memory, tasks and CPU of {}", sanitize::line(path, 200)),
            None => "any amount of resources: there is no cgroup".into(),
        },
        Layer::Rlimits => "no core dump, no locked memory, few descriptors and tasks".into(),
        Layer::Fds => "the descriptors of the plan, each checked for what it is".into(),
        Layer::None => String::new(),
    }
}

fn landlock_scope(abi: u32) -> &'static str {
    match abi {
        0..=3 => "",
        4 => ", no TCP",
        5 => ", no TCP, no device ioctl",
        _ => ", no TCP, no device ioctl, no signal or abstract socket outside",
    }
}
